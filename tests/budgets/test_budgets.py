"""docs/BUDGETS.md: its numbers are those that take effect, its sums hold, and every sum can be broken."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.budgets import mesh
from tests.budgets.numbers import numbers
from tests.budgets.sources import Numbers
from tests.support.process import ROOT

TEXT = (ROOT / "docs" / "BUDGETS.md").read_text()
TABLE: Numbers = {
    name: float(number)
    for name, number in re.findall(r"(?m)^\| `(\w+\.\w+)` \| ([\d.]+)(?: s| %| /s| KiB)? \| ", TEXT)
}
SUMS = re.findall(r"(?m)^\| `([^`]*[<>=][^`]*)` \| \S", TEXT)
ACTUAL = numbers()

_ARITHMETIC: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
_COMPARISON: dict[type, Callable[[float, float], bool]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
}


def holds(sum_: str, numbers: Numbers) -> bool:
    """Whether a comparison of budgets is true."""
    tree = ast.parse(sum_, mode="eval").body
    assert isinstance(tree, ast.Compare)
    values = [_value(one, numbers) for one in (tree.left, *tree.comparators)]
    return all(
        _COMPARISON[type(how)](left, right)
        for how, (left, right) in zip(tree.ops, pairwise(values), strict=True)
    )


def _value(node: ast.expr, numbers: Numbers) -> float:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Attribute(value=ast.Name(id=room), attr=name):
            return numbers[f"{room}.{name}"]
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_value(left, numbers), _value(right, numbers))
    raise AssertionError(f"{ast.unparse(node)} is no budget")


def named_in(sum_: str) -> list[str]:
    return re.findall(r"[a-z]\w*\.\w+", sum_)


def test_the_table_has_each_budget_that_there_is_with_its_number() -> None:
    assert pytest.approx(ACTUAL) == TABLE


def test_every_row_gives_its_reason_and_stands_there_once() -> None:
    rows = re.findall(r"(?m)^\| `(\w+\.\w+)` \| [^|]+ \| *(.*?) *\|$", TEXT)
    assert [name for name, why in rows if len(why) < 5] == []
    assert sorted(name for name, _ in rows) == sorted(TABLE)


def test_istio_and_the_proxy_of_one_machine_have_the_same_numbers() -> None:
    assert mesh.on_one_machine() == mesh.in_istio()


def test_istio_and_the_proxy_of_one_machine_have_the_same_routes_and_repeat_for_the_same_reasons() -> None:
    assert mesh.repeats_on_one_machine() == mesh.repeats_in_istio()


@pytest.mark.parametrize("sum_", SUMS)
def test_the_sum_holds(sum_: str) -> None:
    assert holds(sum_, ACTUAL), {name: ACTUAL[name] for name in named_in(sum_)}


@pytest.mark.parametrize("sum_", SUMS)
def test_each_budget_of_the_sum_can_break_it(sum_: str) -> None:
    for name in named_in(sum_):
        wrong = [ACTUAL | {name: number} for number in (0.0, 1_000_000.0)]
        assert not all(holds(sum_, one) for one in wrong), f"{name} does not matter to it"


TIMES_OF_A_BOOKING = re.compile(
    r"(reservation|mesh|deposit|cluster|compose|machine)\.\w*"
    r"(timeout|deadline|_try|margin|lease|expire|grace|drain|stop|killed|liveness|readiness|(call|charge)s_limit)"
)
ALONE = {
    # Of questions that stand for themselves.
    "machine.policy_ping_timeout",
    "machine.liveness_period",
    "compose.check_timeout",
}


def test_the_way_of_a_booking_is_held_by_sums_from_end_to_end() -> None:
    in_sums = {name for sum_ in SUMS for name in named_in(sum_)}
    assert in_sums <= set(ACTUAL)
    times = {name for name in ACTUAL if TIMES_OF_A_BOOKING.match(name)}
    assert len(times) > 40
    assert times - in_sums == ALONE
