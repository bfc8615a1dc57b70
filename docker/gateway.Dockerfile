# The verdict service: web server and worker, for a Triton that runs elsewhere (target `gateway`), or with an embedded
# Triton for this machine's CPU (target `cpu`), which only this image's own gateway reaches.
FROM python:3.12-slim AS gateway

# Everything the wheel is made of: its build fails where a folder is missing.
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY preprocess /src/preprocess
COPY client /src/client
COPY serve /src/serve
COPY export /src/export
COPY gateway /src/gateway
COPY scan /src/scan
COPY explain /src/explain
COPY training /src/training
COPY benchmarks /src/benchmarks
COPY docs/verdict.schema.json /src/docs/verdict.schema.json
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[gateway]" && rm -rf /src
# A named volume takes the owner of the folder that it is mounted on first.
RUN useradd --system --no-create-home gateway && install -d -o gateway -g gateway -m 0700 /data
USER gateway
ENTRYPOINT ["deepfake", "gateway"]

FROM gateway AS cpu
# Fetched here: the container writes nothing but /data and /tmp.
ENV DEEPFAKE_CACHE_DIR=/opt/deepfake
USER root
# The engine of most exports that were measured (`--precisions auto`); without it FP32 is served in their place.
COPY constraints.txt /src/
RUN pip install --no-cache-dir -c /src/constraints.txt openvino && rm -rf /src
RUN python -c "from deepfake_serve._runtime import ensure_runtime; ensure_runtime()" && chmod -R a+rX /opt/deepfake
USER gateway
