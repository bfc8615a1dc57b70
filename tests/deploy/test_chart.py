"""deploy/helm: what it renders is taken by every version of Kubernetes, has no rights, and is what compose runs."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from dataclasses import replace

import pytest
import typer
import yaml
from checkout import ROOT
from compose import TOKEN, read_compose
from kubernetes_policy import pod_of, policy_problems, reference_problems
from kubernetes_releases import release_of
from kubernetes_schemas import VERSIONS, schema_problems
from kubernetes_tools import CHART, helm, rendered
from repository_command import deepfake, served_threshold
from tiny_model import TINY_SPEC, write_tiny_repository

from deepfake_client.cli.main import COMMANDS
from deepfake_export.cli.engines import build_engines
from deepfake_export.cli.repository import app as repository_app
from deepfake_gateway.settings import PREFIX, Settings
from deepfake_preprocess.contract.triton_config import PRODUCTION_QUEUE_DELAY_US

VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")


def container_of(manifest, name=""):
    pod = pod_of(manifest)
    (found,) = [
        one for one in (*pod.get("initContainers", ()), *pod["containers"]) if not name or one["name"] == name
    ]
    return found


def flags_of(arguments) -> set[str]:
    return {item.partition("=")[0] for item in arguments if item.startswith("-")}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_takes_every_manifest(version, release):
    assert [problem for item in release for problem in schema_problems(item, version)] == []


def test_no_pod_has_rights_or_is_without_bounds_and_all_names_lead_somewhere(release):
    assert [problem for item in release for problem in policy_problems(item)] == []
    assert reference_problems(release) == []


def test_helm_finds_nothing_wrong_with_the_chart():
    done = helm("lint", {"media": {"claim": "media"}}, "--strict")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "set media.bucket or media.claim"),
        ({"autoscaling": {"queueMilliseconds": 9}}, "waits up to 2 ms for its batch"),
        ({"autoscaling": {"minReplicas": 5}}, "below minReplicas 5"),
        ({"triton": {"serving": "nxt"}}, 'no track "nxt"'),
        ({"triton": {"canary": {"track": "nxt"}}}, 'no track "nxt"'),
        ({"triton": {"tracks": {"stable": {"version": 2}}}}, "set `model`"),
        ({"triton": {"gpu": 1}}, "additional properties 'gpu' not allowed"),
        ({"images": {"gateway": "deepfake-serving/gateway:latest"}}, "at '/images/gateway'"),
        ({"worker": {"resources": {"limits": {"cpu": None}}}}, "at '/worker/resources/limits'"),
        ({"gateway": {"settings": {"data_dir": "/"}}}, "data_dir"),
        ({"traces": {"endpoint": "collector:4318"}}, "at '/traces/endpoint'"),
        ({"autoscaling": {"scaleDown": {"stabilizationSeconds": 0}}}, "at '/autoscaling/scaleDown"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_reason(values, says):
    media = {"media": {"claim": "media"}} if values else {}
    done = helm("template", {**media, **values})
    assert done.returncode != 0
    assert says in done.stderr


@pytest.mark.parametrize("values", ["gpu", "cpu"])
def test_triton_has_the_flags_of_docker_compose(values, find):
    compose = read_compose()["services"]["triton"]
    arguments = container_of(find(values, "Deployment", "triton-stable"), "triton")["args"]
    added = {item for item in arguments if "connection-age" in item or item == "--model-config-name=cpu"}
    assert ("--model-config-name=cpu" in added) == (values == "cpu")
    kept = [item.replace("$(DEEPFAKE_ADMIN_TOKEN)", TOKEN) for item in arguments if item not in added]
    assert kept == compose["command"]
    assert VALUES["images"]["triton"] == compose["image"]
    assert VALUES["images"]["engines"] == read_compose()["services"]["engines"]["image"]
    known = json.loads((ROOT / "tests/support/assets/triton_reference.json").read_text(encoding="utf-8"))["flags"]
    assert {item.removeprefix("--").partition("=")[0] for item in added} <= set(known)


def test_a_gpu_is_there_where_plans_are_built_and_served_and_nowhere_else(find):
    gpu = {item["name"]: item for item in steps_of(find("gpu", "Deployment", "triton-stable"))}
    assert list(gpu) == ["copy", "verify", "engines", "triton"]
    having = {name for name, item in gpu.items() if "nvidia.com/gpu" in item["resources"]["limits"]}
    assert having == {"engines", "triton"}
    cpu = steps_of(find("cpu", "Deployment", "triton-stable"))
    assert [item["name"] for item in cpu] == ["copy", "verify", "triton"]
    assert "nvidia" not in json.dumps(cpu[-1]["resources"])


def steps_of(deployment):
    pod = pod_of(deployment)
    return [*pod["initContainers"], *pod["containers"]]


def test_the_steps_before_triton_are_commands_of_ours_on_what_triton_serves(find):
    steps = {item["name"]: item for item in steps_of(find("canary", "Deployment", "triton-next"))}
    assert list(steps) == ["copy", "verify", "version", "engines", "triton"]
    repository = typer.main.get_command(repository_app).commands
    for name in ("verify", "version"):
        program, group, command, *rest = steps[name]["command"]
        assert (program, COMMANDS[group].load()) == ("deepfake", repository_app)
        assert flags_of(rest) <= {option for item in repository[command].params for option in item.opts}
    assert steps["version"]["command"][2:5] == ["rollback", "deepfake_clip_b16", "4"]
    engines = steps["engines"]["command"]
    assert COMMANDS[engines[1]].load() is build_engines
    app = typer.Typer()
    app.command()(build_engines)
    assert flags_of(engines) <= {option for item in typer.main.get_command(app).params for option in item.opts}
    for name in ("verify", "version", "engines"):
        assert steps[name]["command"][steps[name]["command"].index("--repository") + 1] == "/models"
    # The claim is read; what is served is a copy that nothing but these steps writes.
    (source,) = [one for one in steps["copy"]["volumeMounts"] if one["name"] == "source"]
    assert source == {"name": "source", "mountPath": "/source", "readOnly": True, "subPath": "detectors/models"}
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in steps["triton"]["volumeMounts"]


@pytest.mark.parametrize(("track", "version"), [("stable", 3), ("next", 4)])
def test_the_steps_leave_a_copy_that_serves_the_version_of_the_track(track, version, find, tmp_path, capsys):
    spec = replace(TINY_SPEC, name="deepfake_clip_b16")
    for number in (3, 4):
        write_tiny_repository(tmp_path / "source", replace(spec, version=number, threshold=number / 10))
    (tmp_path / "source/lost+found").mkdir()
    (tmp_path / "models").mkdir()
    for step in steps_of(find("canary", "Deployment", f"triton-{track}"))[:3]:
        command = [
            word.replace("/source", f"{tmp_path}/source").replace("/models", f"{tmp_path}/models")
            for word in step["command"]
        ]
        if command[0] == "deepfake":
            assert deepfake(capsys, *command[2:])[0] == 0
        else:
            subprocess.run(command, check=True)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == ["deepfake_clip_b16"]
    assert served_threshold(tmp_path / "models") == (version, version / 10)
    assert served_threshold(tmp_path / "source") == (4, 0.4)
    # A claim that is damaged does not get as far as Triton.
    (tmp_path / "models/deepfake_clip_b16/3/model.onnx").write_bytes(b"")
    assert deepfake(capsys, "verify", "--repository", tmp_path / "models")[0] == 2


@pytest.mark.parametrize("values", ["gpu", "cpu", "canary"])
def test_gateway_and_worker_start_with_settings_that_there_are(values, find, monkeypatch):
    seen, compose = {}, read_compose()["services"]
    for kind, name, role in (("Deployment", "gateway", "web"), ("StatefulSet", "worker", "worker")):
        container = container_of(find(values, kind, name))
        environment = {item["name"]: item.get("value", "of-the-cluster") for item in container["env"]}
        monkeypatch.setattr("os.environ", environment)
        # What those flags mean is tested there.
        assert flags_of(container["args"]) <= flags_of(compose[name]["command"])
        flags = dict(item.removeprefix("--").partition("=")[::2] for item in container["args"])
        given = {key.replace("-", "_"): value or True for key, value in flags.items()}
        seen[role] = Settings.of(None, **given)
        assert {key for key in environment if key.startswith(PREFIX)} <= {
            PREFIX + field.upper() for field in Settings.model_fields
        }
        assert str(seen[role].data_dir) == "/data"
        assert seen[role].role == role
    web, worker = seen["web"], seen["worker"]
    assert (web.database, web.blobs) == (worker.database, worker.blobs)
    assert web.allow_open == (values == "cpu")
    assert web.url == "release-triton:8001"
    assert worker.url == f"release-triton-{'next' if values == 'canary' else 'stable'}:8001"
    if values == "canary":
        assert (worker.concurrency, worker.allowed_networks) == (4, ("10.0.0.0/8",))
        assert web.explain_url == "http://release-explain:8005"
    # Each worker by its own name, which it keeps.
    (name,) = [one for one in container["env"] if one["name"] == f"{PREFIX}WORKER_NAME"]
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_the_collector_of_traces_is_reached_by_those_who_send_some_and_only_where_it_is_named(find):
    def ways_out(values):
        return find(values, "NetworkPolicy", "outward")["spec"]["egress"]

    (way,) = [way for way in ways_out("canary") if {"port": 4318} in way["ports"]]
    assert way["to"] == VALUES["network"]["tracesTo"]
    assert len(ways_out("gpu")) == len(ways_out("canary")) - 1
    for kind, name in (("Deployment", "gateway"), ("StatefulSet", "worker")):
        told = {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector.monitoring:4318"}
        assert told in container_of(find("canary", kind, name))["env"]
        assert "OTEL" not in json.dumps(find("gpu", kind, name))


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector/v1", 80), ("https://otlp.example.com", 443), ("https://otlp:8443/x", 8443)],
)
def test_the_collector_s_port_is_that_of_its_address(endpoint, port):
    release = rendered({"media": {"claim": "media"}, "traces": {"endpoint": endpoint}})
    (policy,) = [item for item in release if item["metadata"]["name"] == "release-outward"]
    assert policy["spec"]["egress"][-1]["ports"] == [{"port": port}]


def test_the_explain_service_starts_with_options_that_there_are(find):
    arguments = container_of(find("canary", "Deployment", "explain"))["args"]
    # What those flags mean is tested there.
    assert flags_of(arguments) <= {*flags_of(read_compose()["services"]["explain"]["command"]), "--model"}
    assert "--url=release-triton:8001" in arguments


def test_a_canary_has_the_last_worker_and_clients_stay_where_they_are(find):
    """The workers below the partition keep the pods that they have, with the version that serves."""
    worker = find("canary", "StatefulSet", "worker")["spec"]
    assert (worker["replicas"], worker["updateStrategy"]["rollingUpdate"]["partition"]) == (4, 3)
    assert find("gpu", "StatefulSet", "worker")["spec"]["updateStrategy"]["rollingUpdate"]["partition"] == 0
    assert find("canary", "Service", "triton")["spec"]["selector"]["deepfake-serving/track"] == "stable"
    for name in ("triton", "triton-stable", "triton-next"):
        assert find("canary", "Service", name)["spec"]["clusterIP"] == "None"
    for track in ("stable", "next"):
        deployment = find("canary", "Deployment", f"triton-{track}")["spec"]
        assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert "replicas" not in deployment  # or each `helm upgrade` would undo the autoscaling


def test_chart_and_images_have_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == version
    assert {VALUES["images"][name].rpartition(":")[2] for name in ("gateway", "explain")} == {version}


def test_the_dashboards_are_those_of_the_project(find):
    files = {
        path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docker/grafana/dashboards").glob("*.json")
    }
    assert find("gpu", "ConfigMap", "dashboards")["data"] == files
    assert (CHART / "dashboards").is_symlink()


def test_the_gateway_is_watched_only_where_it_would_answer(find):
    watched = [item["metadata"]["name"] for item in release_of("gpu") if item["kind"] == "ServiceMonitor"]
    assert watched == ["release-triton"]
    (endpoint,) = find("canary", "ServiceMonitor", "gateway")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": "gateway-metrics-key", "key": "key"}
    assert find("canary", "ServiceMonitor", "gateway")["metadata"]["labels"]["release"] == "prometheus"


def test_the_delay_is_that_of_the_configurations_and_the_page_says_what_can_be_set():
    assert VALUES["autoscaling"]["batchingDelayMilliseconds"] * 1000 == PRODUCTION_QUEUE_DELAY_US
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert set(VALUES) == set(schema["properties"]) - {"global"}
    named = set(re.findall(r"`([a-z]+)\.[\w*]", PAGE))
    assert set(VALUES) - {"imagePullSecrets", "model", "images"} <= named


def test_the_page_s_upgrade_renders_at_each_step_and_ends_where_it_says():
    steps = [re.findall(r"--set (\S+?)[)\s]", step + "\n") for step in PAGE.split("helm upgrade")[1:]]
    install = re.findall(r"--set (\S+)", PAGE.partition("helm upgrade")[0])
    tracks, given = [], []
    for step in ([*install, "model=detector"], *steps):
        given += [option for item in step for option in ("--set", item)]
        release = rendered({}, *given)
        deployed = {item["metadata"]["name"] for item in release if item["kind"] == "Deployment"}
        tracks.append(sorted(name for name in deployed if "triton" in name))
    both = ["release-triton-next", "release-triton-stable"]
    assert tracks == [both[1:], both, both, both[:1]]
    (service,) = [i for i in release if (i["kind"], i["metadata"]["name"]) == ("Service", "release-triton")]
    assert service["spec"]["selector"]["deepfake-serving/track"] == "next"


def test_the_gateway_believes_an_ingress_and_nobody_else_what_it_says_of_the_caller():
    for is_there in (True, False):
        values = {"media": {"claim": "media"}, "gateway": {"ingress": {"enabled": is_there}}}
        (gateway,) = [
            item for item in rendered(values)
            if (item["kind"], item["metadata"]["name"]) == ("Deployment", "release-gateway")
        ]  # fmt: skip
        environment = {item["name"]: item.get("value") for item in container_of(gateway)["env"]}
        assert environment.get("FORWARDED_ALLOW_IPS") == ("*" if is_there else None)
        assert environment["DEEPFAKE_GATEWAY_LOG_FORMAT"] == "json"
