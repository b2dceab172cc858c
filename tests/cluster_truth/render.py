"""kustomize over the overlays: `python -m tests.cluster_truth.render` writes what tests/k8s looks at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from local_mesh.failure import Failure
from tests.cluster_truth import programs
from tests.k8s import rendered


def render(overlay: str, root: Path = rendered.ROOT) -> str:
    """Everything of an overlay, Istio's kinds too."""
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


def main() -> None:
    for overlay in rendered.OVERLAYS:
        (rendered.GOLDENS / f"{overlay}.yaml").write_text(rendered.built_in(render(overlay)))
    rendered.SOURCES.write_text(f"{rendered.sources()}\n")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(str(failure))
