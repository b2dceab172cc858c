"""Lines for a terminal."""

from __future__ import annotations

import re
import textwrap

_WIDTH = 120
# A command stays on one line: it is there to be copied.
_COMMAND = re.compile(r"make [a-z-]+(?: [A-Z]+=\S+)*")
_NO_BREAK = "\u00a0"


def indented(text: str, indent: str) -> list[str]:
    """`text` in lines; those after the first stand below its beginning."""
    kept_together = _COMMAND.sub(lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(
        kept_together,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]
