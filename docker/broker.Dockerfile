# One Kafka node for clusters that bring none: Java from a package, Kafka's jars from Maven, each checked by its sha256.
# MAVEN_URL names another repository for the jars than the tool's own.
ARG BASE_IMAGE=shortstack/base
ARG BUILD_IMAGE=shortstack/build

FROM ${BUILD_IMAGE} AS build

FROM ${BASE_IMAGE} AS jars
USER 0:0
COPY --from=build /requirements/jars.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py jars
COPY --from=build /package /opt/shortstack
ARG MAVEN_URL
RUN --mount=type=cache,id=shortstack-jars,target=/var/cache/jars \
    REQUESTS_CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt SHORTSTACK_MAVEN_URL="${MAVEN_URL}" \
    python -m shortstack.local.broker_pod fetch /var/cache/jars \
    && mkdir -p /opt/kafka/libs && cp -p /var/cache/jars/*.jar /opt/kafka/libs/
USER 10001:10001

FROM ${BASE_IMAGE}
USER 0:0
COPY --from=build /requirements/broker.txt /opt/shortstack/requirements/
RUN --mount=type=bind,from=build,source=/build,target=/build \
    --mount=type=cache,id=shortstack-uv,target=/root/.cache/uv \
    python /build/install.py broker
COPY --from=jars /opt/kafka /opt/kafka
COPY --from=build /package /opt/shortstack
USER 10001:10001
ENTRYPOINT ["python", "-m", "shortstack.local.broker_pod"]
LABEL org.opencontainers.image.title="Shortstack: broker" \
      org.opencontainers.image.description="One node of Apache Kafka, for clusters that bring none"
