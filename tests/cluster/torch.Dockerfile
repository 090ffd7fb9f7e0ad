# Stands in for docker/torch.Dockerfile where only torch's build with CUDA can be had and nothing has a GPU: the same
# packages, with stand-ins for CUDA's libraries, which a CPU never calls. 2 GB instead of 5. For tests alone.
# The lab's folder is mounted at /lab: --file torch=tests/cluster/torch.Dockerfile --volume LAB:/lab:ro
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE} AS stand-ins
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev binutils gawk \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /requirements/torch.txt /all/
# nvidia-cuda-runtime stays: torch's libraries register with it when they are loaded.
RUN mkdir -p /opt/shortstack/requirements \
    && grep -vE '^(cuda-|nvidia-|triton==)' /all/torch.txt > /opt/shortstack/requirements/torch.txt \
    && grep -E '^nvidia-cuda-runtime==' /all/torch.txt >> /opt/shortstack/requirements/torch.txt
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py torch
RUN bash /lab/torch-cpu-stubs "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/lib"
USER 10001:10001

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=stand-ins /opt/shortstack/requirements/torch.txt /opt/shortstack/requirements/
# What the base holds already stays as it is, so that this layer is torch's alone.
RUN --mount=type=bind,from=stand-ins,source=/opt/shortstack,target=/with-torch \
    cp --archive --no-clobber /with-torch/. /opt/shortstack/
USER 10001:10001
LABEL org.opencontainers.image.title="Shortstack: torch, for tests" \
      org.opencontainers.image.description="Shortstack's base with torch for CPUs, transformers, peft and safetensors"
