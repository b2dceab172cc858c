"""Who stops, who hangs, and who is asked: on one machine, in containers, in a cluster."""

from __future__ import annotations

from typing import Any

from tests.budgets.sources import Numbers, constant, documents, seconds
from tests.support.process import ROOT


def numbers() -> Numbers:
    return _machine() | _cluster() | _compose()


def _machine() -> Numbers:
    return {
        "machine.policy_drain": constant("local_mesh.parts", "POLICY_DRAIN_SECONDS"),
        "machine.two_drain": constant("local_mesh.parts", "TWO_DRAIN_SECONDS"),
        "machine.edge_alone": constant("local_mesh.commands", "EDGE_ALONE_SECONDS"),
        "machine.longest_drain": constant("local_mesh.settings", "LONGEST_DRAIN_SECONDS"),
        "machine.stop": constant("local_mesh.supervision", "STOP_SECONDS"),
        "machine.down": constant("local_mesh.commands", "DOWN_SECONDS"),
        "machine.start": constant("local_mesh.liveness", "START_SECONDS"),
        "machine.healthy": constant("local_mesh.commands", "HEALTHY_SECONDS"),
        "machine.proxies_see": constant("local_mesh.commands", "PROXIES_SEE_SECONDS"),
        "machine.failed_tries": constant("local_mesh.commands", "FAILED_TRIES"),
        "machine.liveness_period": constant("local_mesh.supervision", "TICK_SECONDS"),
        "machine.liveness_timeout": constant("local_mesh.liveness", "DEADLINE_SECONDS"),
        "machine.liveness_misses": constant("local_mesh.liveness", "MISSES"),
    }


def every_service() -> Any:
    """The pod that all services have in common."""
    (deployment,) = documents("k8s/base/every_service.yaml")
    return deployment["spec"]["template"]["spec"]


def _cluster() -> Numbers:
    pod = every_service()
    (container,) = pod["containers"]
    readiness, liveness, startup = (
        container[f"{name}Probe"] for name in ("readiness", "liveness", "startup")
    )
    lines = (ROOT / "k8s" / "base" / "settings" / "every_service.env").read_text().splitlines()
    told = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    (scaler,) = (one["spec"] for one in documents("k8s/base/every_scaler.yaml"))
    (job,) = (one["spec"] for one in documents("k8s/components/migrations/every_job.yaml"))
    (deployment,) = documents("k8s/base/every_service.yaml")
    return {
        "cluster.startup_period": startup["periodSeconds"],
        "cluster.startup_misses": startup["failureThreshold"],
        "cluster.readiness_period": readiness["periodSeconds"],
        "cluster.readiness_timeout": readiness["timeoutSeconds"],
        "cluster.readiness_misses": readiness["failureThreshold"],
        "cluster.liveness_period": liveness["periodSeconds"],
        "cluster.liveness_timeout": liveness["timeoutSeconds"],
        "cluster.liveness_misses": liveness["failureThreshold"],
        "cluster.liveness_grace": liveness.get(
            "terminationGracePeriodSeconds", pod["terminationGracePeriodSeconds"]
        ),
        "cluster.pre_stop": container["lifecycle"]["preStop"]["sleep"]["seconds"],
        "cluster.drain": float(told["DINEMESH_DRAIN_SECONDS"]),
        "cluster.stop_grace": float(told["DINEMESH_STOP_GRACE_SECONDS"]),
        "cluster.termination_grace": pod["terminationGracePeriodSeconds"],
        "cluster.rollout": deployment["spec"]["progressDeadlineSeconds"],
        "cluster.migration": job["activeDeadlineSeconds"],
        "cluster.migration_tries": job["backoffLimit"],
        "cluster.most_reservations": scaler["maxReplicas"],
        "cluster.least_deposits": scaler["minReplicas"],
        "cluster.scale_down_rest": scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"],
    }


def _compose() -> Numbers:
    (whole,) = documents("docker-compose.yml")
    services = whole["services"]
    told = services["reservation"]["environment"]
    check = services["reservation"]["healthcheck"]
    return {
        "compose.drain": float(told["DINEMESH_DRAIN_SECONDS"]),
        "compose.stop_grace": float(told["DINEMESH_STOP_GRACE_SECONDS"]),
        "compose.killed": seconds(services["reservation"]["stop_grace_period"]),
        "compose.policy_killed": seconds(services["policy"]["stop_grace_period"]),
        "compose.edge_killed": seconds(services["edge"]["stop_grace_period"]),
        "compose.check_interval": seconds(check["interval"]),
        "compose.check_timeout": seconds(check["timeout"]),
        "compose.check_misses": check["retries"],
        "compose.check_start": seconds(check["start_period"]),
    }
