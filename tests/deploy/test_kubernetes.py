"""The Kubernetes manifests, as kubectl builds them."""

from __future__ import annotations

import os
import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.deployment import (
    DEPLOY,
    OVERLAYS,
    UID,
    assert_pinned,
    build,
    documents,
    parse_flags,
    program,
    run,
)

FOLDER = DEPLOY / "kubernetes"
# The oldest Kubernetes that these tests look at, and the newest that the schemas know.
VERSIONS = ("1.33", "1.37")

overlays = pytest.mark.parametrize("overlay", OVERLAYS)
manifests = cache(build)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the objects of one kind."""
    return [item for item in objects if item["kind"] == kind]


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the pod templates by the name of their Deployment."""
    return {
        item["metadata"]["name"]: item["spec"]["template"]
        for item in of_kind(objects, "Deployment")
    }


def server(overlay: str) -> dict[str, Any]:
    """Return the container of the server."""
    (container,) = pods(manifests(f"overlays/{overlay}"))["vllm-sparse"]["spec"][
        "containers"
    ]
    return container


def flags(overlay: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the server's arguments as vLLM reads them, and its file of flags."""
    (config,) = of_kind(manifests(f"overlays/{overlay}"), "ConfigMap")
    file = folder / "serve.yaml"
    file.write_text(config["data"]["serve.yaml"])
    arguments = [
        x.replace("/etc/vllm-sparse", str(folder)) for x in server(overlay)["args"]
    ]
    return parse_flags(arguments), yaml.safe_load(file.read_text())


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Say whether a selector picks something with these labels."""
    return selector.items() <= labels.items()


@overlays
@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_follow_the_schemas(overlay, version, tmp_path):
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all(manifests(f"overlays/{overlay}")))
    tool = program("kubernetes-validate")
    run(tool, "--kubernetes-version", version, "--strict", str(file))


def test_the_autoscaler_follows_the_schema(tmp_path):
    file = tmp_path / "built.yaml"
    file.write_text(yaml.safe_dump_all(manifests("autoscaling")))
    tool = program("kubernetes-validate")
    run(tool, "--kubernetes-version", VERSIONS[-1], "--strict", str(file))


@overlays
def test_every_flag_exists(overlay, tmp_path):
    args, _ = flags(overlay, tmp_path)
    assert args.model == "Qwen/Qwen3-0.6B"
    assert args.activation_sparsity == "8:16"


@overlays
def test_as_many_ranks_as_gpus(overlay, tmp_path):
    args, _ = flags(overlay, tmp_path)
    limits = server(overlay)["resources"]["limits"]
    assert args.tensor_parallel_size == int(limits.get("nvidia.com/gpu", "1"))
    assert args.enforce_eager is (overlay == "cpu")


@overlays
def test_images_are_pinned(overlay):
    for pod in pods(manifests(f"overlays/{overlay}")).values():
        for container in pod["spec"]["containers"]:
            assert_pinned(container["image"])


@overlays
def test_pods_have_no_more_rights_than_they_need(overlay):
    objects = manifests(f"overlays/{overlay}")
    for pod in pods(objects).values():
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["runAsGroup"] == UID
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
    labels = of_kind(objects, "Namespace")[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    # Only the router asks the Kubernetes API for anything.
    for name, pod in pods(objects).items():
        assert pod["spec"].get("automountServiceAccountToken", True) is (
            name == "vllm-sparse-router"
        )


@overlays
def test_what_is_written_has_a_place(overlay):
    pod = pods(manifests(f"overlays/{overlay}"))["vllm-sparse"]["spec"]
    assert pod["securityContext"]["fsGroup"] == UID
    mounts = {m["mountPath"]: m["name"] for m in server(overlay)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == volumes.keys()
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "emptyDir" in volumes[mounts["/tmp"]]
    claim = volumes[mounts["/cache"]]["persistentVolumeClaim"]["claimName"]
    claims = of_kind(manifests(f"overlays/{overlay}"), "PersistentVolumeClaim")
    assert claim in {item["metadata"]["name"] for item in claims}


@overlays
def test_no_manifest_holds_a_secret(overlay):
    objects = manifests(f"overlays/{overlay}")
    assert not of_kind(objects, "Secret")
    for pod in pods(objects).values():
        for container in pod["spec"]["containers"]:
            for entry in container["env"]:
                if entry["name"] in ("VLLM_API_KEY", "HF_TOKEN"):
                    assert entry["valueFrom"]["secretKeyRef"]["name"] == "vllm-sparse"
    by_name = {entry["name"]: entry for entry in server(overlay)["env"]}
    # Without its Secret a server does not start, rather than start without a key.
    reference = by_name["VLLM_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert not reference.get("optional", False)


def test_a_cpu_server_has_as_many_threads_as_cpus(monkeypatch):
    """vLLM's own count is one for each core of the node, whatever the limit is."""
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    entries = {entry["name"]: entry for entry in server("cpu")["env"]}
    count = entries["OMP_NUM_THREADS"]["valueFrom"]["resourceFieldRef"]
    assert count["resource"] == "limits.cpu"
    resources = server("cpu")["resources"]
    # Whole and equal: what the static policy of the CPU manager asks for.
    assert resources["limits"] == resources["requests"]
    assert str(int(resources["limits"]["cpu"])) == resources["limits"]["cpu"]
    # And vLLM leaves both variables as they are for its workers.
    bind = entries["VLLM_CPU_OMP_THREADS_BIND"]["value"]
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", bind)
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    monkeypatch.delenv("GOMP_CPU_AFFINITY", raising=False)
    parallel = SimpleNamespace(
        local_world_size=1, data_parallel_rank_local=None, _api_process_count=1
    )
    config = SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)
    before = dict(os.environ)
    with OMPProcessManager(config).configure_omp_envs(0, 0):
        assert dict(os.environ) == before


@overlays
def test_probes_ask_for_what_the_server_has(overlay, tmp_path):
    from vllm.entrypoints.serve.instrumentator.health import router

    args, _ = flags(overlay, tmp_path)
    container = server(overlay)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert args.host == "0.0.0.0"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        assert ports[probe["port"]] == args.port
        assert probe["path"] in {route.path for route in router.routes}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


@overlays
def test_requests_may_finish_before_the_pod_is_killed(overlay, tmp_path):
    args, _ = flags(overlay, tmp_path)
    wait = server(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    pod = pods(manifests(f"overlays/{overlay}"))["vllm-sparse"]["spec"]
    assert wait + args.shutdown_timeout + 10 <= pod["terminationGracePeriodSeconds"]


@overlays
def test_selectors_find_the_pods_they_mean(overlay):
    objects = manifests(f"overlays/{overlay}")
    found = pods(objects)
    for item in of_kind(objects, "Deployment"):
        own = item["spec"]["template"]["metadata"]["labels"]
        assert selects(item["spec"]["selector"]["matchLabels"], own)
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        items = of_kind(objects, kind)
        assert len(items) == len(found)
        for item in items:
            spec = item["spec"]
            selector = spec.get("podSelector") or spec["selector"]
            selector = selector.get("matchLabels", selector)
            chosen = {
                name
                for name, pod in found.items()
                if selects(selector, pod["metadata"]["labels"])
            }
            assert chosen == {item["metadata"]["name"]}, kind


@overlays
def test_ports_have_the_names_that_others_use(overlay):
    objects = manifests(f"overlays/{overlay}")
    for service in of_kind(objects, "Service"):
        pod = pods(objects)[service["metadata"]["name"]]["spec"]
        names = {port["name"] for port in pod["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for policy in of_kind(objects, "NetworkPolicy"):
        pod = pods(objects)[policy["metadata"]["name"]]["spec"]
        names = {port["name"] for port in pod["containers"][0]["ports"]}
        for rule in policy["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= names


def test_the_router_finds_the_servers():
    objects = manifests("overlays/multi-replica")
    (container,) = pods(objects)["vllm-sparse-router"]["spec"]["containers"]
    given = dict(arg.lstrip("-").split("=", 1) for arg in container["args"])
    pairs = (pair.split("=") for pair in given["k8s-label-selector"].split(","))
    selector = dict(pairs)
    assert selects(selector, pods(objects)["vllm-sparse"]["metadata"]["labels"])
    assert not selects(
        selector, pods(objects)["vllm-sparse-router"]["metadata"]["labels"]
    )
    ports = [port["containerPort"] for port in server("multi-replica")["ports"]]
    assert [int(given["k8s-port"])] == ports
    (role,) = of_kind(objects, "Role")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    (binding,) = of_kind(objects, "RoleBinding")
    account = pods(objects)["vllm-sparse-router"]["spec"]["serviceAccountName"]
    assert [subject["name"] for subject in binding["subjects"]] == [account]


def test_servers_share_a_volume_that_can_be_shared():
    (claim,) = of_kind(manifests("overlays/multi-replica"), "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    (single,) = of_kind(manifests("overlays/gpu"), "PersistentVolumeClaim")
    assert single["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_autoscaler_uses_a_metric_that_exists():
    import vllm.v1.metrics.loggers as loggers

    (scaler,) = manifests("autoscaling")
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] in pods(manifests("overlays/multi-replica"))
    (rule,) = documents(FOLDER / "autoscaling" / "prometheus-adapter-values.yaml")[0][
        "rules"
    ]["custom"]
    (metric,) = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = rule["seriesQuery"].partition("{")[0]
    assert f'"{series}"' in Path(loggers.__file__).read_text()


def test_prometheus_scrapes_the_service_under_the_jobs_name():
    (monitor,) = of_kind(manifests("monitoring"), "ServiceMonitor")
    services = of_kind(manifests("overlays/multi-replica"), "Service")
    spec = monitor["spec"]
    chosen = [
        service
        for service in services
        if selects(spec["selector"]["matchLabels"], service["metadata"]["labels"])
    ]
    assert [service["metadata"]["name"] for service in chosen] == ["vllm-sparse"]
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}
    # The rules ask for the job that the operator names after this label.
    (job,) = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    assert chosen[0]["metadata"]["labels"][spec["jobLabel"]] == job["job_name"]


def test_the_cluster_has_the_rules_of_deploy_prometheus():
    script = runpy.run_path(str(FOLDER / "monitoring" / "prometheusrule.py"))
    written = (FOLDER / "monitoring" / "prometheusrule.yaml").read_text()
    hint = "run: python deploy/kubernetes/monitoring/prometheusrule.py"
    assert written == script["render"](), hint


def test_the_rules_have_the_shape_of_the_operator():
    (item,) = of_kind(manifests("monitoring"), "PrometheusRule")
    assert item["apiVersion"] == "monitoring.coreos.com/v1"
    groups = item["spec"]["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    for group in groups:
        assert group.keys() <= {"name", "interval", "rules", "labels", "limit"}
        for rule in group["rules"]:
            assert isinstance(rule["expr"], str)
            assert ("alert" in rule) != ("record" in rule)
            known = {"alert", "record", "expr", "for", "labels", "annotations"}
            assert rule.keys() <= known | {"keep_firing_for"}


def test_everything_is_in_one_namespace():
    for folder in (*(f"overlays/{name}" for name in OVERLAYS), "monitoring"):
        for item in manifests(folder):
            if item["kind"] != "Namespace":
                assert item["metadata"]["namespace"] == "vllm-sparse"


def test_the_overlay_of_the_documentation_builds(tmp_path):
    text = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    example = text.split("`production/`", 1)[1].split("```yaml\n")[1].split("```")[0]
    place = os.path.relpath(FOLDER, tmp_path)
    example = example.replace("../vllm-sparse/deploy/kubernetes", place)
    (tmp_path / "kustomization.yaml").write_text(example)
    flags = (FOLDER / "overlays" / "cpu" / "serve.yaml").read_text()
    (tmp_path / "serve.yaml").write_text(flags.replace("4096", "1234"))
    objects = list(
        yaml.safe_load_all(run(program("kubectl"), "kustomize", str(tmp_path)))
    )
    (container,) = pods(objects)["vllm-sparse"]["spec"]["containers"]
    assert container["image"] == "registry.your-company.com/vllm-sparse:0.1.0-cpu"
    (config,) = of_kind(objects, "ConfigMap")
    assert "max-model-len: 1234" in config["data"]["serve.yaml"]
