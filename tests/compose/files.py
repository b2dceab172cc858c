"""docker-compose.yml, Dockerfile and the workflow as data, and the schemas that they are held against."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonschema import validators

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"


def compose() -> Any:
    """With its anchors put in place; a fresh one, to be changed at will."""
    found = yaml.safe_load(COMPOSE.read_text())
    # What several services share is one object in YAML.
    return json.loads(json.dumps(found))


def complaints(document: Any, schema: str) -> Iterator[str]:
    """What a schema that check-jsonschema brings says of it: compose-spec, github-workflows."""
    package = importlib.metadata.distribution("check-jsonschema")
    file = package.locate_file(f"check_jsonschema/builtin_schemas/vendor/{schema}.json")
    loaded = json.loads(Path(str(file)).read_text())
    for error in validators.validator_for(loaded)(loaded).iter_errors(document):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message}"


@dataclass
class Stage:
    """One FROM of the Dockerfile, with what follows it."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.lines if word == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    @property
    def copied(self) -> dict[str, str]:
        """What comes from the project: source to target, both from the project's folder."""
        pairs = [one.split() for one in self.all("COPY") if not one.startswith("--from")]
        return {source: target for source, *_, target in pairs}


def stages() -> dict[str, Stage]:
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text())
    found: dict[str, Stage] = {}
    current = Stage("", "")
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = found[name] = Stage(name, base)
        elif word:
            current.lines.append((word, rest.strip()))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage and those that it is made from, the nearest first."""
    known = stages()
    found = [known[name]]
    while found[-1].base in known:
        found.append(known[found[-1].base])
    return found
