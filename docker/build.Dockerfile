# What the other images are made with, nothing of which stays in them: uv, a pinned list of packages for each image,
# and the package itself, compiled. Nothing runs from this one.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS uv
ARG UV_VERSION=0.13.9
ARG PIP_INDEX_URL
ENV UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy UV_NO_PROGRESS=1
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore "uv==${UV_VERSION}"

FROM uv AS lists
ARG UV_DEFAULT_INDEX
ARG TORCH_BACKEND
WORKDIR /src
COPY docker/build/lists.py docker/build/install.py /build/
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/lists.py /requirements && cp "$(command -v uv)" /build/uv && rm /build/lists.py

FROM uv AS package
ARG UV_DEFAULT_INDEX
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deploy/kafka deploy/kafka
COPY services services
# The environment stands where the images have theirs: its path is the first line of the command `shortstack`.
RUN --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python -m venv --without-pip /opt/shortstack \
    && uv build --quiet --wheel --build-constraints constraints.txt --out-dir /dist \
    && uv pip install --quiet --python /opt/shortstack/bin/python --prefix /package --no-deps /dist/*.whl \
    && python -m compileall -q --invalidation-mode unchecked-hash -s /package -p /opt/shortstack /package/lib

FROM ${PYTHON_IMAGE}
COPY --from=lists /build /build
COPY --from=lists /requirements /requirements
COPY --from=package /package /package
USER 10001:10001
LABEL org.opencontainers.image.title="Shortstack: build" \
      org.opencontainers.image.description="What Shortstack's images are made with; nothing runs from it" \
      org.opencontainers.image.licenses="Apache-2.0"
