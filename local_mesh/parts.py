"""The processes of a mesh: how each is started, what its environment holds, how it is asked if it is well."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from local_mesh import broker, broker_users
from local_mesh.debian import Unpacked
from local_mesh.envoy.edge import EdgeValues
from local_mesh.envoy.policy import PolicyValues
from local_mesh.failure import Failure
from local_mesh.machine import MARK
from local_mesh.places import Places
from local_mesh.settings import (
    BEHIND_THE_EDGE,
    PREFIX,
    ROOT,
    SECOND_DEPOSIT,
    SERVICES,
    MeshSettings,
    edge_value,
    policy_value,
)

MODULES = {
    "sandbox": "deposit_svc.sandbox",
    "deposit": "deposit_svc.main",
    "restaurant": "restaurant_svc.main",
    "reservation": "reservation_svc.main",
    "history": "history_svc.main",
}

POLICY_DRAIN_SECONDS = 5
"""What calls to deposit get when their proxy is told to stop: above every time that it gives them."""
TWO_DRAIN_SECONDS = 3.5
"""Of two deposits one can stop unnoticed: above a check of each proxy, a second apart, and its time."""

Question = Literal["ready", "live"]


@dataclass(frozen=True)
class Part:
    """One process of the mesh."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


def names(settings: MeshSettings) -> list[str]:
    """The parts of a mesh, in starting order."""
    services = [part for service in SERVICES for part in settings.instances(service)]
    return (["epmd", "rabbitmq"] if settings.own_broker else []) + services + ["policy", "edge"]


def ports(settings: MeshSettings) -> dict[str, int]:
    """By part, the port at which it does its work."""
    known = {"epmd": settings.epmd_port, "rabbitmq": settings.rabbitmq_port}
    return {name: known.get(name) or settings.port(name) for name in names(settings)}


def build(settings: MeshSettings, places: Places, broker_files: Unpacked | None) -> list[Part]:
    """All parts, in starting order."""
    found = []
    if broker_files is not None:
        numbers = broker.BrokerPorts(settings.rabbitmq_port, settings.rabbitmq_dist_port, settings.epmd_port)
        users = _broker_users(settings, places)
        started = broker.commands(broker_files, places.rabbitmq, numbers, configuration=users)
        for name, command in started.items():
            environment = command.environment | {MARK: str(settings.state_dir)}
            found.append(Part(name, _tied(command.arguments), environment))
    for service, module in MODULES.items():
        for name in settings.instances(service):
            # -O leaves out the points at which tests crash a process, and asserts, which only types need.
            arguments = _tied((sys.executable, "-O", "-m", module))
            found.append(Part(name, arguments, _environment(service, name, settings, places)))
    proxies = (
        ("policy", places.policy_config, settings.policy_admin_port, POLICY_DRAIN_SECONDS),
        ("edge", places.edge_config, settings.edge_admin_port, settings.edge_drain_seconds),
    )
    for name, config, admin_port, drain_seconds in proxies:
        arguments = (sys.executable, "-m", "local_mesh.envoy.process", str(config), "--listener", name)
        arguments += ("--admin", f"127.0.0.1:{admin_port}", "--drain-seconds", f"{drain_seconds:g}")
        found.append(Part(name, _tied(arguments), plain_environment(settings)))
    return found


def broker_url(settings: MeshSettings, places: Places, user: str) -> str:
    """Where the broker is, with a user's password; on a broker that is not the mesh's, everybody's."""
    if not settings.own_broker:
        return settings.amqp_url
    password = broker_users.passwords(places.broker_passwords)[user]
    return broker_users.url(user, password, f"127.0.0.1:{settings.rabbitmq_port}")


def _broker_users(settings: MeshSettings, places: Places) -> str:
    """Write down who may do what on the mesh's own broker, and how long its log is kept; what its
    configuration says of that."""
    told = broker_users.passwords(places.broker_passwords)
    # A state folder of an earlier version has RabbitMQ's own user, who might do everything, with a
    # password that everybody knows.
    told |= {"guest": secrets.token_urlsafe(24)}
    known = broker_users.definitions(told, log_days=settings.retention_days)
    places.rabbitmq.mkdir(parents=True, exist_ok=True)
    broker_users.write_privately(places.broker_definitions, broker_users.text(known))
    return f"load_definitions = {places.broker_definitions}\n"


def _environment(service: str, part: str, settings: MeshSettings, places: Places) -> dict[str, str]:
    """Only what this service knows: it refuses to start with a setting that it does not. `part`: which of
    its instances."""
    amqp_url = "" if service == "sandbox" else broker_url(settings, places, service)
    own = of_the_mesh(service, settings, places, amqp_url) | dict(settings.services[service])
    if part == SECOND_DEPOSIT:
        own |= {"PORT": str(settings.deposit_2_port), "METRICS_PORT": str(settings.deposit_2_metrics_port)}
    return {f"{PREFIX}{name}": value for name, value in own.items()} | plain_environment(settings)


def of_the_mesh(service: str, settings: MeshSettings, places: Places, amqp_url: str) -> dict[str, str]:
    """What a service is told besides what somebody set for it."""
    own = {"DATABASE_URL": f"sqlite:///{places.data}/{service}.sqlite"}
    if service != "sandbox":
        # The edge would notice within a second that a service drains, but has no other instance to turn to:
        # its callers would get the refusal that they get from a closed port, only later.
        own |= {"AMQP_URL": amqp_url, "JWKS_FILE": str(places.jwks), "DRAIN_SECONDS": "0"}
        own |= {"RETENTION_DAYS": str(settings.retention_days)}
    if service == "deposit":
        own |= {"SANDBOX_ADDRESS": settings.address("sandbox")}
        if settings.deposits > 1:
            own["DRAIN_SECONDS"] = f"{TWO_DRAIN_SECONDS:g}"
    if service == "reservation":
        own |= {
            "TOKEN_FILE": str(places.service_token("reservation")),
            "DEPOSIT_ADDRESS": settings.address("policy"),
        }
    return own


def edge_values(settings: MeshSettings, places: Places) -> EdgeValues:
    """What the edge of this mesh is told."""
    told: dict[str, Any] = {name.lower(): edge_value(name, value) for name, value in settings.edge.items()}
    addresses: dict[str, Any] = {name: _addresses(settings, name) for name in BEHIND_THE_EDGE}
    return EdgeValues(
        port=settings.edge_port,
        admin_port=settings.edge_admin_port,
        jwks_file=places.jwks,
        descriptor_file=places.edge / "contracts.binpb",
        **addresses,
        **told,
    )


def policy_values(settings: MeshSettings) -> PolicyValues:
    """What the proxy between reservation and deposit is told."""
    told: dict[str, Any] = {
        name.lower(): policy_value(name, value) for name, value in settings.policy.items()
    }
    return PolicyValues(
        port=settings.policy_port,
        admin_port=settings.policy_admin_port,
        deposit=_addresses(settings, "deposit"),
        **told,
    )


def _addresses(settings: MeshSettings, service: str) -> list[str]:
    return [settings.address(part) for part in settings.instances(service)]


def plain_environment(settings: MeshSettings) -> dict[str, str]:
    """What any Python process of the mesh gets, and no setting of a service."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "TZ") if name in os.environ}
    kept |= {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    return kept | {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        MARK: str(settings.state_dir),
    }


def _tied(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The kernel ends the process when the supervisor is gone, however that went."""
    tie = shutil.which("setpriv")
    if tie is None:
        raise Failure(
            "setpriv is missing; it belongs to Debian's util-linux: sudo apt-get install util-linux"
        )
    return (tie, "--pdeathsig", "KILL", "--", *arguments)


def is_well(settings: MeshSettings, name: str, question: Question, timeout_seconds: float = 1.0) -> bool:
    """ready: it does its work. live: its process answers, whatever may be wrong around it."""
    port = ports(settings)[name]
    if name == "rabbitmq":
        return broker.answers(port, timeout_seconds)
    if name == "epmd":
        return _accepts(port, timeout_seconds)
    if name in ("edge", "policy"):
        # About the proxy alone: that services behind it are away is no reason to kill it. Nor is it that
        # clients hold all connections that it takes: whether it lives is asked at a port of its own.
        if question == "live":
            admin_port = settings.edge_admin_port if name == "edge" else settings.policy_admin_port
            return _http_status(admin_port, "/ready", timeout_seconds) is not None
        return _http_status(port, "/livez", timeout_seconds) == 200
    request = health_pb2.HealthCheckRequest(service="live" if question == "live" else "")
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_seconds)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _accepts(port: int, timeout_seconds: float) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds):
            return True
    except OSError:
        return False


def found_ready(settings: MeshSettings, proxy: str, service: str, timeout_seconds: float = 1.0) -> int:
    """How many instances of a service have told this proxy that they are ready; those that it has ejected for
    their errors, too."""
    port = {"edge": settings.edge_admin_port, "policy": settings.policy_admin_port}[proxy]
    counts = rf"^cluster\.{service}\.(membership_healthy|outlier_detection\.ejections_active)$"
    answer = _http_get(port, f"/stats?format=json&filter={quote(counts)}", timeout_seconds)
    return sum(one["value"] for one in json.loads(answer.body)["stats"]) if answer is not None else 0


class _Answer(NamedTuple):
    status: int
    body: bytes


def _http_status(port: int, path: str, timeout_seconds: float) -> int | None:
    answer = _http_get(port, path, timeout_seconds)
    return answer.status if answer is not None else None


def _http_get(port: int, path: str, timeout_seconds: float) -> _Answer | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return _Answer(answer.status, answer.read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
