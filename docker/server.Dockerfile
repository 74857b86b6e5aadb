# Image of the Prefect server and the MLflow server: no torch, no models, about a tenth of the worker's size. Build: docker compose build prefect

FROM python:3.11.16-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
COPY docker/build.lock /build/
RUN pip install --require-hashes -r /build/build.lock
WORKDIR /build
COPY docker/requirements.lock ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv venv /opt/venv \
    && VIRTUAL_ENV=/opt/venv uv pip install --require-hashes -r requirements.lock

FROM python:3.11.16-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b
RUN groupadd --gid 10001 clusterlora \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/clusterlora --create-home --shell /usr/sbin/nologin clusterlora
COPY --from=build /opt/venv /opt/venv
COPY --chmod=755 docker/entrypoint.sh docker/health.py /usr/local/bin/
COPY --chmod=644 docker/prefect_server.py /usr/local/lib/clusterlora/prefect_server.py
COPY --chmod=644 docker/mlflow-auth.ini /etc/clusterlora/mlflow-auth.ini
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/clusterlora \
    PREFECT_HOME=/var/lib/clusterlora/prefect \
    PREFECT_UI_STATIC_DIRECTORY=/var/lib/clusterlora/prefect-ui \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    MLFLOW_AUTH_CONFIG_PATH=/etc/clusterlora/mlflow-auth.ini \
    MLFLOW_DISABLE_TELEMETRY=true \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
USER 10001:10001
VOLUME /var/lib/clusterlora
EXPOSE 4200 5000
ENTRYPOINT ["entrypoint.sh"]
CMD ["uvicorn", "--app-dir=/usr/local/lib/clusterlora", "--factory", "prefect_server:app", "--host=0.0.0.0", "--port=4200", "--timeout-keep-alive=60"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["python", "/usr/local/bin/health.py", "http://127.0.0.1:4200/api/health"]
