"""The YAML that is shipped, what istiod made of it, and whether that is of this YAML."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.process import ROOT

__all__ = ["ROOT", "document", "documents", "files", "golden", "sources"]

FOLDER = ROOT / "istio"
GOLDENS = Path(__file__).parent / "goldens"
HASHES = GOLDENS / "hashes.sha256"
"""Of what the goldens are made of, and of themselves: `make mesh-goldens` writes it, and nobody else."""
ISTIO = ROOT / "tests" / "mesh_truth" / "go.mod"
"""Which Istio made them."""
PROXIES = ("reservation", "deposit", "restaurant", "history", "edge")

Document = dict[str, Any]


def read(file: Path) -> list[Document]:
    """The documents of a file."""
    return read_text(file.read_text())


def read_text(text: str) -> list[Document]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(text, Loader=loader) if one]


def files() -> list[Path]:
    """What istio/kustomization.yaml names."""
    (listed,) = read(FOLDER / "kustomization.yaml")
    return [FOLDER / name for name in listed["resources"]]


def documents(kind: str = "") -> list[Document]:
    """All objects for Istio, or those of a kind."""
    found = [one for file in files() for one in read(file)]
    return [one for one in found if kind in ("", one["kind"])]


def document(kind: str, name: str) -> Document:
    (found,) = (one for one in documents(kind) if one["metadata"]["name"] == name)
    return found


def golden(proxy: str) -> Any:
    """What istiod gives the Envoy of `proxy`: its clusters, routes, listeners and endpoints."""
    return json.loads((GOLDENS / f"{proxy}.json").read_text())


def sources() -> str:
    """The hash of everything that the goldens are made of: istio/, and of k8s/ what istiod looks at."""
    found: list[object] = [
        *documents(),
        *(one for file in sorted(FOLDER.glob("plain/*.yaml")) for one in read(file)),
    ]
    for file in sorted((ROOT / "k8s" / "base").glob("*.yaml")):
        found += [seen for one in read(file) for seen in _seen(one)]
    found.append(re.findall(r"istio\.io/\S+ \S+", ISTIO.read_text()))
    text = re.sub(
        # The goldens say where the contracts stand, and not what is in them.
        r'"proto_descriptor_bin":"[^"]*"',
        "",
        json.dumps(found, sort_keys=True, separators=(",", ":")),
    )
    return hashlib.sha256(text.encode()).hexdigest()


def hashes() -> str:
    """What HASHES ought to say."""
    goldens = hashlib.sha256()
    for file in sorted(GOLDENS.glob("*.json")):
        goldens.update(f"{file.name}\n".encode() + file.read_bytes())
    return f"{sources()}  sources\n{goldens.hexdigest()}  goldens\n"


def _seen(one: Document) -> Iterator[object]:
    match one.get("kind"):
        case "Service" | "Namespace":
            yield one
        case "Deployment" if "labels" in one["spec"]["template"].get("metadata", {}):
            pod = one["spec"]["template"]
            ports = [container.get("ports") for container in pod["spec"]["containers"]]
            yield [pod["metadata"]["labels"], pod["spec"].get("serviceAccountName"), ports]
