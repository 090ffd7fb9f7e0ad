{{/* How pods reach Kafka: embedded without a password, external with what a secret holds. */}}

{{- define "shortstack.kafka.bootstrap" -}}
{{- if eq .Values.kafka.kind "embedded" -}}
{{- include "shortstack.fullname" . }}-kafka:9092
{{- else -}}
{{- .Values.kafka.external.bootstrap -}}
{{- end -}}
{{- end }}

{{/* The embedded broker as every namespace of the cluster resolves it, whatever the cluster's domain. */}}
{{- define "shortstack.kafka.address" -}}
{{- printf "%s-kafka.%s.svc:9092" (include "shortstack.fullname" .) .Release.Namespace -}}
{{- end }}

{{- define "shortstack.kafka.env" -}}
{{- $external := .Values.kafka.external -}}
- name: SHORTSTACK_KAFKA_BOOTSTRAP
  value: {{ include "shortstack.kafka.bootstrap" . | quote }}
- name: SHORTSTACK_KAFKA_REPLICATION
  value: {{ include "shortstack.number" .Values.kafka.replication | quote }}
- name: SHORTSTACK_KAFKA_BOOTSTRAP_TIMEOUT_S
  value: {{ include "shortstack.number" .Values.kafka.bootstrapTimeoutSeconds | quote }}
{{- if eq .Values.kafka.kind "external" }}
- name: SHORTSTACK_KAFKA_SECURITY_PROTOCOL
  value: {{ $external.securityProtocol }}
{{- if hasPrefix "SASL" $external.securityProtocol }}
- name: SHORTSTACK_KAFKA_SASL_MECHANISM
  value: {{ $external.saslMechanism }}
- name: SHORTSTACK_KAFKA_SASL_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ $external.secretKeys.username }}}
- name: SHORTSTACK_KAFKA_SASL_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ $external.existingSecret }}, key: {{ $external.secretKeys.password }}}
{{- end }}
{{- if include "shortstack.kafka.hasFiles" . }}
{{- with $external.secretKeys.ca }}
- name: SHORTSTACK_KAFKA_SSL_CAFILE
  value: /etc/kafka-tls/ca.crt
{{- end }}
{{- with $external.secretKeys.certificate }}
- name: SHORTSTACK_KAFKA_SSL_CERTFILE
  value: /etc/kafka-tls/tls.crt
- name: SHORTSTACK_KAFKA_SSL_KEYFILE
  value: /etc/kafka-tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Not empty where TLS material comes from a secret. */}}
{{- define "shortstack.kafka.hasFiles" -}}
{{- $external := .Values.kafka.external -}}
{{- $tls := and (eq .Values.kafka.kind "external") (has $external.securityProtocol (list "SSL" "SASL_SSL")) $external.existingSecret -}}
{{- if and $tls (or $external.secretKeys.ca $external.secretKeys.certificate) }}yes{{ end -}}
{{- end }}

{{- define "shortstack.kafka.volume" -}}
{{- if include "shortstack.kafka.hasFiles" . }}
{{- $keys := .Values.kafka.external.secretKeys }}
- name: kafka-tls
  secret:
    secretName: {{ .Values.kafka.external.existingSecret }}
    defaultMode: 0440
    items:
      {{- with $keys.ca }}
      - {key: {{ . }}, path: ca.crt}
      {{- end }}
      {{- with $keys.certificate }}
      - {key: {{ . }}, path: tls.crt}
      - {key: {{ $keys.privateKey }}, path: tls.key}
      {{- end }}
{{- end }}
{{- end }}

{{- define "shortstack.kafka.mount" -}}
{{- if include "shortstack.kafka.hasFiles" . }}
- name: kafka-tls
  mountPath: /etc/kafka-tls
  readOnly: true
{{- end }}
{{- end }}
