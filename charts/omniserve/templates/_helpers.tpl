{{/* The prefix of every name: the release's name, with the chart's where that does not contain it. */}}
{{- define "omniserve.fullname" -}}
{{- if contains "omniserve" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-omniserve" (.Release.Name | trunc 30 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* What selectors use and pod templates carry: no chart and no app version, which would change them. */}}
{{- define "omniserve.selectorLabels" -}}
app.kubernetes.io/name: omniserve
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "omniserve.labels" -}}
{{ include "omniserve.selectorLabels" . }}
app.kubernetes.io/part-of: omniserve
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* registry/repository@digest, or :tag where no digest is given. */}}
{{- define "omniserve.image" -}}
{{- $name := .image.repository -}}
{{- with .image.registry -}}{{- $name = printf "%s/%s" . $name -}}{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .defaultTag) -}}
{{- end -}}
{{- end -}}

{{- define "omniserve.operator.serviceAccount" -}}
{{- .Values.operator.serviceAccount.name | default (printf "%s-operator" (include "omniserve.fullname" .)) -}}
{{- end -}}

{{- define "omniserve.agent.serviceAccount" -}}
{{- .Values.agent.serviceAccount.name | default (printf "%s-agent" (include "omniserve.fullname" .)) -}}
{{- end -}}

{{- define "omniserve.operator.priorityClass" -}}
{{- if .Values.operator.priorityClassName -}}
{{- .Values.operator.priorityClassName -}}
{{- else if .Values.priorityClasses.create -}}
{{- printf "%s-operator" (include "omniserve.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "omniserve.agent.priorityClass" -}}
{{- if .Values.agent.priorityClassName -}}
{{- .Values.agent.priorityClassName -}}
{{- else if .Values.priorityClasses.create -}}
{{- printf "%s-agent" (include "omniserve.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* Both programs run as the images' user and pass the "restricted" pod security standard. */}}
{{- define "omniserve.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "omniserve.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "omniserve.testHook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* What no schema can say: pools with one name would be one DaemonSet. */}}
{{- define "omniserve.check" -}}
{{- $seen := list -}}
{{- range .Values.agentPools -}}
{{- if has .name $seen -}}
{{- fail (printf "agentPools: the name %q is used twice; give every pool a name of its own" .name) -}}
{{- end -}}
{{- $seen = append $seen .name -}}
{{- end -}}
{{- end -}}

{{/* The list .own with the user's entries .more behind it; a name twice is refused, .path names the value. */}}
{{- define "omniserve.env" -}}
{{- $entries := .own | fromYamlArray -}}
{{- range .more -}}
{{- $name := .name -}}
{{- range $entries -}}
{{- if eq .name $name -}}
{{- fail (printf "%s: %s is set already, by the chart or by another entry; remove it" $.path $name) -}}
{{- end -}}
{{- end -}}
{{- $entries = append $entries . -}}
{{- end -}}
{{- toYaml $entries -}}
{{- end -}}
