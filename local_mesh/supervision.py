"""supervisord runs the parts: it starts what exits, and our listener `liveness` kills what hangs."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from local_mesh.failure import Failure
from local_mesh.parts import Part, plain_environment
from local_mesh.places import Places
from local_mesh.settings import ROOT, MeshSettings

LISTENER = "liveness"
GROUP = "mesh"
STOP_SECONDS = 40
"""What a part gets to finish its calls before it is killed; longer than a service's own drain, its grace for
calls, that for the work behind them, and a last confirm of the broker."""
TICK_SECONDS = 5
"""How often liveness is asked. supervisord knows ticks of 5, 60 and 3600."""

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Seen:
    """What the supervisor knows about one part."""

    name: str
    state: str
    """STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED or FATAL."""
    pid: int
    up_seconds: int
    said: str
    """Why it is not running, in the supervisor's words."""


def write_config(settings: MeshSettings, places: Places, parts: Sequence[Part]) -> None:
    """Write the supervisor's configuration for these parts."""
    sections = [
        _section(
            "supervisord",
            {
                "logfile": places.logs / "supervisord.log",
                "logfile_maxbytes": "5MB",
                "pidfile": places.supervisor_pid,
                "childlogdir": places.logs,
                "directory": ROOT,
                "umask": "077",
                "nodaemon": "false",
                "strip_ansi": "true",
            },
        ),
        _section("unix_http_server", {"file": places.socket, "chmod": "0700"}),
        _section("rpcinterface:supervisor", {"supervisor.rpcinterface_factory": _INTERFACE}),
        _section(
            f"eventlistener:{LISTENER}",
            {
                "command": shlex.join((sys.executable, "-m", "local_mesh.liveness", str(settings.state_dir))),
                "environment": _environment(plain_environment(settings)),
                "events": f"TICK_{TICK_SECONDS}",
                "buffer_size": "1",
                "autorestart": "true",
                "startretries": "30",
                "stderr_logfile": places.log(LISTENER),
                "stderr_logfile_maxbytes": "5MB",
                "stdout_logfile": "NONE",
                "priority": "1000",
            },
        ),
    ]
    # One group: a shutdown takes one group after the other, a second each.
    sections.append(_section(f"group:{GROUP}", {"programs": ",".join(part.name for part in parts)}))
    for order, part in enumerate(parts):
        sections.append(
            _section(
                f"program:{part.name}",
                {
                    "command": shlex.join(part.arguments),
                    "environment": _environment(part.environment),
                    "priority": str(order),
                    "autorestart": "true",
                    "startsecs": "1",
                    # Each try waits a second longer than the one before: this is an hour of trying.
                    "startretries": "80",
                    "stopwaitsecs": str(STOP_SECONDS),
                    # Not stopasgroup: the broker's own children are not to be ended under it.
                    "killasgroup": "true",
                    "redirect_stderr": "true",
                    "stdout_logfile": places.logs / f"{part.name}.log",
                    "stdout_logfile_maxbytes": "20MB",
                    "stdout_logfile_backups": "2",
                },
            )
        )
    places.supervisor_config.write_text("; Written by `make up`.\n" + "\n".join(sections))
    places.supervisor_config.chmod(0o600)


_INTERFACE = "supervisor.rpcinterface:make_main_rpcinterface"


def _section(name: str, values: Mapping[str, object]) -> str:
    lines = [f"{key}={str(value).replace('%', '%%')}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def _environment(values: Mapping[str, str]) -> str:
    for name, value in values.items():
        if any(character in value for character in '"\n\\') or value != value.strip("'"):
            raise Failure(f"{name}: a value with a quote, a backslash or a line break cannot be passed on.")
    return ",".join(f'{name}="{value}"' for name, value in values.items())


class Supervisor:
    """A running supervisord, reached by its socket."""

    def __init__(self, socket: Path) -> None:
        self._transport = SupervisorTransport(None, None, f"unix://{socket}")
        self._proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=self._transport)

    def parts(self) -> dict[str, Seen]:
        """Every part by name, our listener left out."""
        infos: Any = self._call("getAllProcessInfo")
        return {
            info["name"]: Seen(
                info["name"],
                info["statename"],
                info["pid"],
                max(0, info["now"] - info["start"]) if info["pid"] else 0,
                info["spawnerr"] or info["description"],
            )
            for info in infos
            if info["name"] != LISTENER
        }

    def start(self, part: str) -> None:
        """Returns before the part runs; raises Refused, with ALREADY_STARTED for one that does."""
        self._call("startProcess", f"{GROUP}:{part}", False)

    def stop(self, part: str) -> None:
        """Stop a part and wait until it is gone; it stays away until `start`."""
        self._call("stopProcess", f"{GROUP}:{part}", True)

    def stop_together(self, parts: Sequence[str], at_most_seconds: float = 2.0 * STOP_SECONDS) -> None:
        """Stop several parts at once and wait until they are gone. supervisord alone takes one by one."""
        end = time.monotonic() + at_most_seconds
        for part in parts:
            with contextlib.suppress(Refused):
                self._call("stopProcess", f"{GROUP}:{part}", False)
        while any(seen.pid for name, seen in self.parts().items() if name in parts):
            if time.monotonic() > end:
                return
            time.sleep(POLL_SECONDS)

    def shut_down(self) -> None:
        """Tells supervisord to end all parts and itself; returns before they are gone."""
        self._call("shutdown")

    @property
    def pid(self) -> int:
        """Asks supervisord for its pid; raises OSError if it does not answer."""
        answer: Any = self._call("getPID")
        return int(answer)

    def close(self) -> None:
        """Closes the connection; supervisord and the parts go on."""
        self._transport.close()

    def _call(self, method: str, *arguments: object) -> object:
        try:
            return getattr(self._proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise Refused(fault.faultString) from fault


class Refused(Exception):
    """The supervisor would not do it; its words start with a name such as ALREADY_STARTED."""


def running(places: Places) -> Supervisor | None:
    """The supervisor of this mesh, if one answers."""
    if not places.socket.exists():
        return None
    supervisor = Supervisor(places.socket)
    try:
        supervisor.pid  # noqa: B018
    except (OSError, xmlrpc.client.Error):
        supervisor.close()
        return None
    return supervisor


def start_supervisor(settings: MeshSettings, places: Places, wait_seconds: float = 15) -> Supervisor:
    """Start supervisord in the background and wait until it answers."""
    environment = plain_environment(settings)
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(places.supervisor_config)],
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=wait_seconds,
        check=False,
    )
    end = time.monotonic() + wait_seconds
    while done.returncode == 0 and time.monotonic() < end:
        supervisor = running(places)
        if supervisor is not None:
            return supervisor
        time.sleep(0.05)
    raise Failure(f"supervisord did not start: {(done.stdout + done.stderr).strip()}")
