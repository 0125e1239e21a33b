{{/* Every variable that the chart sets for the operator; see `omniserve-operator run --help`. */}}
{{- define "omniserve.operator.env" -}}
- name: OMNISERVE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: OMNISERVE_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: OMNISERVE_PORT
  value: "8080"
- name: OMNISERVE_LEASE_NAME
  value: {{ .Values.operator.leaseName | quote }}
- name: OMNISERVE_DEFAULT_CLASSES
  value: {{ join "," .Values.tenancy.defaultClasses | quote }}
{{- if ne .Values.tenancy.defaultMaxReplicas nil }}
- name: OMNISERVE_DEFAULT_MAX_REPLICAS
  value: {{ .Values.tenancy.defaultMaxReplicas | quote }}
{{- end }}
{{- with .Values.watchNamespaces }}
- name: OMNISERVE_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- if .Values.autoscaler.protectNodes }}
- name: OMNISERVE_PROTECT_NODES
  value: "true"
{{- end }}
{{- if .Values.agent.tls.secretName }}
- name: OMNISERVE_TLS
  value: "true"
{{- end }}
- name: OMNISERVE_LOG_FORMAT
  value: {{ .Values.operator.logFormat }}
- name: OMNISERVE_LOG_LEVEL
  value: {{ .Values.operator.logLevel }}
{{- end -}}
