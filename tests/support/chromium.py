"""A real Chromium for the tests, headless, driven over WebDriver.

Debian's own packages, unpacked into the project's cache like RabbitMQ's: no root, nothing installed, and the
same on a machine without any graphical library. The first time, some 150 MB are downloaded. Each browser has
an empty profile and ends with the tests, however they end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from local_mesh.broker import project_cache
from local_mesh.debian import Unpacked, unpack
from local_mesh.failure import Failure

PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")

FROM_THE_MACHINE = frozenset({"libc6"})
"""The one library that cannot be brought along: the machine's own loader belongs to it. All else comes with
the browser, even where the machine has it, so that all machines run the same."""

NOT_NEEDED = frozenset(
    # What only an installed package needs.
    {
        "adduser",
        "debconf",
        "dpkg",
        "init-system-helpers",
        "passwd",
        "perl",
        "perl-base",
        "systemd",
        "usrmerge",
    }
    # What only a browser with windows needs: a desktop's session, OpenGL, GTK and its icons.
    | {"adwaita-icon-theme", "dbus", "dbus-user-session", "dconf-gsettings-backend", "libpam-systemd"}
    | {"libgl1", "libgl1-mesa-dri", "libgtk-3-0", "libgtk-3-0t64", "libgtk-4-1", "lsb-base"}
    | {"shared-mime-info", "x11-utils", "xdg-utils"}
)

ADVICE = (
    "Or name a browser and its driver, of one version; on Ubuntu, which has Chromium as a snap only, this is "
    "the way: DINEMESH_CHROMIUM=/path/to/chrome DINEMESH_CHROMEDRIVER=/path/to/chromedriver."
)

FLAGS = (
    "--headless=new",
    # Chromium refuses to run as root with its sandbox, and containers often forbid what the sandbox needs. It
    # shows our own page only.
    "--no-sandbox",
    "--disable-gpu",
    # A container's /dev/shm has 64 MB.
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-proxy-server",
    "--no-first-run",
    "--no-default-browser-check",
    # No calls home, and nothing that a page could reach but this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost, EXCLUDE *.localhost",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--password-store=basic",
    "--window-size=1280,1250",
)

START_SECONDS = 60


@dataclass(frozen=True)
class Chromium:
    """Program files of a browser and its driver."""

    browser: Path
    driver: Path
    libraries: str
    fonts: Path | None

    def environment(self, home: Path, sockets: Path) -> dict[str, str]:
        """Nothing of the environment around (proxies, a desktop's session) reaches the browser.

        sockets: a folder with a path so short that the name of a socket in it fits (108 bytes).
        """
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": str(sockets),
            "XDG_CACHE_HOME": str(home / "cache"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_RUNTIME_DIR": str(home),
            "DBUS_SESSION_BUS_ADDRESS": "disabled:",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
        }
        if self.libraries:
            environment["LD_LIBRARY_PATH"] = self.libraries
        if self.fonts is not None:
            environment["FONTCONFIG_FILE"] = str(self.fonts)
        return environment

    @contextmanager
    def opened(self, home: Path) -> Iterator[webdriver.Chrome]:
        """A new browser; its profile, driver's log and program scripts are in `home`."""
        options = Options()
        options.binary_location = str(_that_dies_with_us(home / "browser", self.browser))
        for flag in (*FLAGS, f"--user-data-dir={home / 'profile'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as sockets:
            service = Service(
                str(_that_dies_with_us(home / "driver", self.driver)),
                env=self.environment(home, Path(sockets)),
                log_output=str(home / "driver.log"),
            )
            driver = webdriver.Chrome(options=options, service=service)
            try:
                yield driver
            finally:
                driver.quit()


def _that_dies_with_us(script: Path, program: Path) -> Path:
    """A script that becomes `program`; the kernel ends it when whoever started it is gone, however they went:
    the driver with the tests, the browser with the driver."""
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig KILL -- "{program}" "$@"\n')
    script.chmod(0o755)
    return script


def unpack_chromium(cache: Path, say: Callable[[str], None]) -> Chromium:
    """The browser's files in `cache`/chromium, or those that the environment names."""
    browser, driver = os.environ.get("DINEMESH_CHROMIUM"), os.environ.get("DINEMESH_CHROMEDRIVER")
    if browser and driver:
        return Chromium(Path(browser), Path(driver), libraries="", fonts=None)
    try:
        files = unpack(
            cache / "chromium",
            PACKAGES,
            own=lambda package: package not in FROM_THE_MACHINE,
            left_out=NOT_NEEDED,
            finish=_try_with_fonts,
            say=lambda text: say(f"Chromium: {text}"),
        )
    except Failure as failure:
        raise Failure(f"{failure}\n{ADVICE}") from failure
    return _programs(files)


def _programs(files: Unpacked) -> Chromium:
    root = files.root
    # /usr/bin/chromium is a script that looks for things of the desktop.
    return Chromium(
        root / "usr/lib/chromium/chromium",
        root / "usr/bin/chromedriver",
        files.library_path,
        root / "fonts.conf",
    )


def _try_with_fonts(unpacked: Path, root: Path) -> None:
    """Show a page with the files where they stand now, then name the fonts where they will stand."""
    programs = _programs(Unpacked(unpacked))
    assert programs.fonts is not None

    def point(place: Path) -> None:
        (unpacked / "fonts.conf").write_text(
            '<?xml version="1.0"?>\n<!DOCTYPE fontconfig SYSTEM "fonts.dtd">\n<fontconfig>\n'
            f"<dir>{place}/usr/share/fonts</dir>\n"
            '<cachedir prefix="xdg">fontconfig</cachedir>\n'
            "</fontconfig>\n"
        )

    point(unpacked)
    with tempfile.TemporaryDirectory(prefix="chromium-") as home:
        for command in (
            [str(programs.driver), "--version"],
            [
                str(programs.browser),
                *FLAGS,
                f"--user-data-dir={home}/profile",
                "--dump-dom",
                "data:text/html,<title>it works</title>",
            ],
        ):
            tried = subprocess.run(
                command,
                env=programs.environment(Path(home), Path(home)),
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
            if tried.returncode != 0:
                said = (tried.stdout + tried.stderr).strip()
                raise Failure(f"{Path(command[0]).name} does not start on this machine:\n{said}")
    if "it works" not in tried.stdout:
        raise Failure(f"Chromium shows no page on this machine:\n{(tried.stdout + tried.stderr).strip()}")
    point(root)


@pytest.fixture(scope="session")
def chromium() -> Chromium:
    """The browser's files; `chromium.opened(folder)` starts one."""

    def say(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    return unpack_chromium(project_cache(), say)


@pytest.fixture
def browser(chromium: Chromium, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A new headless browser with an empty profile."""
    with chromium.opened(tmp_path / "browser") as driver:
        yield driver
