{{/* What the operator may do: its calls, one for one. tests/chart/test_rbac.py holds the same as a table. */}}

{{/* Cluster-scoped objects: always a ClusterRole. */}}
{{- define "omniserve.operator.clusterRules" -}}
- apiGroups: [omniserve.io]
  resources: [servingnodes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [nodes, namespaces]
  verbs: [list, watch]
{{- if .Values.autoscaler.protectNodes }}
- apiGroups: [""]
  resources: [nodes]
  verbs: [patch]
{{- end }}
{{- end -}}

{{/* What Kopf watches: in every namespace, or in those of watchNamespaces and the release's. */}}
{{- define "omniserve.operator.watchRules" -}}
- apiGroups: [omniserve.io]
  resources: [llmservices]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods, services, endpoints]
  verbs: [list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list, watch]
{{- end -}}

{{/* What it writes for LLMServices: in every namespace, or in those of watchNamespaces. */}}
{{- define "omniserve.operator.serviceRules" -}}
- apiGroups: [omniserve.io]
  resources: [llmservices/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [services, endpoints]
  verbs: [get, create, patch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, create, patch]
# Named by an LLMService, read one by one: neither listed nor watched.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* Agents' pods, mirrored keys and the Lease: the release's namespace alone. */}}
{{- define "omniserve.operator.releaseRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create]
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [omniserve-mirrored-secrets]
  verbs: [get, patch]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ .Values.operator.leaseName | quote }}]
  verbs: [get, update, patch]
{{- end -}}
