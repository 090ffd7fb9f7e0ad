{{/* Rules of NetworkPolicies: all of a release's pods are denied both ways, and each is given what it needs. */}}

{{/* Names, from any resolver. */}}
{{- define "shortstack.egress.dns" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- end }}

{{/* To ports of one component. (list ROOT "component" PORT …) */}}
{{- define "shortstack.egress.to" -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "shortstack.selector" (list (index . 0) (index . 1)) | nindent 10 }}
  ports:
    {{- range slice . 2 }}
    - {protocol: TCP, port: {{ include "shortstack.number" . }}}
    {{- end }}
{{- end }}

{{/* From components to ports. (list ROOT (list "component" …) PORT …) */}}
{{- define "shortstack.ingress.from" -}}
{{- $root := index . 0 -}}
- from:
    {{- range index . 1 }}
    - podSelector:
        matchLabels:
          {{- include "shortstack.selector" (list $root .) | nindent 10 }}
    {{- end }}
  ports:
    {{- range slice . 2 }}
    - {protocol: TCP, port: {{ include "shortstack.number" . }}}
    {{- end }}
{{- end }}

{{- define "shortstack.egress.kafka" -}}
{{- if eq .Values.kafka.kind "embedded" -}}
{{ include "shortstack.egress.to" (list . "kafka" 9092) }}
{{- else -}}
{{- $ports := .Values.networkPolicy.kafka.ports -}}
{{- if not $ports -}}
{{- range splitList "," .Values.kafka.external.bootstrap -}}
{{- $ports = append $ports (trim . | splitList ":" | last | int) -}}
{{- end -}}
{{- end -}}
{{ include "shortstack.egress.peers" (dict "to" .Values.networkPolicy.kafka.to "ports" ($ports | uniq)) }}
{{- end -}}
{{- end }}

{{/* To S3; nothing where objects lie on a claim. */}}
{{- define "shortstack.egress.storage" -}}
{{- if eq .Values.storage.kind "s3" -}}
{{- $ports := .Values.networkPolicy.s3.ports -}}
{{- if not $ports -}}
{{- $address := urlParse (default "https://s3" .Values.storage.s3.endpointUrl) -}}
{{- $named := regexFind ":[0-9]+$" $address.host | trimPrefix ":" -}}
{{- $ports = list (default (ternary "80" "443" (eq $address.scheme "http")) $named | int) -}}
{{- end -}}
{{ include "shortstack.egress.peers" (dict "to" .Values.networkPolicy.s3.to "ports" $ports) }}
{{- end -}}
{{- end }}

{{/* To a database of one's own; nothing where it is a file on a claim. */}}
{{- define "shortstack.egress.database" -}}
{{- if .Values.gateway.database.existingSecret -}}
{{ include "shortstack.egress.peers" .Values.networkPolicy.database }}
{{- end -}}
{{- end }}

{{- define "shortstack.egress.apiServer" -}}
{{ include "shortstack.egress.peers" .Values.networkPolicy.apiServer }}
{{- end }}

{{/* (dict "to" PEERS "ports" PORTS); no peers is any address. */}}
{{- define "shortstack.egress.peers" -}}
- ports:
    {{- range .ports }}
    - {protocol: TCP, port: {{ include "shortstack.number" . }}}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Metrics, which hold no record's text, by whoever may scrape. (list ROOT PORT) */}}
{{- define "shortstack.ingress.metrics" -}}
{{ include "shortstack.ingress.scraped" (list (index . 0).Values.networkPolicy.metricsFrom (index . 1)) }}
{{- end }}

{{/* (list PEERS PORT); no peers is nobody. */}}
{{- define "shortstack.ingress.scraped" -}}
{{- with index . 0 }}
- from:
    {{- toYaml . | nindent 4 }}
  ports:
    - {protocol: TCP, port: {{ index $ 1 }}}
{{- end }}
{{- end }}

{{/*
The policy of one component. (dict "root" ROOT "name" "component" "ingress" RULES "egress" RULES), rules as YAML.
What a person adds stands under extraIngress and extraEgress of the component.
*/}}
{{- define "shortstack.networkPolicy" -}}
{{- $root := .root -}}
{{- if $root.Values.networkPolicy.enabled }}
{{- $own := default dict .own -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "shortstack.fullname" $root }}-{{ .name }}
  labels:
    {{- include "shortstack.labels" (list $root .name) | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "shortstack.selector" (list $root .name) | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- $ingress := trim (default "" .ingress) }}
  {{- with $own.extraIngress }}
  {{- $ingress = printf "%s\n%s" $ingress (toYaml .) | trim }}
  {{- end }}
  {{- if $ingress }}
  ingress:
    {{- $ingress | nindent 4 }}
  {{- end }}
  {{- $egress := trim (default "" .egress) }}
  {{- with $own.extraEgress }}
  {{- $egress = printf "%s\n%s" $egress (toYaml .) | trim }}
  {{- end }}
  {{- if $egress }}
  egress:
    {{- $egress | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}
