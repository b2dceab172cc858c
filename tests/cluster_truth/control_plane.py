"""etcd, kube-apiserver and kube-controller-manager on ports of this machine: a cluster without nodes."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.cluster_truth import programs
from tests.support.ports import free_ports
from tests.support.process import Process

READY_SECONDS = 120.0
"""Eleven seconds on a machine with nothing else to do."""
NAMESPACE = "dinemesh"

HURRY = (
    # The controller looks every 15 s, and does not believe a pod's first five minutes. Here pods are ready at
    # once, and nobody wants to wait.
    "--horizontal-pod-autoscaler-sync-period=1s",
    "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
    "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
)


class Refused(Exception):
    """kubectl's complaint."""


class ControlPlane:
    """A running one, and kubectl."""

    def __init__(self, url: str, token: str, kubeconfig: Path) -> None:
        self.url = url
        self.token = token
        self._kubeconfig = kubeconfig
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {token}"}, verify=False, timeout=20
        )

    def kubectl(self, *arguments: str | Path, given: str | None = None, seconds: float = 120) -> str:
        """What it prints. Raises Refused."""
        done = subprocess.run(
            [programs.kubernetes("kubectl"), f"--kubeconfig={self._kubeconfig}", *map(str, arguments)],
            input=given,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(done.stderr.strip())
        return done.stdout

    def run(self, script: Path, *arguments: str, seconds: float = 300) -> str:
        """A script that calls kubectl by its name; what it prints. Raises Refused."""
        folder = self._kubeconfig.parent / "bin"
        folder.mkdir(exist_ok=True)
        if not (folder / "kubectl").exists():
            (folder / "kubectl").symlink_to(programs.kubernetes("kubectl"))
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "KUBECONFIG": str(self._kubeconfig),
            "HOME": str(self._kubeconfig.parent),  # kubectl keeps a cache there
        }
        done = subprocess.run(
            [script, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode != 0:
            raise Refused(f"{done.stdout}\n{done.stderr}")
        return done.stdout

    def apply(self, manifests: str, *, dry_run: bool = False) -> str:
        """On the server, as its user would; an unknown field is an error."""
        mode = ["--dry-run=server"] if dry_run else []
        return self.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "--validate=strict",
            *mode,
            "-f",
            "-",
            given=manifests,
        )

    def get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()

    def list(self, kind: str, group: str = "api/v1") -> list[Any]:
        found: list[Any] = self.get(f"/{group}/namespaces/{NAMESPACE}/{kind}")["items"]
        return found

    def one(self, kind: str, name: str, group: str = "api/v1") -> Any:
        return self.get(f"/{group}/namespaces/{NAMESPACE}/{kind}/{name}")

    def patch(self, path: str, change: object) -> int:
        answer = self._http.patch(
            path,
            content=json.dumps(change),
            headers={"content-type": "application/strategic-merge-patch+json"},
        )
        return answer.status_code

    def post(self, path: str, what: object) -> httpx.Response:
        return self._http.post(path, json=what)

    def is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def close(self) -> None:
        self._http.close()


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    """Empty, and gone afterwards."""
    # Built before anything is started.
    names = ("kube-apiserver", "kube-controller-manager")
    server_program, manager_program = (programs.kubernetes(name) for name in names)
    etcd_program = programs.etcd()
    programs.kubernetes("kubectl")
    with tempfile.TemporaryDirectory(prefix="dinemesh-cluster-") as folder:
        work = Path(folder)
        store, store_peers, port, manager_port = free_ports(4)
        token = secrets.token_hex(16)
        (work / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        _write_key(work / "accounts.key")
        plane = ControlPlane(f"https://127.0.0.1:{port}", token, work / "kubeconfig")
        (work / "kubeconfig").write_text(_kubeconfig(plane))
        etcd = Process("etcd", work / "etcd.log")
        server = Process("kube-apiserver", work / "apiserver.log")
        manager = Process("kube-controller-manager", work / "manager.log")
        try:
            etcd.run(
                _tied(
                    etcd_program,
                    f"--data-dir={work}/etcd",
                    f"--listen-client-urls=http://127.0.0.1:{store}",
                    f"--advertise-client-urls=http://127.0.0.1:{store}",
                    f"--listen-peer-urls=http://127.0.0.1:{store_peers}",
                    f"--initial-advertise-peer-urls=http://127.0.0.1:{store_peers}",
                    f"--initial-cluster=default=http://127.0.0.1:{store_peers}",
                    "--unsafe-no-fsync",
                )
            )
            server.run(
                _tied(
                    server_program,
                    f"--etcd-servers=http://127.0.0.1:{store}",
                    "--bind-address=127.0.0.1",
                    "--advertise-address=127.0.0.1",
                    f"--secure-port={port}",
                    f"--cert-dir={work}/certificates",
                    "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                    f"--service-account-key-file={work}/accounts.key",
                    f"--service-account-signing-key-file={work}/accounts.key",
                    "--service-cluster-ip-range=10.96.0.0/16",
                    "--authorization-mode=RBAC",
                    f"--token-auth-file={work}/tokens.csv",
                )
            )
            _until_ready(plane, server)
            manager.run(
                _tied(
                    manager_program,
                    f"--kubeconfig={work}/kubeconfig",
                    f"--service-account-private-key-file={work}/accounts.key",
                    f"--secure-port={manager_port}",
                    "--bind-address=127.0.0.1",
                    f"--cert-dir={work}/manager",
                    "--leader-elect=false",
                    *HURRY,
                )
            )
            yield plane
        except BaseException:
            for one in (etcd, server, manager):
                print(_end_of(one))  # noqa: T201  # pytest shows it with the failure
            raise
        finally:
            plane.close()
            for one in (manager, server, etcd):
                if one.running:
                    one.kill()


def _tied(program: Path, *arguments: str) -> Sequence[str]:
    tie = shutil.which("setpriv")
    assert tie is not None, "setpriv is missing; it belongs to util-linux"
    return (tie, "--pdeathsig", "KILL", "--", str(program), *arguments)


def _until_ready(plane: ControlPlane, server: Process) -> None:
    end = time.monotonic() + READY_SECONDS
    while not plane.is_ready():
        assert server.running and time.monotonic() < end, _end_of(server)
        time.sleep(0.2)


def _end_of(process: Process) -> str:
    said = process.log.read_text(errors="replace") if process.log.exists() else ""
    return f"--- {process.name} said last:\n{said[-3000:]}"


def _kubeconfig(plane: ControlPlane) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "truth", "cluster": {"server": plane.url, "insecure-skip-tls-verify": True}}
            ],
            "users": [{"name": "admin", "user": {"token": plane.token}}],
            "contexts": [{"name": "truth", "context": {"cluster": "truth", "user": "admin"}}],
            "current-context": "truth",
        }
    )


def _write_key(file: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
