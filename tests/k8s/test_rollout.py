"""k8s/rollout.sh as the pipeline runs it, with a kubectl that writes down what it is asked.

`make cluster-truth` runs it against a real API server.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.k8s.rendered import K8S, SERVICES

MIGRATED = "wait jobs"
NOBODY = (K8S / "overlays/prod/keys/jwks.json").read_text()
SOMEBODY = NOBODY.replace("nobody", "2026-11")
BROKEN = SOMEBODY.replace('"crv":', '"crv"')
PRIVATE = SOMEBODY.replace('"kid"', '"d": "x", "kid"')
FAILS_LATE = """
case "$*" in
    *"wait jobs"*) exit 1 ;;
    *"get jobs"*) [ "$(grep -c "wait jobs" {asked})" -lt 3 ] || echo "FailureTarget Failed" ;;
    *logs*) echo "column amount does not exist" ;;
esac
"""
"""A kubectl whose migrations run for two looks, and then have failed."""


@dataclass(frozen=True)
class Rollout:
    code: int
    asked: list[str]
    said: str

    def place(self, words: str) -> int:
        (found,) = [place for place, one in enumerate(self.asked) if words in one]
        return found


def roll_out(
    folder: Path,
    *words: str,
    refuses: str = "nothing",
    behaves: str = "",
    keys: str = SOMEBODY,
    programs: str = os.environ["PATH"],
) -> Rollout:
    """`refuses`: kubectl fails when it is asked this. `behaves`: what else it does, in the shell's words.
    `keys`: those of both overlays. `programs`: where others than kubectl are found."""
    copied, kubectl, asked = folder / "k8s", folder / "kubectl", folder / "asked"
    shutil.copytree(K8S, copied)
    for overlay in ("dev", "prod"):
        (copied / "overlays" / overlay / "keys" / "jwks.json").write_text(keys)
    asked.touch()
    kubectl.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {asked}\ncase "$*" in *"{refuses}"*) exit 1 ;; esac\n'
        + behaves.replace("{asked}", str(asked))
    )
    kubectl.chmod(0o755)
    done = subprocess.run(
        [copied / "rollout.sh", *words],
        env={**os.environ, "PATH": f"{folder}:{programs}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Rollout(done.returncode, asked.read_text().splitlines(), done.stderr)


def test_the_schema_comes_before_the_pods_and_every_service_is_waited_for(tmp_path: Path) -> None:
    done = roll_out(tmp_path, "prod")
    assert done.code == 0
    order = [
        done.place("base/namespace.yaml"),
        done.place("delete jobs"),
        done.place("-k overlays/prod/migrations"),
        done.place(MIGRATED),
        next(place for place, one in enumerate(done.asked) if one.endswith("-k overlays/prod")),
        *sorted(done.place(f"rollout status deployment/{service}") for service in SERVICES),
    ]
    assert order == list(range(len(done.asked)))


def test_a_migration_that_fails_stops_it_before_any_pod_is_changed(tmp_path: Path) -> None:
    done = roll_out(tmp_path, "prod", behaves=FAILS_LATE)
    assert done.code == 1
    assert sum(MIGRATED in one for one in done.asked) == 3
    assert not any(one.endswith("-k overlays/prod") for one in done.asked)
    assert "a migration has failed; no pod was changed" in done.said
    assert "column amount does not exist" in done.said


def test_a_server_that_is_gone_meanwhile_stops_it_too(tmp_path: Path) -> None:
    gone = 'case "$*" in *"wait jobs"*|*"get jobs"*) exit 1 ;; esac'
    done = roll_out(tmp_path, "prod", behaves=gone)
    assert done.code == 1
    assert "get jobs" in done.asked[-1]


def test_the_files_win_over_what_was_done_by_hand(tmp_path: Path) -> None:
    for one in roll_out(tmp_path, "prod").asked:
        assert one.startswith("apply ") == ("--force-conflicts" in one)


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize(
    "keys", [NOBODY, "\n", "{}", '{"keys": []}', "-----BEGIN PUBLIC KEY-----", BROKEN, PRIVATE]
)
def test_without_somebodys_keys_nothing_is_touched(tmp_path: Path, overlay: str, keys: str) -> None:
    done = roll_out(tmp_path, overlay, keys=keys)
    assert (done.code, done.asked) == (1, [])
    assert f"k8s/overlays/{overlay}/keys/jwks.json holds" in done.said


def test_it_needs_no_python(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "sh", "dirname", "tr", "grep"):
        (programs / name).symlink_to(str(shutil.which(name)))
    done = roll_out(tmp_path, "prod", programs=str(programs))
    assert done.code == 0, done.said
    assert not (programs / "python3").exists()


def test_dev_has_no_migrations_to_wait_for(tmp_path: Path) -> None:
    done = roll_out(tmp_path, "dev")
    assert done.code == 0
    assert not any("jobs" in one for one in done.asked)


def test_a_service_that_does_not_come_up_fails_it(tmp_path: Path) -> None:
    assert roll_out(tmp_path, "prod", refuses="deployment/history").code == 1


@pytest.mark.parametrize("words", [(), ("staging",)])
def test_without_an_overlay_nothing_is_rolled_out(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = roll_out(tmp_path, *words, refuses="overlays/staging")
    assert done.code != 0
    assert not any("rollout status" in one for one in done.asked)
