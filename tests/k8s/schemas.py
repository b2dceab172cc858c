"""The schemas of Kubernetes' own kinds, in which a field that is not known is an error.

Out of the package kubernetes-validate; its own function reads four megabytes for each object.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.k8s.rendered import VERSION, Object

FOLDER = f"kubernetes-json-schema/v{VERSION}.0-local-strict"


def complaints(one: Object) -> Iterator[str]:
    # rbac.authorization.k8s.io/v1 is called rbac-v1 there.
    version = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", one["apiVersion"])
    for error in _validator(f"{one['kind'].lower()}-{version}").iter_errors(one):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}"


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(_schema(name), registry=_definitions())


@functools.cache
def _definitions() -> Registry[Any]:
    found: Resource[Any] = Resource.from_contents(_schema("_definitions"))
    return found @ Registry()


def _schema(name: str) -> Any:
    package = importlib.metadata.distribution("kubernetes-validate")
    file = package.locate_file(f"kubernetes_validate/{FOLDER}/{name}.json")
    return json.loads(Path(str(file)).read_text())
