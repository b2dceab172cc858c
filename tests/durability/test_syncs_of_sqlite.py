"""SQLite: each group of changes has reached the disk before any of its outcomes is told, with one sync.

kill -9 cannot show this: what a process has written outlives it in the kernel's memory, synced or not. So the
syncs are counted where they are asked for, at the system calls of a process that commits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.durability.committing import GROUPS, ITEMS
from tests.support.distribution import folder_with
from tests.support.process import ROOT

SECONDS = 120
_SYNC = re.compile(r"\b(?:fsync|fdatasync)\(\d+<([^>]*)>\)\s+= 0$")
TOLD, LOG = "told", "rows.db-wal"


def trace(folder: Path, *, spoil: str = "as_it_is", group: str = "grouped") -> tuple[list[str], int]:
    """The files that were synced for the groups, in this order; and how many groups there were."""
    database, traced = folder / "rows.db", folder / "trace"
    strace = folder_with("strace", folder) / "strace"
    calls = "trace=fsync,fdatasync,sync,syncfs,sync_file_range,msync"
    ran = subprocess.run(
        [
            *(strace, "-f", "-qq", "-y", "-e", calls, "-e", "signal=none", "-o", traced),
            *(sys.executable, "-m", "tests.durability.committing"),
            *(f"sqlite:///{database}", folder, spoil, group),
        ],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    groups, rows = map(int, ran.stdout.split())
    assert rows == GROUPS * ITEMS
    lines = traced.read_text().splitlines()
    found = [_SYNC.search(line) for line in lines]
    assert all(found), f"void: this is no finished sync of a file: {lines[[*found].index(None)]}"
    synced = [Path(one[1]).name for one in found if one is not None]
    assert synced.count(TOLD) == GROUPS + 1, "void: the trace is not whole"
    first, *_, last = (at for at, name in enumerate(synced) if name == TOLD)
    return synced[first + 1 : last + 1], groups


def test_each_group_is_synced_once_before_its_outcomes_are_told(tmp_path: Path) -> None:
    synced, groups = trace(tmp_path)
    assert groups == GROUPS, "void: the changes were not grouped"
    assert synced == [LOG, TOLD] * GROUPS


def test_changes_that_are_not_grouped_are_synced_one_by_one(tmp_path: Path) -> None:
    """The control: the count would show it."""
    synced, groups = trace(tmp_path, group="alone")
    assert groups == GROUPS * ITEMS
    assert Counter(synced)[LOG] >= GROUPS * ITEMS


def test_a_store_that_did_not_ask_would_be_seen(tmp_path: Path) -> None:
    """The control: commits are as quick as they are worthless then, and nothing else tells."""
    synced, groups = trace(tmp_path, spoil="without_syncs")
    assert groups == GROUPS
    assert synced == [TOLD] * GROUPS
