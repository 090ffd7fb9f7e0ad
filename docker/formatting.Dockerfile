# Record batches in, segments and ledger entries out
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=build /requirements/formatting.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py formatting
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.formatting.main"]
LABEL org.opencontainers.image.title="Shortstack: formatting" \
      org.opencontainers.image.description="Record batches in, segments and ledger entries out"
