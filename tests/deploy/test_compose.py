"""compose.yaml: its schema, its hardening, and that its parts fit together."""

from __future__ import annotations

import re
from pathlib import Path

import pathspec
import pytest
from support.deployment import (
    DEPLOY,
    ROOT,
    assert_pinned,
    documents,
    parse_flags,
    program,
    run,
)

FOLDER = DEPLOY / "compose"
COMPOSE = documents(FOLDER / "compose.yaml")[0]
SERVICES = COMPOSE["services"]
SERVERS = ("server-cpu", "server-gpu")
TEXT = (FOLDER / "compose.yaml").read_text()

every = pytest.mark.parametrize("name", sorted(SERVICES))
servers = pytest.mark.parametrize("name", SERVERS)


def seconds(text: str) -> int:
    """Return a compose duration in seconds."""
    return int(text[:-1]) * {"s": 1, "m": 60}[text[-1]]


def flags_file(name: str) -> Path:
    """Return the file that is mounted as the server's flags."""
    (mount,) = [v for v in SERVICES[name]["volumes"] if "serve.yaml" in v]
    return FOLDER / mount.split(":")[0]


def default(value: str) -> str:
    """Return what a value is where .env sets nothing."""
    return re.sub(r"\$\{\w+:?-?([^}]*)\}", r"\1", value)


def ignores(file: Path, path: str) -> bool:
    """Say whether an ignore file covers a path."""
    lines = file.read_text().splitlines()
    return pathspec.GitIgnoreSpec.from_lines(lines).match_file(path)


def test_the_file_follows_the_compose_specification():
    run(
        program("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        "deploy/compose/compose.yaml",
    )


def test_yaml_is_tidy():
    run(program("yamllint"), "-c", "deploy/.yamllint.yaml", "deploy")


@every
def test_images_are_pinned(name):
    assert_pinned(default(SERVICES[name]["image"]))


@every
def test_services_have_no_more_rights_than_they_need(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "ipc", "pid", "network_mode", "cap_add"}
    limits = service["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= limits.keys()


@every
def test_services_restart_and_are_checked(name):
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert {"test", "interval", "timeout", "start_period"} <= service[
        "healthcheck"
    ].keys()
    assert service["logging"]["options"]["max-size"]


@every
def test_ports_are_published_to_this_machine_only(name):
    for port in SERVICES[name]["ports"]:
        assert port.startswith("${BIND_ADDRESS:-127.0.0.1}:")


@every
def test_mounted_files_exist_and_cannot_be_changed(name):
    named = COMPOSE["volumes"].keys()
    for volume in SERVICES[name]["volumes"]:
        source, target, *mode = re.sub(r"\$\{[^}]*\}", "VARIABLE", volume).split(":")
        if source in named:
            assert not mode
        else:
            assert mode == ["ro"], volume
            assert source == "VARIABLE" or (FOLDER / source).exists(), volume
            assert target.startswith("/")


@every
def test_read_only_services_get_secrets_and_configs_as_files(name):
    """Others Compose copies into the container, which it then refuses to do."""
    service = SERVICES[name]
    for kind in ("secrets", "configs"):
        for entry in service.get(kind, []):
            source = entry if isinstance(entry, str) else entry["source"]
            if service.get("read_only"):
                assert COMPOSE[kind][source].keys() == {"file"}, source


def test_the_documentation_writes_every_secret_readable_in_its_container():
    text = (ROOT / "docs" / "deployment.md").read_text()
    for secret in COMPOSE["secrets"].values():
        file = secret["file"].removeprefix("./")
        assert f"> {file} && chmod 444 {file}\n" in text


def test_a_cpu_server_sees_no_more_cores_than_it_may_use():
    """vLLM counts the cores it sees; a quota of CPU time hides none of them."""
    service = SERVICES["server-cpu"]
    assert default(service["cpuset"]) == "0-3"
    assert "cpus" not in service
    assert "cpus" not in service["deploy"]["resources"]["limits"]


def test_the_example_environment_names_every_variable_and_no_other():
    example = (FOLDER / ".env.example").read_text()
    listed = set(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE))
    assert listed == set(re.findall(r"\$\{([A-Z_]+)", TEXT))


def test_no_secret_has_a_value():
    example = (FOLDER / ".env.example").read_text()
    for name in ("VLLM_API_KEY", "HF_TOKEN"):
        assert re.search(rf"^{name}=$", example, re.MULTILINE)
    for name in SERVERS:
        environment = SERVICES[name]["environment"]
        assert environment["VLLM_API_KEY"] == "${VLLM_API_KEY-}"
        assert environment["HF_TOKEN"] == "${HF_TOKEN-}"
    files = {secret["file"] for secret in COMPOSE["secrets"].values()}
    for file in {".env"} | files:
        name = file.removeprefix("./")
        assert ignores(FOLDER / ".gitignore", name)
        assert ignores(ROOT / ".dockerignore", f"deploy/compose/{name}")
    grafana = SERVICES["grafana"]["environment"]
    assert not any("PASSWORD" in key for key in grafana if not key.endswith("__FILE"))


@servers
def test_every_flag_exists(name):
    command = SERVICES[name]["command"]
    assert command == [
        "${MODEL:?set MODEL in .env}",
        "--config",
        "/etc/vllm-sparse/serve.yaml",
    ]
    args = parse_flags(["/models/name", "--config", str(flags_file(name))])
    assert args.model == "/models/name"
    assert args.activation_sparsity == "8:16"
    assert args.host == "0.0.0.0"


@servers
def test_ports_and_probe_agree_with_the_flags(name):
    from vllm.entrypoints.serve.instrumentator.health import router

    service = SERVICES[name]
    port = documents(flags_file(name))[0]["port"]
    assert service["ports"][0].endswith(f":{port}")
    url = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", str(service["healthcheck"]))
    assert int(url[1]) == port
    assert url[2] in {route.path for route in router.routes}


@servers
def test_requests_may_finish_before_the_container_is_killed(name):
    flags = documents(flags_file(name))[0]
    assert flags["shutdown-timeout"] + 10 <= seconds(
        SERVICES[name]["stop_grace_period"]
    )


def test_a_cpu_server_needs_no_compiler():
    assert documents(FOLDER / "serve-cpu.yaml")[0]["enforce-eager"] is True


def test_prometheus_scrapes_the_name_and_port_of_the_server():
    (targets,) = documents(FOLDER / "prometheus-targets.yml")[0]
    for name in SERVERS:
        alias = SERVICES[name]["networks"]["default"]["aliases"][0]
        port = documents(flags_file(name))[0]["port"]
        assert targets["targets"] == [f"{alias}:{port}"]


def test_prometheus_finds_its_files_where_they_are_mounted():
    config = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]
    mounted = {v.split(":")[1] for v in SERVICES["prometheus"]["volumes"]}
    files = config["rule_files"] + [
        file
        for job in config["scrape_configs"]
        for found in job["file_sd_configs"]
        for file in found["files"]
    ]
    for file in files:
        path = Path("/etc/prometheus") / file
        assert {str(path), str(path.parent)} & mounted, file


def test_grafana_finds_prometheus_and_the_dashboards():
    provisioning = DEPLOY / "grafana" / "provisioning"
    urls = {
        source["url"]
        for file in (provisioning / "datasources").glob("*.y*ml")
        for source in documents(file)[0]["datasources"]
    }
    port = SERVICES["prometheus"]["ports"][0].rpartition(":")[2]
    assert urls == {f"http://prometheus:{port}"}
    mounted = {v.split(":")[1] for v in SERVICES["grafana"]["volumes"]}
    for file in (provisioning / "dashboards").glob("*.y*ml"):
        for provider in documents(file)[0]["providers"]:
            assert provider["options"]["path"] in mounted


@servers
def test_images_are_built_from_files_that_exist(name):
    plan = SERVICES[name]["build"]
    assert (FOLDER / plan["context"]).resolve() == ROOT
    assert (ROOT / plan["dockerfile"]).is_file()
