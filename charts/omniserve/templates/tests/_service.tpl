{{/* The LLMService that `helm test` makes: its name, where it is made, and the rights to it. */}}

{{- define "omniserve.test.service" -}}
{{- printf "%s-test-%d" (include "omniserve.fullname" .) .Release.Revision -}}
{{- end -}}

{{/* The release's namespace, or one where LLMServices are served at all. */}}
{{- define "omniserve.test.namespace" -}}
{{- if or (not .Values.watchNamespaces) (has .Release.Namespace .Values.watchNamespaces) -}}
{{- .Release.Namespace -}}
{{- else -}}
{{- first .Values.watchNamespaces -}}
{{- end -}}
{{- end -}}

{{- define "omniserve.test.serviceRules" -}}
- apiGroups: [omniserve.io]
  resources: [llmservices]
  verbs: [create]
- apiGroups: [omniserve.io]
  resources: [llmservices]
  resourceNames: [{{ include "omniserve.test.service" . }}]
  verbs: [get, delete]
{{- if eq .Values.tests.through "Endpoints" }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [list]
- apiGroups: [""]
  resources: [endpoints]
  resourceNames: [{{ include "omniserve.test.service" . }}]
  verbs: [get]
{{- end }}
{{- end -}}
