"""Who may open a connection to whom, as NetworkPolicies say it: they add up, a pod that one of them selects
gets nothing that none of them allows, and both ends must agree."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.k8s.rendered import Cluster, Object, Workload

OURS = "dinemesh"


@dataclass(frozen=True)
class Peer:
    """One end of a connection. `ports` by name, if it listens."""

    name: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    """Besides its name, which every namespace has as a label."""
    address: str = ""
    """Of what is no pod."""

    @classmethod
    def of(cls, workload: Workload) -> Peer:
        ports = {
            port["name"]: port["containerPort"]
            for container in workload.containers
            for port in container.get("ports", [])
        }
        return cls(workload.name, OURS, workload.labels, ports)


GATEWAY = Peer("gateway", "istio-ingress", {"istio": "ingressgateway"})
CONTROL_PLANE = Peer("istiod", "istio-system", {"app": "istiod"})
NAMES = Peer("kube-dns", "kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS = Peer("prometheus", "monitoring")
STRANGER = Peer("stranger", "default", {"app.kubernetes.io/component": "service"})
DATA = Peer("database in the cluster", "data", namespace_labels={"dinemesh.io/data": "true"})
INTERNET = Peer("internet", "", address="192.0.2.1")
INTERNET_6 = Peer("internet by IPv6", "", address="2001:db8::1")
NEWCOMER = Peer("newcomer", OURS)
"""A pod of ours that nobody has thought of yet."""

OTHERS = (GATEWAY, CONTROL_PLANE, NAMES, PROMETHEUS, STRANGER, DATA, INTERNET, INTERNET_6, NEWCOMER)


def may_connect(cluster: Cluster, source: Peer, target: Peer, port: int) -> bool:
    return _lets(cluster, "Egress", source, target, target, port) and _lets(
        cluster, "Ingress", target, source, target, port
    )


def ports(cluster: Cluster) -> frozenset[int]:
    """Those that a policy names or a container listens at."""
    named = {
        port["port"]
        for one in cluster.of("NetworkPolicy")
        for way in ("ingress", "egress")
        for rule in one["spec"].get(way, [])
        for port in rule.get("ports", [])
    }
    listened = {port for one in cluster.workloads for port in Peer.of(one).ports.values()}
    return frozenset(one for one in named | listened if isinstance(one, int))


def connections(cluster: Cluster, ports: frozenset[int]) -> Iterator[tuple[str, str, int]]:
    """Every connection that is possible at these ports, by the names of both ends."""
    peers = [*(Peer.of(one) for one in cluster.workloads), *OTHERS]
    for source in peers:
        for target in peers:
            if OURS not in (source.namespace, target.namespace):
                continue
            for port in sorted(ports):
                if may_connect(cluster, source, target, port):
                    yield source.name, target.name, port


def _lets(
    cluster: Cluster,
    way: Literal["Ingress", "Egress"],
    subject: Peer,
    other: Peer,
    listener: Peer,
    port: int,
) -> bool:
    if subject.namespace != OURS:
        return True  # not ours to say
    policies = [
        one["spec"]
        for one in cluster.of("NetworkPolicy")
        if way in one["spec"]["policyTypes"] and _matches(one["spec"]["podSelector"], subject.labels)
    ]
    rules = [rule for spec in policies for rule in spec.get(way.lower(), [])]
    ends = "from" if way == "Ingress" else "to"
    return not policies or any(
        _means_port(rule.get("ports"), listener, port)
        and (ends not in rule or any(_means_peer(one, other) for one in rule[ends]))
        for rule in rules
    )


def _means_port(ports: list[Object] | None, listener: Peer, port: int) -> bool:
    return ports is None or any(
        one["port"] == port or listener.ports.get(str(one["port"])) == port for one in ports
    )


def _means_peer(one: Object, peer: Peer) -> bool:
    if "ipBlock" in one:
        block = ipaddress.ip_network(one["ipBlock"]["cidr"])
        return bool(peer.address) and ipaddress.ip_address(peer.address) in block
    if "namespaceSelector" in one:
        namespace = {"kubernetes.io/metadata.name": peer.namespace, **peer.namespace_labels}
        if not peer.namespace or not _matches(one["namespaceSelector"], namespace):
            return False
    elif peer.namespace != OURS:
        return False
    return _matches(one.get("podSelector", {}), peer.labels)


def _matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()
