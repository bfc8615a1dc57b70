"""docker-compose.yml against the Compose specification, this project's files and Triton's documented names."""

from __future__ import annotations

import importlib.resources
import json
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import debian
import gateways
import jsonschema
import pytest
import typer
import yaml
from compose import ROOT, TOKEN, read_compose

from deepfake_client.cli.main import COMMANDS
from deepfake_explain.cli.explain_serve import explain_serve
from deepfake_export.cli.engines import build_engines
from deepfake_gateway.cli.gateway import app as gateway_app
from deepfake_gateway.settings import PREFIX, Settings
from deepfake_preprocess.cli.options import DEFAULT_REPOSITORY

REFERENCE = json.loads((ROOT / "tests/support/assets/triton_reference.json").read_text(encoding="utf-8"))
SCHEMA = json.loads(
    # The Compose specification's own schema (Apache-2.0), as the package check-jsonschema carries it.
    (importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
)
COMPOSE = read_compose()
SERVICES = COMPOSE["services"]
TRITON = SERVICES["triton"]
PROMETHEUS = ROOT / "docker/prometheus/prometheus.yml"
DOCKERFILES = ("docker/engines.Dockerfile", "docker/explain.Dockerfile", "docker/gateway.Dockerfile")


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MODEL_NAME = re.search(r"^NAME_accurate := (\w+)$", MAKEFILE, re.MULTILINE)[1]  # MODEL=accurate is the default
CHECKPOINT = Path(re.search(r"^CHECKPOINT := (.*)$", MAKEFILE, re.MULTILINE)[1].replace("$(MODEL_NAME)", MODEL_NAME))


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
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for file in included["force-include"]:
        assert f"COPY {file} /src/{file}" in dockerfile


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


def options_of_gateway(service, monkeypatch) -> Settings:
    """Read a service's flags and environment as its command does."""
    monkeypatch.setattr("os.environ", {name: str(value) for name, value in service["environment"].items()})
    seen = []
    monkeypatch.setattr("deepfake_gateway.cli.gateway._run", lambda settings, *_: seen.append(settings))
    typer.main.get_command(gateway_app)(service["command"], standalone_mode=False)
    return seen[0]


@pytest.mark.parametrize("name", ["gateway", "worker", "gateway-cpu"])
def test_the_gateways_are_bounded_and_run_our_command_with_options_it_has(name, monkeypatch):
    service = SERVICES[name]
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", dockerfile, re.MULTILINE)
    program, command = json.loads(entry)
    assert program == "deepfake"
    assert COMMANDS[command].load() is gateway_app
    assert service["build"]["target"] in re.findall(r"^FROM \S+ AS (\w+)$", dockerfile, re.MULTILINE)
    # The last user of each stage is not root, and owns the volume.
    assert re.findall(r"^USER (\w+)$", dockerfile, re.MULTILINE)[-1] == service["user"] == "gateway"
    assert "install -d -o gateway -g gateway -m 0700 /data" in dockerfile
    settings = options_of_gateway(service, monkeypatch)
    assert (str(settings.data_dir), service["volumes"][0]["target"]) == ("/data", "/data")
    # Nothing else can be written, there are no capabilities, and memory and processes are bounded.
    assert service["read_only"]
    assert all(volume.get("read_only") or volume["target"] == "/data" for volume in service["volumes"])
    assert service["cap_drop"] == ["ALL"]
    assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert not any("password" in flag.lower() or TOKEN in flag for flag in service["command"])
    if name != "worker":
        assert (settings.host, service["ports"]) == ("0.0.0.0", [f"127.0.0.1:{settings.port}:{settings.port}"])
        assert f"http://localhost:{settings.port}/v1/health/live" in " ".join(service["healthcheck"]["test"])


def test_what_env_names_reaches_the_services_that_need_it(monkeypatch):
    """The model of a repository that holds several, and who draws heatmaps."""
    named = {f"{PREFIX}MODEL": "mine", f"{PREFIX}EXPLAIN_URL": "http://explain:8005"}
    services = read_compose(**named)["services"]
    for name in ("gateway", "worker"):
        settings = options_of_gateway(services[name], monkeypatch)
        assert (settings.model, settings.explain_url) == ("mine", "http://explain:8005")
        assert options_of_gateway(SERVICES[name], monkeypatch).model is None
    assert options_of_gateway(services["gateway-cpu"], monkeypatch).model == "mine"
    assert f"http://explain:{flags_of(SERVICES['explain']['command'])['port'][0]}" == named[f"{PREFIX}EXPLAIN_URL"]


def test_gateway_and_worker_share_triton_a_database_and_a_folder(monkeypatch):
    web, worker = (options_of_gateway(SERVICES[name], monkeypatch) for name in ("gateway", "worker"))
    assert (web.role, worker.role) == ("web", "worker")
    assert web.url == worker.url == f"triton:{flags_of(TRITON['command'])['grpc-port'][0]}"
    assert web.database == worker.database
    assert SERVICES["gateway"]["volumes"] == SERVICES["worker"]["volumes"]
    assert SERVICES["gateway"]["profiles"] == SERVICES["worker"]["profiles"] == SERVICES["postgres"]["profiles"]
    postgres = SERVICES["postgres"]["environment"]
    user, password, base = (postgres[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB"))
    assert web.database == f"postgresql+psycopg://{user}:{password}@postgres:5432/{base}"
    assert password == TOKEN
    own = read_compose(DEEPFAKE_DATABASE_PASSWORD="another")["services"]
    assert own["gateway"]["environment"][f"{PREFIX}DATABASE"] == web.database.replace(TOKEN, "another")
    assert SERVICES["postgres"]["read_only"]
    assert "ports" not in SERVICES["postgres"]
    jobs = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert [job["static_configs"][0]["targets"] for job in jobs if job["job_name"] == "gateway"] == [
        [f"gateway:{web.port}"]
    ]


def test_the_service_without_a_gpu_serves_nothing_but_the_gateway():
    service = SERVICES["gateway-cpu"]
    assert service["profiles"] == ["cpu"]
    assert "depends_on" not in service
    assert "devices" not in json.dumps(service)
    flags = flags_of(service["command"])
    assert "embedded" in flags
    models = service["volumes"][1]
    assert (flags["repository"], models["source"]) == ([models["target"]], f"./{DEFAULT_REPOSITORY}")
    # The embedded Triton listens on the container's loopback, and its programs lie below /tmp.
    assert len(service["ports"]) == 1
    assert service["tmpfs"] == ["/tmp:exec"]
    assert service["shm_size"]
    # It runs the form that an export promoted, and not FP32 in its place.
    dockerfile = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert re.search(r"pip install .* openvino\b", dockerfile.partition(f" AS {service['build']['target']}\n")[2])


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
    recipes = re.findall(r"^(?:run|serve|web):.*\n(?:\t.*\n)+", MAKEFILE, re.MULTILINE)
    assert len(recipes) == 3
    assert not [recipe for recipe in recipes if "--repository" in recipe]
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
    for name, made_now in made["dashboards"]().items():
        committed = json.loads((ROOT / "docker/grafana/dashboards" / name).read_text())
        assert committed == made_now, "run: python docker/grafana/make_dashboard.py"
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/deepfake-serving.json").read_text())
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


def test_the_gateway_s_dashboard_asks_for_what_the_gateway_exports(tmp_path):
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/deepfake-gateway.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    with gateways.gateway(tmp_path / "data") as client:
        exported = client.get("/metrics").text
    families = set(re.findall(r"^# TYPE (\w+) ", exported, re.MULTILINE))
    histograms = re.findall(r"^# TYPE (\w+) histogram", exported, re.MULTILINE)
    families |= {f"{name}_{part}" for name in histograms for part in ("bucket", "sum", "count")}
    asked = {name for expression in expressions for name in re.findall(r"deepfake_gateway_\w+", expression)}
    assert asked
    assert asked <= families
    scraped = {job["job_name"]: job for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]}["gateway"]
    (port,) = [part.partition("=")[2] for part in SERVICES["gateway"]["command"] if part.startswith("--port=")]
    assert scraped["static_configs"][0]["targets"] == [f"gateway:{port}"]


@pytest.mark.debian("prometheus")
def test_prometheus_takes_the_configuration_and_every_query(tmp_path):
    config = ROOT / "docker/prometheus/prometheus.yml"
    promtool = debian.program("prometheus", "promtool")
    subprocess.run([promtool, "check", "config", "--syntax-only", str(config)], check=True, capture_output=True)
    queries = [
        target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
        for path in sorted((ROOT / "docker/grafana/dashboards").glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", str(file)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_names_every_variable_and_only_commands_that_exist():
    page = (ROOT / "docs/production.md").read_text(encoding="utf-8")
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    variables = set(re.findall(r"\$\{(\w+)", text)) | set(re.findall(r"^ +([A-Z_]+):$", text, re.MULTILINE))
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`([A-Z_]+)`", rows)) == variables
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL))
    assert set(re.findall(r"^deepfake ([a-z-]+)", blocks, flags=re.MULTILINE)) <= set(COMMANDS)
    assert set(re.findall(r"docker compose (?:run --rm|build) ([a-z]+)", page)) <= set(SERVICES)
    started = re.findall(r"docker compose --profile (\w+) up -d(?: ([a-z-]+))?", page)
    assert {profile for profile, _ in started} == {
        item for one in SERVICES.values() for item in one.get("profiles", ())
    }
    assert {name for _, name in started if name} <= set(SERVICES)
