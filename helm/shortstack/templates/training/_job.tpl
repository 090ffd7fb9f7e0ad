{{/*
The Job of one attempt, whole but for its name, labels, owner, and SHORTSTACK_RUN and SHORTSTACK_ATTEMPT in every
container, which the launcher adds. One try: a failure is the controller's to repeat, from the newest checkpoint.
*/}}
{{- define "shortstack.training.job" -}}
{{- $own := .Values.training.job -}}
{{- $image := include "shortstack.image" (list . "training" (default .Values.training.image $own.image)) -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: train
  labels:
    {{- include "shortstack.podLabels" (list . "trainer" dict) | nindent 4 }}
    app.kubernetes.io/managed-by: shortstack
spec:
  completionMode: Indexed
  completions: 1
  parallelism: 1
  backoffLimit: 0
  {{- with $own.keepSeconds }}
  ttlSecondsAfterFinished: {{ include "shortstack.number" . }}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "shortstack.podLabels" (list . "trainer" (dict "kafka" true "blobs" true)) | nindent 8 }}
        app.kubernetes.io/managed-by: shortstack
        {{- with $own.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with include "shortstack.made.annotations" (list . $own "trainer") }}
      annotations:
        {{- . | nindent 8 }}
      {{- end }}
    spec:
      restartPolicy: Never
      {{- include "shortstack.pod.head" (dict "root" . "own" $own "blobs" true "grace" $own.terminationGraceSeconds) | nindent 6 }}
      {{- with $own.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      initContainers:
        - name: prepare
          image: {{ $image | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          command: [python, -m, shortstack.training.pod, prepare]
          # Its last lines are the pod's word on why it ended, which the controller passes on.
          terminationMessagePolicy: FallbackToLogsOnError
          env:
            {{- include "shortstack.training.pod.env" . | nindent 12 }}
            {{- include "shortstack.storage.env" . | nindent 12 }}
          securityContext:
            {{- include "shortstack.container.security" . | nindent 12 }}
          resources:
            {{- toYaml $own.agentResources | nindent 12 }}
          volumeMounts:
            {{- include "shortstack.training.pod.mounts" . | nindent 12 }}
            {{- include "shortstack.storage.mount" . | nindent 12 }}
      containers:
        # It reads no message and no object: no address, no credentials of either. Its network is the pod's.
        - name: trainer
          image: {{ $image | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          command: [python, -m, shortstack.training.pod, train]
          terminationMessagePolicy: FallbackToLogsOnError
          {{- $env := include "shortstack.training.pod.env" . }}
          env:
            {{- $env | nindent 12 }}
            {{- include "shortstack.env.own" (list "training.job.env" $own.env $env) | nindent 12 }}
          securityContext:
            {{- include "shortstack.container.security" . | nindent 12 }}
          resources:
            {{- include "shortstack.gpu.resources" (list . $own) | nindent 12 }}
          volumeMounts:
            {{- include "shortstack.training.pod.mounts" . | nindent 12 }}
            - name: shm
              mountPath: /dev/shm
        - name: agent
          image: {{ $image | quote }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          command: [python, -m, shortstack.training.pod, agent]
          terminationMessagePolicy: FallbackToLogsOnError
          env:
            {{- include "shortstack.training.pod.env" . | nindent 12 }}
            {{- include "shortstack.kafka.env" . | nindent 12 }}
            {{- include "shortstack.storage.env" . | nindent 12 }}
          securityContext:
            {{- include "shortstack.container.security" . | nindent 12 }}
          resources:
            {{- toYaml $own.agentResources | nindent 12 }}
          volumeMounts:
            {{- include "shortstack.training.pod.mounts" . | nindent 12 }}
            {{- include "shortstack.storage.mount" . | nindent 12 }}
            {{- include "shortstack.kafka.mount" . | nindent 12 }}
      volumes:
        - name: work
          emptyDir:
            sizeLimit: {{ $own.workSize }}
        - name: tmp
          emptyDir: {}
        - name: var
          emptyDir: {}
        # In memory: it counts against the trainer's memory limit.
        - name: shm
          emptyDir:
            medium: Memory
            sizeLimit: {{ $own.sharedMemory }}
        {{- include "shortstack.storage.volume" . | nindent 8 }}
        {{- include "shortstack.kafka.volume" . | nindent 8 }}
{{- end }}

{{/* Libraries write caches below a home folder, and ask for a user's name that a bare number has not. */}}
{{- define "shortstack.training.pod.env" -}}
{{ include "shortstack.env.common" . }}
- name: SHORTSTACK_TRAINING_PROCESSES
  value: {{ include "shortstack.training.processes" . | quote }}
- name: SHORTSTACK_SHUTDOWN_GRACE_S
  value: {{ sub .Values.training.job.terminationGraceSeconds 15 | quote }}
- name: SHORTSTACK_SERVES_MERGED
  value: "true"
- name: HOME
  value: /tmp
- name: USER
  value: shortstack
- name: HF_HOME
  value: /tmp/hf
- name: HF_HUB_OFFLINE
  value: "1"
- name: TRITON_CACHE_DIR
  value: /tmp/triton
- name: TORCHINDUCTOR_CACHE_DIR
  value: /tmp/inductor
- name: MPLCONFIGDIR
  value: /tmp/matplotlib
{{- end }}

{{- define "shortstack.training.pod.mounts" -}}
- name: work
  mountPath: /work
- name: tmp
  mountPath: /tmp
- name: var
  mountPath: /var/lib/shortstack
{{- end }}

{{/* Resources with GPUs, which are requested by their limit. (list ROOT VALUES) */}}
{{- define "shortstack.gpu.resources" -}}
{{- $root := index . 0 -}}
{{- $own := index . 1 -}}
{{- $resources := deepCopy (default dict $own.resources) -}}
{{- if gt (int $own.gpus) 0 -}}
{{- $limits := default dict $resources.limits -}}
{{- $_ := set $limits $root.Values.gpu.resource (int $own.gpus) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end }}
