"""The exported contracts are enough for the tools of any language: nothing else is on their path."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from protos.check import buf
from protos.export import SET, export, main
from protos.generate import SOURCES, contract_files

SECONDS = 60


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "contracts"
    export(folder)
    return folder


def protoc(folder: Path, into: Path) -> Path:
    target = into / "protoc.binpb"
    arguments = [f"-I{folder}", "--include_imports", f"--descriptor_set_out={target}", *contract_files()]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, timeout=SECONDS, cwd=into
    )
    return target


def buf_build(folder: Path, into: Path) -> Path:
    target = into / "buf.binpb"
    buf("build", folder, "-o", target)
    return target


def shipped_set(folder: Path, _into: Path) -> Path:
    return folder / SET


@pytest.mark.parametrize("tool", [protoc, buf_build, shipped_set])
def test_a_tool_takes_the_folder_and_finds_every_contract(
    exported: Path, tmp_path: Path, tool: Callable[[Path, Path], Path]
) -> None:
    made = descriptor_pb2.FileDescriptorSet.FromString(tool(exported, tmp_path).read_bytes())
    names = {file.name for file in made.file}
    assert set(contract_files()) <= names
    assert {imported for file in made.file for imported in file.dependency} <= names


def test_buf_generates_out_of_the_folder(exported: Path, tmp_path: Path) -> None:
    template = (
        f'{{"version":"v2","plugins":[{{"protoc_builtin":"python","protoc_path":["{sys.executable}","-m",'
    )
    template += f'"grpc_tools.protoc"],"out":"{tmp_path}"}}]}}'
    buf("generate", exported, "--template", template)
    assert (tmp_path / "dinemesh/reservation/v1/reservation_pb2.py").is_file()


def test_every_contract_names_its_package_in_go(exported: Path) -> None:
    """protoc-gen-go refuses a file without one; the files of a folder share it."""
    described = descriptor_pb2.FileDescriptorSet.FromString((exported / SET).read_bytes())
    for file in described.file:
        if file.name in contract_files():
            folder = file.name.rpartition("/")[0]
            name = folder.removeprefix("dinemesh/").replace("/", "")
            assert file.options.go_package == f"dinemesh.example/go/{folder};{name}", file.name


def test_an_export_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "contracts"
    export(folder)
    stale = folder / "dinemesh/reservation/v1/old.proto"
    stale.touch()
    export(folder)
    assert not stale.exists()
    assert (folder / "dinemesh/reservation/v1/reservation.proto").read_bytes() == (
        SOURCES / "dinemesh/reservation/v1/reservation.proto"
    ).read_bytes()


def test_a_folder_with_something_else_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main([str(tmp_path)]) == 1
    assert "name a new or an empty folder" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["mine.txt"]
