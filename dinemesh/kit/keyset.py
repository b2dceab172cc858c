"""Going on in an order from a place in it, so that an index begins there, not at the order's start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, literal, tuple_


def after(order: Sequence[Column[Any]], place: Sequence[Any]) -> ColumnElement[bool]:
    """Rows beyond the place, one value (or bindparam) a column, in the ascending order of these columns."""
    return tuple_(*order) > _row(order, place)


def before(order: Sequence[Column[Any]], place: Sequence[Any]) -> ColumnElement[bool]:
    """Rows before the place in that order, which is beyond it where the order descends."""
    return tuple_(*order) < _row(order, place)


def _row(order: Sequence[Column[Any]], place: Sequence[Any]) -> ColumnElement[Any]:
    # A comparison of rows, not "a > x OR (a = x AND b > y)": both engines enter an index with it.
    return tuple_(
        *(
            value if isinstance(value, ColumnElement) else literal(value, column.type)
            for column, value in zip(order, place, strict=True)
        )
    )
