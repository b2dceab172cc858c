"""The page docs/RUNBOOK.md. tests/local_mesh/test_commands.py runs its commands, on a mesh in trouble."""

from __future__ import annotations

import re

from tests.operations.runbook import COMMANDS, TEXT, Said, told
from tests.test_readme import MAKEFILE, targets


def test_the_page_is_short_and_its_make_commands_are_targets() -> None:
    assert len(TEXT.splitlines()) <= 100
    assert {"make pending", "make retry-refund DEPOSIT=$DEPOSIT"} <= set(COMMANDS)
    for command in COMMANDS:
        if command.startswith("make "):
            assert command.split()[1] in targets(MAKEFILE), command


def test_each_link_of_the_page_leads_to_a_heading_of_it() -> None:
    headings = {line[3:].lower().replace(" ", "-") for line in TEXT.splitlines() if line.startswith("## ")}
    links = set(re.findall(r"\]\(#([^)]+)\)", TEXT))
    assert links and links <= headings


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    page = (
        "`make status`.\n```sh\nmake pending  # what\n```\n`make pending`, `.venv/bin/python -m x`, `make`\n"
    )
    assert told(page) == ["make pending", "make status", ".venv/bin/python -m x"]


def test_a_command_that_could_not_do_its_work_is_wrong() -> None:
    assert Said("make pending", 2, "make: *** [Makefile:1: pending] Error 1").is_right
    assert not Said("make pending", 2, "make: *** [Makefile:1: pending] Error 2").is_right
    assert not Said("make redrive", 2, "make: *** [Makefile:1: redrive] Error 1").is_right
