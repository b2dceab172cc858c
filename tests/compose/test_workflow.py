"""The pipeline: the schema of hosted workflows, and that what it calls is there."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.compose import files


def workflow() -> Any:
    return yaml.safe_load(files.WORKFLOW.read_text())


def steps() -> list[Any]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def test_it_follows_the_schema() -> None:
    assert list(files.complaints(workflow(), "github-workflows")) == []
    wrong = workflow()
    wrong["jobs"]["image"]["permisions"] = wrong["jobs"]["image"].pop("permissions")
    assert list(files.complaints(wrong, "github-workflows")) != []


def test_every_action_and_image_is_pinned_to_a_release() -> None:
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used and all(re.search(r"@v\d+\.\d+\.\d+$", one) for one in used)
    assert re.search(r":\d+\.\d+$", workflow()["jobs"]["test"]["container"])


def test_what_it_runs_is_there() -> None:
    said = "\n".join(step.get("run", "") for step in steps())
    assert ".ci/run" in said and "k8s/rollout.sh prod" in said
    for script in re.findall(r"(?<![\w/.-])((?:\.ci|k8s)/[\w./-]*\w)", said):
        assert (files.ROOT / script).exists(), script
    makefile = (files.ROOT / "Makefile").read_text()
    for target in re.findall(r"(?m)^make ([\w-]+)", said):
        assert re.search(rf"(?m)^{target}:", makefile), f"the Makefile has no {target}"
    targets = set(re.findall(r"--target (\w+)", said))
    assert targets and targets <= set(files.stages())


def test_nothing_is_rolled_out_that_was_not_tested() -> None:
    jobs = workflow()["jobs"]
    assert jobs["rollout"]["needs"] == "image"
    assert sorted(jobs["image"]["needs"]) == ["test", "truth"]
    assert "refs/heads/main" in jobs["image"]["if"]


def test_it_writes_nothing_into_a_script_that_somebody_else_may_have_written() -> None:
    """`${{ }}` in a script is put in before the shell sees it; what is in the environment is not run."""
    for step in steps():
        assert "${{" not in step.get("run", ""), step


def test_it_may_do_no_more_than_it_needs() -> None:
    assert workflow()["permissions"] == {"contents": "read"}
    for name, job in workflow()["jobs"].items():
        assert ("permissions" in job) == (name == "image")
        assert "timeout-minutes" in job
