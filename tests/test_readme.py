"""Each command of the README and of the pages beside it is a make target or is run by a test; an unknown line
fails.

The convention: a fenced block of commands is marked `sh`. What is only to be looked at is marked otherwise
(text, mermaid, python). A command is one of

- `make <target> [NAME=value ...]`, with a target that the Makefile has, alone or as `NAME=$(make ...)`;
- a line of COVERED, beside the test that runs it.

A block with curl or grpcurl is a story, which tests/local_mesh/test_commands.py runs as it stands.

Whatever else stands in backticks as `make <target>` must be a target too. A block marked python must be a
piece of a file in examples/.
"""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/API_TOUR.md",
        "docs/ARCHITECTURE.md",
        "docs/DEPLOYMENT.md",
        "docs/OPERATIONS.md",
        "docs/TESTING.md",
    )
}
README = PAGES["README.md"]
MAKEFILE = (ROOT / "Makefile").read_text()

EXAMPLE = "tests.edge.test_examples.test_the_story_over_the_generated_python_client"
OVER_CURL = "tests.edge.test_examples.test_the_story_over_curl"
OVER_GRPCURL = "tests.edge.test_examples.test_the_story_over_grpcurl"
FOLLOWED = (
    "tests.local_mesh.test_two_engines"
    ".test_one_id_is_followed_from_the_answer_through_all_logs_into_every_event"
)
COVERED = {
    "TOKEN=$(make token SUB=alice ROLE=customer) .venv/bin/python -m examples.correlation": FOLLOWED,
    "TOKEN=$(make token SUB=alice ROLE=customer) .venv/bin/python -m examples.booking": EXAMPLE,
    ".venv/bin/python -m examples.booking": EXAMPLE,
    "examples/curl.sh": OVER_CURL,
    "bash examples/curl.sh": OVER_CURL,
    "examples/grpcurl.sh": OVER_GRPCURL,
    "bash examples/grpcurl.sh": OVER_GRPCURL,
}
"""Commands that are no make target, and the test that runs each."""

LOOKED_AT = {"text", "mermaid", "python", "json", "proto"}
"""Languages of blocks that hold no commands."""

SERVICES = {"reservation", "deposit", "restaurant", "history"}

ASSIGNED = re.compile(r"^[A-Z]+=\$\((make [^()$`]+)\)$")
MAKE = re.compile(r"^make( -[a-z]+)* (?P<target>[a-z][a-z-]*)(?P<words>( [A-Z_]+=('[^']*'|\S+))*)$")
INLINE = re.compile(r"`(make [^`]+)`")


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block; a fence without a language is an error."""
    found = re.findall(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(found), "a fence is not closed"
    return [(language, content) for language, content in found]


def commands(script: str) -> list[str]:
    """The commands of a script: comments dropped, continued lines and open quotes joined."""
    done: list[str] = []
    pending = ""
    for line in script.splitlines():
        if not pending and (not line.strip() or line.strip().startswith("#")):
            continue
        pending = f"{pending}\n{line}" if pending else line.strip()
        if pending.endswith("\\"):
            continue
        try:
            shlex.split(pending)
        except ValueError:  # a quote is still open
            continue
        done.append(pending.replace("\\\n", ""))
        pending = ""
    assert not pending, f"a command without an end: {pending}"
    return done


def targets(makefile: str) -> set[str]:
    """All targets that a person may call, those behind a variable included."""
    makefile = makefile.replace("\\\n", " ")
    variables = dict(re.findall(r"^(\w+) *:= *(.+)$", makefile, re.MULTILINE))
    found: set[str] = set()
    for names in re.findall(r"^([A-Za-z$(][\w$() -]*):(?!=)", makefile, re.MULTILINE):
        expanded = re.sub(r"\$\((\w+)\)", lambda match: variables.get(match[1], ""), names)
        found |= set(expanded.split())
    return found


def complaint(command: str) -> str:
    """Why this command is not known, or ""."""
    command = command.strip()
    if command in COVERED:
        return ""
    if assigned := ASSIGNED.match(command):
        return complaint(assigned[1])
    if not (made := MAKE.match(command)):
        return "is neither `make <target>` nor listed in COVERED with the test that runs it"
    if made["target"] not in targets(MAKEFILE):
        return f"{made['target']} is not a target of the Makefile"
    service = re.search(r"\bSERVICE=(\S+)", made["words"])
    if service and service[1] not in SERVICES:
        return f"there is no service {service[1]}"
    return ""


BLOCKS = {
    name: [content for language, content in blocks(text) if language == "sh"] for name, text in PAGES.items()
}
STORIES = {
    f"{tool} in {name}": story
    for name, of_page in BLOCKS.items()
    for tool in ("curl", "grpcurl")
    if (story := "\n".join(block for block in of_page if re.search(rf"\b{tool} -", block)))
}
"""Told with a tool; run by tests.local_mesh.test_commands."""
COMMANDS = sorted(
    {
        command
        for of_page in BLOCKS.values()
        for block in of_page
        if block not in STORIES.values()
        for command in commands(block)
    }
)


def test_the_readme_has_commands() -> None:
    assert any(command == "make demo" for command in COMMANDS)
    assert set(STORIES) == {"curl in README.md", "curl in docs/API_TOUR.md", "grpcurl in docs/API_TOUR.md"}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_known(command: str) -> None:
    assert not complaint(command), f"{command}: {complaint(command)}"


@pytest.mark.parametrize("page", PAGES)
def test_each_block_says_what_it_is(page: str) -> None:
    for language, content in blocks(PAGES[page]):
        assert language == "sh" or language in LOOKED_AT, f"```{language}\n{content}"


@pytest.mark.parametrize("command", sorted({one for text in PAGES.values() for one in INLINE.findall(text)}))
def test_each_make_target_that_the_text_names_exists(command: str) -> None:
    target = command.split()[1]
    assert target in targets(MAKEFILE), command


def test_each_piece_of_python_is_a_piece_of_an_example() -> None:
    examples = [path.read_text() for path in (ROOT / "examples").glob("*.py")]
    for text in PAGES.values():
        for language, content in blocks(text):
            if language == "python":
                assert any(content.strip() in example for example in examples), content


@pytest.mark.parametrize("page", PAGES)
def test_each_link_into_the_project_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page]):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert README.count("\n") < 150


@pytest.mark.parametrize("test", sorted(set(COVERED.values())))
def test_the_tests_that_are_said_to_cover_a_command_exist(test: str) -> None:
    module, _, name = test.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    "command",
    [
        "make nonsense",
        "make stop SERVICE=kitchen",
        "pip install dinemesh",
        "make demo && rm -rf .local",
        "grpcurl -plaintext 127.0.0.1:8081 dinemesh.reservation.v1.ReservationService/Reserve",
        "TOKEN=$(make tokens)",
        "EDGE=127.0.0.1:8081",
        "curl -s http://$EDGE/v1/reservations/$RESERVATION",
        "curl -s http://$EDGE/v1/restaurants && rm -rf .local",
        "curl -s http://$EDGE/v1/restaurants | sh",
    ],
)
def test_an_unknown_command_would_be_noticed(command: str) -> None:
    assert complaint(command)
