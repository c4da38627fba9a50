{{- define "fairway.name" -}}
{{ .Values.nameOverride | default .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}

{{- define "fairway.account" -}}
{{ .Values.serviceAccount.name | default (include "fairway.name" .) }}
{{- end }}

{{- define "fairway.selector" -}}
app.kubernetes.io/name: fairway
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fairway.labels" -}}
{{ include "fairway.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* What fairway.yaml says: our part, and then config. */ -}}
{{- define "fairway.config" -}}
{{- if not (or .Values.mesh.enabled .Values.plain.enabled) }}{{ fail "nothing would be taken in: leave mesh.enabled, or set plain.enabled" }}{{ end -}}
{{- $listen := dict "http" (ternary ":8080" "" .Values.plain.enabled) "hbone" (ternary ":15008" "" .Values.mesh.enabled) -}}
{{- $ours := dict "listen" $listen "timeouts" (dict "drain" (printf "%ds" (int .Values.drainSeconds))) -}}
{{- if .Values.mesh.enabled -}}
{{- $_ := set $ours "tls" (.Values.mesh.identity | default (dict "istio_ca" (dict "trust_domain" .Values.mesh.trustDomain))) -}}
{{- end -}}
{{ mergeOverwrite $ours (deepCopy .Values.config) | toYaml }}
{{- end }}

{{- define "fairway.fromIstio" -}}
{{- if and .Values.mesh.enabled (or (not .Values.mesh.identity) (hasKey .Values.mesh.identity "istio_ca")) }}true{{ end -}}
{{- end }}

{{- define "fairway.fromSPIRE" -}}
{{- if and .Values.mesh.enabled (hasKey .Values.mesh.identity "spiffe") }}true{{ end -}}
{{- end }}
