ARG BASE=python:3.13-slim
FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY heifyd ./heifyd
RUN python3 -m venv /opt/heifyd && /opt/heifyd/bin/pip install --no-cache-dir .

FROM ${BASE}
COPY --from=build /opt/heifyd /opt/heifyd
ARG UID=10001
RUN echo "heifyd:x:${UID}:${UID}::/var/lib/heifyd:/usr/sbin/nologin" >> /etc/passwd \
 && echo "heifyd:x:${UID}:" >> /etc/group \
 && install -d -o "${UID}" -g "${UID}" -m 0700 /var/lib/heifyd
USER ${UID}
VOLUME /var/lib/heifyd
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/heifyd/bin/heifyd"]
CMD ["run", "--config", "/etc/heifyd/config.yaml", "--log", "json"]
