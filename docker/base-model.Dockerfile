# The base model that comes with the stack, converted from its package, and what puts it into the storage.
ARG BASE_IMAGE=shortstack/base
ARG TORCH_IMAGE=shortstack/torch
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${TORCH_IMAGE} AS converted
USER 0:0
COPY --from=build /requirements/base-model.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py base-model
# The modules of the conversion alone, so that another change of the code does not convert again.
COPY --from=build /package/lib/python3.11/site-packages/shortstack/__init__.py /convert/shortstack/
COPY --from=build /package/lib/python3.11/site-packages/shortstack/local/__init__.py \
    /package/lib/python3.11/site-packages/shortstack/local/base_model.py /convert/shortstack/local/
COPY --from=build /package/lib/python3.11/site-packages/shortstack/core/__init__.py \
    /package/lib/python3.11/site-packages/shortstack/core/errors.py /convert/shortstack/core/
RUN PYTHONPATH=/convert python -m shortstack.local.base_model /converted && rm -f /converted/models/.*.lock
USER 10001:10001

FROM ${BASE_IMAGE}
COPY --from=converted /converted/models /models
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.storage.weights"]
CMD ["import-base", "smollm2-135m-instruct", "/models/smollm2-135m-instruct"]
LABEL org.opencontainers.image.title="Shortstack: base-model" \
      org.opencontainers.image.description="SmolLM2-135M-Instruct as a folder, and what puts it into the storage"
