"""docs/CLIENTS.md as the tests read it: the block of commands of a heading."""

from __future__ import annotations

import re

from tests.support.mesh import ROOT

PAGE = ROOT / "docs" / "CLIENTS.md"
PROGRAMS = ROOT / "examples" / "clients"


def blocks() -> dict[str, str]:
    """The commands by heading, of those that have some."""
    found = {}
    for section in re.split(r"^#+ ", PAGE.read_text(), flags=re.MULTILINE):
        commands = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        if commands:
            found[section.partition("\n")[0]] = commands[1]
    return found


def block(heading: str) -> str:
    return blocks()[heading]
