"""Every field of the files for Istio exists: Istio itself drops what it does not know, in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.istio import shipped

SCHEMAS: dict[str, Any] = json.loads((shipped.GOLDENS / "schemas.json").read_text())
KNOWN = ("apiVersion", "kind", "metadata", "spec")


def strict(schema: Any) -> Any:
    """The same schema, in which what is not named is not allowed."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields")
    # Within oneOf and anyOf a schema says which fields go together, not which there are.
    if schema.get("type") == "object" and "properties" in schema and not free:
        made["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def problems(one: shipped.Document) -> Iterator[str]:
    name = f"{one['kind']} {one['metadata']['name']}"
    schema = SCHEMAS.get(f"{one['apiVersion']}/{one['kind']}")
    if schema is None:
        yield f"{name}: there is no {one['apiVersion']}/{one['kind']}"
        return
    yield from (f"{name}: {key}" for key in one if key not in KNOWN)
    for error in jsonschema.Draft202012Validator(strict(schema)).iter_errors(one.get("spec", {})):
        yield f"{name}: {'.'.join(map(str, error.path))}: {error.message[:200]}"


def ids(one: shipped.Document) -> str:
    return f"{one['kind']}-{one['metadata']['namespace']}-{one['metadata']['name']}"


@pytest.mark.parametrize("one", shipped.documents(), ids=ids)
def test_every_field_of_the_file_is_one_of_istios(one: shipped.Document) -> None:
    assert list(problems(one)) == []


@pytest.mark.parametrize(
    ("kind", "name", "path", "wrong"),
    [
        (
            "DestinationRule",
            "reservation-to-deposit",
            "trafficPolicy.outlierDetection.maxEjectionPercents",
            50,
        ),
        ("DestinationRule", "reservation-to-deposit", "trafficPolicy.outlierDetection.interval", 5),
        ("VirtualService", "reservation-to-deposit", "http.0.retires", {"attempts": 0}),
        ("VirtualService", "reservation-to-deposit", "http.0.retries.attempts", "none"),
        ("AuthorizationPolicy", "deposit", "rules.0.from.0.source.principal", "anybody"),
        ("AuthorizationPolicy", "deposit", "action", "PERMIT"),
        ("PeerAuthentication", "dinemesh", "mtls.mode", "STRONG"),
        ("Gateway", "dinemesh", "servers.0.port.nummer", 443),
    ],
)
def test_a_field_that_is_misspelt_or_of_another_kind_is_found(
    kind: str, name: str, path: str, wrong: object
) -> None:
    one = shipped.document(kind, name)
    *way, last = path.split(".")
    place = one["spec"]
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[last] = wrong
    assert list(problems(one))


def test_kustomization_names_every_file() -> None:
    named = set(shipped.files())
    there = set(shipped.FOLDER.glob("*.yaml")) | set(shipped.FOLDER.glob("edge/*.yaml"))
    there |= set(shipped.FOLDER.glob("authorization/*.yaml"))
    # The list itself, what the generator reads, and what is for Istio's chart.
    others = ("no_token", "tokens_end", "gateway-values")
    assert there - named == {
        shipped.FOLDER / "kustomization.yaml",
        *(shipped.FOLDER / "edge" / f"{name}.yaml" for name in others),
    }
