"""The committed Python is what the contracts generate, and is marked as generated."""

import importlib
from pathlib import Path

import pytest

from protos.check import Unfit, check_generated
from protos.generate import ROOT, contract_files, descriptor_set, generate, generated_files


def test_the_committed_code_is_what_the_contracts_generate() -> None:
    check_generated()


def test_code_that_was_changed_by_hand_is_found(tmp_path: Path) -> None:
    generate(tmp_path)
    check_generated(tmp_path)
    changed = tmp_path / "dinemesh/reservation/v1/reservation_pb2.pyi"
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(Unfit, match=r"dinemesh/reservation/v1/reservation_pb2\.pyi"):
        check_generated(tmp_path)


def test_code_that_no_contract_generates_any_more_is_found_and_then_removed(tmp_path: Path) -> None:
    generate(tmp_path)
    left = tmp_path / "dinemesh/reservation/v1/old_pb2.py"
    left.touch()
    with pytest.raises(Unfit, match=r"old_pb2\.py"):
        check_generated(tmp_path)
    generate(tmp_path)
    assert not left.exists()


def test_generating_leaves_alone_what_is_written_by_hand(tmp_path: Path) -> None:
    kit = tmp_path / "dinemesh/kit/__init__.py"
    kit.parent.mkdir(parents=True)
    kit.touch()
    generate(tmp_path)
    assert kit.exists()


def test_generating_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert generate(one) == generate(other)
    for path in generated_files(one):
        assert (one / path).read_bytes() == (other / path).read_bytes()


def test_every_contract_has_a_module_and_only_services_have_stubs() -> None:
    for name in contract_files():
        module = name.removesuffix(".proto").replace("/", ".")
        descriptor = importlib.import_module(f"{module}_pb2").DESCRIPTOR
        assert descriptor.name == name
        stubs = ROOT / f"{name.removesuffix('.proto')}_pb2_grpc.py"
        assert stubs.exists() == bool(descriptor.services_by_name), name


def test_generated_files_are_marked_for_readers_of_changes() -> None:
    marks = (ROOT / ".gitattributes").read_text()
    for pattern in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi"):
        assert f"dinemesh/**/{pattern} linguist-generated=true" in marks
    assert "protos/openapi.json linguist-generated=true" in marks


def test_the_descriptor_set_is_whole() -> None:
    """A transcoder needs every import, before what imports it, and the details that refusals carry."""
    known: set[str] = set()
    for file in descriptor_set().file:
        assert set(file.dependency) <= known, file.name
        known.add(file.name)
    assert set(contract_files()) <= known
    assert {"google/rpc/error_details.proto", "google/rpc/status.proto", "google/api/http.proto"} <= known
