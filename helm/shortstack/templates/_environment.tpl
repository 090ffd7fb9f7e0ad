{{/* Environment variables that several pods share; docs/settings.md lists what each means. */}}

{{- define "shortstack.env.common" -}}
- name: SHORTSTACK_VAR
  value: /var/lib/shortstack
- name: SHORTSTACK_LOG_LEVEL
  value: {{ .Values.logging.level }}
- name: SHORTSTACK_LOG_FORMAT
  value: {{ .Values.logging.format }}
- name: TOKENIZERS_PARALLELISM
  value: "false"
- name: OMP_NUM_THREADS
  value: "1"
{{- end }}

{{- define "shortstack.env.bases" -}}
{{- $folders := list -}}
{{- range .Values.baseModels -}}
{{- $folders = append $folders (printf "%s:%s" (.name | toJson) (printf "/bases/%s" .name | toJson)) -}}
{{- end -}}
- name: SHORTSTACK_BASE_MODELS
  value: {{ printf "{%s}" ($folders | join ",") | squote }}
{{- end }}

{{- define "shortstack.env.aliases" -}}
- name: SHORTSTACK_MODEL_ALIASES
  value: {{ .Values.modelAliases | toJson | squote }}
{{- end }}

{{/* gRPC addresses. (list ROOT "service" …) */}}
{{- define "shortstack.env.addresses" -}}
{{- $full := include "shortstack.fullname" (index . 0) -}}
{{- range rest . }}
- name: SHORTSTACK_{{ upper . }}_ADDRESS
  value: {{ $full }}-{{ . }}:50051
{{- end }}
{{- end }}

{{/*
What a person sets for one component, after what the chart sets; a name that the chart sets already would come
twice, and which of them wins depends on the tool. (list "path of the value" MAP "what is set")
*/}}
{{- define "shortstack.env.own" -}}
{{- $where := index . 0 -}}
{{- $set := index . 2 -}}
{{- range $name, $value := index . 1 }}
{{- if regexMatch (printf "(?m)name: %s$" $name) $set }}
{{- fail (printf "%s.%s: the chart sets this variable itself, from another value" $where $name) }}
{{- end }}
- name: {{ $name | quote }}
  value: {{ include "shortstack.number" $value | quote }}
{{- end }}
{{- end }}
