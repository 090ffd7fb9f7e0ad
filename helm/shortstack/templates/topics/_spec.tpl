{{/* Its digest is in the Job's name: a Job cannot be changed, so whatever changes here makes another one. */}}
{{- define "shortstack.topics.spec" -}}
{{- $own := .Values.topics -}}
backoffLimit: 1000
{{- with $own.deadlineSeconds }}
activeDeadlineSeconds: {{ include "shortstack.number" . }}
{{- end }}
template:
  metadata:
    labels:
      {{- include "shortstack.podLabels" (list . "topics" (dict "kafka" true)) | nindent 6 }}
    annotations:
      shortstack/declaration: {{ .Files.Get "files/topics.json" | sha256sum }}
  spec:
    restartPolicy: OnFailure
    {{- include "shortstack.pod.head" (dict "root" . "own" $own "grace" 5) | nindent 4 }}
    containers:
      - name: topics
        image: {{ include "shortstack.image" (list . "cli" $own.image) | quote }}
        imagePullPolicy: {{ .Values.image.pullPolicy }}
        terminationMessagePolicy: FallbackToLogsOnError
        command: {{ concat (list "python" "-m" "shortstack.streams.apply") .Values.ingestion.owners | toJson }}
        env:
          {{- include "shortstack.env.common" . | nindent 10 }}
          {{- include "shortstack.kafka.env" . | nindent 10 }}
        securityContext:
          {{- include "shortstack.container.security" . | nindent 10 }}
        resources:
          {{- toYaml $own.resources | nindent 10 }}
        volumeMounts:
          - name: tmp
            mountPath: /tmp
          - name: var
            mountPath: /var/lib/shortstack
          {{- include "shortstack.kafka.mount" . | nindent 10 }}
    volumes:
      - name: tmp
        emptyDir: {}
      - name: var
        emptyDir: {}
      {{- include "shortstack.kafka.volume" . | nindent 6 }}
{{- end }}
