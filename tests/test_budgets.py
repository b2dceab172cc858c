"""docs/BUDGETS.md: its numbers are those that take effect, its sums hold, and every sum can be broken."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.policy import budgets
from tests.policy.budgets import Numbers
from tests.support.process import ROOT

TEXT = (ROOT / "docs" / "BUDGETS.md").read_text()
TABLE: Numbers = {
    name: float(number)
    for name, number in re.findall(r"(?m)^\| `(\w+\.\w+)` \| ([\d.]+)(?: s| %| /s)? \| ", TEXT)
}
SUMS = re.findall(r"(?m)^\| `([^`]*[<>=][^`]*)` \| \S", TEXT)
ACTUAL = budgets.numbers()

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


def test_every_row_gives_its_reason_or_is_one_of_a_probes_numbers() -> None:
    silent = re.findall(r"(?m)^\| `(\w+\.\w+)` \| [^|]+ \| \|", TEXT)
    assert all(re.fullmatch(r"cluster\.\w+ness_(period|timeout)", one) for one in silent), silent


def test_istio_and_the_proxy_of_one_machine_have_the_same_numbers() -> None:
    assert budgets.on_one_machine() == budgets.in_istio()


def test_istio_and_the_proxy_of_one_machine_have_the_same_routes_and_repeat_for_the_same_reasons() -> None:
    assert budgets.routes_on_one_machine() == budgets.routes_in_istio()


@pytest.mark.parametrize("sum_", SUMS)
def test_the_sum_holds(sum_: str) -> None:
    assert holds(sum_, ACTUAL), {name: ACTUAL[name] for name in named_in(sum_)}


@pytest.mark.parametrize("sum_", SUMS)
def test_each_budget_of_the_sum_can_break_it(sum_: str) -> None:
    for name in named_in(sum_):
        wrong = [ACTUAL | {name: number} for number in (0.0, 1_000_000.0)]
        assert not all(holds(sum_, one) for one in wrong), f"{name} does not matter to it"


def test_the_way_of_a_booking_is_held_by_sums_from_end_to_end() -> None:
    lonely = {
        # Limits and pauses that stand for themselves.
        "edge.customer_rate",
        "reservation.breaker_rest",
        "reservation.breaker_longest_rest",
        "reservation.retry_after",
        "mesh.repetitions_limit",
        "mesh.errors_of_any_kind_in_a_row",
        "mesh.panic_percent",
        "cluster.startup",
    }
    in_sums = {name for sum_ in SUMS for name in named_in(sum_)}
    assert in_sums - set(ACTUAL) == set()
    assert set(ACTUAL) - in_sums == lonely
