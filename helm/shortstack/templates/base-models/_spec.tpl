{{/* One container a model, side by side; what is imported already is left alone. */}}
{{- define "shortstack.baseModels.spec" -}}
{{- $root := . -}}
{{- $own := .Values.baseModelsJob -}}
backoffLimit: 1000
template:
  metadata:
    labels:
      {{- include "shortstack.podLabels" (list . "base-models" (dict "blobs" true)) | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    {{- include "shortstack.pod.head" (dict "root" . "own" $own "blobs" true "grace" 5) | nindent 4 }}
    containers:
      {{- range $index, $base := .Values.baseModels }}
      {{- $folder := printf "/models/%s" $base.name }}
      {{- if $base.existingClaim }}
      {{- $folder = list "/models" (trimAll "/" (default "" $base.path)) | compact | join "/" }}
      {{- end }}
      - name: base-{{ $index }}
        image: {{ include "shortstack.image" (list $root "base-model" (default $own.image $base.image)) | quote }}
        imagePullPolicy: {{ $root.Values.image.pullPolicy }}
        terminationMessagePolicy: FallbackToLogsOnError
        command: [python, -m, shortstack.storage.weights, import-base, {{ $base.name | quote }}, {{ $folder | quote }}]
        env:
          {{- include "shortstack.env.common" $root | nindent 10 }}
          {{- include "shortstack.storage.env" $root | nindent 10 }}
        securityContext:
          {{- include "shortstack.container.security" $root | nindent 10 }}
        resources:
          {{- toYaml $own.resources | nindent 10 }}
        volumeMounts:
          - name: tmp
            mountPath: /tmp
          - name: var
            mountPath: /var/lib/shortstack
          {{- include "shortstack.storage.mount" $root | nindent 10 }}
          {{- if $base.existingClaim }}
          - name: model-{{ $index }}
            mountPath: /models
            readOnly: true
          {{- end }}
      {{- end }}
    volumes:
      - name: tmp
        emptyDir: {}
      - name: var
        emptyDir: {}
      {{- include "shortstack.storage.volume" . | nindent 6 }}
      {{- range $index, $base := .Values.baseModels }}
      {{- with $base.existingClaim }}
      - name: model-{{ $index }}
        persistentVolumeClaim:
          claimName: {{ . }}
          readOnly: true
      {{- end }}
      {{- end }}
{{- end }}
