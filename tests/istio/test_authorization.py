"""Who may call what, as it stands in the files: held against the contracts and the edge on one machine.

That proxies do it is shown in tests/mesh_truth.
"""

from __future__ import annotations

from typing import Any

import pytest

from local_mesh.envoy import configuration
from tests.edge.rpcs import RPCS
from tests.istio import shipped
from tests.istio.test_goldens import PORTS

EDGE = "cluster.local/ns/istio-ingress/sa/istio-ingressgateway"
RESERVATION = "cluster.local/ns/dinemesh/sa/reservation"
HEALTH = "/grpc.health.v1.Health/Check"
REFLECTION = {
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}


def allowed(service: str) -> dict[str, set[str]]:
    """The paths of a service by who may call them."""
    spec = shipped.document("AuthorizationPolicy", service)["spec"]
    assert spec["selector"]["matchLabels"] == {"app.kubernetes.io/name": service}
    assert spec["action"] == "ALLOW"
    found: dict[str, set[str]] = {}
    for rule in spec["rules"]:
        assert set(rule) == {"from", "to"}, "a rule without either would be about everybody, or everything"
        ((source,), (operation,)) = rule["from"], rule["to"]
        (principal,) = source["source"]["principals"]
        assert set(operation["operation"]) == {"methods", "ports", "paths"}
        assert operation["operation"]["methods"] == ["POST"]
        assert operation["operation"]["ports"] == [str(PORTS[service])]
        found[principal] = set(operation["operation"]["paths"])
    return found


def at_the_edge(service: str) -> set[str]:
    """Every method of a service that has an HTTP form."""
    return {rpc.path for rpc in RPCS.values() if rpc.service == service and rpc.verb}


def test_nobody_may_call_anything_that_no_file_allows() -> None:
    assert shipped.document("AuthorizationPolicy", "nobody")["spec"] == {}


@pytest.mark.parametrize("service", ["restaurant", "history"])
def test_the_edge_alone_may_call(service: str) -> None:
    assert allowed(service) == {EDGE: at_the_edge(service)}


def test_reservation_is_called_at_the_edge_and_answers_tools() -> None:
    assert allowed("reservation") == {EDGE: at_the_edge("reservation") | {HEALTH} | REFLECTION}


def test_deposits_are_made_by_reservation_and_shown_at_the_edge() -> None:
    assert allowed("deposit") == {
        RESERVATION: {RPCS["CreateDeposit"].path, HEALTH},
        EDGE: at_the_edge("deposit"),
    }
    assert at_the_edge("deposit") == {RPCS["GetDeposit"].path, RPCS["ListDeposits"].path}


def test_without_a_token_the_edge_lets_in_what_it_lets_in_on_one_machine() -> None:
    tokens = configuration.load(configuration.ROOT / "envoy" / "edge" / "tokens.yaml", {})["typed_config"]
    free = {
        one["match"].get("path") or one["match"]["prefix"]
        for one in tokens["rules"]
        if one["requirement_name"] == "token if any"
    }
    anyone, people = shipped.document("AuthorizationPolicy", "dinemesh-edge")["spec"]["rules"]
    assert anyone["when"] == [{"key": "request.auth.claims[iss]", "notValues": ["*"]}]
    paths: set[str] = set(anyone["to"][0]["operation"]["paths"])
    # Where it is a prefix there, it is the one method that has a route here.
    assert len(paths) == len(free)
    assert all(any(path.startswith(one) for one in free) for path in paths)
    assert people["from"] == [{"source": {"requestPrincipals": ["dinemesh/*"]}}]
    assert people["when"] == [
        {"key": "request.auth.claims[role]", "values": ["customer", "staff", "operator"]}
    ]


def test_the_edge_and_the_services_know_tokens_by_the_same_rules() -> None:
    edge, inside = (
        shipped.document("RequestAuthentication", name)["spec"]["jwtRules"]
        for name in ("dinemesh-edge", "dinemesh")
    )
    assert edge == inside
    (rule,) = edge
    provider: Any = configuration.load(configuration.ROOT / "envoy" / "edge" / "tokens.yaml", {})[
        "typed_config"
    ]
    there = provider["providers"]["dinemesh"]
    assert (rule["issuer"], rule["audiences"]) == (there["issuer"], there["audiences"])
    assert [one["name"] for one in rule["fromHeaders"]] == [one["name"] for one in there["from_headers"]]
    assert rule["forwardOriginalToken"]
