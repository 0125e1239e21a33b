{{/* What the operator may do, in three parts. tests/chart/test_rbac.py holds the same as a table. */}}

{{/* Cluster-scoped objects: always a ClusterRole. */}}
{{- define "omniserve.operator.clusterRules" -}}
- apiGroups: [omniserve.io]
  resources: [servingnodes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [nodes, namespaces]
  verbs: [get, list, watch]
- apiGroups: [apiextensions.k8s.io]
  resources: [customresourcedefinitions]
  verbs: [get, list, watch]
{{- end -}}

{{/* Services and what belongs to them: in every namespace, or in those of watchNamespaces. */}}
{{- define "omniserve.operator.serviceRules" -}}
- apiGroups: [omniserve.io]
  resources: [llmservices]
  verbs: [get, list, watch]
- apiGroups: [omniserve.io]
  resources: [llmservices/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [services, endpoints]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch, create, patch, delete]
# Named by an LLMService, read one by one: neither listed nor watched.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Agents' pods, mirrored keys and the Lease: the release's namespace alone. */}}
{{- define "omniserve.operator.releaseRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [apps]
  resources: [daemonsets, controllerrevisions]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [omniserve-operator]
  verbs: [get, update, patch]
{{- end -}}
