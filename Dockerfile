# heifyd in a container; the README's "In a container" tells how to run it.
#
#     docker build -t heifyd .
#
# BASE may be any image with Python 3.11 or newer and its venv module.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY heifyd ./heifyd
# pip stays here: the environment that goes on to the image holds what heifyd needs and nothing that installs more.
RUN python3 -m venv /build \
 && python3 -m venv --without-pip /opt/heifyd \
 && /build/bin/pip --python /opt/heifyd/bin/python install --no-cache-dir --disable-pip-version-check .

FROM ${BASE}
COPY --from=build /opt/heifyd /opt/heifyd
ARG UID=10001
ARG GID=10001
# The ledger's directory is for whichever user the container is run as, so it is open to all: there is no other user in
# here, and outside the engine keeps volumes where only root gets. The ledger itself has mode 0600.
# The import leaves bytecode of the standard library, which python's slim images lack; later nothing can be written there.
RUN echo "heifyd:x:${UID}:${GID}:heifyd:/var/lib/heifyd:/usr/sbin/nologin" >> /etc/passwd \
 && echo "heifyd:x:${GID}:" >> /etc/group \
 && install -d -o "${UID}" -g "${GID}" -m 0777 /var/lib/heifyd \
 && /opt/heifyd/bin/python -c "import heifyd.lifecycle, heifyd.overview, heifyd.cli.check, heifyd.cli.demo, heifyd.sandbox.server"

# The ledger's place does not hang on whether the user has a home.
ENV PATH=/opt/heifyd/bin:$PATH \
    STATE_DIRECTORY=/var/lib/heifyd
USER ${UID}:${GID}
VOLUME /var/lib/heifyd
STOPSIGNAL SIGTERM
# A dead share can keep it waiting for seven seconds, and is no ill health.
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s --retries=3 CMD ["/opt/heifyd/bin/heifyd", "health"]
ENTRYPOINT ["/opt/heifyd/bin/heifyd"]
CMD ["run"]

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="heifyd" \
      org.opencontainers.image.description="Watches a call recorder's folders and uploads each finished recording to the Heify transcription API, exactly once." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
