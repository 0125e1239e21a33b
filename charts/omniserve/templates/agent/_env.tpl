{{/* Every variable that the chart sets for the agents; see `omniserve-agent node --help`. */}}
{{- define "omniserve.agent.env" -}}
- name: OMNISERVE_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OMNISERVE_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: OMNISERVE_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: OMNISERVE_TEMPLATE
  valueFrom: {fieldRef: {fieldPath: "metadata.labels['controller-revision-hash']"}}
- name: OMNISERVE_ADMIN_PORT
  value: "8081"
- name: OMNISERVE_CACHE_DIR
  value: /var/cache/omniserve
{{- with .Values.agent.cache.size }}
- name: OMNISERVE_CACHE_SIZE
  value: {{ . }}
{{- end }}
- name: OMNISERVE_DRAIN_GRACE
  value: {{ .Values.agent.drainGraceSeconds | quote }}
- name: OMNISERVE_POLICY
  value: {{ .Values.agent.policy }}
- name: OMNISERVE_ADMISSION
  value: {{ .Values.agent.admission | quote }}
{{- if .Values.agent.tls.secretName }}
- name: OMNISERVE_TLS_DIR
  value: /var/lib/omniserve/tls
{{- end }}
- name: OMNISERVE_LOG_FORMAT
  value: {{ .Values.agent.logFormat }}
- name: OMNISERVE_LOG_LEVEL
  value: {{ .Values.agent.logLevel }}
- name: TRITON_CACHE_DIR
  value: /var/cache/triton
- name: HOME  # read-only root: what libraries keep at home goes where it may
  value: /tmp
{{- end -}}
