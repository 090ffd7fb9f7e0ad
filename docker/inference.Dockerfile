# A model folder in, TGI's HTTP API out
ARG TORCH_IMAGE=shortstack/torch
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${TORCH_IMAGE}
USER 0:0
COPY --from=build /requirements/inference.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py inference
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.inference.main"]
LABEL org.opencontainers.image.title="Shortstack: inference" \
      org.opencontainers.image.description="A model folder in, TGI's HTTP API out"
