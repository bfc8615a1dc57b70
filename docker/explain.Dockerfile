# The explain service: heatmaps from a PyTorch checkpoint, next to Triton and never in its way.
FROM python:3.12-slim

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
RUN pip install --no-cache-dir -c /src/constraints.txt "/src[explain]" && rm -rf /src
RUN useradd --system --no-create-home explain
USER explain
ENTRYPOINT ["deepfake", "explain-serve"]
