"""What a real API server and Kubernetes' own controllers make of k8s/: `make cluster-truth`.

No file of `make test`: it builds Kubernetes. There are no nodes; nodes.py stands in for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from local_mesh import cluster
from tests.cluster_truth import programs
from tests.cluster_truth.control_plane import NAMESPACE, ControlPlane, Refused, control_plane
from tests.cluster_truth.nodes import Metrics, Nodes, metrics
from tests.cluster_truth.render import copied, render
from tests.k8s import rendered
from tests.k8s.rendered import OVERLAYS, SERVICES

pytestmark = pytest.mark.timeout(1800)

APPS = "apis/apps/v1"
SCALING = "apis/autoscaling/v2"
DISRUPTION = "apis/policy/v1"
PATIENCE_SECONDS = 60.0

NAMESPACES = """
apiVersion: v1
kind: Namespace
metadata: {name: istio-ingress}
---
"""


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """With Istio's kinds and the namespaces, as k8s/README.md begins."""
    crds = programs.istio_crds()
    with control_plane() as started:
        started.apply(crds.read_text())
        started.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        started.apply(NAMESPACES + (rendered.K8S / "base/namespace.yaml").read_text())
        eventually(
            "the namespace's own account",
            lambda: any(one["metadata"]["name"] == "default" for one in started.list("serviceaccounts")),
        )
        yield started


@pytest.fixture(scope="module")
def nodes(plane: ControlPlane) -> Iterator[Nodes]:
    with Nodes(plane) as running:
        yield running


@pytest.fixture(scope="module")
def used(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metrics]:
    with metrics(plane, tmp_path_factory.mktemp("metrics")) as told:
        yield told


@pytest.fixture(scope="module")
def rollout(plane: ControlPlane, nodes: Nodes, used: Metrics) -> str:
    """What k8s/rollout.sh said when it rolled out prod, with the Secrets that it needs."""
    plane.kubectl("create", "-f", "-", given=cluster.manifests(cluster.values("token")))
    return roll_out(plane)


@pytest.fixture(scope="module")
def prod(plane: ControlPlane, rollout: str) -> ControlPlane:
    """prod, rolled out and running."""
    for service in SERVICES:
        eventually(f"three pods of {service}", lambda service=service: ready(plane, service) == 3)  # type: ignore[misc]
    return plane


def roll_out(plane: ControlPlane, change: Callable[[Path], object] = lambda _: None) -> str:
    """What k8s/rollout.sh says of prod, with keys of somebody and files that are changed. Raises Refused."""

    def somebody(root: Path) -> None:
        keys = root / "k8s/overlays/prod/keys/jwks.json"
        keys.write_text(keys.read_text().replace("nobody", "somebody"))
        change(root)

    with copied(somebody) as root:
        return plane.run(root / "k8s/rollout.sh", "prod")


def edit(file: str, old: str, new: str) -> Callable[[Path], object]:
    """Of a copy of the project."""

    def change(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new))

    return change


def ready(plane: ControlPlane, service: str) -> int:
    found: int = plane.one("deployments", service, APPS)["status"].get("readyReplicas", 0)
    return found


def eventually(what: str, holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_renderings_that_make_test_looks_at_are_what_kustomize_makes(overlay: str) -> None:
    assert (rendered.GOLDENS / f"{overlay}.yaml").read_text() == rendered.built_in(render(overlay))
    assert rendered.SOURCES.read_text().strip() == rendered.sources()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_takes_every_object_of_an_overlay(plane: ControlPlane, overlay: str) -> None:
    text = render(overlay)
    said = plane.apply(text, dry_run=True).splitlines()
    assert len(said) == len(rendered.parsed(text)) > 4
    assert all("serverside-applied" in one for one in said), said


@dataclass(frozen=True)
class Mistake:
    """One place of a rendering, as somebody might write it."""

    name: str
    right: str
    wrong: str
    said: str


MISTAKES = (
    Mistake("a misspelt field", "\n  strategy:\n", "\n  startegy:\n", ".spec.startegy: field not declared"),
    Mistake("a misspelt field of a probe", "failureThreshold:", "failureTreshold:", "field not declared"),
    Mistake("a word for a number", "maxReplicas: 3", "maxReplicas: three", "maxReplicas"),
    Mistake("an unknown word", "type: RollingUpdate", "type: Rolling", "Unsupported value"),
    Mistake(
        "a selector of others",
        "matchLabels:\n      app.kubernetes.io/name: deposit\n  strategy",
        "matchLabels:\n      app.kubernetes.io/name: deposits\n  strategy",
        "does not match template `labels`",
    ),
    Mistake("a misspelt field of Istio", "outlierDetection:", "outlierDetecton:", "field not declared"),
    Mistake("a word that Istio does not know", "mode: STRICT", "mode: STRCT", "Unsupported value"),
    Mistake("no time", "baseEjectionTime: ", "baseEjectionTime: about ", "must be a valid duration"),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "_"))
def test_the_server_refuses_a_mistake(plane: ControlPlane, mistake: Mistake) -> None:
    text = render("dev")
    assert mistake.right in text
    with pytest.raises(Refused) as refused:
        plane.apply(text.replace(mistake.right, mistake.wrong, 1), dry_run=True)
    assert mistake.said in str(refused.value), str(refused.value)


def test_a_rollout_runs_the_migrations_first_and_waits_for_all_of_it(
    prod: ControlPlane, rollout: str
) -> None:
    migrated, _, applied = rollout.partition("deployment.apps/reservation serverside-applied")
    for service in SERVICES:
        assert f"job.batch/{service}-migrations condition met" in migrated
        assert f'deployment "{service}" successfully rolled out' in applied
    assert {one["status"].get("succeeded") for one in prod.list("jobs", "apis/batch/v1")} == {1}
    again = roll_out(prod)
    assert again.count(" deleted") == len(SERVICES)
    assert again.count("condition met") == len(SERVICES)


def test_a_migration_that_fails_is_noticed_at_once_and_no_pod_is_changed(
    prod: ControlPlane, nodes: Nodes
) -> None:
    def tries_once(root: Path) -> None:
        edit("k8s/components/migrations/every_job.yaml", "backoffLimit: 3", "backoffLimit: 0")(root)
        edit("k8s/image/kustomization.yaml", "newTag: 1.0.0", "newTag: 1.1.0")(root)

    nodes.failing.add("history-migrations")
    began = time.monotonic()
    try:
        with pytest.raises(Refused, match="a migration has failed; no pod was changed"):
            roll_out(prod, tries_once)
    finally:
        nodes.failing.clear()
    assert time.monotonic() - began < PATIENCE_SECONDS
    assert images(prod) == {"dinemesh:1.0.0"}


def images(plane: ControlPlane) -> set[str]:
    return {
        plane.one("deployments", service, APPS)["spec"]["template"]["spec"]["containers"][0]["image"]
        for service in SERVICES
    }


def test_the_files_win_over_what_was_done_by_hand_since(prod: ControlPlane) -> None:
    """By the commands of k8s/README.md: `rollout undo`, and `patch hpa`."""
    newer = edit("k8s/image/kustomization.yaml", "newTag: 1.0.0", "newTag: 1.1.0")
    roll_out(prod, newer)
    prod.kubectl("-n", NAMESPACE, "rollout", "undo", "deployment/deposit")
    change = '{"spec": {"minReplicas": 4}}'
    prod.kubectl("-n", NAMESPACE, "patch", "hpa", "deposit", "--type", "merge", "--patch", change)
    assert images(prod) == {"dinemesh:1.0.0", "dinemesh:1.1.0"}

    def without_force(root: Path) -> None:
        newer(root)
        edit("k8s/rollout.sh", " --force-conflicts", "")(root)

    with pytest.raises(Refused, match="conflict"):
        roll_out(prod, without_force)
    roll_out(prod, newer)
    assert images(prod) == {"dinemesh:1.1.0"}
    assert prod.one("horizontalpodautoscalers", "deposit", SCALING)["spec"]["minReplicas"] == 3
    roll_out(prod)
    assert images(prod) == {"dinemesh:1.0.0"}


@pytest.mark.parametrize("name", ["postgres", "rabbitmq", "sandbox"])
def test_a_pod_of_what_dev_brings_is_let_in(plane: ControlPlane, name: str) -> None:
    (workload,) = (one for one in rendered.Cluster(rendered.objects("dev")).workloads if one.name == name)
    metadata = {**workload.template["metadata"], "name": f"{name}-alone"}
    # Its account is made with it; who is let in does not depend on that.
    spec = {key: value for key, value in workload.pod.items() if key != "serviceAccountName"}
    claims = [one["metadata"]["name"] for one in workload.spec.get("volumeClaimTemplates", [])]
    spec["volumes"] = spec["volumes"] + [
        {"name": one, "persistentVolumeClaim": {"claimName": one}} for one in claims
    ]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    answer = plane.post(f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", pod)
    assert answer.status_code == 201, answer.text
    spec["securityContext"] = {}
    assert "violates PodSecurity" in plane.post(f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", pod).text


def test_pods_are_made_of_every_deployment_and_nobody_is_refused(prod: ControlPlane) -> None:
    """The namespace admits only pods that are restricted."""
    for service in SERVICES:
        status = prod.one("deployments", service, APPS)["status"]
        assert status["availableReplicas"] == 3
        assert {one["type"]: one["status"] for one in status["conditions"]}["Available"] == "True"


def test_the_scaler_gives_each_deployment_its_number_where_the_file_names_none(prod: ControlPlane) -> None:
    for service in SERVICES:
        assert prod.one("deployments", service, APPS)["spec"]["replicas"] == 3


def test_a_pod_that_may_run_as_root_is_refused(prod: ControlPlane) -> None:
    spec = prod.one("deployments", "deposit", APPS)["spec"]["template"]["spec"]

    def make(changed: dict[str, Any]) -> httpx.Response:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": changed}
        return prod.post(f"/api/v1/namespaces/{NAMESPACE}/pods?dryRun=All", pod)

    assert make(spec).status_code == 201
    refused = make({key: value for key, value in spec.items() if key != "securityContext"})
    assert refused.status_code == 403
    assert "violates PodSecurity" in refused.text


def test_nodes_are_emptied_one_pod_at_a_time(prod: ControlPlane, nodes: Nodes) -> None:
    def allowed() -> int:
        found: int = prod.one("poddisruptionbudgets", "history", DISRUPTION)["status"]["disruptionsAllowed"]
        return found

    def evict(name: str) -> int:
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        return prod.post(f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction", eviction).status_code

    eventually("one may go", lambda: allowed() == 1)
    names = [
        one["metadata"]["name"]
        for one in prod.list("pods")
        if one["metadata"]["labels"].get("app.kubernetes.io/name") == "history"
    ]
    nodes.ready.clear()
    try:
        assert evict(names[0]) == 201
        eventually("its place is not filled", lambda: ready(prod, "history") == 2)
        assert evict(names[1]) == 429
    finally:
        nodes.ready.set()
    eventually("three again", lambda: ready(prod, "history") == 3)
    eventually("the next one may go", lambda: allowed() == 1)


def test_a_changed_setting_rolls_the_pods_of_its_service_and_no_others(prod: ControlPlane) -> None:
    def versions() -> dict[str, str]:
        """By service, the number of its rollout."""
        return {
            one: prod.one("deployments", one, APPS)["metadata"]["annotations"][
                "deployment.kubernetes.io/revision"
            ]
            for one in SERVICES
        }

    def change(root: Path) -> None:
        with (root / "k8s/base/settings/history.env").open("a") as settings:
            settings.write("DINEMESH_LOG_LEVEL=DEBUG\n")

    before = versions()
    prod.apply(render("prod"))
    assert versions() == before  # nothing was changed
    prod.apply(render("prod", change))
    eventually("history is rolled out", lambda: versions()["history"] == str(int(before["history"]) + 1))
    eventually("three are ready", lambda: ready(prod, "history") == 3)
    assert {**versions(), "history": before["history"]} == before
    prod.kubectl("-n", NAMESPACE, "rollout", "undo", "deployment/history")
    prod.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/history", "--timeout=60s")
    names = prod.one("deployments", "history", APPS)["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    held = [
        prod.one("configmaps", one["configMapRef"]["name"])["data"] for one in names if "configMapRef" in one
    ]
    assert "DEBUG" not in [one.get("DINEMESH_LOG_LEVEL") for one in held]


def test_a_job_of_another_version_is_refused_while_the_last_one_is_there(prod: ControlPlane) -> None:
    """Why k8s/rollout.sh deletes them."""
    with pytest.raises(Refused, match="immutable"):
        prod.apply(render("migrations").replace("dinemesh:1.0.0", "dinemesh:1.0.1"))


def test_the_scaler_follows_the_load_up_and_down(
    prod: ControlPlane, used: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the behaviour that ships: nothing about it is made faster."""
    spec: Any = prod.one("horizontalpodautoscalers", "deposit", SCALING)["spec"]
    down = spec["behavior"]["scaleDown"]
    seen: list[tuple[float, int, float]] = []
    began = time.monotonic()

    def replicas() -> int:
        found: int = prod.one("deployments", "deposit", APPS)["spec"]["replicas"]
        if not seen or seen[-1][1] != found:
            seen.append((time.monotonic() - began, found, used.demand.get("deposit", 0)))
        return found

    assert replicas() == spec["minReplicas"] == 3
    used.demand["deposit"] = 700  # 233m of each of three, where 175m are wanted
    eventually("a fourth one", lambda: replicas() == 4)
    used.demand["deposit"] = 1500
    eventually("as many as there may be", lambda: replicas() == spec["maxReplicas"] == 6)
    eventually("all of them are ready", lambda: ready(prod, "deposit") == 6)
    quiet = time.monotonic()
    used.demand["deposit"] = 50
    eventually("fewer", lambda: replicas() < 6, down["stabilizationWindowSeconds"] + PATIENCE_SECONDS)
    waited = time.monotonic() - quiet
    eventually("as few as there may be", lambda: replicas() == 3, 2 * PATIENCE_SECONDS)
    with capsys.disabled():
        print("\nreplicas of deposit (seconds, pods, milli-cores wanted):")  # noqa: T201
        for second, number, demand in seen:
            print(f"  {second:6.1f}  {number}  {demand:6.0f}")  # noqa: T201
        print(f"  first one went {waited:.0f} s after the load had")  # noqa: T201
    assert [number for _, number, _ in seen] == [3, 4, 6, 4, 3]
    assert waited >= down["stabilizationWindowSeconds"] - 5
