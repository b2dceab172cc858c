"""Switches a mechanism off in this process: its module is imported from an edited source."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType

from tests.guards.guard import Guard

VARIABLE = "GUARD_OFF"
"""In the environment of a process that `python -m tests.guards.start` begins: the guard that is off there."""


class _WithoutIt(SourceFileLoader):
    """Compiles the edited source, whatever byte code lies in the cache, and leaves none there."""

    def __init__(self, fullname: str, path: str, guard: Guard) -> None:
        super().__init__(fullname, path)
        self._guard = guard

    def get_code(self, fullname: str) -> CodeType:
        # runpy asks for the code of "__main__" under the module's own name.
        edited = self._guard.edited(self.name, self.get_data(self.path).decode())
        return compile(edited, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._guard.modules:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            assert isinstance(spec.loader, SourceFileLoader)
            spec.loader = _WithoutIt(fullname, spec.loader.path, self._guard)
        return spec


def switch_off(guard: Guard) -> None:
    """From now on in this process. What was imported before would not notice, so nothing may have been."""
    early = [module for module in guard.modules if module in sys.modules]
    if early:
        raise RuntimeError(f"imported before {guard.name} was switched off: {', '.join(early)}")
    sys.meta_path.insert(0, _Finder(guard))
