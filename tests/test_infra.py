"""The files for deployments say what the code needs."""

from __future__ import annotations

import json
import re
from datetime import date
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.audit import NOT_DONE, VULNERABLE, judge
from pancrafter.access import Access
from pancrafter.compute import GPU_RESOURCE
from pancrafter.heap import WORKER_PRELOAD
from pancrafter.settings import Settings
from pancrafter.states import State

INFRA = Path(__file__).resolve().parents[1] / "infra"
S3 = INFRA / "s3"


def statements(name: str) -> list[dict[str, Any]]:
    return json.loads((S3 / name).read_text())["Statement"]


@pytest.mark.parametrize("name", ["publisher-policy.json", "reader-policy.json"])
def test_rights_end_at_the_catalog(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action]
        if statement["Action"] == ["s3:ListBucket"]:
            assert statement["Condition"]["StringLike"]["s3:prefix"] == ["sharpened", "sharpened/*"]
        else:
            assert statement["Resource"] == "arn:aws:s3:::BUCKET/sharpened/*"


def test_reader_only_reads_and_publisher_may_do_what_a_sink_does() -> None:
    assert [statement["Action"] for statement in statements("reader-policy.json")] == [["s3:GetObject"]]
    allowed = {action for statement in statements("publisher-policy.json") for action in statement["Action"]}
    assert {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket", "s3:AbortMultipartUpload"} == allowed


def test_lifecycle_never_expires_what_is_published() -> None:
    (rule,) = json.loads((S3 / "lifecycle.json").read_text())["Rules"]
    assert set(rule) == {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}


# --- images, compose, Kubernetes, Prefect -----------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())


def pinned(name: str) -> str:
    lines = (INFRA.parent / "requirements" / "constraints-py311.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.split("==")[0].lower() == name)


def test_compose_has_the_shape_of_the_stack() -> None:
    """Every server that `make stack` starts is a service, under the same name or that of its part in it."""
    started = set(re.findall(r'family\.(?:start|wait)\(\s*f?"([a-z0-9-]+)"', (INFRA / "stack.py").read_text()))
    started |= {"s3", "dask-worker-gpu", "dask-worker-cpu"}
    assert {"postgres", "stac-api", "prefect", "prefect-worker", "dask-scheduler", "archive"} <= started
    assert started <= set(compose()["services"])


def test_compose_starts_the_stac_api_as_the_stack_does() -> None:
    started = re.search(r'_python\(("uvicorn",[^)]+)\)', (INFRA / "stack.py").read_text())
    assert started is not None
    expected = re.findall(r'"([^"]+)"', started[1])
    assert compose()["services"]["stac-api"]["command"][: len(expected)] == expected


def test_compose_pins_images_and_knows_its_services() -> None:
    services = compose()["services"]
    for name, service in services.items():
        image, tag = service["image"].rsplit(":", 1)
        assert image == "pancrafter" or re.search(r"\d+\.\d+|\d{4}-\d\d", tag), f"{name}: {service['image']}"
        assert set(service.get("depends_on", [])) <= set(services)
        for address in re.findall(r"\w+://(?:[^@/ ]*@)?([a-z0-9-]+):\d+", json.dumps(service.get("environment", {}))):
            assert address in services, f"{name}: {address}"
        if image == "pancrafter":
            assert (service["user"], service["read_only"], service["cap_drop"]) == ("1001", True, ["ALL"])
    assert services["prefect"]["image"].startswith(f"prefecthq/prefect:{pinned('prefect')}-")
    assert services["stac-api"]["image"].endswith(f":{pinned('stac-fastapi-pgstac')}")
    assert services["postgres"]["image"].endswith(f":v{pinned('pypgstac')}")


def test_compose_settings_exist_and_hold_no_secret() -> None:
    environment = compose()["x-pancrafter"]["environment"]
    names = {name.removeprefix("PANCRAFTER_").lower() for name in environment if name.startswith("PANCRAFTER_")}
    assert names <= set(Settings.model_fields)
    for name, value in environment.items():
        if re.search("PASSWORD|KEY", name):
            assert value.startswith("${"), name
    wanted = set(re.findall(r"\$\{(\w+)", (INFRA / "compose" / "compose.yaml").read_text()))
    given = {line.split("=")[0] for line in (INFRA / "compose" / "example.env").read_text().splitlines() if "=" in line}
    assert wanted == given


def test_compose_workers_may_and_can_read_the_archive_beside_them() -> None:
    """It gives its files by their paths, as ``pancrafter serve`` does, under an address that is not this machine's."""
    shared = compose()["x-pancrafter"]
    rules = Access.model_validate_json(shared["environment"]["PANCRAFTER_ACCESS"])
    assert rules.trusting(shared["environment"]["PANCRAFTER_SOURCE"]).fault("file:///archive/a/pan.tif") is None
    for name, service in compose()["services"].items():
        if service["image"].startswith("pancrafter:"):
            assert any(volume.endswith(":/archive:ro") for volume in service["volumes"]), name


def test_prefect_keeps_leases_on_disk_everywhere() -> None:
    setting = re.search(r'"(PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE)": "([a-z_.]+)"', (INFRA / "stack.py").read_text())
    assert setting is not None
    chart = yaml.safe_load((INFRA / "kubernetes" / "prefect-server.values.yaml").read_text())
    prefect = compose()["services"]["prefect"]
    assert prefect["environment"][setting[1]] == setting[2]
    assert prefect["volumes"] == ["prefect:/root/.prefect"]
    assert {"name": setting[1], "value": setting[2]} in chart["server"]["env"]
    (mount,), (volume,) = chart["server"]["extraVolumeMounts"], chart["server"]["extraVolumes"]
    assert {"name": "PREFECT_HOME", "value": mount["mountPath"]} in chart["server"]["env"]
    claims = [one["metadata"]["name"] for one in kubernetes("metrics.yaml") if one["kind"] == "PersistentVolumeClaim"]
    assert volume["persistentVolumeClaim"]["claimName"] in claims


def test_prefect_forgets_old_runs_everywhere() -> None:
    from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

    chart = yaml.safe_load((INFRA / "kubernetes" / "prefect-server.values.yaml").read_text())
    name = "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED"
    value = compose()["services"]["prefect"]["environment"][name]
    assert ServerServicesDBVacuumSettings(enabled=value).enabled_vacuum_types >= {"events", "flow_runs"}
    assert {"name": name, "value": value} in chart["server"]["env"]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_images_are_small_pinned_and_without_root(name: str) -> None:
    lines = (INFRA / "images" / name).read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2, "what builds stays behind"
    assert "USER 1001" in lines
    assert f"uv=={pinned('uv')}" in "\n".join(lines)
    assert not [line for line in lines if "latest" in line or line.startswith("ADD ")]
    ignored = (INFRA.parent / ".dockerignore").read_text().splitlines()
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (INFRA.parent / source).exists()
                assert f"!{source.rstrip('/')}" in ignored


@pytest.mark.parametrize("name", ["process", "kubernetes"])
def test_job_templates_fill_what_they_name(name: str) -> None:
    template = json.loads((INFRA / "prefect" / f"{name}-job-template.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_workers_of_the_images_keep_freed_memory(name: str) -> None:
    assert (
        f"DASK_DISTRIBUTED__WORKER__PRELOAD='{json.dumps([WORKER_PRELOAD])}'"
        in (INFRA / "images" / f"Dockerfile.{name}").read_text()
    )


def test_jobs_have_what_prefects_kubernetes_worker_insists_on() -> None:
    """It refuses a manifest without them, although Kubernetes knows the two numbers elsewhere only."""
    template = json.loads((INFRA / "prefect" / "kubernetes-job-template.json").read_text())
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert (pod["parallelism"], pod["completions"], pod["restartPolicy"]) == (1, 1, "Never")
    assert pod["containers"][0]["name"] == "prefect-job"


def kubernetes(name: str) -> list[dict[str, Any]]:
    documents = list(yaml.safe_load_all((INFRA / "kubernetes" / name).read_text()))
    return [one for document in documents for one in document.get("items", [document])]


def deployments() -> dict[str, dict[str, Any]]:
    found = [*kubernetes("dask.yaml"), *kubernetes("metrics.yaml")]
    return {one["metadata"]["name"]: one["spec"] for one in found if one["kind"] == "Deployment"}


def test_kubernetes_gpu_workers_declare_what_the_code_asks_for() -> None:
    pod = deployments()["dask-worker-gpu"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-2:] == ["--resources", f"{GPU_RESOURCE}=1"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"]
    assert any("spot" in toleration["key"] for toleration in pod["tolerations"])


def test_kubernetes_starts_programs_that_are_installed() -> None:
    for name, deployment in deployments().items():
        (container,) = deployment["template"]["spec"]["containers"]
        program, command, *_ = container["command"]
        if program == "dask":
            assert command in {entry.name for entry in entry_points(group="dask_cli")}, name
        else:
            assert program in {entry.name for entry in entry_points(group="console_scripts")}, name


def test_kubernetes_selects_the_pods_of_one_deployment_each() -> None:
    """Autoscalers whose selectors overlap stop each other."""
    selectors = [deployment["selector"]["matchLabels"] for deployment in deployments().values()]
    labels = [deployment["template"]["metadata"]["labels"] for deployment in deployments().values()]
    assert labels == selectors
    assert all(labels.count(one) == 1 for one in labels)
    scheduler = deployments()["dask-scheduler"]["selector"]["matchLabels"]
    for one in (*kubernetes("dask.yaml"), *kubernetes("metrics.yaml")):
        if one["kind"] == "Service":
            assert one["spec"]["selector"] == scheduler
        elif one["kind"] == "PodDisruptionBudget":
            assert one["spec"]["selector"]["matchLabels"] == scheduler


def test_kubernetes_pods_have_few_rights_and_workers_time_to_end() -> None:
    for name, deployment in deployments().items():
        pod = deployment["template"]["spec"]
        assert (pod["securityContext"]["runAsUser"], pod["automountServiceAccountToken"]) == (1001, False), name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        if name.startswith("dask-worker"):
            assert pod["terminationGracePeriodSeconds"] > 60


def test_who_mounts_the_state_folder_may_write_to_it() -> None:
    """A new volume is root's; its group becomes that of the pod."""
    template = json.loads((INFRA / "prefect" / "kubernetes-job-template.json").read_text())
    pods = [deployment["template"]["spec"] for deployment in deployments().values()]
    pods.append(template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"])
    mounting = [pod for pod in pods if any(volume["name"] == "state" for volume in pod.get("volumes", []))]
    assert [pod["securityContext"].get("fsGroup") for pod in mounting] == [1001] * 3


def test_kubernetes_scales_the_workers_by_the_queue() -> None:
    scaled = kubernetes("autoscaling.yaml")
    assert (
        {one["spec"]["scaleTargetRef"]["name"] for one in scaled}
        == {"dask-worker", "dask-worker-gpu"}
        <= set(deployments())
    )
    triggers = [trigger["metadata"] for one in scaled for trigger in one["spec"]["triggers"]]
    assert [trigger["ignoreNullValues"] for trigger in triggers] == ["false"] * 2, "no metrics are not an empty queue"
    states = re.findall(r"state=~\"([a-z|]+)\"", triggers[0]["query"])[0].split("|")
    assert set(states) == {State.ELIGIBLE, State.CLAIMED, State.STAGED, State.SHARPENED, State.ASSESSED}


# --- audit ------------------------------------------------------------------------------------------------------------


def test_an_audit_that_could_not_look_is_no_pass() -> None:
    today = date(2026, 11, 1)
    flaw = {"id": "PYSEC-1", "aliases": ["CVE-2"], "fix_versions": ["2.0"]}
    clean = {"dependencies": [{"name": "a", "version": "1", "vulns": []}]}
    skipped = {"dependencies": [*clean["dependencies"], {"name": "b", "skip_reason": "not found"}]}
    bad = {"dependencies": [{"name": "c", "version": "1", "vulns": [flaw]}]}
    assert judge(clean, [], today).status == 0
    assert judge(skipped, [], today).status == NOT_DONE
    assert judge({"dependencies": []}, [], today).status == NOT_DONE
    assert judge(bad, [], today).vulnerable == ("c 1: PYSEC-1, mended in 2.0",)
    assert judge(bad, [], today).status == VULNERABLE
    assert judge(bad, [{"id": "CVE-2", "until": today}], today).status == 0
    assert judge(bad, [{"id": "CVE-2", "until": date(2026, 10, 31)}], today).status == VULNERABLE
