"""The table of docs/PROMISES.md: promise, mechanism, test, guard."""

from __future__ import annotations

from collections.abc import Iterator

from tests.guards.catalogue import GUARDS
from tests.guards.guard import Guard
from tests.guards.promises import PROMISES, Promise


def table() -> str:
    """Markdown. A guard of several promises stands under the first of them."""
    return "\n".join(line for promise in PROMISES for line in _lines(promise))


def _lines(promise: Promise) -> Iterator[str]:
    own = [guard for guard in GUARDS.values() if guard.promises[0] == promise.number]
    also = [guard.name for guard in GUARDS.values() if promise.number in guard.promises[1:]]
    yield f"## {promise.number}. {promise.text}"
    yield ""
    yield "Held as a whole by " + ", ".join(map(_test, promise.held_by)) + "."
    if also:
        yield "Also by the guards " + ", ".join(f"`{name}`" for name in sorted(also)) + "."
    yield ""
    yield "| mechanism | where | test that goes red without it | guard |"
    yield "|---|---|---|---|"
    yield from map(_row, own)
    yield ""


def _row(guard: Guard) -> str:
    places = "<br>".join(f"`{place}`" for place in dict.fromkeys(edit.place for edit in guard.off))
    tests = "<br>".join(_test(witness.test) for witness in guard.red)
    return f"| {guard.mechanism} | {places} | {tests} | `{guard.name}` |"


def _test(nodeid: str) -> str:
    """Short: without `tests/`, so that a row can be read."""
    return f"`{nodeid.removeprefix('tests/')}`"
