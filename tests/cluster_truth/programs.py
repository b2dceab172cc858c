"""Kubernetes' own programs, built from its sources, and etcd, unpacked from the distribution: into .cache."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import time
from pathlib import Path

from local_mesh.broker import project_cache
from local_mesh.debian import Unpacked, unpack
from local_mesh.golang import go

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "kubernetes"


def kubernetes(name: str) -> Path:
    """kubectl, kube-apiserver or kube-controller-manager, in the version that kubernetes/go.mod names."""
    program = project_cache() / "cluster" / "bin" / f"{name}-{_version()}"
    if not program.exists():
        _say(f"building {name} {_version()}; the first time takes minutes")
        began = time.monotonic()
        partial = program.with_suffix(".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        # Without debugging information: a third of the size, and of the memory that linking takes.
        go("build", "-ldflags=-s -w", "-o", str(partial), f"k8s.io/kubernetes/cmd/{name}", folder=SOURCES)
        partial.replace(program)
        _say(f"{name}: {time.monotonic() - began:.0f} s")
    return program


def etcd() -> Path:
    def tried(work: Path, _: Path) -> None:
        subprocess.run([work / "usr/bin/etcd", "--version"], check=True, capture_output=True)

    files: Unpacked = unpack(
        project_cache() / "etcd",
        ["etcd-server"],
        own=lambda package: package == "etcd-server",
        left_out=frozenset(),
        finish=tried,
        say=lambda text: _say(f"etcd: {text}"),
    )
    return files.root / "usr/bin/etcd"


def istio_crds() -> Path:
    """The definitions of Istio's kinds, out of the module that tests/mesh_truth is built with."""
    where = HERE.parent / "mesh_truth"
    folder = go("mod", "download", "-json", "istio.io/istio", folder=where)
    found = re.search(r'"Dir": "(.*)"', folder)
    assert found is not None, folder
    return Path(found.group(1)) / "manifests/charts/base/files/crd-all.gen.yaml"


@functools.cache
def _version() -> str:
    found = re.search(r"^\s*k8s\.io/kubernetes (v[\d.]+)\b", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
