"""Linters and schemas of others on the deployment files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.services
INFRA = Path(__file__).resolve().parents[2] / "infra"
KUBERNETES = "1.31"
OWN_KINDS = ("Deployment", "PersistentVolumeClaim", "PersistentVolumeClaim", "PodDisruptionBudget", "NetworkPolicy")


def program(name: str) -> str:
    """Where a checker is; beside the interpreter too."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        (pytest.fail if os.environ.get("NEED_SERVICES") else pytest.skip)(f"{name} is not installed; see .ci/run")
    return str(found)


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_hadolint_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(
        [program("hadolint"), INFRA / "images" / name], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_manifests_follow_the_schemas_of_kubernetes() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    import yaml

    manifests = list(yaml.safe_load_all((INFRA / "kubernetes" / "metrics.yaml").read_text()))
    assert sorted(manifest["kind"] for manifest in manifests) == sorted(OWN_KINDS)
    for manifest in (*manifests, *yaml.safe_load((INFRA / "kubernetes" / "dask.yaml").read_text())["items"]):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    manifests[0]["spec"]["replicas"] = "one"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifests[0], KUBERNETES, strict=True)


@pytest.mark.parametrize("arguments", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_accepts_the_alerts(arguments: list[str]) -> None:
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, cwd=INFRA / "prometheus", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
