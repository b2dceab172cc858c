"""The edge: of one machine, and what is other in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local_mesh import settings
from local_mesh.envoy import configuration, edge
from tests.budgets.sources import Numbers, constant, documents, seconds
from tests.istio import shipped

KIB = 1024


def values() -> edge.EdgeValues:
    """As the edge is told unless somebody says otherwise."""
    nowhere: dict[str, Any] = {name: ["127.0.0.1:1"] for name in settings.BEHIND_THE_EDGE}
    return edge.EdgeValues(
        port=1, admin_port=2, jwks_file=Path("keys"), descriptor_file=Path("contracts"), **nowhere
    )


def resources() -> Any:
    return configuration.load(edge.EDGE, values().as_mapping())


def numbers() -> Numbers:
    whole = resources()
    told = values()
    clusters = {one["name"]: one for one in whole["static_resources"]["clusters"]}
    (listener,) = (one for one in whole["static_resources"]["listeners"] if one["name"] == "edge")
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    filters = {one["name"]: one["typed_config"] for one in manager["http_filters"]}
    routes = {one["name"]: one["route"] for one in _routes(manager) if "route" in one}
    service = clusters["reservation"]
    (limits,) = service["circuit_breakers"]["thresholds"]
    (check,) = service["health_checks"]
    upstream = _http2(service)
    downstream = manager["http2_protocol_options"]
    return {
        "edge.default_deadline": told.default_deadline_seconds,
        "edge.longest_deadline": told.longest_deadline_seconds,
        "edge.customer_rate": told.customer_rate_per_second,
        "edge.customer_burst": told.customer_rate_burst,
        "edge.address_rate": told.address_rate_per_second,
        "edge.address_burst": told.address_rate_burst,
        "edge.rate": told.rate_per_second,
        "edge.burst": told.rate_burst,
        "edge.document_rate": told.document_rate_per_second,
        "edge.document_burst": told.document_rate_burst,
        "edge.connections_limit": told.most_connections,
        "edge.streams_limit": downstream["max_concurrent_streams"],
        "edge.headers_time": seconds(manager["request_headers_timeout"]),
        "edge.request_time": seconds(manager["request_timeout"]),
        "edge.rest": seconds(manager["stream_idle_timeout"]),
        "edge.connection_rest": seconds(manager["common_http_protocol_options"]["idle_timeout"]),
        "edge.client_ping": seconds(downstream["connection_keepalive"]["interval"]),
        "edge.client_ping_timeout": seconds(downstream["connection_keepalive"]["timeout"]),
        "edge.body_limit": filters["envoy.filters.http.buffer"]["max_request_bytes"] / KIB,
        "edge.headers_limit": manager["max_request_headers_kb"],
        "edge.headers_count": manager["common_http_protocol_options"]["max_headers_count"],
        "edge.stream_idle": told.stream_idle_seconds,
        "edge.longest_stream": told.longest_stream_seconds,
        "edge.reflection_idle": told.reflection_idle_seconds,
        "edge.longest_reflection": told.longest_reflection_seconds,
        "edge.tools_limit": clusters["reflection"]["circuit_breakers"]["thresholds"][0]["max_requests"],
        "edge.connect_timeout": seconds(service["connect_timeout"]),
        "edge.calls_limit": limits["max_requests"],
        "edge.pending_limit": limits["max_pending_requests"],
        "edge.upstream_connections_limit": limits["max_connections"],
        "edge.repetitions_limit": limits["max_retries"],
        "edge.read_retries": routes["GetReservation"]["retry_policy"]["num_retries"],
        "edge.change_retries": routes["CreateReservation"]["retry_policy"]["num_retries"],
        "edge.check_interval": seconds(check["interval"]),
        "edge.check_idle_interval": seconds(check["no_traffic_interval"]),
        "edge.check_timeout": seconds(check["timeout"]),
        "edge.check_misses": check["unhealthy_threshold"],
        "edge.check_hits": check["healthy_threshold"],
        "edge.ping": seconds(upstream["connection_keepalive"]["interval"]),
        "edge.ping_timeout": seconds(upstream["connection_keepalive"]["timeout"]),
        "edge.panic_percent": service["common_lb_config"]["healthy_panic_threshold"]["value"],
        "edge.stuck_worker": seconds(whole["watchdogs"]["worker_watchdog"]["kill_timeout"]),
        "edge.drain": constant("local_mesh.envoy.process", "DRAIN_SECONDS"),
        "edge.admin_timeout": constant("local_mesh.envoy.process", "ADMIN_SECONDS"),
        "edge.ending": constant("local_mesh.envoy.process", "ENDING_SECONDS"),
    }


def in_a_cluster() -> Numbers:
    """What Istio is told of the edge by itself; everything else is made of what one machine has."""
    routes = {one["name"]: one for one in shipped.document("VirtualService", "dinemesh")["spec"]["http"]}
    read, change = routes["GetReservation"]["retries"], routes["CreateReservation"]["retries"]
    pool = shipped.document("DestinationRule", "edge-to-reservation")["spec"]["trafficPolicy"][
        "connectionPool"
    ]
    (gateway,) = documents("istio/edge/gateway-values.yaml")
    (proxy,) = shipped.read_text(gateway["podAnnotations"]["proxy.istio.io/config"])
    alive = pool["tcp"]["tcpKeepalive"]
    return {
        "cluster.edge_read_try": seconds(read["perTryTimeout"]),
        "cluster.edge_read_retries": read["attempts"],
        "cluster.edge_change_retries": change["attempts"],
        "cluster.edge_ping": seconds(alive["time"]),
        "cluster.edge_ping_interval": seconds(alive["interval"]),
        "cluster.edge_pings": alive["probes"],
        "cluster.edge_drain": seconds(proxy["terminationDrainDuration"]),
        "cluster.edge_termination_grace": gateway["terminationGracePeriodSeconds"],
    }


def _routes(manager: Any) -> Any:
    (host,) = manager["route_config"]["virtual_hosts"]
    return host["routes"]


def _http2(cluster: Any) -> Any:
    (options,) = cluster["typed_extension_protocol_options"].values()
    return options["explicit_http_config"]["http2_protocol_options"]
