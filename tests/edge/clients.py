"""`make clients`: the blocks of docs/CLIENTS.md, each run in an empty folder beside its program.

Each books a table through the edge, is refused with details that it can read, and cancels; over gRPC it
watches too. The toolchains and registries of all these languages are not everywhere, so `make test` does not
run this.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest

from protos.export import export
from protos.openapi.__main__ import TARGET as OPENAPI
from tests.edge.client_pages import PROGRAMS, block
from tests.mesh.people import CANCELLED, City
from tests.support.edge import RunningEdge
from tests.support.mesh import RunningMesh

SECONDS = 900
"""What the slowest may take: Rust compiles everything that tonic needs."""
GRPC = ("buf", "Python", "Go", "Java", "Node", "Rust")

CLIENTS = {
    "buf": {"booking.sh": "booking.sh", "../pick": "pick"},
    "Python": {"booking.py": "booking.py"},
    "Go": {"booking.go": "booking.go"},
    "Java": {"pom.xml": "pom.xml", "Booking.java": "src/main/java/Booking.java"},
    "Node": {"booking.mjs": "booking.mjs"},
    "Rust": {"booking.rs": "booking.rs", "build.rs": "build.rs"},
    "openapi-generator": {"openapi_generator.py": "booking.py"},
    "openapi-python-client": {"openapi_python_client.py": "booking.py"},
    "openapi-typescript": {"openapi_typescript.ts": "booking.ts"},
}
"""By heading: which programs lie in the folder, and under which name."""


@pytest.fixture(scope="session")
def contracts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "contracts"
    export(folder)
    return folder


async def shell(script: str, folder: Path, **environment: str) -> str:
    """What the script prints; fails with all of it if it fails."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DINEMESH_")}
    kept["PATH"] = f"{kept['PATH']}:{Path(sys.executable).parent}"  # for buf
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        cwd=folder,
        env=kept | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, f"{script}\n{out.decode()[-4000:]}\n{err.decode()[-4000:]}"
    return out.decode()


@dataclass(frozen=True)
class Bench:
    """What a client is run with."""

    city: City
    mesh: RunningMesh
    edge: RunningEdge
    contracts: Path
    folder: Path

    async def run(self, client: str, commands: str) -> None:
        """The commands of a client, beside its programs: it books, is refused, watches and cancels."""
        place, alice = await self.city.place(), self.city.customer()
        for program, name in CLIENTS[client].items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROGRAMS / program, self.folder / name)
        told = await shell(
            commands,
            self.folder,
            CONTRACTS=str(self.contracts),
            OPENAPI=str(OPENAPI),
            BUF_CACHE_DIR=str(self.folder / "cache"),
            EDGE=self.edge.address,
            TOKEN=self.mesh.token(alice.name, "customer"),
            RESTAURANT=place.id,
            DATE=place.slots[0].astimezone(place.zone).date().isoformat(),
            REQUEST=str(uuid.uuid4()),
        )
        (reservation,) = await alice.reservations()
        assert reservation.state == CANCELLED
        assert f"booked {reservation.reservation_id}" in told
        assert re.search(r"^refused (INVALID_ARGUMENT|POLICY_CHANGED)$", told, re.MULTILINE), told
        assert "cancelled 20 EUR" in told
        if client in GRPC:
            assert "wrong party_size" in told
            assert "watched CONFIRMED" in told


@pytest.fixture
def bench(city: City, mesh: RunningMesh, edge: RunningEdge, contracts: Path, tmp_path: Path) -> Bench:
    return Bench(city, mesh, edge, contracts, tmp_path)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_client_books_is_refused_watches_and_cancels(bench: Bench, client: str) -> None:
    await bench.run(client, block(client))
