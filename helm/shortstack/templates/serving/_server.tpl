{{/*
One model's server: a Deployment and its Service, whole but for what the rollout adds: names, owner, the label and
selector shortstack/server, MODEL_ID, and which weights to fetch. A server is named by the digest of this text and
of its weights, so nothing may stand here that changes without need.

TGI and the embedded server take the same environment, probes and template; only the image and what TGI alone must
have differ. Source of TGI's needs: its 3.3.7 sources and a running one.
*/}}
{{- define "shortstack.serving.server" -}}
{{- $own := .Values.serving.server -}}
{{- $tgi := eq $own.kind "tgi" -}}
{{- $image := include "shortstack.image" (list . (ternary "tgi" "inference" $tgi) $own.image) -}}
{{- $env := include "shortstack.serving.server.env" . -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: server
  labels:
    {{- include "shortstack.selector" (list . "server") | nindent 4 }}
    app.kubernetes.io/managed-by: shortstack
spec:
  replicas: {{ include "shortstack.number" $own.replicas }}
  revisionHistoryLimit: 0
  progressDeadlineSeconds: {{ add $own.startupSeconds 600 }}
  selector:
    matchLabels:
      {{- include "shortstack.selector" (list . "server") | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "shortstack.podLabels" (list . "server" (dict "blobs" true)) | nindent 8 }}
        app.kubernetes.io/managed-by: shortstack
        {{- with $own.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with include "shortstack.made.annotations" (list . $own "server") }}
      annotations:
        {{- . | nindent 8 }}
      {{- end }}
    spec:
      # After the pause before SIGTERM, requests under way have their whole time.
      {{- include "shortstack.pod.head" (dict "root" . "own" $own "blobs" true "grace" (add 10 $own.shutdownGraceSeconds 20)) | nindent 6 }}
      {{- with $own.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      initContainers:
        - name: weights
          image: {{ include "shortstack.image" (list . "serving" .Values.serving.image) | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          terminationMessagePolicy: FallbackToLogsOnError
          command: [python, -m, shortstack.storage.weights, fetch]
          env: # no level of logs and the like: a change of that would start every server anew
            {{- include "shortstack.storage.env" . | nindent 12 }}
          securityContext:
            {{- include "shortstack.container.security" . | nindent 12 }}
          resources:
            {{- toYaml $own.fetchResources | nindent 12 }}
          volumeMounts:
            - name: weights
              mountPath: /weights
            - name: tmp
              mountPath: /tmp
            {{- include "shortstack.storage.mount" . | nindent 12 }}
      containers:
        - name: server
          image: {{ $image | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          terminationMessagePolicy: FallbackToLogsOnError
          env:
            {{- $env | nindent 12 }}
            {{- include "shortstack.env.own" (list "serving.server.env" $own.env $env) | nindent 12 }}
          ports:
            - name: http
              containerPort: 8080
          lifecycle:
            preStop:
              # It refuses connections at SIGTERM; until then routes to it are gone.
              exec:
                command: [sleep, "10"]
          # /health generates until it once could, and waits while the model reads or writes: patience.
          startupProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 5
            timeoutSeconds: 30
            failureThreshold: {{ div (add $own.startupSeconds 4) 5 }}
          livenessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 30
            timeoutSeconds: 30
            failureThreshold: 4
          readinessProbe:
            httpGet: {path: /health, port: http}
            periodSeconds: 10
            timeoutSeconds: 30
            failureThreshold: 3
          securityContext:
            {{- include "shortstack.container.security" . | nindent 12 }}
          resources:
            {{- include "shortstack.gpu.resources" (list . $own) | nindent 12 }}
          volumeMounts:
            - name: weights
              mountPath: /weights
              readOnly: true
            - name: tmp
              mountPath: /tmp
            - name: shm
              mountPath: /dev/shm
            {{- if $tgi }}
            - name: out
              mountPath: /usr/src/out
            {{- end }}
      volumes:
        - name: weights
          emptyDir:
            sizeLimit: {{ $own.weightsSize }}
        - name: tmp
          emptyDir: {}
        # In memory: it counts against the memory limit.
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: {{ $own.sharedMemory }}
        {{- if $tgi }}
        - name: out
          emptyDir: {}
        {{- end }}
        {{- include "shortstack.storage.volume" . | nindent 8 }}
---
apiVersion: v1
kind: Service
metadata:
  name: server
  labels:
    {{- include "shortstack.selector" (list . "server") | nindent 4 }}
    app.kubernetes.io/managed-by: shortstack
spec:
  selector:
    {{- include "shortstack.selector" (list . "server") | nindent 4 }}
  ports:
    - name: http
      port: 8080
      targetPort: http
{{- end }}

{{- define "shortstack.serving.server.env" -}}
{{- $own := .Values.serving.server -}}
# The kubelet sets it to the pod's name, and the server would listen there.
- name: HOSTNAME
  value: 0.0.0.0
- name: PORT
  value: "8080"
- name: DTYPE
  value: {{ $own.dtype }}
- name: MAX_STOP_SEQUENCES
  value: "16"
- name: MAX_CONCURRENT_REQUESTS
  value: {{ include "shortstack.number" $own.maxConcurrentRequests | quote }}
{{- with $own.maxInputTokens }}
- name: MAX_INPUT_TOKENS
  value: {{ include "shortstack.number" . | quote }}
{{- end }}
{{- with $own.maxTotalTokens }}
- name: MAX_TOTAL_TOKENS
  value: {{ include "shortstack.number" . | quote }}
{{- end }}
- name: GRACEFUL_TERMINATION_TIMEOUT
  value: {{ include "shortstack.number" $own.shutdownGraceSeconds | quote }}
{{- if gt (int $own.gpus) 1 }}
- name: NUM_SHARD
  value: {{ include "shortstack.number" $own.gpus | quote }}
{{- end }}
- name: USAGE_STATS
  value: "off"
- name: HF_HUB_OFFLINE
  value: "1"
- name: HOME
  value: /tmp
- name: HF_HOME
  value: /tmp/hf
- name: HUGGINGFACE_HUB_CACHE
  value: /tmp/hf/hub
- name: TRITON_CACHE_DIR
  value: /tmp/triton
- name: NUMBA_CACHE_DIR
  value: /tmp/numba
- name: OUTLINES_CACHE_DIR
  value: /tmp/outlines
{{- end }}
