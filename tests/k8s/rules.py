"""What must hold of the objects of an overlay. Each rule yields a complaint for each thing that is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from deposit_svc.sandbox.__main__ import Settings as SandboxSettings
from deposit_svc.settings import DepositSettings
from dinemesh.kit.settings import PREFIX, ServiceSettings
from history_svc.settings import HistorySettings
from local_mesh.cluster import SECRETS
from reservation_svc.settings import ReservationSettings
from restaurant_svc.settings import RestaurantSettings
from tests.k8s import schemas
from tests.k8s.rendered import Cluster, Object, Workload

Rule = Callable[[Cluster], Iterator[str]]

SETTINGS: dict[str, type[BaseSettings]] = {
    "reservation": ReservationSettings,
    "deposit": DepositSettings,
    "history": HistorySettings,
    "restaurant": RestaurantSettings,
    "sandbox": SandboxSettings,
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
MADE_BY_HAND = {"dinemesh-keys"}
"""ConfigMaps without a hash in the name: read again when they change."""
POOL = 3
"""Connections of one pod to its database: one writes, two read (dinemesh/kit/engines.py)."""


def is_spelt_right(cluster: Cluster) -> Iterator[str]:
    for one in cluster.objects:
        for error in schemas.complaints(one):
            yield f"{one['kind']} {one['metadata']['name']}: {error}"


def finds_what_it_names(cluster: Cluster) -> Iterator[str]:
    for one in [*cluster.of("Deployment"), *cluster.of("StatefulSet")]:
        labels = one["spec"]["template"]["metadata"]["labels"]
        if not one["spec"]["selector"]["matchLabels"].items() <= labels.items():
            yield f"{one['kind']} {one['metadata']['name']}: does not select its own pods"
    for service in cluster.of("Service"):
        name = service["metadata"]["name"]
        behind = list(cluster.selected({"matchLabels": service["spec"]["selector"]}))
        if [one.name for one in behind] != [name]:
            yield f"Service {name}: selects {[one.name for one in behind]}"
        for port in service["spec"]["ports"]:
            if any(port["targetPort"] not in _port_names(one) for one in behind):
                yield f"Service {name}: nobody listens on {port['targetPort']}"
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for one in cluster.of(kind):
            selector = one["spec"].get("selector") or one["spec"].get("podSelector", {})
            if not any(cluster.selected(selector)):
                yield f"{kind} {one['metadata']['name']}: selects nothing"
    for one in cluster.of("HorizontalPodAutoscaler"):
        target = one["spec"]["scaleTargetRef"]
        if cluster.named(target["kind"], target["name"]) is None:
            yield f"HorizontalPodAutoscaler {one['metadata']['name']}: there is no {target['name']}"
    for workload in cluster.workloads:
        account = workload.pod.get("serviceAccountName", "default")
        if account != "default" and cluster.named("ServiceAccount", account) is None:
            yield f"{workload}: there is no account {account}"
        if workload.kind != "Job" and account != workload.name:
            yield f"{workload}: has the account {account}, not one of its own"


def asks_if_it_is_well(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        for container in workload.containers:
            if workload.kind == "Job":
                continue
            for probe in PROBES:
                if probe not in container:
                    yield f"{workload}: {container['name']} has no {probe}"
            if container["image"].split(":")[0] != "dinemesh":
                continue
            port = _port(container, "grpc")
            for probe, asked in zip(PROBES, ("live", "", "live"), strict=True):
                grpc = container.get(probe, {}).get("grpc", {})
                # A dependency that is away must end no process: only "live" says nothing about dependencies.
                if grpc and (grpc.get("port"), grpc.get("service", "")) != (port, asked):
                    yield f"{workload}: {probe} asks {grpc}, not {asked!r} at {port}"
                if container.get(probe) and not grpc:
                    yield f"{workload}: {probe} does not ask over gRPC"
            if workload.is_service and _grace_of_who_hangs(container) > 5:
                yield f"{workload}: one that hangs is waited for as if it worked"


def _grace_of_who_hangs(container: Object) -> float:
    """Without one of its own a probe gives what the pod has, which is made for calls in flight."""
    found: float = container.get("livenessProbe", {}).get("terminationGracePeriodSeconds", float("inf"))
    return found


def is_harmless(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        pod = workload.pod
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{workload}: holds a token for the API server"
        if pod.get("enableServiceLinks") is not False:
            yield f"{workload}: is told the addresses of all Services as variables"
        context = pod.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{workload}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{workload}: may make any system call"
        for container in workload.containers:
            own = container.get("securityContext", {})
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{workload}: {container['name']} can write into its image"
            if own.get("allowPrivilegeEscalation") is not False:
                yield f"{workload}: {container['name']} can gain privileges"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{workload}: {container['name']} has capabilities"
    for namespace in cluster.of("Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "Namespace: lets in pods that are not restricted"


def knows_how_much_it_needs(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        for container in workload.containers:
            resources = container.get("resources", {})
            asked, most = resources.get("requests", {}), resources.get("limits", {})
            if {"cpu", "memory"} - set(asked) or "memory" not in most:
                yield f"{workload}: {container['name']} does not say how much it needs"
            elif megabytes(asked["memory"]) > megabytes(most["memory"]):
                yield f"{workload}: {container['name']} needs more memory than it may have"


def stops_without_failing_a_call(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.services:
        container = workload.containers[0]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        probe = container.get("readinessProbe", {})
        noticed = probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3) + probe.get(
            "timeoutSeconds", 1
        )
        if sleep <= noticed:
            yield f"{workload}: preStop {sleep} s, but it takes {noticed} s until it is seen as not ready"
        settings = _settings(cluster, workload)
        if isinstance(settings, ServiceSettings):
            needed = sleep + settings.drain_seconds + 2 * settings.stop_grace_seconds
            given = workload.pod.get("terminationGracePeriodSeconds", 30)
            if given <= needed:
                yield f"{workload}: is killed after {given} s, and may need {needed:g} s to stop"
        strategy = workload.spec.get("strategy", {}).get("rollingUpdate", {})
        if strategy.get("maxUnavailable") != 0:
            yield f"{workload}: a rollout takes an old pod away before a new one is ready"


def outlives_its_nodes(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.services:
        budgets = [
            one
            for one in cluster.of("PodDisruptionBudget")
            if workload in cluster.selected(one["spec"]["selector"])
        ]
        if len(budgets) != 1:
            yield f"{workload}: has {len(budgets)} PodDisruptionBudgets"
        elif budgets[0]["spec"].get("maxUnavailable") != 1:
            yield f"{workload}: its PodDisruptionBudget is not one at a time"


def grows_and_shrinks(cluster: Cluster) -> Iterator[str]:
    scalers = {
        one["spec"]["scaleTargetRef"]["name"]: one["spec"] for one in cluster.of("HorizontalPodAutoscaler")
    }
    for workload in cluster.services:
        spec = scalers.get(workload.name)
        if spec is None:
            yield f"{workload}: is not scaled"
            continue
        if "replicas" in workload.spec:
            yield f"{workload}: an apply sets back what the scaler decided"
        if not 2 <= spec["minReplicas"] < spec["maxReplicas"]:
            yield f"{workload}: {spec['minReplicas']} to {spec['maxReplicas']} pods"
        metrics = [one.get("containerResource", {}) for one in spec.get("metrics", [])]
        if [(one.get("name"), one.get("container")) for one in metrics] != [("cpu", "service")]:
            yield f"{workload}: is not scaled by the processor time of its own container"
        for way in ("scaleUp", "scaleDown"):
            behaviour = spec.get("behavior", {}).get(way, {})
            if not behaviour.get("policies") or "stabilizationWindowSeconds" not in behaviour:
                yield f"{workload}: does not say how fast it does {way}"


def fits_into_the_database(cluster: Cluster) -> Iterator[str]:
    held = next((one["data"] for one in cluster.of("ConfigMap") if "postgresql.conf" in one["data"]), None)
    if held is None:
        return
    found = re.search(r"^max_connections = (\d+)$", held["postgresql.conf"], re.MULTILINE)
    most = int(found.group(1)) if found else 100
    # One more pod of each while it is rolled out, and its migrations.
    used = sum((one["spec"]["maxReplicas"] + 1) * POOL + 1 for one in cluster.of("HorizontalPodAutoscaler"))
    if used > most - 10:  # for people, and PostgreSQL's own
        yield f"PostgreSQL takes {most} connections, and the services may want {used}"


def is_told_what_it_knows(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        if workload.name in SETTINGS:
            settings = _settings(cluster, workload)
            if isinstance(settings, str):
                yield f"{workload}: {settings}"
            elif settings is not None:
                told: dict[str, Any] = settings.model_dump()
                for name, setting in (("grpc", "port"), ("http-metrics", "metrics_port")):
                    said = _port(workload.containers[0], name)
                    if said != told[setting]:
                        yield f"{workload}: listens on {told[setting]}, and its port {name} is {said}"
        for container in workload.containers:
            yield from (f"{workload}: {one}" for one in _missing(cluster, workload, container))


def rolls_when_it_is_changed(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        for name in _config_maps(workload):
            if name not in MADE_BY_HAND and not re.search(r"-[a-z0-9]{10}$", name):
                yield f"{workload}: a changed {name} would not roll its pods"


def is_pinned(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        for container in workload.containers:
            _, _, tag = container["image"].rpartition("/")[2].partition(":")
            if not re.search(r"\d+\.\d+", tag):
                yield f"{workload}: runs whatever {container['image']} is today"


def keeps_what_it_writes(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.workloads:
        claimed = {
            one["name"] for one in workload.pod.get("volumes", []) if "persistentVolumeClaim" in one
        } | {one["metadata"]["name"] for one in workload.spec.get("volumeClaimTemplates", [])}
        for container in workload.containers:
            mounts = {one["mountPath"] for one in container.get("volumeMounts", []) if one["name"] in claimed}
            url = cluster.settings(container).get(f"{PREFIX}DATABASE_URL", "")
            file = url.removeprefix("sqlite:///")
            if url.startswith("sqlite:") and not any(file.startswith(f"{mount}/") for mount in mounts):
                yield f"{workload}: {file} is lost with the pod"
            if workload.kind == "StatefulSet" and not mounts:
                yield f"{workload}: keeps nothing"
        for one in workload.pod.get("volumes", []):
            claim = one.get("persistentVolumeClaim", {}).get("claimName")
            if claim and cluster.named("PersistentVolumeClaim", claim) is None:
                yield f"{workload}: there is no claim {claim}"


RULES: tuple[Rule, ...] = (
    is_spelt_right,
    finds_what_it_names,
    asks_if_it_is_well,
    is_harmless,
    knows_how_much_it_needs,
    stops_without_failing_a_call,
    outlives_its_nodes,
    grows_and_shrinks,
    fits_into_the_database,
    is_told_what_it_knows,
    rolls_when_it_is_changed,
    is_pinned,
    keeps_what_it_writes,
)


def megabytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Ki": 1 / 1024, "Mi": 1, "Gi": 1024}[unit]


def _settings(cluster: Cluster, workload: Workload) -> BaseSettings | str | None:
    """The service's own settings as the pod gets them, or what is wrong with them."""
    kind = SETTINGS[workload.name]
    container = workload.containers[0]
    given = cluster.settings(container)
    for secret in secrets(container):
        given |= dict.fromkeys(SECRETS.get(secret, ()), "postgresql://elsewhere")
    values = {name.removeprefix(PREFIX).lower(): value for name, value in given.items()}
    if unknown := set(values) - set(kind.model_fields):
        return f"unknown settings {sorted(unknown)}"
    build: Any = kind
    try:
        made: BaseSettings = build(**values)
        return made
    except ValidationError as error:
        return "; ".join(f"{one['loc']}: {one['msg']}" for one in error.errors(include_url=False))


def _missing(cluster: Cluster, workload: Workload, container: Object) -> Iterator[str]:
    for name in _config_maps(workload):
        if cluster.named("ConfigMap", name) is None:
            yield f"there is no ConfigMap {name}"
    for name in [*secrets(container), *mounted_secrets(workload)]:
        if name not in SECRETS:
            yield f"nobody makes a Secret {name}"
    for one in container.get("env", []):
        wanted = one.get("valueFrom", {}).get("secretKeyRef")
        if wanted and wanted["key"] not in SECRETS.get(wanted["name"], ()):
            yield f"nobody makes {wanted['key']} in the Secret {wanted['name']}"
    volumes = {one["name"] for one in workload.pod.get("volumes", [])}
    volumes |= {one["metadata"]["name"] for one in workload.spec.get("volumeClaimTemplates", [])}
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"there is no volume {mount['name']}"
    files: dict[str, Any] = {"JWKS_FILE": "keys", "TOKEN_FILE": "token"}
    for setting, volume in files.items():
        path = cluster.settings(container).get(f"{PREFIX}{setting}")
        mounts = {one["name"]: one["mountPath"] for one in container.get("volumeMounts", [])}
        if path and path.rpartition("/")[0] != mounts.get(volume):
            yield f"{path} is nowhere"


def _config_maps(workload: Workload) -> Iterator[str]:
    for container in workload.containers:
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                yield source["configMapRef"]["name"]
    for volume in workload.pod.get("volumes", []):
        if "configMap" in volume and not volume["configMap"].get("optional"):
            yield volume["configMap"]["name"]


def secrets(container: Object) -> Iterator[str]:
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            yield source["secretRef"]["name"]


def mounted_secrets(workload: Workload) -> Iterator[str]:
    for volume in workload.pod.get("volumes", []):
        if "secret" in volume:
            yield volume["secret"]["secretName"]


def _port_names(workload: Workload) -> set[str]:
    return {port["name"] for container in workload.containers for port in container.get("ports", [])}


def _port(container: Object, name: str) -> int | None:
    return next((one["containerPort"] for one in container.get("ports", []) if one["name"] == name), None)
