"""The job for KubeRay: the Ray that CI runs, a command that there is, and containers without rights."""

import re
import shlex

import typer
import yaml
from checkout import ROOT

from deepfake_client.cli import main as cli

JOB = yaml.safe_load((ROOT / "deploy/ray/rayjob.yaml").read_text(encoding="utf-8"))["spec"]
CLUSTER = JOB["rayClusterSpec"]
PODS = [CLUSTER["headGroupSpec"]["template"]["spec"]]
PODS += [group["template"]["spec"] for group in CLUSTER["workerGroupSpecs"]]


def test_head_workers_and_driver_run_the_pinned_ray():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert CLUSTER["rayVersion"] == pinned[1]
    assert len({container["image"] for pod in PODS for container in pod["containers"]}) == 1


def test_the_entrypoint_is_a_scan_with_options_that_there_are():
    words = shlex.split(JOB["entrypoint"])
    command = typer.main.get_command(cli.build_app("scan")).commands["scan"]
    known = {name for item in command.params for name in item.opts}
    assert words[:2] == ["deepfake", "scan"]
    assert {word for word in words if word.startswith("--")} <= known


def test_no_container_has_rights_or_is_without_limits():
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"]
        # Of the head's, the autoscaler is one, and speaks with Kubernetes.
        needs_token = pod is PODS[0] and CLUSTER["enableInTreeAutoscaling"]
        assert pod.get("automountServiceAccountToken", True) == needs_token
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]
