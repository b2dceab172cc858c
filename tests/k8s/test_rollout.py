"""k8s/rollout.sh as the pipeline runs it, with a kubectl that writes down what it is asked.

`make cluster-truth` runs it against a real API server.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.k8s.rendered import K8S, SERVICES

MIGRATED = "wait jobs"


@dataclass(frozen=True)
class Rollout:
    code: int
    asked: list[str]

    def place(self, words: str) -> int:
        (found,) = [place for place, one in enumerate(self.asked) if words in one]
        return found


def roll_out(folder: Path, *words: str, refuses: str = "nothing") -> Rollout:
    """`refuses`: kubectl fails when it is asked this."""
    kubectl, asked = folder / "kubectl", folder / "asked"
    asked.touch()
    kubectl.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {asked}\ncase "$*" in *"{refuses}"*) exit 1 ;; esac\n'
    )
    kubectl.chmod(0o755)
    done = subprocess.run(
        [K8S / "rollout.sh", *words],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    return Rollout(done.returncode, asked.read_text().splitlines())


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
    done = roll_out(tmp_path, "prod", refuses=MIGRATED)
    assert done.code == 1
    assert MIGRATED in done.asked[-1]


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
