"""Each overlay keeps every rule; and each rule notices when somebody breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.k8s import rendered, rules
from tests.k8s.rendered import OVERLAYS, SERVICES, Cluster, Object
from tests.k8s.rules import RULES, Rule


def test_the_renderings_are_of_the_files_as_they_are() -> None:
    assert rendered.SOURCES.read_text().strip() == rendered.sources(), (
        "k8s/ has changed since it was rendered: make cluster-render"
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_an_overlay_keeps_the_rule(rule: Rule, overlay: str) -> None:
    assert list(rule(Cluster(rendered.objects(overlay)))) == []


def test_there_is_something_to_look_at() -> None:
    for overlay in ("dev", "prod"):
        assert sorted(one.name for one in Cluster(rendered.objects(overlay)).services) == sorted(SERVICES)
    assert {one.kind for one in Cluster(rendered.objects("migrations")).workloads} == {"Job"}


def deployment(cluster: Cluster, name: str = "deposit") -> Any:
    return _found(cluster, "Deployment", name)["spec"]


def container(cluster: Cluster, name: str = "deposit") -> Any:
    return deployment(cluster, name)["template"]["spec"]["containers"][0]


def pod(cluster: Cluster, name: str = "deposit") -> Any:
    return deployment(cluster, name)["template"]["spec"]


def scaler(cluster: Cluster, name: str = "deposit") -> Any:
    return _found(cluster, "HorizontalPodAutoscaler", name)["spec"]


def service(cluster: Cluster, name: str = "deposit") -> Any:
    return _found(cluster, "Service", name)["spec"]


def config_map(cluster: Cluster, key: str) -> Any:
    return next(one["data"] for one in cluster.of("ConfigMap") if key in one["data"])


def _found(cluster: Cluster, kind: str, name: str) -> Object:
    found = cluster.named(kind, name)
    assert found is not None
    return found


def remove(cluster: Cluster, kind: str, name: str) -> None:
    cluster.objects.remove(_found(cluster, kind, name))


def misspell(cluster: Cluster) -> None:
    spec = deployment(cluster)
    spec["startegy"] = spec.pop("strategy")


def misspell_deep(cluster: Cluster) -> None:
    probe = container(cluster)["livenessProbe"]
    probe["failureTreshold"] = probe.pop("failureThreshold")


@dataclass(frozen=True)
class Mutant:
    """A mistake, the rule that is there for it, and what the rule says."""

    name: str
    change: Callable[[Cluster], object]
    rule: Rule
    says: str
    overlay: str = "dev"


MUTANTS = (
    Mutant("a misspelt field", misspell, rules.is_spelt_right, "'startegy' was unexpected"),
    Mutant("a misspelt field of a probe", misspell_deep, rules.is_spelt_right, "failureTreshold"),
    Mutant(
        "a word for a number",
        lambda c: scaler(c).update(maxReplicas="six"),
        rules.is_spelt_right,
        "maxReplicas",
    ),
    Mutant(
        "a Service that selects nobody",
        lambda c: service(c).update(selector={"app.kubernetes.io/name": "deposits"}),
        rules.finds_what_it_names,
        "Service deposit: selects []",
    ),
    Mutant(
        "a Service that selects somebody else",
        lambda c: service(c).update(selector={"app.kubernetes.io/name": "history"}),
        rules.finds_what_it_names,
        "selects ['history']",
    ),
    Mutant(
        "a port that nobody listens on",
        lambda c: service(c)["ports"][0].update(targetPort="grcp"),
        rules.finds_what_it_names,
        "nobody listens on grcp",
    ),
    Mutant(
        "a scaler of something else",
        lambda c: scaler(c)["scaleTargetRef"].update(name="deposits"),
        rules.finds_what_it_names,
        "there is no deposits",
    ),
    Mutant(
        "an account that somebody else has",
        lambda c: pod(c).update(serviceAccountName="reservation"),
        rules.finds_what_it_names,
        "not one of its own",
    ),
    Mutant(
        "one that hangs is given time to finish its calls",
        lambda c: container(c)["livenessProbe"].pop("terminationGracePeriodSeconds"),
        rules.asks_if_it_is_well,
        "one that hangs is waited for as if it worked",
    ),
    *(
        Mutant(
            f"a removed {probe}",
            lambda c, probe=probe: container(c).pop(probe),  # type: ignore[misc]
            rules.asks_if_it_is_well,
            f"has no {probe}",
        )
        for probe in rules.PROBES
    ),
    Mutant(
        "a removed probe of PostgreSQL",
        lambda c: _found(c, "StatefulSet", "postgres")["spec"]["template"]["spec"]["containers"][0].pop(
            "readinessProbe"
        ),
        rules.asks_if_it_is_well,
        "postgres has no readinessProbe",
    ),
    Mutant(
        "a liveness that depends on the database",
        lambda c: container(c)["livenessProbe"]["grpc"].pop("service"),
        rules.asks_if_it_is_well,
        "not 'live'",
    ),
    Mutant(
        "a readiness that is always true",
        lambda c: container(c)["readinessProbe"]["grpc"].update(service="live"),
        rules.asks_if_it_is_well,
        "readinessProbe asks",
    ),
    Mutant(
        "a probe of another port",
        lambda c: container(c)["readinessProbe"]["grpc"].update(port=8083),
        rules.asks_if_it_is_well,
        "at 8082",
    ),
    Mutant(
        "root",
        lambda c: pod(c)["securityContext"].pop("runAsNonRoot"),
        rules.is_harmless,
        "may run as root",
    ),
    Mutant(
        "a root that can be written to",
        lambda c: container(c)["securityContext"].update(readOnlyRootFilesystem=False),
        rules.is_harmless,
        "can write into its image",
    ),
    Mutant(
        "a capability",
        lambda c: container(c)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        rules.is_harmless,
        "has capabilities",
    ),
    Mutant(
        "variables of all Services",
        lambda c: pod(c).pop("enableServiceLinks"),
        rules.is_harmless,
        "addresses of all Services",
    ),
    Mutant(
        "no limit of memory",
        lambda c: container(c)["resources"].pop("limits"),
        rules.knows_how_much_it_needs,
        "does not say how much",
    ),
    Mutant(
        "a removed preStop",
        lambda c: container(c).pop("lifecycle"),
        rules.stops_without_failing_a_call,
        "preStop 0 s",
    ),
    Mutant(
        "a readiness that is slower than preStop",
        lambda c: container(c)["readinessProbe"].update(failureThreshold=3),
        rules.stops_without_failing_a_call,
        "takes 7 s",
    ),
    Mutant(
        "the grace that Kubernetes gives by itself",
        lambda c: pod(c).pop("terminationGracePeriodSeconds"),
        rules.stops_without_failing_a_call,
        "killed after 30 s",
    ),
    Mutant(
        "a longer drain than there is time for",
        lambda c: config_map(c, "DINEMESH_DRAIN_SECONDS").update(DINEMESH_DRAIN_SECONDS="20"),
        rules.stops_without_failing_a_call,
        "killed after 45 s",
    ),
    Mutant(
        "a rollout that takes the old one away first",
        lambda c: deployment(c)["strategy"]["rollingUpdate"].update(maxUnavailable=1),
        rules.stops_without_failing_a_call,
        "before a new one is ready",
    ),
    Mutant(
        "a removed PodDisruptionBudget",
        lambda c: remove(c, "PodDisruptionBudget", "deposit"),
        rules.outlives_its_nodes,
        "has 0 PodDisruptionBudgets",
    ),
    Mutant(
        "a removed scaler",
        lambda c: remove(c, "HorizontalPodAutoscaler", "deposit"),
        rules.grows_and_shrinks,
        "is not scaled",
    ),
    Mutant(
        "a removed behaviour",
        lambda c: scaler(c)["behavior"].pop("scaleDown"),
        rules.grows_and_shrinks,
        "how fast it does scaleDown",
    ),
    Mutant(
        "a number of replicas beside the scaler",
        lambda c: deployment(c).update(replicas=2),
        rules.grows_and_shrinks,
        "an apply sets back",
    ),
    Mutant(
        "one pod, so that each rollout or lost node is an outage",
        lambda c: scaler(c).update(minReplicas=1),
        rules.grows_and_shrinks,
        "1 to 3 pods",
    ),
    Mutant(
        "more pods than the database takes",
        lambda c: [scaler(c, name).update(maxReplicas=12) for name in SERVICES],
        rules.fits_into_the_database,
        "PostgreSQL takes 120 connections",
    ),
    Mutant(
        "a misspelt setting",
        lambda c: config_map(c, "DINEMESH_SANDBOX_ADDRESS").update(DINEMESH_SANDBOX_ADRESS="sandbox:8085"),
        rules.is_told_what_it_knows,
        "unknown settings ['sandbox_adress']",
    ),
    Mutant(
        "a setting that is no number",
        lambda c: config_map(c, "DINEMESH_SANDBOX_ADDRESS").update(DINEMESH_CHARGE_TIMEOUT_MS="soon"),
        rules.is_told_what_it_knows,
        "charge_timeout_ms",
    ),
    Mutant(
        "a setting that contradicts another",
        lambda c: config_map(c, "DINEMESH_DEPOSIT_ADDRESS").update(DINEMESH_DEPOSIT_DEADLINE_MS="20000"),
        rules.is_told_what_it_knows,
        "deposit_deadline_ms must be below",
    ),
    Mutant(
        "a port in the settings alone",
        lambda c: config_map(c, "DINEMESH_SANDBOX_ADDRESS").update(DINEMESH_PORT="8083"),
        rules.is_told_what_it_knows,
        "listens on 8083",
    ),
    Mutant(
        "a Secret that nobody makes",
        lambda c: container(c)["envFrom"][2]["secretRef"].update(name="deposit-database"),
        rules.is_told_what_it_knows,
        "nobody makes a Secret deposit-database",
    ),
    Mutant(
        "keys that are mounted elsewhere",
        lambda c: container(c)["volumeMounts"][0].update(mountPath="/keys"),
        rules.is_told_what_it_knows,
        "/etc/dinemesh/keys/jwks.json is nowhere",
    ),
    Mutant(
        "a ConfigMap without a hash in its name",
        lambda c: container(c)["envFrom"][1]["configMapRef"].update(name="deposit"),
        rules.rolls_when_it_is_changed,
        "a changed deposit would not roll its pods",
    ),
    Mutant(
        "an image without a version",
        lambda c: container(c).update(image="dinemesh:latest"),
        rules.is_pinned,
        "whatever dinemesh:latest is today",
    ),
    Mutant(
        "a database in a container's own files",
        lambda c: pod(c, "sandbox")["volumes"].clear(),
        rules.keeps_what_it_writes,
        "sandbox.sqlite is lost with the pod",
    ),
    Mutant(
        "a removed claim",
        lambda c: remove(c, "PersistentVolumeClaim", "sandbox"),
        rules.keeps_what_it_writes,
        "there is no claim sandbox",
    ),
    Mutant(
        "a migration as root",
        lambda c: c.workloads[0].pod["securityContext"].pop("runAsNonRoot"),
        rules.is_harmless,
        "may run as root",
        "migrations",
    ),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "_"))
def test_a_mistake_turns_its_rule_red(mutant: Mutant) -> None:
    cluster = Cluster(rendered.objects(mutant.overlay))
    assert list(mutant.rule(cluster)) == []
    mutant.change(cluster)
    complaints = list(mutant.rule(cluster))
    assert any(mutant.says in one for one in complaints), complaints


def test_no_rule_is_without_a_mistake_that_turns_it_red() -> None:
    assert {mutant.rule for mutant in MUTANTS} == set(RULES)
