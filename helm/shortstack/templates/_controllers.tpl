{{/* The account of a controller that calls the API server, and what it may do. (dict "root" ROOT "name" "component" "rules" YAML) */}}
{{- define "shortstack.controller.rights" -}}
{{- $root := .root -}}
{{- $full := include "shortstack.fullname" $root -}}
{{- $name := printf "%s-%s" $full .name -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  labels:
    {{- include "shortstack.labels" (list $root .name) | nindent 4 }}
  {{- include "shortstack.annotations" $root.Values.serviceAccount.annotations | nindent 2 }}
automountServiceAccountToken: false
{{- if $root.Values.rbac.create }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  labels:
    {{- include "shortstack.labels" (list $root .name) | nindent 4 }}
rules:
  {{- .rules | nindent 2 }}
  - apiGroups: [""]
    resources: [pods]
    verbs: [list]
  # What only events say of a pod that does not start.
  - apiGroups: [""]
    resources: [events]
    verbs: [list]
  - apiGroups: [""]
    resources: [configmaps]
    resourceNames: [{{ $full }}-owner]
    verbs: [get]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "shortstack.labels" (list $root .name) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end }}

{{/* One file of FULL-templates, as a volume and where it is mounted. (list ROOT "file") */}}
{{- define "shortstack.controller.volume" -}}
- name: template
  configMap:
    name: {{ include "shortstack.fullname" (index . 0) }}-templates
    items:
      - {key: {{ index . 1 }}, path: {{ index . 1 }}}
{{- end }}

{{- define "shortstack.controller.mount" -}}
- name: template
  mountPath: /etc/shortstack
  readOnly: true
{{- end }}
