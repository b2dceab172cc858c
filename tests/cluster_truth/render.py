"""kustomize over the overlays: `python -m tests.cluster_truth.render` writes what tests/k8s looks at."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from local_mesh.failure import Failure
from tests.cluster_truth import programs
from tests.k8s import rendered

Change = Callable[[Path], object]
"""Gets a copy of the project's k8s/ and istio/, to be written into."""


def _nothing(_: Path) -> None: ...


@contextmanager
def copied(change: Change = _nothing) -> Iterator[Path]:
    """k8s/ and istio/ in another folder, without the keys of whoever works here."""
    with tempfile.TemporaryDirectory(prefix="dinemesh-render-") as folder:
        root = Path(folder)
        for name in ("k8s", "istio"):
            shutil.copytree(rendered.ROOT / name, root / name)
        (root / "k8s/overlays/dev/keys/jwks.json").write_text(shipped_keys())
        change(root)
        yield root


def render(overlay: str, change: Change = _nothing) -> str:
    """Everything of an overlay, Istio's kinds too."""
    with copied(change) as root:
        done = subprocess.run(
            [programs.kubernetes("kubectl"), "kustomize", root / rendered.OVERLAYS[overlay]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if done.returncode != 0:
        raise Failure(f"{overlay}: {done.stderr.strip()}")
    return done.stdout


def shipped_keys() -> str:
    """Dev's may be those of whoever works here; both ship with the same."""
    return (rendered.K8S / "overlays/prod/keys/jwks.json").read_text()


def main() -> None:
    for overlay in rendered.OVERLAYS:
        (rendered.GOLDENS / f"{overlay}.yaml").write_text(rendered.built_in(render(overlay)))
    rendered.SOURCES.write_text(f"{rendered.sources()}\n")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(str(failure))
