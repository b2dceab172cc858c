"""What each setting means and what it is counted in, for `make settings`: as its class says it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import fields
from typing import Literal, get_args, get_origin

from local_mesh.envoy.edge import EdgeValues
from local_mesh.envoy.policy import PolicyValues
from local_mesh.settings import SERVICES, MeshSettings, all_names, service_classes, service_fields

_OF_THE_MESH = {one.name for one in fields(MeshSettings)}
_UNITS = {
    "PER_SECOND": "per second",
    "SECONDS": "seconds",
    "MS": "milliseconds",
    "DAYS": "days",
    "BYTES": "bytes",
    "PORT": "port",
    "SHARE": "share, up to 1",
    "URL": "URL",
    "FILE": "file",
    "DIR": "folder",
    "ADDRESS": "host:port",
    "HOST": "address",
    "ORIGINS": "origins",
}


def meanings() -> dict[str, str]:
    """By setting, as it is written on make's command line, what the class that has it says of it."""
    found = {name: text.removeprefix(f"{name}: ") for name, text in _documented(MeshSettings).items()}
    found |= {f"EDGE_{name}": text for name, text in _documented(EdgeValues).items()} | {
        "EDGE_ALLOWED_ORIGINS": "Origins whose pages may call from a browser, with commas between; `:*` is"
        " any port or none, another `*` one part of a name.",
        "EDGE_PORT": found["EDGE_PORT"],
        "EDGE_ADMIN_PORT": found["EDGE_ADMIN_PORT"],
    }
    found |= {f"POLICY_{name}": text for name, text in _documented(PolicyValues).items()} | {
        "POLICY_PORT": found["POLICY_PORT"],
        "POLICY_ADMIN_PORT": found["POLICY_ADMIN_PORT"],
    }
    for service in SERVICES:
        for one in service_classes(service):
            found |= {f"{service.upper()}_{name}": text for name, text in _documented(one).items()}
    return {name: (text := found.get(name, ""))[:1].upper() + text[1:] for name in all_names()}


def _documented(cls: type) -> dict[str, str]:
    """The string below each field of a class and of those that it is made of, as one line."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if "__annotations__" not in vars(one) or one.__module__.startswith("pydantic"):
            continue
        (parsed,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(parsed, ast.ClassDef)
        for field_, below in zip(parsed.body, parsed.body[1:], strict=False):
            if (
                isinstance(field_, ast.AnnAssign)
                and isinstance(field_.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[field_.target.id.upper()] = " ".join(str(below.value.value).split())
    return found


def unit(name: str, value: str) -> str:
    """What the value of a setting is counted in, or what it may be: its name says the unit."""
    service, _, setting = name.partition("_")
    if name.lower() not in _OF_THE_MESH and service.lower() in SERVICES:
        annotation = service_fields(service.lower())[setting.lower()].annotation
        if get_origin(annotation) is Literal:
            return ", ".join(get_args(annotation))
    for ending, found in _UNITS.items():
        if f"_{name}".endswith(f"_{ending}"):
            return found
    return "on or off" if value in ("on", "off") else "number" if re.fullmatch(r"[\d.]+", value) else "text"
