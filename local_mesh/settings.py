"""The settings of the mesh on one machine: where each comes from, what it may be, what it becomes.

A setting is given on make's command line (`make up RESERVATION_PORT=9000`) or in the environment with the
prefix DINEMESH_ (`DINEMESH_RESERVATION_PORT=9000 make up`). Any setting of a service is set by its name with
the service in front: RESERVATION_DATABASE_URL becomes DINEMESH_DATABASE_URL in the environment of
reservation, and only there. What the edge may be told has EDGE_ in front, what the proxy before deposit may
be told has POLICY_. An unknown name is refused, so that a misspelt one is not silently without effect.
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from pydantic_settings import BaseSettings

from dinemesh.kit.settings import MOST_DAYS
from local_mesh.failure import Failure

PREFIX = "DINEMESH_"
LONGEST_DRAIN_SECONDS = 14
"""Of the edge; supervision.STOP_SECONDS with some time to end after it."""
ROOT = Path(__file__).resolve().parent.parent

SERVICES: Mapping[str, str] = {
    "sandbox": "deposit_svc.sandbox.__main__",
    "deposit": "deposit_svc.settings",
    "restaurant": "restaurant_svc.settings",
    "reservation": "reservation_svc.settings",
    "history": "history_svc.settings",
}
"""Module with the settings class of each process of ours, in starting order."""

SECOND_DEPOSIT = "deposit-2"
"""The part that DEPOSITS=2 adds."""

BEHIND_THE_EDGE = ("reservation", "deposit", "restaurant", "history")
"""The services that the edge sends calls to."""

WORDS = frozenset({"SERVICE", "SUB", "ROLE", "RESTAURANT", "QUEUE", "DEPOSIT", "PYTHON", "ARGS"})
"""What a target takes on make's command line besides settings."""

_DEFAULT_PORTS = {
    "RESERVATION_PORT": "8081",
    "DEPOSIT_PORT": "8082",
    "HISTORY_PORT": "8083",
    "RESTAURANT_PORT": "8084",
    "SANDBOX_PORT": "8085",
    "RESERVATION_METRICS_PORT": "9081",
    "DEPOSIT_METRICS_PORT": "9082",
    "HISTORY_METRICS_PORT": "9083",
    "RESTAURANT_METRICS_PORT": "9084",
    "SANDBOX_METRICS_PORT": "9085",
}


@dataclass(frozen=True)
class MeshSettings:
    """One mesh on this machine. Every port is on 127.0.0.1."""

    state_dir: Path = ROOT / ".local"
    """STATE_DIR: data, keys, logs. A second mesh beside the first needs its own, and ports of its own."""
    samples: bool = True
    """SAMPLES: whether sample restaurants are made and kept open for the next 30 days."""
    amqp_url: str = ""
    """AMQP_URL: a broker that runs already, and everybody's user there; a service that has a user of its own
    gets it by RESERVATION_AMQP_URL and the like. Empty: the mesh starts its own, with a user for each."""
    retention_days: int = 30
    """RETENTION_DAYS: how long services keep what they may forget (unless told otherwise by
    RESERVATION_RETENTION_DAYS and the like), and the mesh's own broker its log of events; in days."""
    rabbitmq_port: int = 5673
    """RABBITMQ_PORT: AMQP of the mesh's own broker."""
    rabbitmq_dist_port: int = 25673
    """RABBITMQ_DIST_PORT: where the command line tools of RabbitMQ reach it."""
    epmd_port: int = 4370
    """EPMD_PORT: the name server of the broker's runtime."""
    edge_port: int = 8080
    """EDGE_PORT: HTTP/JSON, gRPC-Web and gRPC for everybody."""
    edge_admin_port: int = 8090
    """EDGE_ADMIN_PORT: Envoy's own pages."""
    edge_drain_seconds: float = 10
    """EDGE_DRAIN_SECONDS: what calls in flight get when the edge is told to stop. As long as a call takes at
    most unless its client asks for more, and less than the supervisor waits before it kills."""
    edge: Mapping[str, str] = field(default_factory=dict)
    """What else the edge was told, by the name without EDGE_; its defaults stand in envoy.edge.EdgeValues."""
    policy_port: int = 8092
    """POLICY_PORT: the proxy between reservation and deposit. To go past it: RESERVATION_DEPOSIT_ADDRESS."""
    policy_admin_port: int = 8093
    """POLICY_ADMIN_PORT: Envoy's own pages of that proxy."""
    policy: Mapping[str, str] = field(default_factory=dict)
    """What else it was told, by the name without POLICY_; its defaults stand in envoy.policy.PolicyValues."""
    page_port: int = 8000
    """PAGE_PORT: where `make page` serves the example page."""
    deposits: int = 1
    """DEPOSITS: instances of deposit, 1 or 2; two need PostgreSQL (DEPOSIT_DATABASE_URL)."""
    deposit_2_port: int = 8086
    """DEPOSIT_2_PORT: the second instance of deposit."""
    deposit_2_metrics_port: int = 9086
    """DEPOSIT_2_METRICS_PORT: the metrics of the second instance of deposit."""
    services: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By service, what the environment of its process holds besides the defaults, without the prefix."""

    @property
    def own_broker(self) -> bool:
        """Returns True unless `amqp_url` names a broker that runs already."""
        return not self.amqp_url

    def port(self, part: str) -> int:
        """Where a service or the proxy before deposit listens for gRPC, and the edge for everything."""
        own = {"edge": self.edge_port, "policy": self.policy_port, SECOND_DEPOSIT: self.deposit_2_port}
        return own[part] if part in own else int(self.services[part]["PORT"])

    def address(self, part: str) -> str:
        """Returns "127.0.0.1:PORT", with the port that `port` says; raises KeyError for other parts."""
        return f"127.0.0.1:{self.port(part)}"

    def instances(self, service: str) -> list[str]:
        """The parts that are this service."""
        return [service, SECOND_DEPOSIT] if (service, self.deposits) == ("deposit", 2) else [service]

    @property
    def ports(self) -> dict[str, int]:
        """Every port the mesh listens on, by the setting that changes it."""
        found = {
            "EDGE_PORT": self.edge_port,
            "EDGE_ADMIN_PORT": self.edge_admin_port,
            "POLICY_PORT": self.policy_port,
            "POLICY_ADMIN_PORT": self.policy_admin_port,
        }
        if self.deposits > 1:
            found |= {
                "DEPOSIT_2_PORT": self.deposit_2_port,
                "DEPOSIT_2_METRICS_PORT": self.deposit_2_metrics_port,
            }
        if self.own_broker:
            found |= {
                "EPMD_PORT": self.epmd_port,
                "RABBITMQ_PORT": self.rabbitmq_port,
                "RABBITMQ_DIST_PORT": self.rabbitmq_dist_port,
            }
        for service, values in self.services.items():
            for name, value in values.items():
                if name in ("PORT", "METRICS_PORT"):
                    found[f"{service.upper()}_{name}"] = int(value)
        return found

    def to_json(self) -> str:
        """Writes every field for `from_json`, with any password in `amqp_url` as it is."""
        return json.dumps({**asdict(self), "state_dir": str(self.state_dir)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> MeshSettings:
        """Reads what `to_json` wrote, perhaps of another version: its other fields are passed over."""
        values = json.loads(text)
        known = {one.name: values[one.name] for one in fields(cls) if one.name in values}
        return cls(**{**known, "state_dir": Path(values["state_dir"])})


def given_values(environment: Mapping[str, str]) -> dict[str, str]:
    """What the user set, by the name without prefix; make's command line wins over the environment."""
    given = {
        name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)
    }
    for name in _names_on_makes_command_line(environment.get("MAKEFLAGS", "")):
        if name not in WORDS and name in environment:
            given[name.removeprefix(PREFIX)] = environment[name]
    return given


def _names_on_makes_command_line(makeflags: str) -> list[str]:
    """make exports its command line variables to us like any others; MAKEFLAGS says which those are."""
    _, dashes, variables = f" {makeflags}".partition(" -- ")
    if not dashes:
        return []
    words = re.findall(r"(?:\\.|[^\s\\])+", variables)
    return [word.split("=", 1)[0].rstrip(":+?") for word in words if "=" in word]


def build(given: Mapping[str, str]) -> MeshSettings:
    """The settings out of what was given. Raises Failure naming everything that is wrong."""
    problems: list[str] = []
    own: dict[str, object] = {}
    edge: dict[str, str] = {}
    policy: dict[str, str] = {}
    services: dict[str, dict[str, str]] = {service: {} for service in SERVICES}
    for name, value in (_DEFAULT_PORTS | dict(given)).items():
        service, _, setting = name.partition("_")
        try:
            if name.lower() in _OWN:
                own[name.lower()] = _OWN[name.lower()](value)
            elif service.lower() in SERVICES and (
                name in _DEFAULT_PORTS or setting in service_settings(service.lower())
            ):
                if setting in ("PORT", "METRICS_PORT"):
                    _port(value)
                services[service.lower()][setting] = value
            elif service == "EDGE" and setting in edge_settings():
                edge_value(setting, value)
                edge[setting] = value
            elif service == "POLICY" and setting in policy_settings():
                policy_value(setting, value)
                policy[setting] = value
            else:
                problems.append(f"{name}: there is no such setting{_did_you_mean(name)}")
        except ValueError as error:
            problems.append(f"{name}={value}: {error}")
    settings = MeshSettings(**{**own, "edge": edge, "policy": policy, "services": services})  # type: ignore[arg-type]  # checked by _OWN
    if not problems:
        problems = [*_ports_used_twice(settings), *_does_not_fit(settings)]
    if problems:
        raise Failure("These settings must be put right first:\n  " + "\n  ".join(problems))
    return settings


def service_settings(service: str) -> frozenset[str]:
    """The names that a service's settings class knows, in capitals and without prefix."""
    return frozenset(name.upper() for name in service_fields(service))


def _default(service: str, name: str) -> str:
    return str(service_fields(service)[name].default)


def service_fields(service: str) -> dict[str, FieldInfo]:
    """The settings of a service, by name."""
    return {name: field for one in service_classes(service) for name, field in one.model_fields.items()}


def service_classes(service: str) -> list[type[BaseSettings]]:
    """The classes of settings that the module of a service defines."""
    module = importlib.import_module(SERVICES[service])
    return [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, BaseSettings) and one.__module__ == module.__name__
    ]


def service_defaults(service: str) -> dict[str, str]:
    """What each setting of a service is if nobody says anything; empty where it has to be told."""
    return {name.upper(): _text(field.get_default()) for name, field in service_fields(service).items()}


def _text(value: object) -> str:
    """As it may be given."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None or value is PydanticUndefined else str(value)


def edge_settings() -> dict[str, str]:
    """What the edge may be told, in capitals and without prefix, with the defaults."""
    from local_mesh.envoy.edge import EdgeValues  # most commands do without

    named = {
        one.name.upper(): str(one.default)
        for one in fields(EdgeValues)
        if one.default is not MISSING and one.name not in _NOT_FOR_PEOPLE
    }
    return named | {"ALLOWED_ORIGINS": "http://localhost:*,http://127.0.0.1:*"}


def edge_value(name: str, value: str) -> object:
    """A setting of the edge as envoy.edge.EdgeValues takes it. Raises ValueError."""
    if name == "ALLOWED_ORIGINS":
        return tuple(_origin(one.strip()) for one in value.split(",") if one.strip())
    if name == "TRUSTED_HOPS":
        return _hops(value)
    return _seconds(value) if name.endswith("_SECONDS") else _count(value)


def policy_settings() -> dict[str, str]:
    """What the proxy before deposit may be told, in capitals and without prefix, with the defaults."""
    from local_mesh.envoy.policy import PolicyValues  # most commands do without

    return {
        one.name.upper(): str(one.default)
        for one in fields(PolicyValues)
        if one.default is not MISSING and one.name not in _NOT_FOR_PEOPLE
    }


def policy_value(name: str, value: str) -> float:
    """A setting of that proxy as envoy.policy.PolicyValues takes it. Raises ValueError."""
    return _seconds(value) if name.endswith("_SECONDS") else _count(value)


_NOT_FOR_PEOPLE = {"host"}
"""Everything on one machine is on 127.0.0.1."""


def all_names() -> list[str]:
    """Every setting there is, as it is written on make's command line."""
    own = [name.upper() for name in _OWN] + [f"EDGE_{name}" for name in edge_settings()]
    own += [f"POLICY_{name}" for name in policy_settings()]
    return own + [
        f"{service.upper()}_{name}" for service in SERVICES for name in sorted(service_settings(service))
    ]


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, all_names(), n=1)
    return f". Did you mean {close[0]}?" if close else ". `make settings` lists them."


def _ports_used_twice(settings: MeshSettings) -> list[str]:
    names: dict[int, str] = {}
    problems = []
    for name, port in settings.ports.items():
        if port in names:
            problems.append(f"{name}={port}: {names[port]} is the same port")
        names.setdefault(port, name)
    return problems


def _does_not_fit(settings: MeshSettings) -> list[str]:
    problems = []
    if settings.deposits > 1 and not settings.services["deposit"].get("DATABASE_URL", "").startswith(
        "postgresql"
    ):
        problems.append(
            f"DEPOSITS={settings.deposits}: several instances need one PostgreSQL, like"
            " DEPOSIT_DATABASE_URL=postgresql+psycopg://user:password@host/deposit; a SQLite file belongs to"
            " one process"
        )
    reservation = settings.services["reservation"]
    # By themselves they fit (docs/BUDGETS.md).
    given = "CHARGE_TIMEOUT_SECONDS" in settings.policy or "DEPOSIT_DEADLINE_MS" in reservation
    if given and "DEPOSIT_ADDRESS" not in reservation:
        charge = float((policy_settings() | dict(settings.policy))["CHARGE_TIMEOUT_SECONDS"])
        deadline = reservation.get("DEPOSIT_DEADLINE_MS") or _default("reservation", "deposit_deadline_ms")
        # What is no number, reservation itself complains of.
        if deadline.isdigit() and int(deadline) <= charge * 1000:
            problems.append(
                f"RESERVATION_DEPOSIT_DEADLINE_MS={deadline}: must be above POLICY_CHARGE_TIMEOUT_SECONDS"
                f" ({charge:g}), or the proxy cannot see who hangs"
            )
    return problems


def _port(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 65535:
        raise ValueError("must be a port, 1 to 65535")
    return int(value)


def _switch(value: str) -> bool:
    if value.lower() not in _SWITCH:
        raise ValueError("must be on or off")
    return _SWITCH[value.lower()]


def _folder(value: str) -> Path:
    if not value:
        raise ValueError("must be a folder")
    return (ROOT / value).resolve()


def _count(value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise ValueError("must be a whole number above 0")
    return int(value)


def _days(value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= MOST_DAYS:
        raise ValueError(f"must be whole days, from 1 to {MOST_DAYS}")
    return int(value)


def _hops(value: str) -> int:
    if not re.fullmatch("[0-9]", value):
        raise ValueError("must be a whole number from 0 to 9")
    return int(value)


def _instances(value: str) -> int:
    if value not in ("1", "2"):
        raise ValueError("must be 1 or 2")
    return int(value)


def _seconds(value: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", value) or float(value) == 0:
        raise ValueError("must be a number of seconds above 0")
    return float(value)


def _drain(value: str) -> float:
    if _seconds(value) > LONGEST_DRAIN_SECONDS:
        raise ValueError(f"must be at most {LONGEST_DRAIN_SECONDS}: after that the supervisor kills")
    return _seconds(value)


def _origin(value: str) -> str:
    """As a regular expression. `:*` at the end is any port or none, another `*` is one part of a name."""
    found = re.fullmatch(r"(https?://[A-Za-z0-9.*-]+|https?://\[[0-9A-Fa-f:]+\])(:\d+|:\*)?", value)
    if not found:
        raise ValueError(
            "must be origins like https://dinemesh.example or http://localhost:*, with commas between"
        )
    host, port = found.group(1), found.group(2) or ""
    return re.escape(host).replace(r"\*", "[A-Za-z0-9-]+") + (r"(:\d+)?" if port == ":*" else port)


def _amqp(value: str) -> str:
    if value and not all(one.startswith(("amqp://", "amqps://")) for one in value.split(",")):
        raise ValueError("must start with amqp:// or amqps://; several with commas between")
    return value


_SWITCH = {
    "on": True,
    "true": True,
    "yes": True,
    "1": True,
    "off": False,
    "false": False,
    "no": False,
    "0": False,
}
_OWN = {
    "state_dir": _folder,
    "samples": _switch,
    "amqp_url": _amqp,
    "retention_days": _days,
    "rabbitmq_port": _port,
    "rabbitmq_dist_port": _port,
    "epmd_port": _port,
    "edge_port": _port,
    "edge_admin_port": _port,
    "edge_drain_seconds": _drain,
    "policy_port": _port,
    "policy_admin_port": _port,
    "page_port": _port,
    "deposits": _instances,
    "deposit_2_port": _port,
    "deposit_2_metrics_port": _port,
}
