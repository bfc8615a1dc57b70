"""docker-compose.yml against the Compose specification, this project's files and Triton's documented names."""

from __future__ import annotations

import importlib.resources
import json
import re
import runpy
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from compose import ROOT, TOKEN, read_compose

from deepfake_client.cli.main import COMMANDS
from deepfake_explain.cli.explain_serve import explain_serve
from deepfake_export.cli.engines import build_engines
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY

REFERENCE = json.loads((ROOT / "tests/support/assets/triton_reference.json").read_text(encoding="utf-8"))
SCHEMA = json.loads(
    # The Compose specification's own schema (Apache-2.0), as the package check-jsonschema carries it.
    (importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
)
COMPOSE = read_compose()
SERVICES = COMPOSE["services"]
TRITON = SERVICES["triton"]
DOCKERFILES = ("docker/engines.Dockerfile", "docker/explain.Dockerfile")


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CHECKPOINT = Path(re.search(r"^CHECKPOINT := (.*)$", MAKEFILE, re.MULTILINE)[1])


def problems_of(data) -> list[str]:
    return [error.message for error in jsonschema.validators.validator_for(SCHEMA)(SCHEMA).iter_errors(data)]


def flags_of(command: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in command:
        if item.startswith("--"):
            name, _, value = item.removeprefix("--").partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_file_follows_the_compose_specification():
    assert problems_of(COMPOSE) == []
    assert set(SERVICES) >= {"engines", "triton", "prometheus", "grafana"}
    # The check can fail.
    assert problems_of({"services": {"triton": {**TRITON, "healthchecks": {}}}})
    assert problems_of({"services": {"triton": {**TRITON, "shm_size": []}}})


def test_a_start_without_a_token_is_refused_and_no_token_is_built_in():
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert not re.search(r"DEEPFAKE_ADMIN_TOKEN:-", text)
    assert TOKEN not in text
    assert "${DEEPFAKE_ADMIN_TOKEN:?" in text


@pytest.mark.parametrize("month", ["26.08", "26.10"])
def test_engines_and_triton_are_of_the_same_month(month):
    services = read_compose(NGC_MONTH=month)["services"]
    assert services["triton"]["image"] == f"nvcr.io/nvidia/tritonserver:{month}-py3"
    assert services["engines"]["build"]["args"]["NGC_MONTH"] == month
    dockerfile = (ROOT / services["engines"]["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert "FROM nvcr.io/nvidia/tensorrt:${NGC_MONTH}-py3" in dockerfile
    default = COMPOSE["services"]["engines"]["build"]["args"]["NGC_MONTH"]
    # Older ones lack security fixes, or starve requests in the batcher.
    assert float(default) >= 26.08
    assert f"ARG NGC_MONTH={default}" in dockerfile


def test_every_path_of_ours_exists():
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind" and "bind" in volume:
                # What `make run` makes; a start without it is refused, with its name.
                assert volume["bind"] == {"create_host_path": False}
                assert volume["source"] in (f"./{DEFAULT_REPOSITORY}", f"./{CHECKPOINT.parent}")
            elif volume["type"] == "bind":
                assert (ROOT / volume["source"]).exists(), volume
            else:
                assert volume["source"] in COMPOSE["volumes"]
    for name in DOCKERFILES:
        dockerfile = (ROOT / name).read_text(encoding="utf-8")
        copied = [item for line in re.findall(r"^COPY (.*)$", dockerfile, re.MULTILINE) for item in line.split()[:-1]]
        assert {"pyproject.toml", "export", "preprocess"} <= set(copied)
        kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
        for item in copied:
            assert (ROOT / item).exists(), item
            assert f"!{item}" in kept, item


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_image_holds_every_package_of_the_wheel(name):
    """The build of the wheel fails where a folder that pyproject.toml names is missing."""
    dockerfile = (ROOT / name).read_text(encoding="utf-8")
    listed = re.search(r"packages = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    for package in re.findall(r'"(\w+)/\w+"', listed[1]):
        assert f"COPY {package} /src/{package}" in dockerfile


def test_the_engine_service_runs_our_command_with_options_it_has():
    dockerfile = (ROOT / "docker/engines.Dockerfile").read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    program, command = json.loads(entry)
    assert program == "deepfake"
    assert command in COMMANDS
    app = typer.Typer()
    app.command()(build_engines)
    known = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", " ".join(SERVICES["engines"]["command"]))) <= known


def test_the_explain_service_is_bounded_and_runs_our_command_with_options_it_has():
    service = SERVICES["explain"]
    assert service["build"]["dockerfile"] in DOCKERFILES
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    program, command = json.loads(entry)
    assert program == "deepfake"
    assert COMMANDS[command].load() is explain_serve
    app = typer.Typer()
    app.command()(explain_serve)
    known = {option for parameter in typer.main.get_command(app).params for option in parameter.opts}
    flags = flags_of(service["command"])
    assert {f"--{name}" for name in flags} <= known
    # It asks the Triton beside it, and can neither starve that one nor write anything.
    assert flags["url"] == [f"triton:{flags_of(TRITON['command'])['grpc-port'][0]}"]
    limits = service["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert int(flags["threads"][0]) <= float(limits["cpus"])
    assert int(flags["nice"][0]) > 0
    assert service["cpu_shares"] < 1024
    assert service["read_only"]
    assert all(volume["read_only"] for volume in service["volumes"])
    assert re.findall(r"^USER (\w+)$", dockerfile, re.MULTILINE) == [service["user"]]
    assert service["command"][0].startswith(service["volumes"][0]["target"])
    (port,) = flags["port"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"http://localhost:{port}/health/live" in " ".join(service["healthcheck"]["test"])
    jobs = {
        job["job_name"]: job
        for job in yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"]
    }
    assert jobs["explain"]["static_configs"][0]["targets"] == [f"explain:{port}"]


def test_tritons_flags_are_documented_and_are_those_of_a_production_server():
    flags = flags_of(TRITON["command"])
    assert set(flags) <= set(REFERENCE["flags"])
    assert flags["model-control-mode"] == ["none"]
    assert flags["strict-readiness"] == ["true"]
    assert "disable-auto-complete-config" in flags
    assert TRITON["user"] == "triton-server"
    assert all(volume["read_only"] for volume in TRITON["volumes"] if volume["type"] == "bind")
    assert TRITON["shm_size"]
    assert TRITON["depends_on"]["engines"]["condition"] == "service_completed_successfully"
    models = next(volume["target"] for volume in TRITON["volumes"])
    assert flags["model-repository"] == [models]
    assert models in SERVICES["engines"]["command"]


def test_only_admin_protocols_are_restricted():
    """What the client needs is free: it finds models through the index, and then reads, asks and infers."""
    needed = {
        "grpc-restricted-protocol": {"health", "metadata", "inference", "model-config", "model-repository"},
        "http-restricted-api": {"health", "metadata", "inference", "model-config"},
    }
    for flag, free in needed.items():
        (value,) = flags_of(TRITON["command"])[flag]
        categories, _, secret = value.partition(":")
        assert set(categories.split(",")) <= set(REFERENCE["restricted_categories"])
        assert set(categories.split(",")) == set(REFERENCE["restricted_categories"]) - free
        assert secret == f"admin-token={TOKEN}"


def test_what_make_run_made_is_what_every_default_serves():
    assert "--repository" not in MAKEFILE
    for name in ("engines", "triton"):
        assert SERVICES[name]["volumes"][0]["source"] == f"./{DEFAULT_REPOSITORY}"
    volume = SERVICES["explain"]["volumes"][0]
    assert f"{volume['source']}/{Path(SERVICES['explain']['command'][0]).name}" == f"./{CHECKPOINT}"
    # None of them makes a checkout dirty.
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert {f"/{DEFAULT_REPOSITORY}/", f"/{CHECKPOINT.parent}/"} <= set(ignored)


def test_ports_agree_everywhere():
    flags = flags_of(TRITON["command"])
    ports = {name: int(flags[f"{name}-port"][0]) for name in ("http", "grpc", "metrics")}
    published = {int(item.rpartition(":")[2]) for item in TRITON["ports"]}
    # Metrics tell of the machine, and only Prometheus needs them.
    assert published == {ports["http"], ports["grpc"]}
    for service in SERVICES.values():
        assert all(item.startswith("127.0.0.1:") for item in service.get("ports", []))
    assert f"http://localhost:{ports['http']}/v2/health/ready" in TRITON["healthcheck"]["test"]
    scrape = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == [f"triton:{ports['metrics']}"]
    source = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_the_dashboard_is_provisioned_current_and_asks_for_metrics_that_triton_has():
    made = runpy.run_path(str(ROOT / "docker/grafana/make_dashboard.py"))
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/deepfake-serving.json").read_text())
    assert dashboard == made["dashboard"](), "run: python docker/grafana/make_dashboard.py"
    providers = yaml.safe_load((ROOT / "docker/grafana/provisioning/dashboards/dashboards.yml").read_text())
    mounted = {volume["target"]: volume["source"] for volume in SERVICES["grafana"]["volumes"]}
    folder = providers["providers"][0]["options"]["path"]
    assert (ROOT / mounted[folder] / "deepfake-serving.json").is_file()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/deepfake-serving.json"
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    metrics = {name for expression in expressions for name in re.findall(r"nv_\w+", expression)}
    assert metrics <= set(REFERENCE["metrics"])
    for topic in ("request_summary", "queue_summary", "exec_count", "request_failure", "gpu_utilization"):
        assert any(topic in name for name in metrics)
    uid = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {uid["datasources"][0]["uid"]}
    # Summaries come only where they are switched on, with the quantiles that are shown.
    configs = flags_of(TRITON["command"])["metrics-config"]
    assert "summary_latencies=true" in configs
    (quantiles,) = [item.partition("=")[2] for item in configs if item.startswith("summary_quantiles")]
    offered = {item.partition(":")[0] for item in quantiles.split(",")}
    assert set(re.findall(r'quantile="([\d.]+)"', " ".join(expressions))) <= offered


def test_the_documentation_names_every_variable_and_only_commands_that_exist():
    page = (ROOT / "docs/production.md").read_text(encoding="utf-8")
    variables = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Z_]+)`", rows)) == variables
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL))
    assert set(re.findall(r"^deepfake ([a-z-]+)", blocks, flags=re.MULTILINE)) <= set(COMMANDS)
    assert set(re.findall(r"docker compose (?:run --rm|build) ([a-z]+)", page)) <= set(SERVICES)
