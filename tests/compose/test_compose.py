"""docker-compose.yml as far as it can be held without a daemon; and a mistake in it turns something red."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from sqlalchemy.engine import make_url

from dinemesh.kit.settings import PREFIX, ServiceSettings
from local_mesh import broker_users, containers
from local_mesh.envoy import wheels
from local_mesh.settings import BEHIND_THE_EDGE
from tests.compose import files
from tests.k8s import rendered
from tests.k8s.rules import SETTINGS

Rule = Callable[[Any], Iterator[str]]

PROXIES = ("edge", "policy")
OURS = (*SETTINGS, *PROXIES, "keys", "samples", "token")
DEFINITIONS = "/etc/rabbitmq/dinemesh/definitions.json"
RABBITMQ = files.ROOT / "k8s" / "components" / "rabbitmq"
SIGN = {"keys", "samples", "token"}
"""Who may see the private keys."""


def follows_the_schema(compose: Any) -> Iterator[str]:
    yield from files.complaints(compose, "compose-spec")


def is_pinned(compose: Any) -> Iterator[str]:
    for name, one in compose["services"].items():
        if not re.search(r":\d+\.\d+", one["image"]):
            yield f"{name}: runs whatever {one['image']} is today"


def is_harmless(compose: Any) -> Iterator[str]:
    for name in OURS:
        one = compose["services"][name]
        if one.get("read_only") is not True:
            yield f"{name}: can write into its image"
        if one.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in one.get("security_opt", []):
            yield f"{name}: has capabilities, or can gain them"
        if one.get("privileged") or "cap_add" in one or "user" in one:
            yield f"{name}: takes back what the image gave up"
        volumes = {volume.partition(":")[0] for volume in one.get("volumes", [])}
        if "private" in volumes and name not in SIGN:
            yield f"{name}: sees the private keys"
        for volume in one.get("volumes", []):
            if (
                name not in SIGN
                and volume.split(":")[0] in ("public", "token")
                and not volume.endswith(":ro")
            ):
                yield f"{name}: can change the keys"


def lets_in_only_through_the_edge(compose: Any) -> Iterator[str]:
    for name, one in compose["services"].items():
        for port in one.get("ports", []):
            if name != "edge" or not str(port).startswith("127.0.0.1:"):
                yield f"{name}: {port} is open to others"
        if "outside" in one.get("networks", []) and name != "edge":
            yield f"{name}: is in the network outside"
    if compose["networks"]["mesh"] != {"internal": True}:
        yield "mesh: reaches what is outside"


def waits_for_what_it_needs(compose: Any) -> Iterator[str]:
    services = compose["services"]
    for name, one in services.items():
        for needed, how in one.get("depends_on", {}).items():
            if needed not in services:
                yield f"{name}: there is no {needed}"
                continue
            check = services[needed].get("healthcheck", {})
            checked = not check.get("disable") and ("test" in check or needed == "edge")
            if how["condition"] == "service_healthy" and not checked:
                yield f"{name}: nobody can tell whether {needed} is healthy"
            if how["condition"] == "service_completed_successfully" and services[needed]["restart"] != "no":
                yield f"{name}: {needed} never completes"
    for name in ("reservation", "deposit", "history", "restaurant"):
        missing = {"keys", "postgres", "rabbitmq"} - set(services[name].get("depends_on", {}))
        if missing:
            yield f"{name}: does not wait for {sorted(missing)}"


def finds_what_it_names(compose: Any) -> Iterator[str]:
    for name, one in compose["services"].items():
        for volume in one.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                if not (files.ROOT / source).is_file():
                    yield f"{name}: there is no {source}"
            elif source not in compose["volumes"]:
                yield f"{name}: there is no volume {source}"
        for network in one.get("networks", []):
            if network not in compose["networks"]:
                yield f"{name}: there is no network {network}"


def is_told_what_it_knows(compose: Any) -> Iterator[str]:
    services = compose["services"]
    for name, kind in SETTINGS.items():
        given = services[name]["environment"]
        values = {key.removeprefix(PREFIX).lower(): value for key, value in given.items()}
        if unknown := set(values) - set(kind.model_fields):
            yield f"{name}: unknown settings {sorted(unknown)}"
            continue
        build: Any = kind
        try:
            settings = build(**values)
        except ValidationError as error:
            yield f"{name}: {error}"
            continue
        if isinstance(settings, ServiceSettings):
            needed = settings.drain_seconds + 2 * settings.stop_grace_seconds
            if _seconds(services[name].get("stop_grace_period", "10s")) <= needed:
                yield f"{name}: is killed before it has stopped, which may take {needed:g} s"
            password = services["postgres"]["environment"].get(f"{name.upper()}_PASSWORD")
            url = make_url(settings.database_url)
            if (url.host, url.username, url.password, url.database) != ("postgres", name, password, name):
                yield f"{name}: its database is not the one that databases.sh makes"
        for setting in ("deposit_address", "sandbox_address"):
            if (address := getattr(settings, setting, None)) is not None and not _listens(services, address):
                yield f"{name}: nobody listens at {address}"


def sends_to_whom_there_is(compose: Any) -> Iterator[str]:
    for proxy in PROXIES:
        for argument in compose["services"][proxy]["command"][1:]:
            name, _, value = argument.removeprefix("--").partition("=")
            if name in SETTINGS and (
                not value.startswith(f"{name}:") or not _listens(compose["services"], value)
            ):
                yield f"{proxy}: nobody listens at {value} for {name}"


def is_what_the_cluster_runs(compose: Any) -> Iterator[str]:
    """The same PostgreSQL and RabbitMQ, with the same files."""
    cluster = rendered.Cluster(rendered.objects("dev"))
    for name in ("postgres", "rabbitmq", "sandbox", "reservation"):
        there = cluster.named("Deployment", name) or cluster.named("StatefulSet", name)
        assert there is not None
        image = there["spec"]["template"]["spec"]["containers"][0]["image"]
        if compose["services"][name]["image"] != image:
            yield f"{name}: {compose['services'][name]['image']} here, {image} in the cluster"
        if name in ("postgres", "rabbitmq"):
            here, in_the_cluster = _mounted(compose["services"][name]), _configured(cluster, there)
            for path in sorted(here.keys() | in_the_cluster.keys()):
                if path != DEFINITIONS and here.get(path) != in_the_cluster.get(path):
                    yield f"{name}: {path} is another one than in the cluster"


def has_the_users_of_the_table(compose: Any) -> Iterator[str]:
    """The broker's, with the permissions that a cluster gives them; each service comes as its own."""
    file = _mounted(compose["services"]["rabbitmq"]).get(DEFINITIONS)
    if file is None or f"load_definitions = {DEFINITIONS}" not in (RABBITMQ / "rabbitmq.conf").read_text():
        yield "rabbitmq: reads no definitions"
        return
    if file != broker_users.text(broker_users.compose()):
        yield "rabbitmq: other users than python -m local_mesh.broker_users compose makes"
    for name in BEHIND_THE_EDGE:
        told = compose["services"][name]["environment"]["DINEMESH_AMQP_URL"]
        if told != broker_users.url(name, name, "rabbitmq:5672"):
            yield f"{name}: does not come to the broker as itself"
    if any(key.startswith("RABBITMQ_DEFAULT") for key in compose["services"]["rabbitmq"]["environment"]):
        yield "rabbitmq: has a user who may do everything"


def _mounted(service: Any) -> dict[str, str]:
    """The text of each file of ours, by where the container sees it."""
    mounts = (one.split(":") for one in service["volumes"] if one.startswith("./"))
    return {target: (files.ROOT / source).read_text() for source, target, _ in mounts}


def _configured(cluster: rendered.Cluster, workload: Any) -> dict[str, str]:
    pod = workload["spec"]["template"]["spec"]
    maps = {one["name"]: one["configMap"]["name"] for one in pod["volumes"] if "configMap" in one}
    found = {}
    for mount in pod["containers"][0]["volumeMounts"]:
        if mount["name"] in maps:
            held = cluster.named("ConfigMap", maps[mount["name"]])
            assert held is not None
            found[mount["mountPath"]] = held["data"][mount["subPath"]]
    return found


def runs_once_or_for_ever(compose: Any) -> Iterator[str]:
    """`up --wait` waits until everything runs: what ends must be waited for by somebody, or be asked for."""
    waited = {
        name
        for one in compose["services"].values()
        for name, how in one.get("depends_on", {}).items()
        if how["condition"] == "service_completed_successfully"
    }
    for name, one in compose["services"].items():
        if one.get("restart") == "no" and name not in waited and not one.get("profiles"):
            yield f"{name}: ends, and `up --wait` would take that for a failure"


RULES: tuple[Rule, ...] = (
    follows_the_schema,
    is_pinned,
    is_harmless,
    lets_in_only_through_the_edge,
    waits_for_what_it_needs,
    finds_what_it_names,
    is_told_what_it_knows,
    sends_to_whom_there_is,
    is_what_the_cluster_runs,
    has_the_users_of_the_table,
    runs_once_or_for_ever,
)


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def _listens(services: Any, address: str) -> bool:
    host, _, port = address.rpartition(":")
    if host == "policy":
        given = containers.parser().parse_args(services["policy"]["command"])
        return bool(port == str(given.port))
    return bool(services.get(host, {}).get("environment", {}).get("DINEMESH_PORT") == port)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_file_keeps_the_rule(rule: Rule) -> None:
    assert list(rule(files.compose())) == []


def service(compose: Any, name: str) -> Any:
    return compose["services"][name]


MISTAKES: dict[str, tuple[Callable[[Any], object], Rule, str]] = {
    "a misspelt field": (
        lambda c: service(c, "edge").update(restrat="always"),
        follows_the_schema,
        "'restrat' was unexpected",
    ),
    "an image without a version": (
        lambda c: service(c, "rabbitmq").update(image="rabbitmq"),
        is_pinned,
        "whatever rabbitmq is",
    ),
    "root's file system": (
        lambda c: service(c, "deposit").pop("read_only"),
        is_harmless,
        "deposit: can write",
    ),
    "capabilities": (lambda c: service(c, "edge").pop("cap_drop"), is_harmless, "edge: has capabilities"),
    "private keys for a service": (
        lambda c: service(c, "history")["volumes"].append("private:/var/lib/dinemesh/private:ro"),
        is_harmless,
        "history: sees the private keys",
    ),
    "keys that a service can change": (
        lambda c: service(c, "history").update(volumes=["public:/var/lib/dinemesh/public"]),
        is_harmless,
        "history: can change the keys",
    ),
    "a database for everybody": (
        lambda c: service(c, "postgres").update(ports=["5432:5432"]),
        lets_in_only_through_the_edge,
        "5432:5432 is open",
    ),
    "an edge for everybody": (
        lambda c: service(c, "edge").update(ports=["8080:8080"]),
        lets_in_only_through_the_edge,
        "8080:8080 is open",
    ),
    "a removed health check": (
        lambda c: service(c, "postgres").pop("healthcheck"),
        waits_for_what_it_needs,
        "whether postgres is healthy",
    ),
    "nobody waits for the keys": (
        lambda c: service(c, "deposit")["depends_on"].pop("keys"),
        waits_for_what_it_needs,
        "does not wait for ['keys']",
    ),
    "a volume that nobody has": (
        lambda c: c["volumes"].pop("sandbox"),
        finds_what_it_names,
        "no volume sandbox",
    ),
    "a misspelt setting": (
        lambda c: service(c, "deposit")["environment"].update(DINEMESH_SANDBOX_ADRESS="x"),
        is_told_what_it_knows,
        "unknown settings ['sandbox_adress']",
    ),
    "another password": (
        lambda c: service(c, "postgres")["environment"].update(DEPOSIT_PASSWORD="other"),
        is_told_what_it_knows,
        "deposit: its database",
    ),
    "another's user of the broker": (
        lambda c: service(c, "history")["environment"].update(
            DINEMESH_AMQP_URL=service(c, "deposit")["environment"]["DINEMESH_AMQP_URL"]
        ),
        has_the_users_of_the_table,
        "history: does not come to the broker as itself",
    ),
    "a broker without users of the mesh": (
        lambda c: service(c, "rabbitmq")["volumes"].pop(),
        has_the_users_of_the_table,
        "reads no definitions",
    ),
    "another's database": (
        lambda c: service(c, "history")["environment"].update(
            DINEMESH_DATABASE_URL=service(c, "deposit")["environment"]["DINEMESH_DATABASE_URL"]
        ),
        is_told_what_it_knows,
        "history: its database",
    ),
    "an address of nobody": (
        lambda c: service(c, "reservation")["environment"].update(DINEMESH_DEPOSIT_ADDRESS="deposit:8081"),
        is_told_what_it_knows,
        "nobody listens at deposit:8081",
    ),
    "the grace that docker gives by itself": (
        lambda c: service(c, "deposit").pop("stop_grace_period"),
        is_told_what_it_knows,
        "deposit: is killed",
    ),
    "an edge that sends elsewhere": (
        lambda c: service(c, "edge")["command"].__setitem__(-1, "--restaurant=restaurant:8083"),
        sends_to_whom_there_is,
        "restaurant:8083",
    ),
    "a proxy before nobody": (
        lambda c: service(c, "policy")["command"].__setitem__(-1, "--deposit=deposit:8092"),
        sends_to_whom_there_is,
        "policy: nobody listens at deposit:8092",
    ),
    "a proxy at another port": (
        lambda c: service(c, "policy")["command"].append("--port=8091"),
        is_told_what_it_knows,
        "nobody listens at policy:8092",
    ),
    "another PostgreSQL than in the cluster": (
        lambda c: service(c, "postgres").update(image="docker.io/library/postgres:17.5"),
        is_what_the_cluster_runs,
        "postgres:17.5 here",
    ),
    "a PostgreSQL without its settings": (
        lambda c: service(c, "postgres")["volumes"].pop(1),
        is_what_the_cluster_runs,
        "postgresql.conf is another one than in the cluster",
    ),
    "samples that end by themselves": (
        lambda c: service(c, "samples").pop("profiles"),
        runs_once_or_for_ever,
        "samples: ends",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_turns_its_rule_red(name: str) -> None:
    change, rule, says = MISTAKES[name]
    compose = files.compose()
    change(compose)
    complaints = list(rule(compose))
    assert any(says in one for one in complaints), complaints


def test_no_rule_is_without_a_mistake_that_turns_it_red() -> None:
    assert {rule for _, rule, _ in MISTAKES.values()} == set(RULES)


def test_the_commands_of_the_edges_image_are_ones_that_it_knows() -> None:
    parser = containers.parser()
    for name in (*PROXIES, "keys", "samples"):
        parser.parse_args(service(files.compose(), name)["command"])
    entry = service(files.compose(), "token")["entrypoint"]
    assert entry[:4] == ["python", "-O", "-m", "local_mesh.containers"]
    given = parser.parse_args([*entry[4:], "alice", "customer"])
    assert (given.subject, given.role) == ("alice", "customer")


def test_envoy_takes_the_edge_as_the_containers_configure_it(tmp_path: Path) -> None:
    """By names: Envoy refuses them unless it is told to look them up."""
    (tmp_path / "jwks.json").write_text((rendered.K8S / "overlays/prod/keys/jwks.json").read_text())
    given = containers.parser().parse_args(service(files.compose(), "edge")["command"])
    given.jwks, given.work = tmp_path / "jwks.json", tmp_path
    config = containers.edge_config(given)
    loaded = yaml.safe_load(config.read_text())["static_resources"]
    assert {
        one["name"]: one["type"]
        for one in loaded["clusters"]
        if one["name"] in ("reservation", "deposit", "restaurant", "history", "reflection")
    } == dict.fromkeys(("reservation", "deposit", "restaurant", "history", "reflection"), "STRICT_DNS")
    (listener,) = [one for one in loaded["listeners"] if one["name"] == "edge"]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8080}
    assert _validate(config) == ""
    config.write_text(config.read_text().replace("type: STRICT_DNS", "type: STATIC"))
    assert "malformed IP address" in _validate(config)


def test_envoy_takes_the_proxy_before_deposit_as_the_containers_configure_it(tmp_path: Path) -> None:
    given = containers.parser().parse_args(service(files.compose(), "policy")["command"])
    given.work = tmp_path
    config = containers.policy_config(given)
    loaded = yaml.safe_load(config.read_text())["static_resources"]
    (cluster,) = loaded["clusters"]
    assert cluster["type"] == "STRICT_DNS"
    (listener,) = loaded["listeners"]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8092}
    assert _validate(config) == ""


def _validate(config: Path) -> str:
    done = subprocess.run(
        [wheels.binary(), "--mode", "validate", "--config-path", config, "--log-level", "error"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr
