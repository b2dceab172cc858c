"""The mesh under its supervisor, by the commands that make calls: real processes in a folder of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml

from dinemesh.history.v1 import history_service_pb2, history_service_pb2_grpc
from dinemesh.watch.v1 import watch_pb2
from local_mesh import machine, operate, parts, samples, settings, tokens
from local_mesh.broker import BrokerPorts, RunningBroker, evaluate, project_cache, unpack_broker
from local_mesh.commands import Mesh
from local_mesh.failure import Failure
from local_mesh.liveness import MISSES
from local_mesh.settings import SERVICES
from local_mesh.supervision import Supervisor, start_supervisor, write_config
from tests.local_mesh.running import LocalMesh, free_table, restaurants, wait_until
from tests.operations.runbook import COMMANDS, TEXT, Trouble
from tests.support.broker import block_publishers
from tests.support.curl import folder_with_curl
from tests.support.grpcurl import folder_with_grpcurl
from tests.support.mesh import ROOT, state_of
from tests.support.ports import free_ports
from tests.test_readme import STORIES


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    """A whole mesh with a broker of its own, up for the tests of this file."""
    whole = LocalMesh(tmp_path_factory.mktemp("mesh") / "state")
    try:
        whole.up()
        yield whole
    finally:
        whole.down()
    assert machine.processes_of(whole.settings.state_dir) == []


@pytest.fixture
def small(tmp_path: Path, broker: RunningBroker) -> Iterator[LocalMesh]:
    """A mesh that is not up yet, on the session's broker."""
    one = LocalMesh(tmp_path / "state", AMQP_URL=broker.fresh_url(), SAMPLES="off")
    yield one
    one.down()


def test_status_has_a_line_for_each_part(mesh: LocalMesh) -> None:
    status = mesh.run("status")
    assert status.returncode == 0, status.stdout
    lines = {line.split()[0]: line for line in status.stdout.splitlines()}
    for name in parts.names(mesh.settings):
        assert " ready " in lines[name]
        assert str(mesh.part(name).pid) in lines[name]


def test_status_says_that_the_broker_takes_no_messages(mesh: LocalMesh) -> None:
    home, numbers = mesh.places.rabbitmq, mesh.settings
    ports = BrokerPorts(numbers.rabbitmq_port, numbers.rabbitmq_dist_port, numbers.epmd_port)
    files = unpack_broker(project_cache(), print)

    class Running:
        def evaluate(self, expression: str) -> str:
            return evaluate(files, home, ports, expression)

    with block_publishers(Running()):
        status = mesh.run("status")
    assert status.returncode != 0
    assert "rabbitmq is short of memory and takes no messages" in status.stdout
    assert mesh.run("status").returncode == 0


def test_edge_config_shows_what_envoy_was_started_with(mesh: LocalMesh) -> None:
    shown = mesh.run("edge-config")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout) == yaml.safe_load(mesh.places.edge_config.read_text())


def test_the_story_is_told_and_can_be_told_again_and_the_books_are_right(mesh: LocalMesh) -> None:
    for _ in range(2):
        told = mesh.run("demo")
        assert told.returncode == 0, told.stdout + told.stderr
        assert "CARD_DECLINED: no deposit, no booking" in told.stdout
        # The time of a table is told as the timeline below tells it, too.
        (local, utc) = re.findall(r"2 persons, .* (\S+) in Europe/Rome \((\S+ UTC)\)", told.stdout)[0]
        assert local not in utc
        assert f", {utc}" in told.stdout.partition("What Alice sees")[2]
    assert "ReservationService/CreateReservation" in mesh.places.log("edge").read_text()
    audit = mesh.run("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "nothing wrong" in audit.stdout
    assert mesh.run("dead-letters").returncode == 0


def test_what_the_demo_says_to_type_next_works(mesh: LocalMesh) -> None:
    told = mesh.run("demo").stdout
    commands = re.findall(r"^  (curl .*)$", told, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", f"{command} --silent --show-error --fail"],
            env={**os.environ, "TOKEN": tokens.person(mesh.places, "alice", "customer")},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert "restaurantId" in done.stdout
    (page,) = re.findall(r"http://\S+/docs$", told, re.MULTILINE)
    assert httpx.get(page, follow_redirects=True).status_code == 200


def in_a_shell(mesh: LocalMesh, tmp_path: Path, commands: str) -> str:
    """What a person sees who types this in the project's folder. `make` runs what stands in the Makefile with
    the Python of this test, and installs nothing; a variable that nobody set ends it."""
    folders = [folder_with_grpcurl(tmp_path), folder_with_curl(tmp_path), os.environ["PATH"]]
    # A `make` that was called by another says so on its standard output.
    alien = ("EDGE", "TOKEN", "MAKELEVEL", "MFLAGS")
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DINEMESH_") and name not in alien
    }
    given = {f"DINEMESH_{name}": value for name, value in mesh.given.items()}
    done = subprocess.run(
        ["bash", "-uc", 'make() { command make -e -o runtime "$@"; }; export -f make\n' + commands],
        env={
            **clean,
            **given,
            "MAKEFLAGS": "",
            "MESH": f"{sys.executable} -m local_mesh",
            "PATH": ":".join(map(str, folders)),
        },
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "unbound variable" not in done.stdout
    return done.stdout


@pytest.mark.parametrize(
    "commands",
    [
        *STORIES.values(),
        "bash examples/curl.sh",
        "bash examples/grpcurl.sh",
        "DIRECT=yes examples/grpcurl.sh",
    ],
    ids=[*STORIES, "curl.sh", "grpcurl.sh", "grpcurl.sh past the edge"],
)
def test_a_story_works_as_it_stands_and_reaches_its_end(
    mesh: LocalMesh, tmp_path: Path, commands: str
) -> None:
    told = in_a_shell(mesh, tmp_path, commands)
    states = re.findall(r'"state": ?"RESERVATION_STATE_([A-Z]+)"', told)
    assert "CONFIRMED" in states, told
    assert states[-1] == "CANCELLED", told
    assert "TIMELINE_ENTRY_KIND_RESERVATION_CONFIRMED" in told
    # The stories over curl show a refusal; nothing else is refused.
    assert told.count('"reason":"INVALID_ARGUMENT"') == ("grpcurl" not in commands), told


def test_the_address_of_each_part_is_told_with_nothing_else(mesh: LocalMesh) -> None:
    assert mesh.run("address").stdout == f"{mesh.settings.address('edge')}\n"
    for service in settings.BEHIND_THE_EDGE:
        assert mesh.run("address", SERVICE=service).stdout == f"{mesh.settings.address(service)}\n"
    refused = mesh.run("address", SERVICE="kitchen")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "SERVICE must be one of epmd, rabbitmq, sandbox, deposit," in refused.stderr


def test_the_page_is_served_once_and_a_second_one_says_where(mesh: LocalMesh) -> None:
    port = str(free_ports(1)[0])
    first = mesh.spawn("page", DINEMESH_PAGE_PORT=port)
    try:
        assert first.stdout is not None
        told = first.stdout.readline()
        (address,) = re.findall(rf"http://127.0.0.1:{port}/\S*", told)
        assert address.endswith(f"#edge=http%3A%2F%2F127.0.0.1%3A{mesh.settings.port('edge')}")
        assert "<title>" in httpx.get(address).text
        second = mesh.run("page", DINEMESH_PAGE_PORT=port)
        assert (second.returncode, second.stderr) == (0, "")
        assert f"The page is served already, by pid {first.pid}" in second.stdout
        assert address in second.stdout
    finally:
        first.send_signal(signal.SIGINT)
        _, complained = first.communicate(timeout=30)
    assert (first.returncode, "Traceback" in complained) == (130, False), complained
    with socket.create_server(("127.0.0.1", int(port))):
        taken = mesh.run("page", DINEMESH_PAGE_PORT=port)
    assert taken.returncode == 1
    assert f"{port} (PAGE_PORT) is held by pid {os.getpid()}" in taken.stderr
    assert "make page PAGE_PORT=<port>" in taken.stderr


def test_a_rebuilt_history_is_the_same(mesh: LocalMesh) -> None:
    rebuilt = mesh.run("rebuild-history")
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert "the same as before" in rebuilt.stdout
    assert mesh.is_ready("history")


def test_up_again_changes_nothing(mesh: LocalMesh) -> None:
    before = {name: mesh.part(name).pid for name in parts.names(mesh.settings)}
    assert "already running" in mesh.up()
    assert {name: mesh.part(name).pid for name in parts.names(mesh.settings)} == before


def test_another_port_for_a_running_mesh_is_refused(mesh: LocalMesh) -> None:
    refused = mesh.run("up", DINEMESH_HISTORY_PORT="1234")
    assert refused.returncode == 1
    assert f"The mesh runs with HISTORY_PORT={mesh.settings.port('history')}" in refused.stderr


def test_a_part_that_was_stopped_stays_away_until_it_is_started(mesh: LocalMesh) -> None:
    assert mesh.run("stop", SERVICE="history").returncode == 0
    assert machine.is_free(mesh.settings.port("history"))
    assert "make start SERVICE=history" in mesh.up()
    assert mesh.part("history").state == "STOPPED"
    assert mesh.run("start", SERVICE="history").returncode == 0
    assert mesh.is_ready("history")


@pytest.mark.parametrize(
    ("target", "word", "there_is"),
    [
        ("stop", "SERVICE", "SERVICE must be one of"),
        ("start", "SERVICE", "SERVICE must be one of"),
        ("logs", "SERVICE", "SERVICE must be one of"),
        ("replay", "SERVICE", "SERVICE must be one of reservation, deposit, restaurant"),
        ("redrive", "QUEUE", "those of the mesh are reservation.restaurants, reservation.deposits,"),
        ("dead-letters", "QUEUE", "those of the mesh are reservation.restaurants, reservation.deposits,"),
        ("retry-refund", "DEPOSIT", "no refund of a deposit kitchen is known; no refund of any deposit"),
        ("lift-refund-block", "DEPOSIT", "`make pending` lists the deposits whose refunds it refused"),
        ("let-lapse", "UNTIL", "`pending` names the one to give"),
        ("token", "ROLE", "ROLE must be one of customer, staff, operator"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(
    mesh: LocalMesh, target: str, word: str, there_is: str
) -> None:
    words: dict[str, Any] = {"SUB": "olga", word: "kitchen"}
    refused = mesh.run(target, **words)
    assert refused.returncode != 0, refused.stdout
    assert there_is in refused.stderr
    assert "Traceback" not in refused.stderr


def test_all_dead_letters_have_a_word(mesh: LocalMesh) -> None:
    assert mesh.run("dead-letters", QUEUE="all").stdout == mesh.run("dead-letters").stdout


@pytest.mark.parametrize("name", ["deposit", "rabbitmq", "policy", "edge"])
def test_a_killed_part_comes_back(mesh: LocalMesh, name: str) -> None:
    killed = mesh.part(name).pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: mesh.part(name).pid not in (0, killed), f"a new process for {name}")
    wait_until(lambda: mesh.is_ready(name), f"{name} is ready again")


def test_a_killed_envoy_comes_back(mesh: LocalMesh) -> None:
    before, killed = mesh.part("edge").pid, mesh.envoy()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: mesh.part("edge").pid not in (0, before), "a new process for the edge")
    wait_until(lambda: mesh.is_ready("edge"), "the edge is ready again")
    assert mesh.envoy() != killed


@pytest.mark.parametrize("name", ["restaurant", "edge"])
def test_a_hung_part_is_killed_and_comes_back(mesh: LocalMesh, name: str) -> None:
    wait_until(lambda: mesh.is_ready(name), f"{name} is ready")
    # Long enough for the watch to have seen it answer once.
    wait_until(lambda: mesh.part(name).up_seconds > 12, f"{name} has been up for a while")
    part = mesh.part(name).pid
    hung = mesh.envoy() if name == "edge" else part
    os.kill(hung, signal.SIGSTOP)
    assert not parts.is_well(mesh.settings, name, "live")
    wait_until(lambda: mesh.part(name).pid not in (0, part), f"a new process for {name}")
    wait_until(lambda: mesh.is_ready(name), f"{name} is ready again")
    assert f"{name} (pid {part}) hangs: killed" in mesh.places.log("liveness").read_text()
    wait_until(lambda: state_of(hung) in ("", "Z"), "the process that hung is gone")


def test_the_edge_can_be_taken_away_and_brought_back(mesh: LocalMesh) -> None:
    assert mesh.run("stop", SERVICE="edge").returncode == 0
    assert machine.is_free(mesh.settings.port("edge"))
    assert machine.is_free(mesh.settings.ports["EDGE_ADMIN_PORT"])
    assert all(mesh.is_ready(service) for service in settings.SERVICES)
    status = mesh.run("status")
    assert status.returncode == 1
    assert re.search(r"^edge +stopped ", status.stdout, re.MULTILINE)
    assert mesh.run("start", SERVICE="edge").returncode == 0
    assert mesh.get("/healthz") == 200


def test_an_edge_without_one_service_is_well_and_stays(mesh: LocalMesh) -> None:
    before = mesh.part("edge").pid
    assert mesh.run("stop", SERVICE="history").returncode == 0
    wait_until(lambda: mesh.get("/healthz/history") == 503, "the edge has noticed")
    assert mesh.get("/healthz") == 503
    assert mesh.get("/healthz/reservation") == 200
    assert mesh.is_ready("edge")
    assert mesh.run("start", SERVICE="history").returncode == 0
    # No waiting here: `start` has waited for the edge too.
    assert mesh.get("/healthz") == 200
    assert mesh.part("edge").pid == before


async def test_every_command_of_the_runbook_runs_and_the_mesh_is_well_afterwards(mesh: LocalMesh) -> None:
    trouble = Trouble(mesh)
    await trouble.lay_dead()
    shows = trouble.shows()
    for command in COMMANDS:
        said = trouble.run(command)
        assert said.is_right, said
        for words in shows.pop(command, []):
            assert words in said.output, said
    assert not shows, "the page does not have these any more"

    wait_until(lambda: trouble.run("make pending").code == 0, "nothing is late any more")
    audit = trouble.run("make audit")
    assert audit.code == 0, audit


def test_each_metric_that_the_runbook_names_is_shown(mesh: LocalMesh) -> None:
    named = set(re.findall(r"\bdinemesh_\w+", TEXT))
    assert len(named) >= 8

    def missing() -> set[str]:
        shown: set[str] = set()
        for service in settings.BEHIND_THE_EDGE:
            metrics = f"http://127.0.0.1:{mesh.settings.ports[f'{service.upper()}_METRICS_PORT']}/metrics"
            shown |= set(re.findall(r"^# TYPE (\w+)", httpx.get(metrics).text, re.MULTILINE))
        return {name for name in named if name not in shown and name.removesuffix("_total") not in shown}

    wait_until(lambda: not missing(), "a service shows each of them")


@pytest.mark.parametrize("name", ["DEPOSIT_PORT", "EDGE_PORT", "EDGE_ADMIN_PORT"])
def test_a_taken_port_is_named_with_its_setting_and_its_holder(small: LocalMesh, name: str) -> None:
    with socket.create_server(("127.0.0.1", small.settings.ports[name])):
        refused = small.run("up")
    assert refused.returncode == 1
    assert f"{small.settings.ports[name]} ({name}) is held by pid {os.getpid()}" in refused.stderr
    assert f"make up {name}=" in refused.stderr
    assert machine.processes_of(small.settings.state_dir) == []


def test_a_broker_that_does_not_answer_is_named_without_its_password(small: LocalMesh) -> None:
    refused = small.run("up", DINEMESH_AMQP_URL=f"amqp://me:secret@127.0.0.1:{free_ports(1)[0]}/")
    assert refused.returncode == 1
    assert "No broker answers at AMQP_URL=amqp://...@127.0.0.1:" in refused.stderr
    assert "secret" not in refused.stdout + refused.stderr


def test_a_part_that_does_not_start_shows_the_end_of_its_log_and_nothing_stays(small: LocalMesh) -> None:
    refused = small.run("up", DINEMESH_DEPOSIT_CHARGE_TIMEOUT_MS="never")
    assert refused.returncode == 1
    assert "deposit does not start" in refused.stderr
    assert "DINEMESH_CHARGE_TIMEOUT_MS" in refused.stderr
    assert machine.processes_of(small.settings.state_dir) == []


def test_an_interrupted_start_leaves_nothing_behind(small: LocalMesh) -> None:
    starting = small.spawn("up")
    wait_until(small.places.supervisor_pid.exists, "the supervisor is starting the parts")
    starting.send_signal(signal.SIGINT)
    said, _ = starting.communicate(timeout=60)
    assert starting.returncode == 130, said
    assert "Interrupted" in said
    assert machine.processes_of(small.settings.state_dir) == []


def test_a_second_mesh_stands_beside_the_first_and_each_edge_has_its_own_services(
    mesh: LocalMesh, small: LocalMesh
) -> None:
    small.up()
    assert mesh.get("/healthz") == 200
    assert small.get("/healthz") == 200
    assert len(restaurants(mesh)) == 3
    assert restaurants(small) == []
    small.down()
    assert mesh.get("/healthz") == 200


def test_clients_that_hold_every_connection_do_not_get_the_edge_killed(small: LocalMesh) -> None:
    small.given["EDGE_MOST_CONNECTIONS"] = "20"
    small.settings = settings.build(small.given)
    small.up()
    before = small.part("edge").pid
    wait_until(lambda: small.part("edge").up_seconds > 6, "the watch has seen it answer")
    with contextlib.ExitStack() as held:
        held_until = 0.0

        def hold() -> bool:
            """Connections without a call are closed after a while: there are new ones by then."""
            nonlocal held_until
            if time.monotonic() > held_until:
                held_until = time.monotonic() + 3
                for _ in range(30):
                    held.enter_context(socket.create_connection(("127.0.0.1", small.settings.port("edge"))))
            return not small.is_ready("edge")

        wait_until(hold, "nobody else comes in")
        end = time.monotonic() + 5.0 * (MISSES + 1)
        wait_until(lambda: hold() and time.monotonic() > end, "the watch has asked often enough to kill it")
        assert hold()
        assert small.part("edge").pid == before
    wait_until(lambda: small.is_ready("edge"), "others come in again")
    assert small.part("edge").pid == before


def test_samples_are_there_when_reservation_offers_every_table(
    small: LocalMesh, broker: RunningBroker
) -> None:
    small.up()
    edge = f"http://{small.settings.address('edge')}"
    opened = small.places.state / "samples.json"
    with ThreadPoolExecutor(1) as pool:
        with block_publishers(broker):
            making = pool.submit(samples.refresh, Mesh(small.given))
            wait_until(
                lambda: (
                    opened.exists() and len(json.loads(opened.read_text() or "{}")) == len(samples.SAMPLES)
                ),
                "all days are open at restaurant, which cannot tell",
            )
            with pytest.raises(TimeoutError):
                making.result(timeout=2)
        making.result(timeout=60)
    for restaurant_id, last in json.loads(opened.read_text()).items():
        path = f"/v1/restaurants/{restaurant_id}/availableSlots?date={last}&party_size=2"
        slots = httpx.get(edge + path, timeout=5).json()["slots"]
        assert len(slots) == len(samples.TIMES)


def test_down_ends_a_watch_through_the_edge_with_a_word(small: LocalMesh) -> None:
    small.given["HISTORY_HEARTBEAT_SECONDS"] = "0.5"
    small.up()
    token = tokens.person(small.places, "alice", "customer")
    with grpc.insecure_channel(small.settings.address("edge")) as channel:
        watch = history_service_pb2_grpc.HistoryServiceStub(channel).WatchTimeline(
            history_service_pb2.WatchTimelineRequest(),
            metadata=(("authorization", f"Bearer {token}"),),
            timeout=120,
        )
        assert next(watch).HasField("heartbeat")
        stopping = small.spawn("down")
        *_, last = watch
        said, complained = stopping.communicate(timeout=60)
    assert last.end.reason == watch_pb2.END_REASON_SERVER_STOPPING
    assert watch.code() is grpc.StatusCode.OK
    assert stopping.returncode == 0, said + complained
    assert "Killed" not in said
    assert machine.processes_of(small.settings.state_dir) == []


def test_down_lets_a_call_through_the_edge_come_to_its_end(small: LocalMesh) -> None:
    small.given["SAMPLES"] = "on"
    small.up()
    token = tokens.person(small.places, "alice", "customer")
    table = free_table(small)
    with ThreadPoolExecutor(2) as pool:
        booking = pool.submit(
            httpx.post,
            f"http://{small.settings.address('edge')}/v1/reservations",
            headers={"authorization": f"Bearer {token}"},
            json={"requestId": str(uuid.uuid4()), "partySize": 2, "paymentToken": "tok_slow_1500", **table},
            timeout=15,
        )
        wait_until(lambda: small.calls_in_the_edge() == 1, "the booking is on its way")
        # Not as a command: the call is short, and a busy machine may take longer to start one.
        stopping = pool.submit(Mesh(small.given).down)
        wait_until(lambda: machine.is_free(small.settings.port("edge")), "the edge takes no new calls")
        assert not booking.done()
        answer = booking.result()
        stopping.result()
    assert answer.status_code == 200, answer.text
    assert answer.json()["reservation"]["partySize"] == 2
    assert machine.processes_of(small.settings.state_dir) == []


def test_after_a_killed_supervisor_up_works_again_and_says_what_it_cleared(small: LocalMesh) -> None:
    small.up()
    supervisor = Supervisor(small.places.socket)
    killed = supervisor.pid
    supervisor.close()
    before = small.places.jwks.read_text()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: machine.processes_of(small.settings.state_dir) == [], "the kernel has ended the parts")
    assert small.places.supervisor_pid.read_text().strip() == str(killed)
    assert "stale pid file" in small.up()
    assert small.places.jwks.read_text() == before
    small.down()
    assert machine.processes_of(small.settings.state_dir) == []
    assert not small.places.socket.parent.exists()


def test_a_mesh_that_an_older_version_started_is_named_and_can_be_ended(small: LocalMesh) -> None:
    small.places.make()
    small.places.make_socket_folder()
    written = json.loads(small.settings.to_json()) | {"a_setting_of_the_other_version": 1}
    small.places.running.write_text(json.dumps(written))
    old = [
        parts.Part(name, ("sleep", "600"), {machine.MARK: str(small.settings.state_dir)}) for name in SERVICES
    ]
    write_config(small.settings, small.places, old)
    start_supervisor(small.settings, small.places).close()
    for command in ("up", "status"):
        refused = small.run(command)
        assert refused.returncode == 1
        assert "started by another version, without edge, policy. Start it anew: make down" in refused.stderr
    small.down()
    assert machine.processes_of(small.settings.state_dir) == []


def test_what_a_part_left_behind_is_ended_by_the_next_down(small: LocalMesh) -> None:
    small.places.make()
    left = subprocess.Popen(["sleep", "60"], env={machine.MARK: str(small.settings.state_dir)})
    try:
        assert str(left.pid) in small.down()
        assert left.wait(5) == -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            left.kill()


def test_a_word_that_the_clock_is_right_names_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNTIL", raising=False)
    with pytest.raises(Failure, match="make pending"):
        operate.let_lapse(Mesh({"STATE_DIR": str(tmp_path)}))


@pytest.mark.parametrize(
    ("command", "word"),
    [(operate.lift_refund_block, "DEPOSIT"), (operate.redrive, "QUEUE"), (operate.replay, "SERVICE")],
)
def test_a_command_that_is_not_told_what_to_change_changes_nothing(
    command: Callable[[Mesh], int], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of a shell that is not set is no word for everything: there is one."""
    done: list[object] = []

    def operations(*told: object) -> int:
        done.append(told)
        return 0

    monkeypatch.setattr(operate, "_operations", operations)
    monkeypatch.setattr(operate, "_running", lambda _: defaultdict(lambda: defaultdict(str)))
    mesh = Mesh({"STATE_DIR": str(tmp_path)})
    for nothing in ("", None):
        monkeypatch.delenv(word, raising=False)
        if nothing is not None:
            monkeypatch.setenv(word, nothing)
        with pytest.raises(Failure, match=f"{word}=all"):
            command(mesh)
    assert done == []
    monkeypatch.setenv(word, "all")
    assert command(mesh) == 0
    assert len(done) == 1
