"""What dev and prod differ in, and what goes with Istio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dinemesh.kit.settings import ServiceSettings
from tests.k8s import rendered
from tests.k8s.rendered import SERVICES, Cluster

INJECT = "sidecar.istio.io/inject"


@pytest.fixture
def dev() -> Cluster:
    return Cluster(rendered.objects("dev"))


@pytest.fixture
def prod() -> Cluster:
    return Cluster(rendered.objects("prod"))


@pytest.fixture
def migrations() -> Cluster:
    return Cluster(rendered.objects("migrations"))


def not_spread(cluster: Cluster) -> Iterator[str]:
    for workload in cluster.services:
        spread = workload.pod.get("topologySpreadConstraints", [])
        keys = {one["topologyKey"] for one in spread}
        if keys != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{workload}: is spread over {sorted(keys)}"
        for one in spread:
            # Together with its own labels: otherwise the services would be spread among each other.
            if "app.kubernetes.io/name" not in one.get("matchLabelKeys", []):
                yield f"{workload}: its pods are counted together with others'"
            if not one["labelSelector"]["matchLabels"].items() <= dict(workload.labels).items():
                yield f"{workload}: its own pods are not counted"


def test_in_prod_no_zone_and_no_node_holds_a_service_alone(prod: Cluster) -> None:
    assert list(not_spread(prod)) == []
    prod.services[0].pod["topologySpreadConstraints"].pop()
    assert len(list(not_spread(prod))) == 1


def test_prod_has_at_least_a_pod_for_each_of_three_zones(prod: Cluster) -> None:
    assert {one["spec"]["minReplicas"] for one in prod.of("HorizontalPodAutoscaler")} == {3}


def test_prod_brings_no_database_no_broker_and_no_sandbox(dev: Cluster, prod: Cluster) -> None:
    extra = {one.name for one in dev.workloads} - {one.name for one in prod.workloads}
    assert extra == {"postgres", "rabbitmq", "sandbox"}
    assert {one.name for one in prod.workloads} == set(SERVICES)


def test_in_prod_the_jobs_migrate_and_the_pods_wait_for_them(prod: Cluster, migrations: Cluster) -> None:
    assert ServiceSettings.model_fields["migrate_on_start"].default is True
    for workload in prod.services:
        assert prod.settings(workload.containers[0])["DINEMESH_MIGRATE_ON_START"] == "false"
    packages = {one.containers[0]["args"][1] for one in migrations.workloads}
    assert packages == {f"{service}_svc" for service in SERVICES}
    for job in migrations.workloads:
        assert job.pod["restartPolicy"] == "Never"
        assert job.spec["activeDeadlineSeconds"] <= 600  # k8s/rollout.sh gives up after 11 minutes
        secret = job.containers[0]["env"][0]["valueFrom"]["secretKeyRef"]
        assert secret["name"] == f"{job.name.removesuffix('-migrations')}-endpoints"


def test_in_dev_the_services_migrate_themselves(dev: Cluster) -> None:
    for workload in dev.services:
        assert "DINEMESH_MIGRATE_ON_START" not in dev.settings(workload.containers[0])


def test_a_database_of_dev_gets_half_an_hour_to_recover(dev: Cluster) -> None:
    (postgres,) = (one for one in dev.workloads if one.name == "postgres")
    probe = postgres.containers[0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 30 * 60


def test_the_services_are_in_the_mesh_and_what_they_lean_on_is_not(
    dev: Cluster, prod: Cluster, migrations: Cluster
) -> None:
    for cluster in (dev, prod):
        (namespace,) = cluster.of("Namespace")
        assert namespace["metadata"]["labels"]["istio-injection"] == "enabled"
        for workload in cluster.workloads:
            assert workload.labels.get(INJECT) == (None if workload.is_service else "false"), workload
    # A Job whose proxy goes on is never done.
    assert {one.labels.get(INJECT) for one in migrations.workloads} == {"false"}


def test_every_port_says_its_protocol_as_istio_wants_it(dev: Cluster) -> None:
    for service in dev.of("Service"):
        for port in service["spec"]["ports"]:
            assert port["name"].partition("-")[0] in ("grpc", "http", "tcp"), service["metadata"]["name"]


def test_every_overlay_runs_the_same_image() -> None:
    images = {
        container["image"]
        for overlay in rendered.OVERLAYS
        for workload in Cluster(rendered.objects(overlay)).workloads
        for container in workload.containers
        if container["image"].startswith("dinemesh")
    }
    assert images == {"dinemesh:1.0.0"}
