"""The one error a person at the keyboard is meant to read."""

from __future__ import annotations


class Failure(Exception):
    """What went wrong and what to do about it. The command line prints it without a traceback and exits 1."""
