"""Where numbers stand: constants of modules, defaults of settings. What is read here is remembered, so that
what nobody has read is known."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import yaml

from tests.support.process import ROOT

Numbers = dict[str, float]

READ: set[str] = set()
"""`module.NAME` of constants, `module.field` of settings."""


def constant(module: str, name: str) -> Any:
    """Of a module of ours, by its full name."""
    READ.add(f"{module}.{name}")
    return getattr(importlib.import_module(module), name)


def setting(module: str, name: str) -> Any:
    """The default of a field of the settings in a module."""
    READ.add(f"{module}.{name}")
    return fields(module)[name].default


def fields(module: str) -> dict[str, Any]:
    """The fields that the settings of a module add to those of every service."""
    found = importlib.import_module(module)
    return {
        name: one.model_fields[name]
        for one in vars(found).values()
        if isinstance(one, type) and hasattr(one, "model_fields") and one.__module__ == module
        for name in one.__annotations__
        if name in one.model_fields
    }


def documents(file: str) -> list[Any]:
    """Those of a YAML file of the project."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(Path(ROOT / file).read_text(), Loader=loader) if one]


def seconds(text: str) -> float:
    """Envoy's "1.5s", Istio's "900ms", compose's "30s"."""
    if text.endswith("ms"):
        return float(text.removesuffix("ms")) / 1000
    return float(text.removesuffix("s"))
