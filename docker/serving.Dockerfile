# The controller of models and aliases, and its API
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=build /requirements/serving.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py serving
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.serving.main"]
LABEL org.opencontainers.image.title="Shortstack: serving" \
      org.opencontainers.image.description="The controller of models and aliases, and its API"
