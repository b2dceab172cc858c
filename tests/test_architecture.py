"""Each service has the files and the names of docs/ARCHITECTURE.md, so that who knows one knows all."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from dinemesh.kit.settings import ServiceSettings
from tests.support.mesh import ROOT, SERVICES

ROOMS = (
    "domain",
    "handlers",
    "main",
    "messages",
    "migrations",
    "persistence",
    "servicer",
    "settings",
    "usecases",
)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_each_room_under_its_name(service: str) -> None:
    folder = ROOT / f"{service}_svc"
    there = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(ROOMS) <= there
    module = {
        room: importlib.import_module(f"{service}_svc.{room}") for room in ROOMS if room != "migrations"
    }
    settings = getattr(module["settings"], f"{service.capitalize()}Settings")
    assert issubclass(settings, ServiceSettings)
    assert inspect.iscoroutinefunction(module["main"].run)
    methods = {
        name
        for name, _ in inspect.getmembers(
            getattr(module["servicer"], f"{service.capitalize()}Servicer"), inspect.isfunction
        )
        if name[0].isupper()
    }
    named = f"/dinemesh.{service}.v1.{service.capitalize()}Service/"
    assert module["servicer"].ACCESS.keys() == {named + name for name in methods}
    assert all(inspect.getdoc(one) for one in module.values())


def test_the_page_names_each_room_of_a_service() -> None:
    page = Path(ROOT, "docs", "ARCHITECTURE.md").read_text()
    assert [room for room in ROOMS if room not in page] == []
