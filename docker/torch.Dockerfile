# What training and inference share beyond the base: torch and the model libraries, in one layer.
# TORCH_BACKEND names torch's build, as uv knows them (cpu, cu128, …); empty takes the index's own, with CUDA.
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=build /requirements/torch.txt /opt/shortstack/requirements/
ARG TORCH_BACKEND
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py torch
USER 10001:10001
LABEL org.opencontainers.image.title="Shortstack: torch" \
      org.opencontainers.image.description="Shortstack's base with torch, transformers, peft and safetensors"
