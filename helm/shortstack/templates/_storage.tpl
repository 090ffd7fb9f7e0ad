{{/* Where objects lie: a claim mounted at /blobs, or S3. */}}

{{/* Not empty where all that mount the claim must run on one node. */}}
{{- define "shortstack.storage.oneNode" -}}
{{- if and (eq .Values.storage.kind "claim") (eq .Values.storage.claim.accessMode "ReadWriteOnce") }}yes{{ end -}}
{{- end }}

{{- define "shortstack.storage.claim" -}}
{{- default (printf "%s-blobs" (include "shortstack.fullname" .)) .Values.storage.claim.existingClaim -}}
{{- end }}

{{/* The claim as it is in the cluster; empty where there is none, or none can be looked up. */}}
{{- define "shortstack.storage.modes" -}}
{{- $there := lookup "v1" "PersistentVolumeClaim" .Release.Namespace (include "shortstack.storage.claim" .) -}}
{{- if $there -}}
{{- join ", " $there.spec.accessModes -}}
{{- end -}}
{{- end }}

{{/* A claim's access modes never change: refused here by the value's name, and not only by the API server. A claim of
     yours stays as it is: it need only be mountable by several nodes where that is wanted, and is not looked up else. */}}
{{- define "shortstack.storage.unchanged" -}}
{{- $claim := .Values.storage.claim -}}
{{- $wanted := $claim.accessMode -}}
{{- if and (eq .Values.storage.kind "claim") (or (not $claim.existingClaim) (eq $wanted "ReadWriteMany")) -}}
{{- $modes := include "shortstack.storage.modes" . -}}
{{- if and $modes (not (has $wanted (splitList ", " $modes))) -}}
{{- fail (printf "storage.claim.accessMode: %s, but the claim %s is there already as %s, which cannot be changed; give it that, or move the objects to another claim: docs/operate.md, \"Moving the objects\"" $wanted (include "shortstack.storage.claim" .) $modes) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
Size of a claim: what is wanted, or what it has where that is more. A claim never shrinks, and one that was made larger
in the cluster would stop every upgrade that asks for its first size again. (list ROOT "claim" "size")
*/}}
{{- define "shortstack.storage.size" -}}
{{- $there := lookup "v1" "PersistentVolumeClaim" (index . 0).Release.Namespace (index . 1) | default dict -}}
{{- $wanted := index . 2 -}}
{{- $has := dig "spec" "resources" "requests" "storage" $wanted $there -}}
{{- ternary $has $wanted (gt (include "shortstack.storage.bytes" $has | float64) (include "shortstack.storage.bytes" $wanted | float64)) -}}
{{- end }}

{{/* A quantity as a number. */}}
{{- define "shortstack.storage.bytes" -}}
{{- $units := dict "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 0x1p10 "Mi" 0x1p20 "Gi" 0x1p30 "Ti" 0x1p40 "Pi" 0x1p50 "Ei" 0x1p60 -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" . -}}
{{- mulf $number (get $units (trimPrefix $number .) | default 1) -}}
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
