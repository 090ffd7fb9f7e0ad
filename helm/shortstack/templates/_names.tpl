{{/* Names and labels. Helpers that name a component take (list ROOT "component"). */}}

{{- define "shortstack.fullname" -}}
{{- $name := default "shortstack" .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/*
A value as text. Helm reads the numbers of a values file as floats, which would be written 5.36870912e+08; those that
are whole are written as such. Whatever is no number stays as it is.
*/}}
{{- define "shortstack.number" -}}
{{- if not (kindIs "float64" .) -}}
{{- . -}}
{{- else if eq . (floor .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end }}

{{/* What tells this chart's objects from those of another alias of it in the same parent: nameOverride, else the alias. */}}
{{- define "shortstack.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What a selector may hold: it can never change. */}}
{{- define "shortstack.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "shortstack.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Every pod of the release, those that controllers make too. */}}
{{- define "shortstack.selector.all" -}}
app.kubernetes.io/name: {{ include "shortstack.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "shortstack.labels" -}}
{{- $root := index . 0 -}}
{{ include "shortstack.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/*
Labels of a pod: its selector, and what says where it may go. Without the chart's version, so that a new chart
alone restarts nothing. (list ROOT "component" (dict "kafka" BOOL "blobs" BOOL "api" BOOL))
*/}}
{{- define "shortstack.podLabels" -}}
{{- $root := index . 0 -}}
{{- $uses := index . 2 -}}
{{ include "shortstack.selector" (list $root (index . 1)) }}
{{- if $uses.kafka }}
shortstack/kafka-client: "true"
{{- end }}
{{- if $uses.api }}
shortstack/api-client: "true"
{{- end }}
{{- if and $uses.blobs (include "shortstack.storage.oneNode" $root) }}
shortstack/blobs: {{ include "shortstack.fullname" $root }}
{{- end }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (list ROOT "image name" "override") → the image's full name. */}}
{{- define "shortstack.image" -}}
{{- $root := index . 0 -}}
{{- $override := index . 2 -}}
{{- if $override -}}
{{- $override -}}
{{- else -}}
{{- $global := default dict $root.Values.global -}}
{{- $registry := default $root.Values.image.registry $global.imageRegistry -}}
{{- $tag := default $root.Chart.AppVersion $root.Values.image.tag -}}
{{- list $registry $root.Values.image.prefix (printf "%s:%s" (index . 1) $tag) | compact | join "/" -}}
{{- end -}}
{{- end }}

{{/* The gateway's key: our own secret, or the one that is named. */}}
{{- define "shortstack.key.secret" -}}
{{- default (printf "%s-gateway-key" (include "shortstack.fullname" .)) .Values.gateway.key.existingSecret -}}
{{- end }}
