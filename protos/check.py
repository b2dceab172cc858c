"""Holds the contracts: form, lint, no breaking change against the baseline; generated code, the OpenAPI
document and the shapes of bodies up to date.

Usage:
    python -m protos.check              says what is wrong, exits 1 if anything is
    python -m protos.check --freeze     moves the baseline to the contracts as they are, unless that breaks it

The baseline (`protos/baseline.binpb`) is what clients and stored events rely on. What it does not hold yet is
not protected, so the check wants it to hold everything.
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from google.protobuf import descriptor_pb2

from protos import bodies
from protos.generate import ROOT, SOURCES, GenerationFailed, descriptor_set, generate, generated_files
from protos.openapi.__main__ import TARGET as DOCUMENT
from protos.openapi.__main__ import text

BASELINE = SOURCES / "baseline.binpb"
CONFIG = SOURCES / "buf.yaml"
SECONDS = 60  # for one run of buf, which takes less than one


class Unfit(Exception):
    """The contracts are not as they should be; the text says where and what to do."""


def buf(*arguments: str | Path) -> None:
    """Runs buf (the wheel `buf-bin` puts it beside the interpreter); raises Unfit with what it says."""
    program = shutil.which("buf", path=sysconfig.get_path("scripts"))
    if program is None:
        raise Unfit("buf is not installed here: it comes with the locked requirements (buf-bin)")
    done = subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        cwd=ROOT,
    )
    if done.returncode != 0:
        raise Unfit(
            (done.stdout + done.stderr).strip() or f"buf ended with {done.returncode} and said nothing"
        )


def check_form(sources: Path = SOURCES) -> None:
    buf("format", "--diff", "--exit-code", sources)


def check_lint(sources: Path = SOURCES) -> None:
    with tempfile.TemporaryDirectory() as folder:
        buf(
            "lint",
            write(descriptor_set(sources, source_info=True), Path(folder) / "now.binpb"),
            "--config",
            CONFIG,
        )


def check_breaking(sources: Path = SOURCES, baseline: Path = BASELINE) -> None:
    with tempfile.TemporaryDirectory() as folder:
        now = write(descriptor_set(sources, source_info=True), Path(folder) / "now.binpb")
        buf("breaking", now, "--against", baseline, "--config", CONFIG)


def check_baseline(sources: Path = SOURCES, baseline: Path = BASELINE) -> None:
    frozen = own_files(descriptor_pb2.FileDescriptorSet.FromString(baseline.read_bytes()))
    now = own_files(descriptor_set(sources))
    newer = sorted(name for name in now if now[name] != frozen.get(name))
    if newer:
        raise Unfit(f"the baseline does not hold {', '.join(newer)}: run `python -m protos.check --freeze`")


def check_generated(root: Path = ROOT, sources: Path = SOURCES) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        names = set(generate(fresh, sources)) | set(generated_files(root))
        stale = sorted(str(name) for name in names if content(fresh / name) != content(root / name))
    if stale:
        raise Unfit(f"not what the contracts generate: {', '.join(stale)}: run `python -m protos.generate`")


def check_document(sources: Path = SOURCES) -> None:
    if content(sources / DOCUMENT.name) != text(sources).encode():
        raise Unfit(f"{DOCUMENT.name} is not what the contracts say: run `python -m protos.openapi`")


def check_bodies(sources: Path = SOURCES, table: Path = bodies.TARGET) -> None:
    if content(table) != bodies.text(sources).encode():
        raise Unfit(f"{table.name} is not what the contracts say: run `python -m protos.bodies`")


def freeze() -> None:
    if BASELINE.exists():
        check_breaking()
    write(descriptor_set(), BASELINE)


def own_files(descriptors: descriptor_pb2.FileDescriptorSet) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    return {file.name: file for file in descriptors.file if file.name.startswith("dinemesh/")}


def write(descriptors: descriptor_pb2.FileDescriptorSet, target: Path) -> Path:
    target.write_bytes(descriptors.SerializeToString(deterministic=True))
    return target


def content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


CHECKS: dict[str, Callable[[], None]] = {
    "form": check_form,
    "lint": check_lint,
    "breaking changes": check_breaking,
    "baseline": check_baseline,
    "generated code": check_generated,
    "OpenAPI document": check_document,
    "shapes of bodies": check_bodies,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--freeze", action="store_true", help="move the baseline to the contracts as they are"
    )
    options = parser.parse_args(arguments)
    steps = {"freeze": freeze} if options.freeze else CHECKS
    failures = 0
    for name, step in steps.items():
        try:
            step()
        except (Unfit, GenerationFailed) as problem:
            failures += 1
            print(f"contracts, {name}: {problem}", file=sys.stderr)
        else:
            print(f"contracts, {name}: good")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
