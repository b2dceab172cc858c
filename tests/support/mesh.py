"""A whole private mesh for tests: a process of each service and the payment sandbox, over a given broker.

Everything is the real thing, started as on one machine: `python -m <service>.main`, settings in the
environment, tokens signed with a key that only the tests hold. A fault is a signal to a process; `Part` says
what became of it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import grpc
import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from jwt.algorithms import ECAlgorithm

from local_mesh.broker import as_user
from local_mesh.broker_users import OPERATOR
from tests.guards import switch
from tests.support.forked import forks
from tests.support.ports import free_ports
from tests.support.process import ROOT, Child, NotHealthy, Process, spawn

__all__ = [
    "FAST",
    "ROOT",
    "SERVICES",
    "Child",
    "Keys",
    "Launch",
    "Part",
    "RunningMesh",
    "launch",
    "launch_alone",
    "state_of",
]

SERVICES = ("reservation", "deposit", "restaurant", "history")

START_SECONDS = 60

FAST: dict[str, dict[str, str]] = {
    # A test stops services often; nobody stands in front who would have to notice NOT_SERVING first.
    "every": {
        "DRAIN_SECONDS": "0",
        "STOP_GRACE_SECONDS": "1",
        "WATCH_POLL_MS": "100",
        "HEARTBEAT_SECONDS": "2",
        "CANARY_SECONDS": "1",
    },
    "reservation": {
        "DEPOSIT_DEADLINE_MS": "1500",
        "RETRY_AFTER_SECONDS": "0.5",
        "ATTEMPT_DEADLINE_SECONDS": "2.5",
        # After deposit has reconciled what a crash left undecided.
        "HOLD_EXPIRE_SECONDS": "6",
        "SETTLE_INTERVAL_SECONDS": "0.2",
        "BREAKER_REST_SECONDS": "0.3",
        "BREAKER_LONGEST_REST_SECONDS": "1",
        "UNPAID_PAUSE_SECONDS": "0.5",
        "UNPAID_WINDOW_SECONDS": "4",
    },
    "deposit": {
        "PROVIDER_TIMEOUT_MS": "500",
        "CHARGE_TIMEOUT_MS": "2500",
        "PENDING_SETTLE_SECONDS": "3",
        "SETTLE_INTERVAL_SECONDS": "0.2",
        "SETTLE_LEASE_SECONDS": "3",
    },
}
"""Settings that make waits short; `every` for the four services, the rest by name of the part."""


def state_of(pid: int) -> str:
    """The kernel's letter for a process ("S" sleeps, "T" stopped by a signal, ...), or "" if it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return ""
    return after_name.split()[0]


class Keys:
    """Signs tokens; `folder`/jwks.json holds the public key."""

    def __init__(self, folder: Path) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.kid = uuid.uuid4().hex[:8]
        public = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        self.jwks_file = folder / "jwks.json"
        self.jwks_file.write_text(
            json.dumps({"keys": [public | {"kid": self.kid, "alg": "ES256", "use": "sig"}]})
        )

    def token(
        self,
        sub: str,
        role: str,
        restaurant_id: str | None = None,
        *,
        seconds: float = 3600,
        **claims: object,
    ) -> str:
        """A token that expires `seconds` from now; `claims` replaces or adds any."""
        now = int(time.time())
        body: dict[str, object] = {
            "iss": "dinemesh",
            "aud": "dinemesh",
            "sub": sub,
            "role": role,
            "iat": now if seconds > 0 else now + int(seconds) - 60,
            "exp": now + int(seconds),
        }
        if restaurant_id is not None:
            body["restaurant_id"] = restaurant_id
        return jwt.encode(body | claims, self.private, algorithm="ES256", headers={"kid": self.kid})


Launch = Callable[[str, dict[str, str], Path], Child]
"""Starts a module with an environment; what it says goes to the end of a file."""


def launch(module: str, environment: dict[str, str], log: Path) -> Child:
    """As `python -m module` would run, by a server that has imported it. The kernel ends it when the tests
    are gone, however they went."""
    if environment.get(switch.VARIABLE):
        return launch_alone(module, environment, log)
    return forks().launch(module, environment, log)


def launch_alone(module: str, environment: dict[str, str], log: Path) -> Child:
    """`python -m module`."""
    modules = ["tests.guards.start", module] if environment.get(switch.VARIABLE) else [module]
    return spawn(["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", *modules], environment, log)


class Part(Process):
    """One process of the mesh."""

    def __init__(
        self,
        name: str,
        module: str,
        port: int,
        environment: dict[str, str],
        log: Path,
        launch: Launch = launch,
    ) -> None:
        super().__init__(name, log)
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.environment = environment
        self._module = module
        self._launch = launch

    @property
    def hangs(self) -> bool:
        """Whether it was stopped by SIGSTOP, as the kernel sees it."""
        return self.running and state_of(self.pid) == "T"

    def spawn(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith("DINEMESH_")}
        told = {f"DINEMESH_{key}": value for key, value in self.environment.items()}
        self.follow(lambda: self._launch(self._module, kept | told, self.log))

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.spawn()
        self.wait_until_ready()

    def is_ready(self, service: str = "") -> bool:
        """What its health check says within a second."""
        with grpc.insecure_channel(self.address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=1
                )
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not self.is_ready():
            if not self.running:
                raise NotHealthy(f"{self.name} ended instead of starting.\n{self.last_words()}")
            if time.monotonic() > end:
                raise NotHealthy(f"{self.name} is not ready after {seconds} s.\n{self.last_words()}")
            time.sleep(0.05)

    def pause(self) -> None:
        """SIGSTOP: the process hangs, its port stays open."""
        os.kill(self.pid, signal.SIGSTOP)
        end = time.monotonic() + 5
        while not self.hangs:
            assert time.monotonic() < end, f"{self.name} does not stop at SIGSTOP"
            time.sleep(0.01)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


class RunningMesh:
    """The parts of one mesh by name: the four services and "sandbox"."""

    def __init__(
        self,
        folder: Path,
        amqp_url: str,
        *,
        databases: Mapping[str, str] | None = None,
        settings: Mapping[str, Mapping[str, str]] | None = None,
        launch: Launch = launch,
    ) -> None:
        """`databases`: SQLAlchemy URL by service, else a SQLite file in `folder`. `settings`: as FAST, which
        they overrule. `amqp_url`: of somebody who may do everything; each service gets its own user."""
        self.folder = folder
        self.amqp_url = amqp_url
        self.keys = Keys(folder)
        self.databases = {name: f"sqlite:///{folder}/{name}.db" for name in (*SERVICES, "sandbox")}
        self.databases |= dict(databases or {})
        ports = dict(zip((*SERVICES, "sandbox"), free_ports(5), strict=True))
        self.metrics_ports = dict(zip(SERVICES, free_ports(4), strict=True))
        own_token = folder / "reservation.token"
        own_token.write_text(self.keys.token("reservation", "service", seconds=86_400))
        chosen: dict[str, dict[str, str]] = {}
        for layer in (FAST, settings or {}):
            for name, values in layer.items():
                chosen.setdefault(name, {}).update(values)
        self.parts: dict[str, Part] = {}
        for name in SERVICES:
            environment = {
                "PORT": str(ports[name]),
                "METRICS_PORT": str(self.metrics_ports[name]),
                "DATABASE_URL": self.databases[name],
                "AMQP_URL": as_user(amqp_url, name),
                "JWKS_FILE": str(self.keys.jwks_file),
            }
            if name == "reservation":
                environment |= {
                    "TOKEN_FILE": str(own_token),
                    "DEPOSIT_ADDRESS": f"127.0.0.1:{ports['deposit']}",
                }
            if name == "deposit":
                environment["SANDBOX_ADDRESS"] = f"127.0.0.1:{ports['sandbox']}"
            environment |= chosen.get("every", {}) | chosen.get(name, {})
            self.parts[name] = Part(
                name, f"{name}_svc.main", ports[name], environment, folder / f"{name}.log", launch
            )
        environment = {"PORT": str(ports["sandbox"]), "DATABASE_URL": self.databases["sandbox"]}
        environment |= chosen.get("sandbox", {})
        self.parts["sandbox"] = Part(
            "sandbox", "deposit_svc.sandbox", ports["sandbox"], environment, folder / "sandbox.log", launch
        )

    def __getitem__(self, name: str) -> Part:
        return self.parts[name]

    def start(self) -> None:
        """Start all parts at once and wait until each is ready."""
        try:
            for part in self.parts.values():
                part.spawn()
            for part in self.parts.values():
                part.wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all parts, also one that hangs, and say which did not end when asked to."""
        failed: list[str] = []
        for part in self.parts.values():
            if part.hangs:
                part.resume()
            if part.running:
                os.kill(part.pid, signal.SIGTERM)  # all at once; each is waited for below
        for part in self.parts.values():
            try:
                part.stop()
            except NotHealthy as error:
                failed.append(str(error))
        if failed:
            raise NotHealthy("\n".join(failed))

    @property
    def operators_amqp_url(self) -> str:
        """For the operator's commands."""
        return as_user(self.amqp_url, OPERATOR)

    def measured(self, service: str, metric: str) -> float:
        """What a service shows of a metric, the sum over its labels."""
        answer = httpx.get(f"http://127.0.0.1:{self.metrics_ports[service]}/metrics", timeout=5)
        answer.raise_for_status()
        assert f"# HELP {metric} " in answer.text, f"{service} has no such metric"
        shown = (one for one in answer.text.splitlines() if re.split("[ {]", one)[0] == metric)
        return sum(float(one.split()[-1]) for one in shown)

    def token(self, sub: str, role: str, restaurant_id: str | None = None) -> str:
        return self.keys.token(sub, role, restaurant_id)
