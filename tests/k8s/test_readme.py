"""Every command of k8s/README.md names something that is there; an unknown line fails.

k8s/rollout.sh is run by `make cluster-truth`; helm, docker and kind are other people's.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex

import pytest

from local_mesh import containers
from local_mesh.cluster import SECRETS
from operations import __main__ as operations
from tests.k8s import rendered
from tests.k8s.rendered import K8S, OVERLAYS, ROOT, Cluster
from tests.test_readme import blocks, commands

README = (K8S / "README.md").read_text()
COMMANDS = [one for language, content in blocks(README) if language == "sh" for one in commands(content)]
FOREIGN = ("helm repo add ", "helm install ", "kind load docker-image ", "docker build ")
SHORT = {"hpa": "HorizontalPodAutoscaler", "deployment": "Deployment"}
GATEWAY = "service/istio-ingressgateway"
ISTIO = re.findall(r'istioVersion +=  *"([\d.]+)"', (ROOT / "tests/mesh_truth/shipped_test.go").read_text())[
    0
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_only_what_is_there(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINEMESH_AMQP_URL", "amqp://in-every-pod")
    cluster = Cluster(rendered.objects("prod"))
    words = shlex.split(command.removesuffix(" &"), comments=True)
    if command.startswith(FOREIGN):
        if command.startswith("helm install "):
            assert f"--version {ISTIO} " in command
            # Only the first one starts nothing that the next command would need.
            assert words[-1] == "--wait" or "istio/base" in words
            assert all((ROOT / path).exists() for path in re.findall(r"-f (\S+)", command))
        return
    if words[0] == "kubectl" or "| kubectl" in command:
        for path in re.findall(r"-[fk] (k8s/\S+)", command):
            assert (ROOT / path).exists()
        for kind, name in re.findall(r"\b(deployment)/(\w+)", command) + re.findall(
            r"\b(hpa) (\w+)", command
        ):
            assert cluster.named(SHORT[kind], name), f"there is no {kind} {name}"
        for namespace in re.findall(r"-n ([\w-]+)", command):
            assert namespace == "dinemesh" or GATEWAY in command
        for container in re.findall(r"--container ([\w-]+)", command):
            assert container in ("service", "istio-proxy")
        for patch in re.findall(r"--patch '([^']+)'", command):
            assert set(json.loads(patch)["spec"]) <= set(cluster.of("HorizontalPodAutoscaler")[0]["spec"])
        for port in re.findall(r"port-forward deployment/\w+ (\d+)", command):
            assert f"containerPort: {port}\n" in (rendered.GOLDENS / "prod.yaml").read_text()
    elif words[0] == "k8s/rollout.sh":
        assert words[1] in OVERLAYS
    elif not re.fullmatch(r"TOKEN=\$\(make token .*\)|EDGE=\S+ bash examples/curl\.sh", command):
        assert words[0] == ".venv/bin/python", f"nobody knows {command}"
    for module in re.findall(r"python (?:-O )?-m ([\w.]+)", command):
        assert importlib.util.find_spec(module) is not None
    for told in re.findall(r"-m operations ([^']+)", command):
        operations.parser().parse_args(shlex.split(told.partition(" < ")[0]))
    if "local_mesh.cluster" in words:
        names = words[words.index("local_mesh.cluster") + 1 : words.index("|")]
        assert set(names) <= set(SECRETS)
        # What is there already is replaced one by one, never all passwords at once.
        assert words[words.index("|") + 2] == ("replace" if names else "create")
    if "local_mesh.containers" in words:
        containers.parser().parse_args(words[words.index("local_mesh.containers") + 1 :])


def test_there_are_commands_of_every_kind() -> None:
    assert len(COMMANDS) > 20
    for beginning in ("kubectl", "k8s/rollout.sh dev", "k8s/rollout.sh prod", "helm", ".venv/bin/python"):
        assert any(one.startswith(beginning) for one in COMMANDS)


def test_files_that_the_text_speaks_of_are_there() -> None:
    named = re.findall(r"`((?:base|overlays|components|image|keys)(?:/[\w./-]+)?)`", README)
    assert len(named) > 5
    for one in named:
        assert (K8S / one).exists(), one


def test_the_table_of_secrets_is_the_one_that_the_code_has() -> None:
    for name, keys in SECRETS.items():
        if name not in ("postgres", "rabbitmq"):  # of dev alone
            assert f"`{name}`" in README
            assert all(f"`{key}`" in README for key in keys)


def test_the_numbers_of_the_text_are_those_of_the_files() -> None:
    cluster = Cluster(rendered.objects("prod"))
    workload = cluster.services[0]
    container = workload.containers[0]
    settings = cluster.settings(container)
    spec = cluster.of("HorizontalPodAutoscaler")[0]["spec"]
    down = spec["behavior"]["scaleDown"]
    text = " ".join(README.split())
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    for said in (
        f"{sleep} s of `preStop`",
        f"NOT_SERVING for {settings['DINEMESH_DRAIN_SECONDS']} s",
        f"{settings['DINEMESH_STOP_GRACE_SECONDS']} s for calls",
        f"{spec['metrics'][0]['containerResource']['target']['averageUtilization']} % of the "
        f"{container['resources']['requests']['cpu']}",
        f"quiet for {down['stabilizationWindowSeconds']} s",
        f"{_word(down['policies'][0]['value'])} pods fewer each {down['policies'][0]['periodSeconds']} s",
        f"at most {spec['maxReplicas']} + 1 pods of 4 services",
    ):
        assert said in text, said


def _word(number: int) -> str:
    return {1: "one", 2: "two", 3: "three"}[number]
