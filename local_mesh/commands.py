"""What the make targets do: up, down, status, logs, start, stop."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from local_mesh import broker, keys, machine, meanings, parts, settings, tokens
from local_mesh.debian import Unpacked
from local_mesh.envoy import configuration, edge, policy
from local_mesh.failure import Failure
from local_mesh.places import Places
from local_mesh.settings import MeshSettings
from local_mesh.supervision import Refused, Seen, Supervisor, running, start_supervisor, write_config

HEALTHY_SECONDS = 120
"""For all parts together, on a slow machine that does other things too."""
QUICK_SECONDS = 1.0
"""What is well this soon was well before, or is not worth a line."""
DOWN_SECONDS = 60
EDGE_ALONE_SECONDS = 2.0
"""What `make down` gives the edge for the calls in flight before it stops the services too."""
PROXIES_SEE_SECONDS = 30.0
"""For a proxy to find a service that is ready. It asks each one every second; hung, it is killed first."""
NOT_OF_A_PART = "PAGE_PORT"
"""No part of the mesh has it, so that it may be another one while the mesh runs."""
FAILED_TRIES = 3
"""A part that came back this often without getting well will not get well."""


def say(text: str = "") -> None:
    """A line for the person at the keyboard. That nobody reads any more (`| head`) must not stop the work."""
    with contextlib.suppress(BrokenPipeError):
        print(text, flush=True)


class Mesh:
    """One mesh on this machine, running or not."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given
        self.settings = settings.build(given)
        self.places = Places(self.settings.state_dir)

    @property
    def supervisor(self) -> Supervisor | None:
        """The supervisor, if the mesh runs; from then on its settings are the ones it was started with."""
        found = running(self.places)
        if found is None:
            return None
        started = MeshSettings.from_json(self.places.running.read_text())
        if missing := set(parts.names(started)) - set(found.parts()):
            found.close()
            raise Failure(
                f"The mesh that runs was started by another version, without {', '.join(sorted(missing))}."
                " Start it anew: make down, then make up."
            )
        if started != self.settings:
            self._refuse_other_settings(started)
        self.settings = started
        return found

    def _refuse_other_settings(self, started: MeshSettings) -> None:
        """What was given now must be what the mesh runs with; what was not given now does not matter."""
        now, then = _flat(self.settings), _flat(started)
        other = [
            f"{name}={_without_password(then.get(name, '(default)'))}"
            for name in self._given
            if now.get(name) != then.get(name) and name != NOT_OF_A_PART
        ]
        if other:
            raise Failure(
                f"The mesh runs with {', '.join(other)}. To change that: make down, then make up again."
            )

    @staticmethod
    def word(name: str) -> str:
        """What a target takes besides settings, like SERVICE=deposit; empty if it was not given."""
        return os.environ.get(name, "")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else brings this mesh up or down meanwhile."""
        self.places.make()
        with self.places.lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Another command is bringing this mesh up or down; waiting for it.")
                fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def up(self) -> None:
        """Start what is not running and wait until all of it is healthy."""
        with self.alone():
            supervisor = self.supervisor
            if supervisor is not None:
                self._stand_by(supervisor)
                return
            began = time.monotonic()
            self._sweep()
            files = self._unpack() if self.settings.own_broker else None
            self._check_ports()
            self._check_broker()
            keys.make_keys(self.places)
            tokens.write_for_services(self.places)
            edge.write(parts.edge_values(self.settings, self.places), self.places.edge_config)
            policy.write(parts.policy_values(self.settings), self.places.policy_config)
            write_config(self.settings, self.places, parts.build(self.settings, self.places, files))
            self.places.running.write_text(self.settings.to_json())
            self.places.make_socket_folder()
            logs = [*self.places.logs.glob("*.log"), self.places.log("rabbitmq")]
            lengths = {file.name: file.stat().st_size for file in logs if file.exists()}
            self.places.logged_before.write_text(json.dumps(lengths))
            try:
                supervisor = start_supervisor(self.settings, self.places)
                _wait_until_ready(supervisor, self.settings, self.places)
                _wait_until_proxies_see(supervisor, self.settings)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    say("\nInterrupted: stopping what was started.")
                self._end()
                raise
            finally:
                if supervisor is not None:
                    supervisor.close()
            say(
                f"The mesh is up and healthy ({time.monotonic() - began:.0f} s),"
                f" its edge at http://{self.settings.address('edge')}"
            )

    def _stand_by(self, supervisor: Supervisor) -> None:
        taken_away = [part.name for part in supervisor.parts().values() if part.state == "STOPPED"]
        _wait_until_ready(supervisor, self.settings, self.places)
        _wait_until_proxies_see(supervisor, self.settings)
        supervisor.close()
        if taken_away:
            for name in taken_away:
                say(f"{name} was stopped by `make stop`; bring it back with: make start SERVICE={name}")
        else:
            say("The mesh is already running, and healthy.")

    def down(self) -> None:
        """Stop all parts and see that no process is left."""
        with self.alone():
            supervisor = running(self.places)
            if supervisor is None:
                left = machine.end_processes_of(self.settings.state_dir)
                self._forget()
                say(
                    f"Ended what an earlier run had left: {_listed(left)}"
                    if left
                    else "The mesh is not running."
                )
                return
            supervisor.close()
            self._end()
            say(
                "The mesh is down; no process of it is left. Its data stays in "
                + _short(self.settings.state_dir)
            )

    def status(self) -> bool:
        """One line per part; False if something is not well."""
        supervisor = self.supervisor
        if supervisor is None:
            say("The mesh is not running. Start it with: make up")
            return False
        seen = supervisor.parts()
        supervisor.close()
        ports = parts.ports(self.settings)
        say(f"{'PART':<12} {'STATE':<9} {'HEALTH':<10} {'PORT':>5} {'PID':>7} {'MEMORY':>7}  {'UP'}")
        well = True
        with ThreadPoolExecutor(len(ports)) as pool:
            for name, health in zip(
                ports, pool.map(lambda name: _health(seen[name], self.settings), ports), strict=True
            ):
                part = seen[name]
                memory = f"{machine.memory_megabytes(part.pid)} MB" if part.pid else "-"
                up = _duration(part.up_seconds) if part.pid else part.said
                pid = part.pid or "-"
                state = part.state.lower()
                say(f"{name:<12} {state:<9} {health:<10} {ports[name]:>5} {pid:>7} {memory:>7}  {up}")
                well = well and health == "ready"
        if self.settings.own_broker and (short := self._broker_is_short_of()):
            say(
                f"rabbitmq is short of {' and '.join(short)} and takes no messages. Bookings go on; what is"
                " unsent follows by itself when there is enough again."
            )
            well = False
        if not self.settings.own_broker:
            say(f"{'rabbitmq':<12} not ours: {_without_password(self.settings.amqp_url)}")
        return well

    def _broker_is_short_of(self) -> list[str]:
        numbers = broker.BrokerPorts(
            self.settings.rabbitmq_port, self.settings.rabbitmq_dist_port, self.settings.epmd_port
        )
        try:
            files = broker.unpack_broker(broker.project_cache(), lambda _: None)
            return broker.alarms(files, self.places.rabbitmq, numbers)
        except (Failure, OSError):
            return []  # it does not run, and its own line says so

    def start_part(self, service: str) -> None:
        """Bring one part back and wait until it is healthy."""
        supervisor = self._running_with(service)
        try:
            supervisor.start(service)
        except Refused as refused:
            if not str(refused).startswith("ALREADY_STARTED"):
                raise Failure(f"{service}: {refused}") from refused
            say(f"{service} is running already.")
        _wait_until_ready(supervisor, self.settings, self.places, only=service)
        _wait_until_proxies_see(supervisor, self.settings)
        supervisor.close()

    def stop_part(self, service: str) -> None:
        """Take one part away until it is started again."""
        supervisor = self._running_with(service)
        try:
            supervisor.stop(service)
        except Refused as refused:
            if not str(refused).startswith("NOT_RUNNING"):
                raise Failure(f"{service}: {refused}") from refused
        supervisor.close()
        say(f"{service} is stopped. Bring it back with: make start SERVICE={service}")

    def logs(self, service: str) -> None:
        """Follow the logs until Ctrl-C."""
        names = (
            self._check_service(service)
            if service
            else [*parts.names(self.settings), "liveness", "supervisord"]
        )
        files = [str(self.places.log(name)) for name in names if self.places.log(name).exists()]
        if not files:
            raise Failure("There are no logs yet. Start the mesh with: make up")
        with contextlib.suppress(KeyboardInterrupt):
            subprocess.run(["tail", "-n", "20", "-F", *files], check=False)

    def address(self, part: str) -> str:
        """Where a part of the mesh answers: of the one that runs, else of the one that would be started."""
        supervisor = self.supervisor
        if supervisor is not None:
            supervisor.close()
        known = parts.ports(self.settings)
        if part not in known:
            raise Failure(f"SERVICE must be one of {', '.join(known)}, not {part!r}.")
        return f"127.0.0.1:{known[part]}"

    def _running_with(self, service: str) -> Supervisor:
        self._check_service(service)
        supervisor = self.supervisor
        if supervisor is None:
            raise Failure("The mesh is not running. Start it with: make up")
        return supervisor

    def _check_service(self, service: str) -> list[str]:
        names = parts.names(self.settings)
        if service not in names:
            raise Failure(f"SERVICE must be one of {', '.join(names)}, not {service!r}.")
        return [service]

    def _unpack(self) -> Unpacked:
        files = broker.unpack_broker(broker.project_cache(), say)
        versions = files.packages
        erlang = versions["erlang-base"]
        say(f"RabbitMQ {versions['rabbitmq-server']} on Erlang {erlang}, from the distribution")
        return files

    def _sweep(self) -> None:
        """What an earlier run that did not end well has left."""
        left = machine.end_processes_of(self.settings.state_dir)
        if left:
            say(f"Ended what an earlier run had left: {_listed(left)}")
        if self.places.supervisor_pid.exists():
            say(f"Removed a stale pid file, {_short(self.places.supervisor_pid)}")
        self._forget()

    def _forget(self) -> None:
        self.places.supervisor_pid.unlink(missing_ok=True)
        self.places.socket.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.places.socket.parent.rmdir()

    def _check_ports(self) -> None:
        taken = [
            f"{port} ({name}) is held by {machine.holder(port) or 'a process of another user'}"
            for name, port in self.settings.ports.items()
            if not machine.is_free(port)
        ]
        if taken:
            example = taken[0].split("(")[1].split(")")[0]
            raise Failure(
                "Ports of the mesh are taken on 127.0.0.1:\n  "
                + "\n  ".join(taken)
                + f"\nEnd that process, or choose another port, like: make up {example}=<port>"
            )

    def _check_broker(self) -> None:
        """A broker of somebody else's must answer now; ours is waited for."""
        urls = [urlsplit(one) for one in self.settings.amqp_url.split(",")]
        asked = [(url.port or 5672, url.hostname or "localhost") for url in urls if url.scheme == "amqp"]
        if asked and not any(broker.answers(port, 5.0, host) for port, host in asked):
            raise Failure(f"No broker answers at AMQP_URL={_without_password(self.settings.amqp_url)}")

    def _end(self) -> None:
        state = self.settings.state_dir
        # A connection of its own: another one may have been interrupted in the middle of a question.
        supervisor = running(self.places)
        if supervisor is not None:
            with contextlib.suppress(Refused, OSError):
                # First the edge takes no new calls. It is not waited for to the end: watches through it end
                # when their service says so. The broker last: services say goodbye to it.
                supervisor.stop_together(["edge"], at_most_seconds=EDGE_ALONE_SECONDS)
                supervisor.stop_together(["edge", *_services(self.settings)])
                supervisor.stop_together(["policy"])
                supervisor.stop_together(["rabbitmq"])
                supervisor.shut_down()
            supervisor.close()
        end = time.monotonic() + DOWN_SECONDS
        while machine.processes_of(state) and time.monotonic() < end:
            time.sleep(0.1)
        left = machine.end_processes_of(state)
        if left:
            say(f"Killed what did not stop: {_listed(left)}")
        still = machine.processes_of(state)
        if still:
            raise Failure(f"These would not end: {_listed(still)}")
        self._forget()


def _wait_until_ready(supervisor: Supervisor, mesh: MeshSettings, places: Places, only: str = "") -> None:
    """Say which part became ready when; Failure with the end of its log for one that does not."""
    ports = parts.ports(mesh)
    began = time.monotonic()
    starts: dict[str, set[int]] = {name: set() for name in ports}
    waiting = (
        [only] if only else [name for name, part in supervisor.parts().items() if part.state != "STOPPED"]
    )
    told = began
    with ThreadPoolExecutor(len(ports)) as pool:
        while waiting:
            seen = supervisor.parts()
            ask: Callable[[str], bool] = lambda name: parts.is_well(mesh, name, "ready")  # noqa: E731
            for name, ready in zip(list(waiting), pool.map(ask, list(waiting)), strict=True):
                if ready and seen[name].state in ("RUNNING", "STARTING"):
                    waiting.remove(name)
                    told = time.monotonic()
                    if told - began > QUICK_SECONDS:
                        say(f"  {name:<12} ready after {told - began:.1f} s")
                    continue
                if seen[name].pid:
                    starts[name].add(seen[name].pid)
                if seen[name].state == "FATAL" or len(starts[name]) >= FAILED_TRIES:
                    raise Failure(f"{name} does not start: it exits.\n{last_lines(places, name)}")
            if time.monotonic() - told > 10:
                told = time.monotonic()
                say(f"  waiting for {', '.join(waiting)}")
            if time.monotonic() - began > HEALTHY_SECONDS:
                logs = "\n".join(last_lines(places, name) for name in waiting)
                raise Failure(f"Not healthy after {HEALTHY_SECONDS} s: {', '.join(waiting)}\n{logs}")
            time.sleep(0.1)


def _wait_until_proxies_see(supervisor: Supervisor, mesh: MeshSettings) -> None:
    """Until a call through the edge reaches every instance that is ready, and a charge each deposit: the
    proxies look for themselves, each second."""
    end = time.monotonic() + PROXIES_SEE_SECONDS
    while True:
        seen = supervisor.parts()
        ready = {
            service: sum(parts.is_well(mesh, part, "ready") for part in mesh.instances(service))
            for service in settings.BEHIND_THE_EDGE
        }
        unseen = [
            f"{proxy} finds {found} of {ready[service]} {service}"
            for proxy, services in (("edge", settings.BEHIND_THE_EDGE), ("policy", ("deposit",)))
            if seen[proxy].pid
            for service in services
            if (found := parts.found_ready(mesh, proxy, service)) < ready[service]
        ]
        if not unseen:
            return
        if time.monotonic() > end:
            raise Failure(
                f"After {PROXIES_SEE_SECONDS:.0f} s still, of those that are ready: {', '.join(unseen)}."
            )
        time.sleep(0.1)


def last_lines(places: Places, part: str, count: int = 25) -> str:
    """The end of what a part printed and logged since the mesh was started."""
    said: list[str] = []
    logged_before = json.loads(places.logged_before.read_text()) if places.logged_before.exists() else {}
    for file in dict.fromkeys((places.logs / f"{part}.log", places.log(part))):
        with contextlib.suppress(OSError), file.open(errors="replace") as log:
            log.seek(logged_before.get(file.name, 0))
            lines = log.read().splitlines()[-count:]
            said += [f"--- the end of {_short(file)}", *lines]
    return "\n".join(said) or f"(nothing in {_short(places.log(part))})"


def _health(part: Seen, mesh: MeshSettings) -> str:
    if not part.pid:
        return "-"
    if parts.is_well(mesh, part.name, "ready"):
        return "ready"
    return "not ready" if parts.is_well(mesh, part.name, "live") else "no answer"


def _flat(mesh: MeshSettings) -> dict[str, str]:
    """By name as given on make's command line."""
    own = {
        "STATE_DIR": mesh.state_dir,
        "SAMPLES": mesh.samples,
        "AMQP_URL": mesh.amqp_url,
        "RETENTION_DAYS": mesh.retention_days,
        "RABBITMQ_PORT": mesh.rabbitmq_port,
        "RABBITMQ_DIST_PORT": mesh.rabbitmq_dist_port,
        "EPMD_PORT": mesh.epmd_port,
        "EDGE_PORT": mesh.edge_port,
        "EDGE_ADMIN_PORT": mesh.edge_admin_port,
        "EDGE_DRAIN_SECONDS": f"{mesh.edge_drain_seconds:g}",
        "POLICY_PORT": mesh.policy_port,
        "POLICY_ADMIN_PORT": mesh.policy_admin_port,
        "PAGE_PORT": mesh.page_port,
        "DEPOSITS": mesh.deposits,
        "DEPOSIT_2_PORT": mesh.deposit_2_port,
        "DEPOSIT_2_METRICS_PORT": mesh.deposit_2_metrics_port,
    }
    flat = {name: str(value) for name, value in own.items()}
    flat |= {f"EDGE_{name}": value for name, value in (settings.edge_settings() | dict(mesh.edge)).items()}
    flat |= {
        f"POLICY_{name}": value for name, value in (settings.policy_settings() | dict(mesh.policy)).items()
    }
    for service, values in mesh.services.items():
        flat |= {f"{service.upper()}_{name}": value for name, value in values.items()}
    return flat


def show_settings(mesh: Mesh) -> None:
    """Every setting: its value, and below it its default, its unit and what it means."""
    now, meant = _all_values(mesh.settings), meanings.meanings()
    # What the mesh's folder decides goes with the folder.
    folder = {"STATE_DIR": str(mesh.settings.state_dir)}
    default = _all_values(settings.build(folder)) | {
        "STATE_DIR": str(settings.MeshSettings().state_dir),
    }
    for name in settings.all_names():
        say(f"{name}={_without_password(now[name])}")
        about = [f"default {_without_password(default[name]) or 'none'}", meanings.unit(name, default[name])]
        told = f"{'; '.join(about)}. {meant[name]}"
        lines = textwrap.wrap(told, 106, break_on_hyphens=False, break_long_words=False)
        say(textwrap.indent("\n".join(lines), "    "))


def _all_values(mesh: MeshSettings) -> dict[str, str]:
    """By setting, what its process has now."""
    places = Places(mesh.state_dir)
    found: dict[str, str] = {}
    for service in settings.SERVICES:
        url = f"amqp://{service}:@127.0.0.1:{mesh.rabbitmq_port}/" if mesh.own_broker else mesh.amqp_url
        known = settings.service_defaults(service) | parts.of_the_mesh(service, mesh, places, url)
        found |= {f"{service.upper()}_{name}": value for name, value in known.items()}
    flat = _flat(mesh)
    return found | flat | {"SAMPLES": "on" if mesh.samples else "off"}


def show_edge_config(mesh: Mesh) -> None:
    """The configuration of the edge as Envoy gets it."""
    say(configuration.render(edge.EDGE, parts.edge_values(mesh.settings, mesh.places).as_mapping()).rstrip())


def show_policy_config(mesh: Mesh) -> None:
    """The configuration of the proxy before deposit as Envoy gets it."""
    say(policy.render(parts.policy_values(mesh.settings)).rstrip())


def _services(mesh: MeshSettings) -> list[str]:
    """Every process of ours, each instance."""
    return [part for service in settings.SERVICES for part in mesh.instances(service)]


def _without_password(url: str) -> str:
    scheme, found, rest = url.partition("://")
    return f"{scheme}://...@{rest.rsplit('@', 1)[1]}" if found and "@" in rest else url


def _listed(processes: Sequence[machine.Process]) -> str:
    return ", ".join(str(process) for process in processes)


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    return str(path)


def _duration(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
