# TGI 3.3.7 as a numeric user. Its Python lies in root's home, which only root may enter: that is all that keeps it from
# starting so. TGI_IMAGE names that image with its registry and must be given: it is published in none that a name alone
# leads to. docs/install.md says where.
ARG TGI_IMAGE
FROM ${TGI_IMAGE}
RUN chmod a+x /root
USER 10001:10001
LABEL org.opencontainers.image.title="Shortstack: tgi" \
      org.opencontainers.image.description="Text Generation Inference 3.3.7, started as a numeric user" \
      org.opencontainers.image.licenses="Apache-2.0"
