"""Lines for a terminal."""

from __future__ import annotations

import textwrap

_WIDTH = 120


def indented(text: str, indent: str) -> list[str]:
    """`text` in lines; those after the first stand below its beginning."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
