{{/*
The Deployment of a service. Takes a dict:
  root, name   the release; the component, which is also its image and Python package
  one          true: never two at once (it owns a state topic, or a file database)
  bases        true: the base models' configuration and tokenizers in /bases, fetched before the start, as far as they are there
  kafka, blobs what it is connected to
  token        true: it calls the API server, by the service account FULL-NAME
  env, volumes, mounts   YAML of its own
  config       text that it reads from a ConfigMap: a change restarts it
*/}}
{{- define "shortstack.deployment" -}}
{{- $root := .root -}}
{{- $own := index $root.Values .name -}}
{{- $full := include "shortstack.fullname" $root -}}
{{- $grace := $own.shutdownGraceSeconds -}}
{{- $env := include "shortstack.workload.env" . -}}
{{- $image := include "shortstack.image" (list $root .name $own.image) -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $full }}-{{ .name }}
  labels:
    {{- include "shortstack.labels" (list $root .name) | nindent 4 }}
spec:
  replicas: {{ if .one }}1{{ else }}{{ include "shortstack.number" $own.replicas }}{{ end }}
  revisionHistoryLimit: 3
  {{- if .one }}
  # It writes what nobody else may write: the old pod goes before the new one comes.
  strategy:
    type: Recreate
  {{- end }}
  selector:
    matchLabels:
      {{- include "shortstack.selector" (list $root .name) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "shortstack.podLabels" (list $root .name .) | nindent 8 }}
        {{- with $own.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := deepCopy (default dict $own.podAnnotations) }}
      {{- with .config }}
      {{- $_ := set $annotations "checksum/config" (sha256sum .) }}
      {{- end }}
      {{- with $annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- $account := ternary (printf "%s-%s" $full .name) "" (default false .token) }}
      {{- include "shortstack.pod.head" (dict "root" $root "own" $own "account" $account "token" .token "blobs" .blobs "grace" (add $grace 15)) | nindent 6 }}
      {{- if .bases }}
      initContainers:
        {{- range $index, $base := $root.Values.baseModels }}
        - name: base-{{ $index }}
          image: {{ $image | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          terminationMessagePolicy: FallbackToLogsOnError
          command: [python, -m, shortstack.storage.weights, fetch-base, {{ $base.name | quote }}, "/bases/{{ $base.name }}", --no-weights, --wait-s, "600"{{ range $root.Values.baseModels }}{{ if ne .name $base.name }}, --unless, {{ .name | quote }}{{ end }}{{ end }}]
          env:
            {{- include "shortstack.env.common" $root | nindent 12 }}
            {{- include "shortstack.storage.env" $root | nindent 12 }}
          securityContext:
            {{- include "shortstack.container.security" $root | nindent 12 }}
          resources:
            {{- toYaml $own.resources | nindent 12 }}
          volumeMounts:
            - name: bases
              mountPath: /bases
            - name: tmp
              mountPath: /tmp
            {{- include "shortstack.storage.mount" $root | nindent 12 }}
        {{- end }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ $image | quote }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          terminationMessagePolicy: FallbackToLogsOnError
          env:
            {{- $env | nindent 12 }}
            {{- include "shortstack.env.own" (list (printf "%s.env" .name) $own.env $env) | nindent 12 }}
          ports:
            - name: http
              containerPort: {{ ternary 8080 8081 (eq .name "gateway") }}
            {{- if ne .name "gateway" }}
            - name: grpc
              containerPort: 50051
            {{- end }}
          {{- if and (eq .name "gateway") (not .one) }}
          lifecycle:
            preStop:
              # It refuses connections at SIGTERM; until then routes to it are gone, and others answer.
              exec:
                command: [sleep, "5"]
          {{- end }}
          {{- include "shortstack.probes" $root | nindent 10 }}
          securityContext:
            {{- include "shortstack.container.security" $root | nindent 12 }}
          resources:
            {{- toYaml $own.resources | nindent 12 }}
          volumeMounts:
            - name: tmp
              mountPath: /tmp
            - name: var
              mountPath: /var/lib/shortstack
            {{- if .bases }}
            - name: bases
              mountPath: /bases # one that is imported later is fetched while it runs
            {{- end }}
            {{- if .blobs }}
            {{- include "shortstack.storage.mount" $root | nindent 12 }}
            {{- end }}
            {{- if .kafka }}
            {{- include "shortstack.kafka.mount" $root | nindent 12 }}
            {{- end }}
            {{- with .mounts }}
            {{- . | nindent 12 }}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        - name: var
          emptyDir:
            sizeLimit: {{ $own.scratchSize }}
        {{- if .bases }}
        - name: bases
          emptyDir: {}
        {{- end }}
        {{- if .blobs }}
        {{- include "shortstack.storage.volume" $root | nindent 8 }}
        {{- end }}
        {{- if .kafka }}
        {{- include "shortstack.kafka.volume" $root | nindent 8 }}
        {{- end }}
        {{- with .volumes }}
        {{- . | nindent 8 }}
        {{- end }}
{{- end }}

{{- define "shortstack.workload.env" -}}
{{- $root := .root -}}
{{- $own := index $root.Values .name -}}
{{ include "shortstack.env.common" $root }}
- name: SHORTSTACK_HOST
  value: 0.0.0.0
- name: SHORTSTACK_HTTP_PORT
  value: {{ ternary "8080" "8081" (eq .name "gateway") | quote }}
{{- if ne .name "gateway" }}
- name: SHORTSTACK_GRPC_PORT
  value: "50051"
{{- end }}
- name: SHORTSTACK_SHUTDOWN_GRACE_S
  value: {{ include "shortstack.number" $own.shutdownGraceSeconds | quote }}
{{- if .kafka }}
{{ include "shortstack.kafka.env" $root }}
{{- end }}
{{- if .blobs }}
{{- include "shortstack.storage.env" $root }}
{{- end }}
{{- if or .bases .names }}
{{ include "shortstack.env.bases" $root }}
{{- if ne .name "serving" }}
{{ include "shortstack.env.aliases" $root }}
{{- end }}
{{- end }}
{{- with .env }}
{{ . | trim }}
{{- end }}
{{- end }}

{{/* The Service of a service that speaks gRPC. (list ROOT "component") */}}
{{- define "shortstack.service" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "shortstack.fullname" $root }}-{{ $name }}
  labels:
    {{- include "shortstack.labels" . | nindent 4 }}
spec:
  selector:
    {{- include "shortstack.selector" . | nindent 4 }}
  {{- if has $name (list "assembly" "training" "serving") }}
  # There is never another pod to ask: one that is not ready says itself what it waits for.
  publishNotReadyAddresses: true
  {{- end }}
  ports:
    - name: grpc
      port: 50051
      targetPort: grpc
      appProtocol: grpc
    - name: http
      port: 8081
      targetPort: http
{{- end }}
