"""What kustomize makes of k8s/: kept beside the tests, since `make test` needs no kustomize.

Each rendering is of built-in kinds alone; istio/ has tests of its own. `python -m tests.cluster_truth render`
makes them anew; SOURCES says of which k8s/ they were made.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
GOLDENS = Path(__file__).parent / "goldens"
SOURCES = GOLDENS / "SOURCES.sha256"
OVERLAYS: Mapping[str, str] = {
    "dev": "k8s/overlays/dev",
    "prod": "k8s/overlays/prod",
    "migrations": "k8s/overlays/prod/migrations",
}
SERVICES = ("reservation", "deposit", "history", "restaurant")
VERSION = "1.36"
"""Of Kubernetes: what `make cluster-truth` runs."""

Object = dict[str, Any]


NOT_RENDERED = {"README.md", "rollout.sh", "jwks.json"}
"""The last one holds the keys of whoever works here, or none."""


def sources() -> str:
    """A hash of everything in k8s/ that kustomize reads."""
    found = hashlib.sha256()
    for file in sorted(one for one in K8S.rglob("*") if one.is_file() and one.name not in NOT_RENDERED):
        found.update(f"{file.relative_to(K8S)}\n".encode() + file.read_bytes() + b"\n")
    return found.hexdigest()


def objects(overlay: str) -> list[Object]:
    """Fresh ones, to be changed at will."""
    return copy.deepcopy(_read(overlay))


@functools.cache
def _read(overlay: str) -> list[Object]:
    return parsed((GOLDENS / f"{overlay}.yaml").read_text())


def parsed(text: str) -> list[Object]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(text, Loader=loader) if one]


def built_in(text: str) -> str:
    """A rendering without the kinds of Istio, word for word."""
    documents = text.split("\n---\n")
    kept = [one.strip("\n") for one in documents if "istio.io/" not in parsed(one)[0]["apiVersion"]]
    return "\n---\n".join(kept) + "\n"


@dataclass(frozen=True)
class Workload:
    """Something that makes pods, with the template that it makes them of."""

    kind: str
    name: str
    template: Object
    spec: Object

    @property
    def labels(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.template["metadata"]["labels"]
        return found

    @property
    def pod(self) -> Object:
        found: Object = self.template["spec"]
        return found

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @property
    def is_service(self) -> bool:
        return self.labels.get("app.kubernetes.io/component") == "service"

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Cluster:
    """The objects of one overlay."""

    def __init__(self, found: Iterable[Object]) -> None:
        self.objects = list(found)

    def of(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def named(self, kind: str, name: str) -> Object | None:
        return next((one for one in self.of(kind) if one["metadata"]["name"] == name), None)

    @property
    def workloads(self) -> list[Workload]:
        return [
            Workload(one["kind"], one["metadata"]["name"], one["spec"]["template"], one["spec"])
            for kind in ("Deployment", "StatefulSet", "Job")
            for one in self.of(kind)
        ]

    @property
    def services(self) -> list[Workload]:
        """The four of ours."""
        return [one for one in self.workloads if one.is_service]

    def selected(self, selector: Mapping[str, Any]) -> Iterator[Workload]:
        """Workloads whose pods a label selector means; an empty one means all."""
        wanted = selector.get("matchLabels", {})
        for one in self.workloads:
            if wanted.items() <= dict(one.labels).items():
                yield one

    def settings(self, container: Object) -> dict[str, str]:
        """The environment of a container, as far as it stands in ConfigMaps."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                held = self.named("ConfigMap", source["configMapRef"]["name"])
                found |= held["data"] if held else {}
        return found | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}
