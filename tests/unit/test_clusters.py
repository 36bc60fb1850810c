"""The files of clusters/: Ray's own validation of launcher files, KubeRay's field names, and what neither looks at."""

import copy
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.config.load import load_experiment
from pipelines.stages import FEEDERS

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("one-node.yaml", "aws-gpu.yaml")
# Names that Ray knows; its own validation takes any other for a custom resource, which no worker of ours asks for.
RESOURCES = {"CPU", "GPU", "memory", "object_store_memory"}
SHELL_OPERATORS = set("&|;<>$`")

Change = Callable[[dict[str, Any]], None]


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "clusters" / name).read_text())


def changed(name: str, change: Change) -> dict[str, Any]:
    config = copy.deepcopy(load(name))
    change(config)
    return config


# ---- launcher files ----


def launcher_mistakes(config: dict[str, Any]) -> Iterator[str]:
    """What Ray's validation lets through, and cannot work here."""
    for name, node in config.get("available_node_types", {}).items():
        yield from (f"{name}: no resource of Ray: {key}" for key in node["resources"].keys() - RESOURCES)
        if not node["node_config"].get("ImageId", "").startswith("ami-"):
            yield f"{name}: Ray's default image has no driver that is new enough; name one"
    for remote, local in config["file_mounts"].items():
        if not local.startswith("~") and not (ROOT / local).exists():
            yield f"file_mounts: {local} does not exist"
        if local == ".":
            yield f"file_mounts: {remote} would copy .venv and all runs"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "file_mounts: the token does not reach the nodes"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        command = config[key][-1]
        if "RAY_AUTH_MODE=token" not in command or 'RAY_AUTH_TOKEN_PATH="$HOME/.ray/auth_token"' not in command:
            yield f"{key}: token authentication is off"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_file_is_valid_for_ray_and_for_us(name: str) -> None:
    validate_config(prepare_config(load(name)))
    assert list(launcher_mistakes(load(name))) == []


def rename(path: str, new: str) -> Change:
    """A change that renames the last key of a dotted path."""

    def change(config: dict[str, Any]) -> None:
        *parents, old = path.split(".")
        for key in parents:
            config = config[int(key)] if isinstance(config, list) else config[key]
        config[new] = config.pop(old)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("setup_commands", "setup_comands"), "'setup_comands' was unexpected"),
        (rename("available_node_types.gpu.min_workers", "min_worker"), "'min_worker' was unexpected"),
        (rename("available_node_types.head", "heads"), "head_node_type"),
        (lambda config: config["available_node_types"]["gpu"]["resources"].update(GPU=-1), "-1 is less than"),
        (lambda config: config.update(max_workers="8"), "'8' is not of type 'integer'"),
    ],
    ids=["key", "key of a node type", "head node type", "negative resource", "type"],
)
def test_a_mistake_in_a_launcher_file_is_refused_by_ray(change: Change, message: str) -> None:
    with pytest.raises((ValueError, jsonschema.ValidationError), match=message):
        validate_config(prepare_config(changed("aws-gpu.yaml", change)))


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (rename("available_node_types.gpu.resources.GPU", "GPUS"), "gpu: no resource of Ray: GPUS"),
        (rename("available_node_types.data.node_config.ImageId", "ImageID"), "data: Ray's default image"),
        (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "file_mounts: the token does not reach the nodes"),
        (lambda c: c["file_mounts"].update({"~/convoy/x": "orchestratr"}), "orchestratr does not exist"),
        (lambda c: c["file_mounts"].update({"~/convoy": "."}), "would copy .venv"),
        (
            lambda c: c.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
            "worker_start_ray_commands: token authentication is off",
        ),
    ],
    ids=["resource", "image", "token", "missing folder", "everything", "no authentication"],
)
def test_a_mistake_that_ray_does_not_see_is_found_by_us(change: Change, mistake: str) -> None:
    (found,) = launcher_mistakes(changed("aws-gpu.yaml", change))
    assert mistake in found


def test_a_cluster_has_nodes_that_train_and_nodes_that_only_feed_them() -> None:
    nodes = load("aws-gpu.yaml")["available_node_types"]
    assert nodes["gpu"]["resources"]["GPU"] >= 1
    assert nodes["data"]["resources"].keys() == {"CPU"}
    assert [name for name, node in nodes.items() if node.get("labels") == FEEDERS] == ["data"]
    assert nodes["head"]["resources"] == {"CPU": 0}, "the head drives; a run that fills it takes the cluster down"


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_start_command_hands_token_path_and_interface_to_ray(name: str, role: str, tmp_path: Path) -> None:
    """Runs the command itself, with a `ray` in the node's environment that only prints what it was given."""
    stub = tmp_path / "convoy-env" / "bin" / "ray"
    stub.parent.mkdir(parents=True)
    stub.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([dict(os.environ), sys.argv[1:]]))\n")
    stub.chmod(0o755)
    command = load(name)[f"{role}_start_ray_commands"][-1]
    # As Ray's command runner does, without the person's own start-up files.
    done = subprocess.run(
        ["bash", "--norc", "-c", command],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "192.0.2.1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    environment, argv = json.loads(done.stdout)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / ".ray" / "auth_token")
    assert environment["PATH"].startswith(str(stub.parent) + ":")
    assert environment["GLOO_SOCKET_IFNAME"] in {"", *(name for _, name in socket.if_nameindex())}
    expected = ["--head", "--port=6379"] if role == "head" else ["--address=192.0.2.1:6379"]
    assert argv[: len(expected) + 1] == ["start", *expected]


# ---- the RayJob ----


def closed(fields: str = "", *, required: str = "", **typed: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema of an object that has these fields and no others; `typed` says more about some."""
    properties = {name: {} for name in fields.split()} | typed
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
FLAG: dict[str, Any] = {"type": "boolean"}
CONTAINER = closed(
    "command args ports envFrom lifecycle livenessProbe readinessProbe securityContext workingDir",
    required="name image resources",
    name=TEXT,
    image=TEXT,
    imagePullPolicy=TEXT,
    env=array(closed(required="name", name=TEXT, value={"type": "string"}, valueFrom={})),
    resources=closed(required="requests limits", requests=TEXTS, limits=TEXTS),
    volumeMounts=array(closed("readOnly subPath", required="name mountPath", name=TEXT, mountPath=TEXT)),
)
POD = closed(
    "metadata",
    required="spec",
    spec=closed(
        "affinity initContainers securityContext restartPolicy serviceAccountName imagePullSecrets priorityClassName",
        required="containers",
        containers=array(CONTAINER),
        nodeSelector=TEXTS,
        tolerations=array(closed("key operator value effect tolerationSeconds")),
        volumes=array(
            closed(
                "emptyDir configMap secret hostPath",
                required="name",
                name=TEXT,
                persistentVolumeClaim=closed(required="claimName", claimName=TEXT, readOnly=FLAG),
            )
        ),
    ),
)
GROUP = {"rayStartParams": TEXTS, "template": POD}
# ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go of KubeRay after 1.6, August 2026. Of pods only the part that
# a cluster file of ours can need.
RAYJOB = closed(
    required="apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("annotations labels namespace", required="name", name={"type": "string", "maxLength": 47}),
    spec=closed(
        "activeDeadlineSeconds clusterSelector deletionStrategy entrypointNumCpus entrypointNumGpus entrypointResources"
        " jobId managedBy metadata preRunningDeadlineSeconds runtimeEnvYAML submitterConfig submitterPodTemplate"
        " suspend",
        required="entrypoint rayClusterSpec",
        entrypoint=TEXT,
        backoffLimit=COUNT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=closed(
            "gcsFaultToleranceOptions headServiceAnnotations historyServerOptions managedBy networkPolicy suspend"
            " tlsOptions upgradeStrategy",
            required="headGroupSpec",
            rayVersion=TEXT,
            authOptions=closed(mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
            enableInTreeAutoscaling=FLAG,
            autoscalerOptions=closed(
                "args command env envFrom image imagePullPolicy resources securityContext upscalingMode volumeMounts",
                version={"enum": ["v1", "v2"]},
                idleTimeoutSeconds=COUNT,
            ),
            headGroupSpec=closed(
                "enableIngress headService ingressOptions labels resources serviceType",
                required="rayStartParams template",
                **GROUP,
            ),
            workerGroupSpecs=array(
                closed(
                    "idleTimeoutSeconds labels numOfHosts priority resources scaleStrategy suspend",
                    required="groupName minReplicas maxReplicas rayStartParams template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    **GROUP,
                )
            ),
        ),
    ),
)


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pod of the head and of each worker group."""
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"]} | groups


def schema_mistakes(job: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(RAYJOB).iter_errors(job)]


def rayjob_mistakes(job: dict[str, Any]) -> Iterator[str]:
    """What a schema cannot say."""
    auth = job["spec"]["rayClusterSpec"].get("authOptions", {})
    if auth.get("mode") != "token" or "secretName" not in auth:
        yield "authOptions: token authentication from a Secret is off"
    for name, pod in pods(job).items():
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounts = container.get("volumeMounts", [])
            yield from (f"{name}: no volume {mount['name']}" for mount in mounts if mount["name"] not in volumes)
            if not any(f"run.folder={mount['mountPath']}/" in job["spec"]["entrypoint"] for mount in mounts):
                yield f"{name}: does not see run.folder"
    if len({container["image"] for pod in pods(job).values() for container in pod["containers"]}) != 1:
        yield "image: must be the same everywhere"
    if SHELL_OPERATORS & set(job["spec"]["entrypoint"]):
        yield "entrypoint: the submitter's shell would run what follows the operator"


def test_the_rayjob_has_the_fields_of_the_operator_and_no_mistakes_of_ours() -> None:
    job = load("kuberay/rayjob.yaml")
    assert schema_mistakes(job) == []
    assert list(rayjob_mistakes(job)) == []


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        ("spec.entrypoint", "entryPoint"),
        ("spec.rayClusterSpec.headGroupSpec", "headGroup"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplicas", "minReplica"),
        ("spec.rayClusterSpec.authOptions.mode", "modes"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.volumeMounts", "mounts"),
    ],
)
def test_a_typo_in_the_rayjob_is_refused(path: str, typo: str) -> None:
    found = schema_mistakes(changed("kuberay/rayjob.yaml", rename(path, typo)))
    assert f"Additional properties are not allowed ({typo!r} was unexpected)" in found


def test_a_number_of_nodes_in_quotes_is_refused() -> None:
    job = load("kuberay/rayjob.yaml")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] = "2"
    assert schema_mistakes(job) == ["'2' is not of type 'integer'"]


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (lambda job: job["spec"]["rayClusterSpec"].pop("authOptions"), "authOptions: token authentication"),
        (lambda job: pods(job)["gpu"].pop("volumes"), "gpu: no volume convoy"),
        (lambda job: pods(job)["data"]["containers"][0].pop("volumeMounts"), "data: does not see run.folder"),
        (lambda job: pods(job)["data"]["containers"][0].update(image="other"), "image: must be the same"),
        (lambda job: job["spec"].update(entrypoint=f"cd x && {job['spec']['entrypoint']}"), "entrypoint: the submi"),
    ],
    ids=["authentication", "volume", "folder", "image", "shell"],
)
def test_a_mistake_that_the_operator_does_not_see_is_found_by_us(change: Change, mistake: str) -> None:
    (found,) = rayjob_mistakes(changed("kuberay/rayjob.yaml", change))
    assert found.startswith(mistake)


def test_the_rayjob_trains_on_gpus_and_has_a_group_that_only_feeds_them() -> None:
    limits = {
        name: pod["containers"][0]["resources"]["limits"] for name, pod in pods(load("kuberay/rayjob.yaml")).items()
    }
    assert limits["gpu"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits["data"]
    assert "nvidia.com/gpu" not in limits["head"]
    groups = load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [group["groupName"] for group in groups if group.get("labels") == FEEDERS] == ["data"]


def test_the_rayjob_runs_an_experiment_that_its_image_holds() -> None:
    job = load("kuberay/rayjob.yaml")
    python, dash_m, module, train, path, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert [python, dash_m, module, train] == ["python", "-m", "orchestrator", "train"]
    dockerfile = (ROOT / "clusters" / "kuberay" / "Dockerfile").read_text()
    folder = next(line.split()[1] for line in dockerfile.splitlines() if line.startswith("WORKDIR"))
    experiment = load_experiment(str(ROOT / Path(path).relative_to(folder)), overrides)
    group = next(g for g in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if g["groupName"] == "gpu")
    assert group["minReplicas"] >= experiment.strategy.max_workers, "the run would wait for nodes that never come"


def test_every_file_names_the_ray_version_that_the_project_needs() -> None:
    dependency = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if '"ray[' in line)
    version = load("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"]
    assert f">={version.removesuffix('.0')}," in dependency
    assert f"FROM rayproject/ray:{version}-" in (ROOT / "clusters" / "kuberay" / "Dockerfile").read_text()
