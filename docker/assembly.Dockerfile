# The controller of datasets and its API
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=build /requirements/assembly.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py assembly
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.assembly.main"]
LABEL org.opencontainers.image.title="Shortstack: assembly" \
      org.opencontainers.image.description="The controller of datasets and its API"
