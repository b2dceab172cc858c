"""Stands in for what a cluster without nodes lacks: kubelets, which report pods as running, and
metrics-server, which says how much processor time each used. Everything that decides is Kubernetes' own."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cluster_truth.control_plane import NAMESPACE, ControlPlane
from tests.support.ports import free_ports

LOOK_SECONDS = 0.3
VERSION = "metrics.k8s.io/v1beta1"


class Nodes:
    """Reports each pod as running and ready a moment after it was made, and one of a Job as done."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)
        self.ready = threading.Event()
        """Taken away: new pods stay as they are made."""
        self.ready.set()
        self.failing: set[str] = set()
        """Jobs whose pods end with an error."""

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            if not self.ready.is_set():
                continue
            for pod in self._plane.list("pods"):
                if pod.get("status", {}).get("phase") == "Pending":
                    name = pod["metadata"]["name"]
                    owners = pod["metadata"].get("ownerReferences", [])
                    jobs = {one["name"] for one in owners if one["kind"] == "Job"}
                    fails = bool(jobs & self.failing)
                    self._plane.patch(
                        f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/status",
                        {"status": _done(pod, fails=fails) if jobs else _running(pod)},
                    )

    def __enter__(self) -> Nodes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _running(pod: Mapping[str, Any]) -> dict[str, Any]:
    now = _now()
    kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    return {
        "phase": "Running",
        "startTime": now,
        "conditions": [{"type": one, "status": "True", "lastTransitionTime": now} for one in kinds],
        "containerStatuses": [
            {
                "name": one["name"],
                "image": one["image"],
                "imageID": "",
                "ready": True,
                "started": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": now}},
            }
            for one in pod["spec"]["containers"]
        ],
    }


def _done(pod: Mapping[str, Any], *, fails: bool) -> dict[str, Any]:
    """A Job's: over as soon as it has begun."""
    status = _running(pod)
    ended = {"exitCode": int(fails), "reason": "Error" if fails else "Completed"}
    ended |= {"startedAt": _now(), "finishedAt": _now()}
    for one in status["containerStatuses"]:
        one |= {"ready": False, "started": False, "state": {"terminated": ended}}
    conditions = [one for one in status["conditions"] if one["type"] not in ("Ready", "ContainersReady")]
    return status | {"phase": "Failed" if fails else "Succeeded", "conditions": conditions}


class Metrics:
    """What metrics-server would say. `demand`: milli-cores by app, shared by the pods of that app."""

    def __init__(self, plane: ControlPlane) -> None:
        self.demand: dict[str, float] = {}
        self._plane = plane

    def of_pods(self, selector: str) -> dict[str, Any]:
        wanted = dict(part.split("=", 1) for part in selector.split(",") if part)
        pods = [
            one
            for one in self._plane.list("pods")
            if wanted.items() <= one["metadata"]["labels"].items()
            and one.get("status", {}).get("phase") == "Running"
            and "deletionTimestamp" not in one["metadata"]
        ]
        apps = [one["metadata"]["labels"]["app"] for one in pods]
        return {
            "kind": "PodMetricsList",
            "apiVersion": VERSION,
            "metadata": {},
            "items": [
                {
                    "metadata": {"name": pod["metadata"]["name"], "namespace": NAMESPACE},
                    "timestamp": _now(),
                    "window": "1s",
                    "containers": [
                        {
                            "name": one["name"],
                            "usage": {
                                "cpu": f"{round(self.demand.get(app, 0) / apps.count(app) * 1000)}u",
                                "memory": "100Mi",
                            },
                        }
                        for one in pod["spec"]["containers"]
                    ],
                }
                for pod, app in zip(pods, apps, strict=True)
            ],
        }


@contextmanager
def metrics(plane: ControlPlane, folder: Path) -> Iterator[Metrics]:
    """Served over TLS on a port of this machine, and made known to the API server, which asks there."""
    told = Metrics(plane)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            if asked.path.endswith("/pods"):
                selector = parse_qs(asked.query).get("labelSelector", [""])[0]
                self._answer(told.of_pods(selector))
            elif asked.path == f"/apis/{VERSION}":
                self._answer(_RESOURCES)
            else:
                self.send_error(404)

        def _answer(self, what: object) -> None:
            body = json.dumps(what).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    (port,) = free_ports(1)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(folder))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        plane.apply(_MADE_KNOWN % port)
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_RESOURCES = {
    "kind": "APIResourceList",
    "apiVersion": "v1",
    "groupVersion": VERSION,
    "resources": [
        {
            "name": "pods",
            "singularName": "",
            "namespaced": True,
            "kind": "PodMetrics",
            "verbs": ["get", "list"],
        }
    ],
}

_MADE_KNOWN = """
apiVersion: v1
kind: Service
metadata: {name: metrics, namespace: kube-system}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  service: {namespace: kube-system, name: metrics, port: %d}
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
"""


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "metrics.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return file


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
