# The controller of training jobs, and the trainer that its Jobs run
ARG TORCH_IMAGE=shortstack/torch
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${TORCH_IMAGE}
USER 0:0
COPY --from=build /requirements/training.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py training
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.training.main"]
LABEL org.opencontainers.image.title="Shortstack: training" \
      org.opencontainers.image.description="The controller of training jobs, and the trainer that its Jobs run"
