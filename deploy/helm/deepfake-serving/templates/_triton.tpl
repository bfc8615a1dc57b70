{{/* docker-compose.yml gives the reason for each. */}}
{{- define "deepfake.triton.args" -}}
- tritonserver
- --model-repository=/models
{{- if not .Values.triton.gpus }}
- --model-config-name=cpu
{{- end }}
- --model-control-mode=none
- --exit-on-error=true
- --strict-readiness=true
- --disable-auto-complete-config
- --http-port=8000
- --grpc-port=8001
- --metrics-port=8002
- --metrics-config=summary_latencies=true
- --metrics-config=summary_quantiles=0.5:0.05,0.9:0.01,0.95:0.005,0.99:0.001
- --grpc-restricted-protocol=shared-memory,statistics,trace,logging:admin-token=$(DEEPFAKE_ADMIN_TOKEN)
- --http-restricted-api=model-repository,shared-memory,statistics,trace,logging:admin-token=$(DEEPFAKE_ADMIN_TOKEN)
- --grpc-max-connection-age={{ mul .Values.triton.connectionAgeSeconds 1000 }}
# As long as a request may wait in the queue.
- --grpc-max-connection-age-grace=30000
- --exit-timeout-secs=30
{{- end }}

{{/* Steps before Triton: copy, verify, the version that is asked for, and plans for this GPU. */}}
{{- define "deepfake.triton.steps" -}}
{{- $values := .root.Values }}
{{- $image := gt (int $values.triton.gpus) 0 | ternary $values.images.engines $values.images.gateway }}
{{- $names := list "copy" "verify" }}
{{- /* Models alone: a volume may also have lost+found, which cannot be read, and which Triton would take for a model. */}}
{{- $commands := dict
  "copy" (list "sh" "-ec" "for config in /source/*/config.pbtxt; do cp --recursive --no-preserve=ownership \"${config%/*}\" /models; done")
  "verify" (list "deepfake" "repository" "verify" "--repository" "/models")
  "engines" (list "deepfake" "build-engines" "--repository" "/models" "--timing-cache" "/cache/timing.cache") }}
{{- with .version }}
{{- $names = append $names "version" }}
{{- $_ := set $commands "version" (list "deepfake" "repository" "rollback" $values.model (toString .) "--repository" "/models") }}
{{- end }}
{{- if $values.triton.gpus }}
{{- $names = append $names "engines" }}
{{- end }}
{{- range $step := $names }}
{{- $gpus := eq $step "engines" | ternary $values.triton.gpus 0 }}
- name: {{ $step }}
  image: {{ $image }}
  command: {{ toJson (get $commands $step) }}
  env:
    - {name: HOME, value: /tmp}
  {{- include "deepfake.container" $ | nindent 2 }}
  resources: {{- include "deepfake.resources" (dict "resources" (eq $step "engines" | ternary $values.triton.engineResources $values.triton.resources) "gpus" $gpus) | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    - {name: tmp, mountPath: /tmp}
    {{- if eq $step "copy" }}
    - name: source
      mountPath: /source
      readOnly: true
      {{- with $values.repository.path }}
      subPath: {{ . }}
      {{- end }}
    {{- end }}
    {{- if eq $step "engines" }}
    - {name: timing-cache, mountPath: /cache}
    {{- end }}
{{- end }}
{{- end }}
