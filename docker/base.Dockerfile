# What every service stands on: Python, and an environment with the packages that all of them share.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/shortstack/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# Some libraries ask for the name of their user, so it has one; Kubernetes is told the number.
RUN groupadd --gid 10001 shortstack \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --no-log-init --shell /usr/sbin/nologin shortstack \
    && mkdir -p /app /var/lib/shortstack \
    && chown 10001:10001 /var/lib/shortstack \
    && python3 -m venv --without-pip /opt/shortstack
COPY --from=build /requirements/base.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py base --base
WORKDIR /app
USER 10001:10001
LABEL org.opencontainers.image.title="Shortstack: base" \
      org.opencontainers.image.description="Python and the packages that all of Shortstack's services share" \
      org.opencontainers.image.licenses="Apache-2.0"
