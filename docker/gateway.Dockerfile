# OpenAI's API over the stack's models, files and fine-tuning jobs
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=build /requirements/gateway.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py gateway
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.gateway.main"]
LABEL org.opencontainers.image.title="Shortstack: gateway" \
      org.opencontainers.image.description="OpenAI's API over the stack's models, files and fine-tuning jobs"
