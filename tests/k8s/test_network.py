"""Exactly the connections that the design has, and a widened or a removed policy is noticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s import rendered
from tests.k8s.network import connections, ports
from tests.k8s.rendered import OVERLAYS, SERVICES, Cluster

GRPC = {"reservation": 8081, "deposit": 8082, "history": 8083, "restaurant": 8084}
METRICS = 15020
ISTIOS = frozenset({15000, 15001, 15006, 15008, 15012, 15014, 15017, METRICS, 15021, 15090})
"""Of its proxies, its agent and istiod."""
PORTS = frozenset({22, 443, 5671}).union(ISTIOS, *(ports(Cluster(rendered.objects(one))) for one in OVERLAYS))
"""What anything of ours listens on or may reach, and some besides."""

EVERYWHERE = {
    *(("gateway", name, port) for name, port in GRPC.items()),
    *(("prometheus", name, METRICS) for name in SERVICES),
    *((name, "istiod", 15012) for name in SERVICES),
    *((name, "kube-dns", 53) for name in SERVICES),
    ("reservation", "deposit", 8082),
    ("newcomer", "kube-dns", 53),
}
STORES = ("internet", "internet by IPv6", "database in the cluster")
EXPECTED = {
    "dev": EVERYWHERE
    | {("deposit", "sandbox", 8085)}
    | {(name, "postgres", 5432) for name in SERVICES}
    | {(name, "rabbitmq", 5672) for name in SERVICES}
    | {(name, "kube-dns", 53) for name in ("postgres", "rabbitmq", "sandbox")},
    "prod": EVERYWHERE
    | {(name, where, port) for name in SERVICES for where in STORES for port in (5432, 5671, 5672)},
}


@pytest.mark.parametrize("overlay", EXPECTED)
def test_only_the_connections_of_the_design_are_possible(overlay: str) -> None:
    assert set(connections(Cluster(rendered.objects(overlay)), PORTS)) == EXPECTED[overlay]


def test_migrations_reach_their_databases_and_nothing_else() -> None:
    """At the first rollout alone in the namespace, later under the policies of prod too."""
    alone = rendered.objects("migrations")
    for found in (Cluster(alone), Cluster([*rendered.objects("prod"), *alone])):
        jobs = {one.name for one in found.workloads if one.kind == "Job"}
        possible = {one for one in connections(found, PORTS) if one[0] in jobs or one[1] in jobs}
        expected = {(name, where, 5432) for name in jobs for where in STORES}
        expected |= {(name, "kube-dns", 53) for name in jobs}
        assert possible == expected and len(jobs) == len(SERVICES)


def named_on_the_way_out(cluster: Cluster) -> list[str]:
    return [
        f"{one['metadata']['name']}: {port['port']}"
        for one in cluster.of("NetworkPolicy")
        for rule in one["spec"].get("egress", [])
        for port in rule.get("ports", [])
        if not isinstance(port["port"], int)
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_goes_out_names_ports_by_number_since_not_every_network_knows_names(overlay: str) -> None:
    assert named_on_the_way_out(Cluster(rendered.objects(overlay))) == []


def policy(cluster: Cluster, name: str) -> Any:
    found = cluster.named("NetworkPolicy", name)
    assert found is not None
    return found["spec"]


def drop(cluster: Cluster, name: str) -> None:
    found = cluster.named("NetworkPolicy", name)
    assert found is not None
    cluster.objects.remove(found)


MUTANTS: dict[str, tuple[Callable[[Cluster], object], tuple[str, str, int]]] = {
    "no default": (lambda c: drop(c, "nothing-else"), ("stranger", "newcomer", 443)),
    "no default for what comes in": (
        lambda c: policy(c, "nothing-else").update(policyTypes=["Egress"]),
        ("stranger", "newcomer", 443),
    ),
    "every namespace is the edge": (
        lambda c: policy(c, "from-the-edge")["ingress"][0]["from"][0].update(namespaceSelector={}),
        ("stranger", "history", 8083),
    ),
    "everybody may call deposit": (
        lambda c: [
            policy(c, "deposit-from-reservation")["ingress"][0].pop("from"),
            policy(c, "reservation-to-deposit").update(podSelector={}),
        ],
        ("history", "deposit", 8082),
    ),
    "Prometheus past the agent": (
        lambda c: policy(c, "metrics")["ingress"][0]["ports"].append({"port": 9082, "protocol": "TCP"}),
        ("prometheus", "deposit", 9082),
    ),
    "the proxies' own pages": (
        lambda c: policy(c, "from-the-edge")["ingress"].append(
            {"ports": [{"port": 15090, "protocol": "TCP"}]}
        ),
        ("stranger", "history", 15090),
    ),
    "a port that is left out means all": (
        lambda c: policy(c, "from-the-edge")["ingress"][0].pop("ports"),
        ("gateway", "deposit", 9081),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_widened_policy_is_noticed(name: str) -> None:
    change, appears = MUTANTS[name]
    cluster = Cluster(rendered.objects("dev"))
    assert appears not in set(connections(cluster, PORTS))
    change(cluster)
    assert appears in set(connections(cluster, PORTS))


@pytest.mark.parametrize(
    "name",
    ["names", "control-plane", "metrics", "from-the-edge", "reservation-to-deposit", "deposit-to-sandbox"],
)
def test_a_removed_policy_is_noticed(name: str) -> None:
    cluster = Cluster(rendered.objects("dev"))
    drop(cluster, name)
    assert set(connections(cluster, PORTS)) < EXPECTED["dev"]
