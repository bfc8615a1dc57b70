{{- define "deepfake.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What a Service and a Deployment select by: (dict "root" $ "component" "triton" "track" "stable") */}}
{{- define "deepfake.selector" -}}
app.kubernetes.io/name: deepfake-serving
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .track }}
deepfake-serving/track: {{ . }}
{{- end }}
{{- end }}

{{/* The same on one line. */}}
{{- define "deepfake.match" -}}
{{ include "deepfake.selector" . | fromYaml | toJson }}
{{- end }}

{{- define "deepfake.labels" -}}
{{ include "deepfake.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Of every pod: an ordinary user without a token. The images' own users have names, which Kubernetes cannot check. */}}
{{- define "deepfake.pod" -}}
serviceAccountName: {{ include "deepfake.name" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "deepfake.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Replicas on different nodes where there are several: (dict "root" $ "component" ...) */}}
{{- define "deepfake.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "deepfake.match" . }}}
{{- end }}

{{- define "deepfake.resources" -}}
{{- $resources := deepCopy .resources }}
{{- if .gpus }}
{{- $_ := set $resources.limits "nvidia.com/gpu" (toString .gpus) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* Address of the Triton of a track, or of the one that serves: (dict "root" $ "track" "") */}}
{{- define "deepfake.triton" -}}
{{ include "deepfake.name" .root }}-triton{{ with .track }}-{{ . }}{{ end }}
{{- end }}

{{/* What gateway and workers have in common: (dict "root" $ "settings" .Values.gateway.settings) */}}
{{- define "deepfake.gateway.environment" -}}
- {name: HOME, value: /tmp}
- name: DEEPFAKE_GATEWAY_DATABASE
  valueFrom: {secretKeyRef: {name: {{ .root.Values.database.secret }}, key: {{ .root.Values.database.key }}}}
{{- with .root.Values.media.bucket }}
- {name: DEEPFAKE_GATEWAY_BLOBS, value: {{ . | quote }}}
{{- end }}
{{- with .root.Values.model }}
- {name: DEEPFAKE_GATEWAY_MODEL, value: {{ . | quote }}}
{{- end }}
{{- if .root.Values.explain.enabled }}
- {name: DEEPFAKE_GATEWAY_EXPLAIN_URL, value: "http://{{ include "deepfake.name" .root }}-explain:8005"}
{{- end }}
{{- with .root.Values.traces.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .settings }}
- name: DEEPFAKE_GATEWAY_{{ upper $name }}
  value: {{ kindIs "slice" $value | ternary (toJson $value) (toString $value) | quote }}
{{- end }}
{{- end }}

{{- define "deepfake.gateway.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
- name: data
{{- if .Values.media.bucket }}
  emptyDir: {sizeLimit: {{ .Values.media.scratch }}}
{{- else }}
  persistentVolumeClaim: {claimName: {{ required "set media.bucket or media.claim: gateway and workers share the media" .Values.media.claim }}}
{{- end }}
{{- end }}

{{- define "deepfake.gateway.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
{{- end }}

{{/* Tracks but those that were removed by `null`, as JSON. */}}
{{- define "deepfake.tracks" -}}
{{- $tracks := dict }}
{{- range $name, $track := .Values.triton.tracks }}
{{- if not (kindIs "invalid" $track) }}
{{- $_ := set $tracks $name $track }}
{{- end }}
{{- end }}
{{- toJson $tracks }}
{{- end }}

{{/* Series of one track, as Prometheus operator labels them: (dict "root" $ "track" "stable") */}}
{{- define "deepfake.series" -}}
{namespace="{{ .root.Release.Namespace }}",job="{{ include "deepfake.triton" . }}"}
{{- end }}

{{/* Mean milliseconds in the queue of each replica, added up: divided by the target it is the wanted number. */}}
{{- define "deepfake.queue" -}}
{{- $of := printf "%s[%vs]" (include "deepfake.series" .) .root.Values.autoscaling.windowSeconds -}}
sum(sum by (instance) (rate(nv_inference_queue_duration_us{{ $of }})) / clamp_min(sum by (instance) (rate(nv_inference_request_success{{ $of }})), 0.001)) / 1000
{{- end }}

{{/*
Requests that wait, less those that only wait for their batch (Little's law: rate times delay), and those that run
(rate times their time outside the queue).
*/}}
{{- define "deepfake.requests" -}}
{{- $of := printf "%s[%vs]" (include "deepfake.series" .) .root.Values.autoscaling.windowSeconds -}}
clamp_min(sum(avg_over_time(nv_inference_pending_request_count{{ $of }})) - {{ divf .root.Values.autoscaling.batchingDelayMilliseconds 1000 }} * sum(rate(nv_inference_request_success{{ $of }})), 0) + (sum(rate(nv_inference_request_duration_us{{ $of }})) - sum(rate(nv_inference_queue_duration_us{{ $of }}))) / 1e6
{{- end }}

{{/* Port of the collector of traces: that of its address, or of its scheme. */}}
{{- define "deepfake.traces.port" -}}
{{- $url := urlParse .Values.traces.endpoint }}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "https" | ternary "443" "80") }}
{{- end }}

{{/* Refuses what the schema cannot compare. */}}
{{- define "deepfake.check" -}}
{{- $scaling := .Values.autoscaling }}
{{- if lt (float64 $scaling.queueMilliseconds) (mulf 5.0 $scaling.batchingDelayMilliseconds) }}
{{- fail (printf "autoscaling.queueMilliseconds is %v, and each request waits up to %v ms for its batch without any load: set at least five times that" $scaling.queueMilliseconds $scaling.batchingDelayMilliseconds) }}
{{- end }}
{{- if lt (int $scaling.maxReplicas) (int $scaling.minReplicas) }}
{{- fail (printf "autoscaling.maxReplicas is %v, below minReplicas %v" $scaling.maxReplicas $scaling.minReplicas) }}
{{- end }}
{{- $tracks := keys (include "deepfake.tracks" . | fromJson) | sortAlpha }}
{{- range list .Values.triton.serving (.Values.triton.canary.track | default .Values.triton.serving) }}
{{- if not (has . $tracks) }}
{{- fail (printf "there is no track %q in triton.tracks; there are: %s" . (join ", " $tracks)) }}
{{- end }}
{{- end }}
{{- range $name, $track := include "deepfake.tracks" . | fromJson }}
{{- if and (hasKey $track "version") (not $.Values.model) }}
{{- fail (printf "track %q names a version: set `model`, whose version it is" $name) }}
{{- end }}
{{- end }}
{{- end }}
