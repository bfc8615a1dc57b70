# Builds TensorRT plans on the machine that serves them: `deepfake build-engines` inside NVIDIA's TensorRT container.
# The tag is that of Triton's container in docker-compose.yml: a plan loads only in the TensorRT that wrote it.
ARG NGC_MONTH=26.08
FROM nvcr.io/nvidia/tensorrt:${NGC_MONTH}-py3

# An environment of its own that sees the container's TensorRT and nothing else of ours; torch is not needed to
# build from ONNX.
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
RUN python3 -m venv --system-site-packages /opt/deepfake \
    && /opt/deepfake/bin/pip install --no-cache-dir -c /src/constraints.txt /src onnx \
    && rm -rf /src
# Fails here, and not at the first start on the GPU host, should a later image keep TensorRT elsewhere.
RUN /opt/deepfake/bin/python -c "import importlib.util as u; assert u.find_spec('tensorrt'), 'no Python tensorrt'"
ENV PATH=/opt/deepfake/bin:$PATH
ENTRYPOINT ["deepfake", "build-engines"]
