"""Every number of docs/BUDGETS.md, read from where it takes effect. Times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deposit_svc import usecases as deposit_usecases
from deposit_svc.settings import DepositSettings
from dinemesh.kit.settings import ServiceSettings
from local_mesh import envoy, envoy_yaml, liveness, parts, policy, settings, supervision
from reservation_svc.clients.deposit import HEALTH_SECONDS
from reservation_svc.settings import ReservationSettings
from tests.istio import shipped
from tests.support.process import ROOT

Numbers = dict[str, float]


def numbers() -> Numbers:
    """By the names of docs/BUDGETS.md."""
    return _edge() | _services() | on_one_machine() | checks() | _stopping() | _cluster() | _compose()


def on_one_machine() -> Numbers:
    """The policy between reservation and deposit, as the proxy there has it."""
    (cluster,) = _policy()["clusters"]
    (listener,) = _policy()["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    routes = {one["name"]: one["route"] for one in manager["route_config"]["virtual_hosts"][0]["routes"]}
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
    for name, route in (("charge", "charge"), ("read", "reads"), ("health", "health")):
        again = routes[route].get("retry_policy", {})
        found[f"mesh.{name}_timeout"] = seconds(routes[route]["timeout"])
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
    for name, route in (("charge", "charge"), ("read", "reads"), ("health", "health")):
        again = routes[route]["retries"]
        found[f"mesh.{name}_timeout"] = seconds(routes[route]["timeout"])
        found[f"mesh.{name}_retries"] = again["attempts"]
        if again["attempts"]:
            found[f"mesh.{name}_try"] = seconds(again["perTryTimeout"])
    return found


def routes_on_one_machine() -> dict[str, str]:
    """By path, on which words a call is repeated."""
    (listener,) = _policy()["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return {
        one["match"]["path"]: one["route"].get("retry_policy", {}).get("retry_on", "")
        for one in manager["route_config"]["virtual_hosts"][0]["routes"]
    }


def routes_in_istio() -> dict[str, str]:
    """The same, as Istio is told it."""
    return {
        match["uri"]["exact"]: one["retries"].get("retryOn", "")
        for one in shipped.document("VirtualService", "reservation-to-deposit")["spec"]["http"]
        for match in one["match"]
    }


def checks() -> Numbers:
    """How the proxies of one machine and of docker compose find out who is ready."""
    (cluster,) = _policy()["clusters"]
    (check,) = cluster["health_checks"]
    return {
        "mesh.check_interval": seconds(check["interval"]),
        "mesh.check_timeout": seconds(check["timeout"]),
        "mesh.check_misses": check["unhealthy_threshold"],
    }


def _edge() -> Numbers:
    values = envoy.EdgeValues(
        port=1, admin_port=2, jwks_file=Path("keys"), descriptor_file=Path("contracts"), **_nowhere()
    )
    clusters = {
        one["name"]: one
        for one in envoy_yaml.load(envoy.EDGE, values.as_mapping())["static_resources"]["clusters"]
    }
    (limits,) = clusters["reservation"]["circuit_breakers"]["thresholds"]
    return {
        "edge.default_deadline": values.default_deadline_seconds,
        "edge.longest_deadline": values.longest_deadline_seconds,
        "edge.calls_limit": limits["max_requests"],
        "edge.stream_idle": values.stream_idle_seconds,
        "edge.longest_stream": values.longest_stream_seconds,
        "edge.customer_rate": values.customer_rate_per_second,
        "edge.drain": settings.MeshSettings.edge_drain_seconds,
    }


def _services() -> Numbers:
    every, reservation, deposit = (
        _defaults(ServiceSettings),
        _defaults(ReservationSettings),
        _defaults(DepositSettings),
    )
    return {
        "service.in_flight_limit": every["in_flight_limit"],
        "service.queue_limit": every["store_queue_limit"],
        "service.stop_grace": every["stop_grace_seconds"],
        "service.heartbeat": every["heartbeat_seconds"],
        "service.longest_watch": every["watch_max_seconds"],
        "reservation.least_time": reservation["least_time_ms"] / 1000,
        "reservation.answer_margin": reservation["answer_margin_ms"] / 1000,
        "reservation.deposit_deadline": reservation["deposit_deadline_ms"] / 1000,
        "reservation.health_timeout": HEALTH_SECONDS,
        "reservation.attempt_deadline": reservation["attempt_deadline_seconds"],
        "reservation.hold_expire": reservation["hold_expire_seconds"],
        "reservation.attempts_limit": reservation["attempts_limit"],
        "reservation.breaker_threshold": reservation["breaker_threshold"],
        "reservation.breaker_rest": reservation["breaker_rest_seconds"],
        "reservation.breaker_longest_rest": reservation["breaker_longest_rest_seconds"],
        "reservation.retry_after": reservation["retry_after_seconds"],
        "deposit.charges_limit": deposit["charges_in_flight_limit"],
        "deposit.shortest_charge": deposit_usecases.SHORTEST_CHARGE_SECONDS,
        "deposit.answer_margin": deposit_usecases.ANSWER_MARGIN_SECONDS,
        "deposit.charge_timeout": deposit["charge_timeout_ms"] / 1000,
        "deposit.provider_timeout": deposit["provider_timeout_ms"] / 1000,
        "deposit.settle_lease": deposit["settle_lease_seconds"],
        "deposit.pending_settle": deposit["pending_settle_seconds"],
    }


def _stopping() -> Numbers:
    return {
        "machine.policy_drain": parts.POLICY_DRAIN_SECONDS,
        "machine.two_drain": parts.TWO_DRAIN_SECONDS,
        "machine.stop": supervision.STOP_SECONDS,
        "machine.liveness_timeout": liveness.DEADLINE_SECONDS,
        "machine.liveness_misses": liveness.MISSES,
    }


def _cluster() -> Numbers:
    (pod,) = (
        one["spec"]["template"]["spec"]
        for one in shipped.read(ROOT / "k8s" / "base" / "every_service.yaml")
        if one["kind"] == "Deployment"
    )
    (container,) = pod["containers"]
    readiness, liveness_, startup = (
        container[f"{name}Probe"] for name in ("readiness", "liveness", "startup")
    )
    lines = (ROOT / "k8s" / "base" / "settings" / "every_service.env").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    (scaler,) = (one["spec"] for one in shipped.read(ROOT / "k8s" / "base" / "every_scaler.yaml"))
    return {
        "cluster.readiness_period": readiness["periodSeconds"],
        "cluster.readiness_timeout": readiness["timeoutSeconds"],
        "cluster.readiness_misses": readiness["failureThreshold"],
        "cluster.liveness_period": liveness_["periodSeconds"],
        "cluster.liveness_timeout": liveness_["timeoutSeconds"],
        "cluster.liveness_misses": liveness_["failureThreshold"],
        "cluster.startup": startup["periodSeconds"] * startup["failureThreshold"],
        "cluster.pre_stop": container["lifecycle"]["preStop"]["sleep"]["seconds"],
        "cluster.drain": float(told["DINEMESH_DRAIN_SECONDS"]),
        "cluster.stop_grace": float(told["DINEMESH_STOP_GRACE_SECONDS"]),
        "cluster.termination_grace": pod["terminationGracePeriodSeconds"],
        "cluster.most_reservations": scaler["maxReplicas"],
        "cluster.least_deposits": scaler["minReplicas"],
    }


def _compose() -> Numbers:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    told = services["reservation"]["environment"]
    return {
        "compose.drain": float(told["DINEMESH_DRAIN_SECONDS"]),
        "compose.stop_grace": float(told["DINEMESH_STOP_GRACE_SECONDS"]),
        "compose.killed": seconds(services["reservation"]["stop_grace_period"]),
        "compose.policy_killed": seconds(services["policy"]["stop_grace_period"]),
    }


def _policy() -> Any:
    values = policy.PolicyValues(port=1, admin_port=2, deposit=["127.0.0.1:1", "127.0.0.1:2"])
    return envoy_yaml.load(policy.POLICY, values.as_mapping())["static_resources"]


def _nowhere() -> Mapping[str, Any]:
    return {name: ["127.0.0.1:1"] for name in settings.BEHIND_THE_EDGE}


def _defaults(kind: Any) -> dict[str, Any]:
    return {name: field.default for name, field in kind.model_fields.items()}


def seconds(text: str) -> float:
    """Envoy's "1.5s" and Istio's "900ms"."""
    if text.endswith("ms"):
        return float(text.removesuffix("ms")) / 1000
    return float(text.removesuffix("s"))
