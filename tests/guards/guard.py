"""What a guard is: a mechanism of the product, how it is switched off, and the tests that notice."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import ROOT


class DoesNotFit(Exception):
    """The code has changed, and the switch-off with it would say nothing: it has to be written anew."""


@dataclass(frozen=True)
class Edit:
    """`old` stands once in the source of `module`; without the mechanism it reads `new`."""

    module: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """Raises DoesNotFit unless `old` is there exactly once."""
        if (count := source.count(self.old)) != 1:
            raise DoesNotFit(f"{self.module}: found {count} times instead of once: {self.old!r}")
        return source.replace(self.old, self.new)

    @property
    def file(self) -> Path:
        """Where the module stands, without importing it."""
        path = ROOT.joinpath(*self.module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    @property
    def place(self) -> str:
        """The mechanism's place, such as `dinemesh/kit/inbox.py: Inbox._apply`."""
        source = self.file.read_text()
        self.apply(source)
        line = source[: source.index(self.old)].count("\n") + 1
        name = _enclosing(ast.parse(source).body, line)
        return f"{self.file.relative_to(ROOT)}: {name}"


def _enclosing(body: list[ast.stmt], line: int) -> str:
    """The name of what begins at or around a line: a method, a function, a class or a constant."""
    for node in body:
        if not node.lineno <= line <= (node.end_lineno or node.lineno):
            continue
        match node:
            case ast.ClassDef():
                inner = _enclosing(node.body, line)
                return f"{node.name}.{inner}" if inner else node.name
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return node.name
            case ast.Assign(targets=[ast.Name(id=name), *_]) | ast.AnnAssign(target=ast.Name(id=name)):
                return name
    return ""


@dataclass(frozen=True)
class Witness:
    """A test that goes red, all cases of it or the one named in brackets, and what it then complains of."""

    test: str
    says: str

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]

    @property
    def function(self) -> str:
        return self.test.partition("::")[2].partition("[")[0]


@dataclass(frozen=True)
class Guard:
    """`quick`: its tests need neither a broker nor a process, so that it fits into `make test`."""

    name: str
    promises: tuple[int, ...]
    mechanism: str
    off: tuple[Edit, ...]
    red: tuple[Witness, ...]
    quick: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(edit.module for edit in self.off))

    def edited(self, module: str, source: str) -> str:
        """The source of a module without this mechanism. Raises DoesNotFit."""
        for edit in self.off:
            if edit.module == module:
                source = edit.apply(source)
        return source
