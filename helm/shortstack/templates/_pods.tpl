{{/* What all pods have in common: Pod Security "restricted", no links, no tokens, where to run. */}}

{{- define "shortstack.pod.security" -}}
runAsNonRoot: true
{{- with .Values.podSecurity.runAsUser }}
runAsUser: {{ . | int64 }}
{{- end }}
{{- with .Values.podSecurity.runAsGroup }}
runAsGroup: {{ . | int64 }}
{{- end }}
{{- with .Values.podSecurity.fsGroup }}
fsGroup: {{ . | int64 }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "shortstack.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/*
The head of a pod's spec.
(dict "root" ROOT "own" VALUES-OF-THE-COMPONENT "account" NAME "token" BOOL "blobs" BOOL "grace" SECONDS)
*/}}
{{- define "shortstack.pod.head" -}}
{{- $root := .root -}}
serviceAccountName: {{ default (include "shortstack.fullname" $root) .account }}
automountServiceAccountToken: {{ default false .token }}
# Kubernetes would set SHORTSTACK_… variables for the services of a release of this name.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ include "shortstack.number" .grace }}
securityContext:
  {{- include "shortstack.pod.security" $root | nindent 2 }}
{{- with include "shortstack.pod.pullSecrets" $root }}
imagePullSecrets:
  {{- . | nindent 2 }}
{{- end }}
{{- with default $root.Values.scheduling.priorityClassName .own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with include "shortstack.pod.nodeSelector" . }}
nodeSelector:
  {{- . | nindent 2 }}
{{- end }}
{{- with include "shortstack.pod.tolerations" . }}
tolerations:
  {{- . | nindent 2 }}
{{- end }}
{{- with include "shortstack.pod.affinity" . }}
affinity:
  {{- . | nindent 2 }}
{{- end }}
{{- end }}

{{/* By their names, or in the shape that a pod's spec has, as parents' charts give them. */}}
{{- define "shortstack.pod.pullSecrets" -}}
{{- $global := default dict .Values.global -}}
{{- $names := list -}}
{{- range concat (default list $global.imagePullSecrets) .Values.image.pullSecrets -}}
{{- if kindIs "map" . -}}
{{- $names = append $names .name -}}
{{- else -}}
{{- $names = append $names . -}}
{{- end -}}
{{- end -}}
{{- range $names | uniq }}
- name: {{ . | quote }}
{{- end }}
{{- end }}

{{/*
Where all that mount the claim run on one node, that node must suit those of them that need GPUs: their node selectors
and tolerations are everybody's, for the first pod that is scheduled chooses the node for all.
*/}}
{{- define "shortstack.pod.nodeSelector" -}}
{{- $root := .root -}}
{{- $selector := deepCopy (default $root.Values.scheduling.nodeSelector .own.nodeSelector | default dict) -}}
{{- if and .blobs (include "shortstack.storage.oneNode" $root) -}}
{{- range $name, $gpu := dict "training.job" $root.Values.training.job "serving.server" $root.Values.serving.server -}}
{{- if gt (int $gpu.gpus) 0 -}}
{{- range $label, $value := $gpu.nodeSelector -}}
{{- if ne $value (get $selector $label | default $value) -}}
{{- fail (printf "%s.nodeSelector: %s is %s there and %s elsewhere, but objects lie on a claim that one node alone may mount; give all of them the same, or storage.claim.accessMode ReadWriteMany" $name $label $value (get $selector $label)) -}}
{{- end -}}
{{- $_ := set $selector $label $value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $selector -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}

{{- define "shortstack.pod.tolerations" -}}
{{- $root := .root -}}
{{- $tolerations := default $root.Values.scheduling.tolerations .own.tolerations | default list -}}
{{- if and .blobs (include "shortstack.storage.oneNode" $root) -}}
{{- range list $root.Values.training.job $root.Values.serving.server -}}
{{- if gt (int .gpus) 0 -}}
{{- $tolerations = concat $tolerations (default list .tolerations) | uniq -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $tolerations -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}

{{/*
A claim that one node alone may mount keeps all pods that mount it on that node. The first of them schedules
anywhere: a required affinity that the pod itself fulfils counts as met while no other pod does. Those that ask for no
GPU themselves prefer nodes that have some, where others of them will need one.
*/}}
{{- define "shortstack.pod.affinity" -}}
{{- $affinity := deepCopy (default $.root.Values.scheduling.affinity $.own.affinity | default dict) -}}
{{- if and .blobs (include "shortstack.storage.oneNode" .root) -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (dict "shortstack/blobs" (include "shortstack.fullname" .root))) -}}
{{- $pods := default dict $affinity.podAffinity -}}
{{- $required := append (default list $pods.requiredDuringSchedulingIgnoredDuringExecution) $term -}}
{{- $_ := set $pods "requiredDuringSchedulingIgnoredDuringExecution" $required -}}
{{- $_ := set $affinity "podAffinity" $pods -}}
{{- $gpus := add (int .root.Values.training.job.gpus) (int .root.Values.serving.server.gpus) -}}
{{- if and (gt $gpus 0) .root.Values.gpu.nodeLabel (eq (int (default 0 .own.gpus)) 0) -}}
{{- $label := list (dict "key" .root.Values.gpu.nodeLabel "operator" "Exists") -}}
{{- $nodes := default dict $affinity.nodeAffinity -}}
{{- $wish := dict "weight" 100 "preference" (dict "matchExpressions" $label) -}}
{{- $wishes := append (default list $nodes.preferredDuringSchedulingIgnoredDuringExecution) $wish -}}
{{- $_ := set $nodes "preferredDuringSchedulingIgnoredDuringExecution" $wishes -}}
{{- $_ := set $affinity "nodeAffinity" $nodes -}}
{{- end -}}
{{- end -}}
{{- with $affinity -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}

{{/* Alive from the first page on, ready when each part says so. (port) */}}
{{- define "shortstack.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 90
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 15
  timeoutSeconds: 10
  failureThreshold: 4
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 3
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{/* What is left out of a release that has none. */}}
{{- define "shortstack.annotations" -}}
{{- with . }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
Annotations of a pod that a controller makes. EKS gives the role of a ServiceAccount to every container that is not
named here; the one that runs models reads no object. (list ROOT VALUES "container")
*/}}
{{- define "shortstack.made.annotations" -}}
{{- $given := default dict (index . 1).podAnnotations -}}
{{- if (index . 0).Values.serviceAccount.annotations -}}
{{- $given = merge (deepCopy $given) (dict "eks.amazonaws.com/skip-containers" (index . 2)) -}}
{{- end -}}
{{- with $given -}}
{{- toYaml . -}}
{{- end -}}
{{- end }}
