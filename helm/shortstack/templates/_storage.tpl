{{/* Where objects lie: a claim mounted at /blobs, or S3. */}}

{{/* Not empty where all that mount the claim must run on one node. */}}
{{- define "shortstack.storage.oneNode" -}}
{{- if and (eq .Values.storage.kind "claim") (eq .Values.storage.claim.accessMode "ReadWriteOnce") }}yes{{ end -}}
{{- end }}

{{- define "shortstack.storage.claim" -}}
{{- default (printf "%s-blobs" (include "shortstack.fullname" .)) .Values.storage.claim.existingClaim -}}
{{- end }}

{{- define "shortstack.storage.env" -}}
{{- $s3 := .Values.storage.s3 -}}
{{- if eq .Values.storage.kind "claim" }}
- name: SHORTSTACK_STORAGE_URL
  value: file:///blobs
{{- else }}
- name: SHORTSTACK_STORAGE_URL
  value: {{ list "s3:/" $s3.bucket (trimAll "/" $s3.prefix) | compact | join "/" | quote }}
{{- with $s3.endpointUrl }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with $s3.region }}
- name: AWS_REGION
  value: {{ . | quote }}
{{- end }}
{{- if $s3.existingSecret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ $s3.existingSecret }}, key: {{ $s3.accessKeyIdKey }}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ $s3.existingSecret }}, key: {{ $s3.secretAccessKeyKey }}}
{{- end }}
{{- if $s3.caKey }}
- name: AWS_CA_BUNDLE
  value: /etc/s3-tls/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "shortstack.storage.volume" -}}
{{- if eq .Values.storage.kind "claim" }}
- name: blobs
  persistentVolumeClaim:
    claimName: {{ include "shortstack.storage.claim" . }}
{{- else if .Values.storage.s3.caKey }}
- name: s3-tls
  secret:
    secretName: {{ .Values.storage.s3.existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.storage.s3.caKey }}, path: ca.crt}
{{- end }}
{{- end }}

{{- define "shortstack.storage.mount" -}}
{{- if eq .Values.storage.kind "claim" }}
- name: blobs
  mountPath: /blobs
{{- else if .Values.storage.s3.caKey }}
- name: s3-tls
  mountPath: /etc/s3-tls
  readOnly: true
{{- end }}
{{- end }}
