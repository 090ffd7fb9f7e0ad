{{/* The command line's environment, for the toolbox and for `helm test`. */}}
{{- define "shortstack.cli.env" -}}
{{ include "shortstack.cli.connection" . }}
{{ include "shortstack.kafka.env" . }}
{{- include "shortstack.storage.env" . }}
{{ include "shortstack.env.bases" . }}
{{- end }}

{{- define "shortstack.cli.connection" -}}
{{ include "shortstack.env.common" . }}
{{- include "shortstack.env.addresses" (list . "ingestion" "formatting" "assembly" "training" "serving") }}
- name: SHORTSTACK_GATEWAY_URL
  value: http://{{ include "shortstack.fullname" . }}-gateway:{{ include "shortstack.number" .Values.gateway.service.port }}
- name: SHORTSTACK_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "shortstack.key.secret" . }}, key: {{ .Values.gateway.key.secretKey }}}
{{- end }}

{{- define "shortstack.cli.mounts" -}}
- name: tmp
  mountPath: /tmp
- name: var
  mountPath: /var/lib/shortstack
{{- include "shortstack.storage.mount" . }}
{{- include "shortstack.kafka.mount" . }}
{{- end }}

{{- define "shortstack.cli.volumes" -}}
- name: tmp
  emptyDir: {}
- name: var
  emptyDir: {}
{{- include "shortstack.storage.volume" . }}
{{- include "shortstack.kafka.volume" . }}
{{- end }}

{{- define "shortstack.cli.egress" -}}
{{- $root := . -}}
{{ include "shortstack.egress.dns" . }}
{{- range list "ingestion" "formatting" "assembly" "training" "serving" }}
{{ include "shortstack.egress.to" (list $root . 50051 8081) }}
{{- end }}
{{ include "shortstack.egress.to" (list . "gateway" 8080) }}
{{- end }}
