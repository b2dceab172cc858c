"""Between reservation and deposit: the proxy of one machine, and the same as Istio is told it."""

from __future__ import annotations

from typing import Any

from local_mesh.envoy import configuration, policy
from tests.budgets.sources import Numbers, seconds
from tests.istio import shipped

ROUTES = (("charge", "charge"), ("read", "reads"), ("health", "health"))


def on_one_machine() -> Numbers:
    (cluster,) = resources()["static_resources"]["clusters"]
    routes = {one["name"]: one["route"] for one in _routes()}
    (limits,) = cluster["circuit_breakers"]["thresholds"]
    outlier = cluster["outlier_detection"]
    found = {
        "mesh.connect_timeout": seconds(cluster["connect_timeout"]),
        "mesh.calls_limit": limits["max_requests"],
        "mesh.pending_limit": limits["max_pending_requests"],
        "mesh.repetitions_limit": limits["max_retries"],
        "mesh.errors_in_a_row": outlier["consecutive_gateway_failure"],
        "mesh.errors_of_any_kind_in_a_row": outlier["consecutive_5xx"],
        "mesh.sweep": seconds(outlier["interval"]),
        "mesh.ejection": seconds(outlier["base_ejection_time"]),
        "mesh.ejection_percent": outlier["max_ejection_percent"],
        "mesh.panic_percent": cluster["common_lb_config"]["healthy_panic_threshold"]["value"],
    }
    for name, route in ROUTES:
        again = routes[route].get("retry_policy", {})
        found[f"mesh.{name}_timeout"] = seconds(routes[route]["timeout"])
        # What deposit is told that it has.
        assert routes[route]["max_grpc_timeout"] == routes[route]["timeout"]
        found[f"mesh.{name}_retries"] = again.get("num_retries", 0)
        if again:
            found[f"mesh.{name}_try"] = seconds(again["per_try_timeout"])
    return found


def in_istio() -> Numbers:
    """The same policy, as Istio is told it."""
    rule = shipped.document("DestinationRule", "reservation-to-deposit")["spec"]["trafficPolicy"]
    routes = {
        one["name"]: one
        for one in shipped.document("VirtualService", "reservation-to-deposit")["spec"]["http"]
    }
    pool, outlier = rule["connectionPool"], rule["outlierDetection"]
    found = {
        "mesh.connect_timeout": seconds(pool["tcp"]["connectTimeout"]),
        "mesh.calls_limit": pool["http"]["http2MaxRequests"],
        "mesh.pending_limit": pool["http"]["http1MaxPendingRequests"],
        "mesh.repetitions_limit": pool["http"]["maxRetries"],
        "mesh.errors_in_a_row": outlier["consecutiveGatewayErrors"],
        "mesh.errors_of_any_kind_in_a_row": outlier["consecutive5xxErrors"],
        "mesh.sweep": seconds(outlier["interval"]),
        "mesh.ejection": seconds(outlier["baseEjectionTime"]),
        "mesh.ejection_percent": outlier["maxEjectionPercent"],
        # Istio makes it Envoy's panic threshold.
        "mesh.panic_percent": outlier["minHealthPercent"],
    }
    for name, route in ROUTES:
        again = routes[route]["retries"]
        found[f"mesh.{name}_timeout"] = seconds(routes[route]["timeout"])
        found[f"mesh.{name}_retries"] = again["attempts"]
        if again["attempts"]:
            found[f"mesh.{name}_try"] = seconds(again["perTryTimeout"])
    return found


def machine_alone() -> Numbers:
    """What the proxy of one machine has besides: who is ready is told by readiness probes in a cluster."""
    whole = resources()
    (cluster,) = whole["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    (options,) = cluster["typed_extension_protocol_options"].values()
    alive = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
    return {
        "mesh.check_interval": seconds(check["interval"]),
        "mesh.check_idle_interval": seconds(check["no_traffic_interval"]),
        "mesh.check_timeout": seconds(check["timeout"]),
        "mesh.check_misses": check["unhealthy_threshold"],
        "mesh.check_hits": check["healthy_threshold"],
        "machine.policy_ping": seconds(alive["interval"]),
        "machine.policy_ping_timeout": seconds(alive["timeout"]),
        "machine.policy_streams_limit": _manager()["http2_protocol_options"]["max_concurrent_streams"],
        "machine.policy_rest": seconds(_manager()["stream_idle_timeout"]),
        "machine.policy_stuck_worker": seconds(whole["watchdogs"]["worker_watchdog"]["kill_timeout"]),
    }


def istio_alone() -> Numbers:
    """What finds a node that is lost, where nobody pings."""
    rule = shipped.document("DestinationRule", "reservation-to-deposit")["spec"]["trafficPolicy"]
    alive = rule["connectionPool"]["tcp"]["tcpKeepalive"]
    return {
        "cluster.mesh_ping": seconds(alive["time"]),
        "cluster.mesh_ping_interval": seconds(alive["interval"]),
        "cluster.mesh_pings": alive["probes"],
    }


def repeats_on_one_machine() -> dict[str, str]:
    """By path, on which words a call is repeated."""
    return {
        one["match"]["path"]: one["route"].get("retry_policy", {}).get("retry_on", "") for one in _routes()
    }


def repeats_in_istio() -> dict[str, str]:
    """The same, as Istio is told it."""
    return {
        match["uri"]["exact"]: one["retries"].get("retryOn", "")
        for one in shipped.document("VirtualService", "reservation-to-deposit")["spec"]["http"]
        for match in one["match"]
    }


def resources() -> Any:
    values = policy.PolicyValues(port=1, admin_port=2, deposit=["127.0.0.1:1", "127.0.0.1:2"])
    return configuration.load(policy.POLICY, values.as_mapping())


def _manager() -> Any:
    (listener,) = resources()["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def _routes() -> Any:
    (host,) = _manager()["route_config"]["virtual_hosts"]
    return host["routes"]
