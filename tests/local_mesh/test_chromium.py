"""The tests' browser: it shows pages, and no process of it outlives its owner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from selenium import webdriver

from tests.support.chromium import Chromium


def kinds(processes: list[psutil.Process]) -> set[str]:
    """ "driver" and the kinds of process that a browser consists of ("browser", "renderer", ...)."""
    found = set()
    for process in processes:
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # helpers come and go while the browser starts
            continue
        kind = re.search(r"--type=(\S+)", line)
        found.add(kind[1] if kind else "driver" if "/chromedriver" in line else "browser")
    return found


def test_a_page_is_shown_with_a_font_and_by_a_module(browser: webdriver.Chrome, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        "<!DOCTYPE html><meta charset=utf-8><title>Tisch für zwei</title><p id=words>Tisch für zwei</p>"
        "<script type=module>document.title += ', ' + document.getElementById('words').offsetWidth</script>"
        "<style>p { display: inline-block; font: 20px sans-serif }</style>"
    )
    browser.get(page.as_uri())
    title, width = browser.title.rsplit(", ", 1)
    assert title == "Tisch für zwei"
    assert 100 < int(width) < 250  # letters that have a width


def test_a_closed_browser_leaves_no_process(chromium: Chromium, tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    with chromium.opened(tmp_path):
        started = [one for one in psutil.Process().children(recursive=True) if one not in before]
        assert kinds(started) >= {"driver", "browser", "renderer"}
    assert psutil.wait_procs(started, timeout=10)[1] == []


def test_a_browser_dies_with_a_killed_owner(chromium: Chromium, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time\n"
            "from local_mesh.broker import project_cache\n"
            "from tests.support.chromium import unpack_chromium\n"
            f"with unpack_chromium(project_cache(), print).opened(pathlib.Path({str(tmp_path)!r})):\n"
            "    sys.stdout.write('up\\n'); sys.stdout.flush(); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        # Killed, it cannot remove its folder of sockets.
        env={**os.environ, "TMPDIR": str(tmp_path.parent)},
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == "up\n"
    started = psutil.Process(owner.pid).children(recursive=True)
    assert kinds(started) >= {"driver", "browser", "renderer"}
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    assert psutil.wait_procs(started, timeout=10)[1] == []
