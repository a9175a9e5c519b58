"""The manifests: what Kubernetes and KubeRay would take, what they name, and what must not reach what."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hcl2 import load as load_hcl

from counterray import catalog
from counterray.config import validate
from counterray.training.ray_train import DECODING_CPUS
from jobs.__main__ import app
from serve.settings import Settings
from tests.conftest import ROOT
from tests.infra.rendered import (
    KUBERAY,
    KUBERNETES_VERSION,
    OVERLAYS,
    mistakes,
    named,
    of_kind,
    pods,
    ray_cluster,
    ray_pods,
    render,
)

JOBS = typer.main.get_command(app)
RAY_KINDS = ("RayCluster", "RayJob", "RayService")


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_object_fits_its_schema(overlay):
    found = {f"{item['kind']}/{item['metadata']['name']}": mistakes(item) for item in render(overlay)}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}
    assert {item["kind"] for item in render(overlay)} >= {*RAY_KINDS, "NetworkPolicy", "PodDisruptionBudget"}


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("RayJob", "train", "spec.backOffLimit", 1),
        ("RayJob", "train", "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.resorces", {}),
        ("RayJob", "train", "spec.rayClusterSpec.workerGroupSpecs.0.maxReplicas", "4"),
        ("RayJob", "train", "spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": 0}),
        ("RayService", "serve", "spec.rayClusterConfig.authOptions", {"mode": "none"}),
        ("RayCluster", "jobs", "spec.autoscalerOptions.version", "v3"),
        ("NetworkPolicy", "ray", "spec.ingres", []),
    ],
)
def test_the_schemas_refuse_what_the_api_server_would_refuse_or_drop(kind, name, path, value):
    item = copy.deepcopy(named("dev", kind, name))
    *parents, last = path.split(".")
    node: Any = item
    for parent in parents:
        node = node[int(parent)] if parent.isdigit() else node[parent]
    node[last] = value
    assert mistakes(item)


def test_no_template_is_left_empty_and_no_help_of_kustomize_is_left_over(overlay):
    assert all(pod.spec["containers"] for pod in pods(overlay))
    assert not [item for item in render(overlay) if item["kind"] == "PodTemplate"]
    assert {item["metadata"].get("namespace", "counterray") for item in render(overlay)} == {"counterray"}


def test_what_kuberay_checks_in_its_code_holds(overlay):
    for item in of_kind(overlay, "RayJob"):
        spec = item["spec"]
        assert spec["shutdownAfterJobFinishes"]  # a ttl, and suspend, need it
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["suspend"], "what is applied must not start a training by itself"
    for item in of_kind(overlay, *RAY_KINDS):
        groups = ray_cluster(item)["workerGroupSpecs"]
        assert len({group["groupName"] for group in groups}) == len(groups)
        assert all(group["minReplicas"] <= group["maxReplicas"] for group in groups)
        assert ray_cluster(item)["enableInTreeAutoscaling"]
        assert ray_cluster(item)["autoscalerOptions"]["version"] == "v2"


def test_every_cluster_asks_for_a_token_and_runs_the_ray_of_the_lock(overlay):
    locked = next(
        line.removeprefix("ray==")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if line.startswith("ray==")
    )
    for item in of_kind(overlay, *RAY_KINDS):
        assert ray_cluster(item)["authOptions"] == {"mode": "token"}
        assert ray_cluster(item)["rayVersion"] == locked


def words_of(job: dict[str, Any], overlay: str) -> list[str]:
    places = named(overlay, "ConfigMap", "places")["data"]
    text = job["spec"]["entrypoint"]
    for name, value in places.items():
        text = text.replace(f"${name}", value)
    assert "$" not in text, "a variable that places does not set"
    words = shlex.split(text)
    assert words[:3] == ["python", "-m", "jobs"]
    return words[3:]


def test_every_entry_point_is_a_job_with_options_that_it_knows(overlay):
    for job in of_kind(overlay, "RayJob"):
        name, *arguments = words_of(job, overlay)
        values = JOBS.commands[name].make_context(name, arguments).params
        assert values["out"].startswith(("/shared/", "s3://"))
        if name == "train":
            assert values["go_on"], "a retry is a new cluster with the same line"
            stage, settings = catalog.read_training(ROOT / values["config"], values["overrides"])
            assert set(settings.inputs) == set(stage.inputs)
            resources = settings.resources
            group = ray_cluster(job)["workerGroupSpecs"][0]
            node = group["template"]["spec"]["containers"][0]["resources"]["requests"]
            assert resources.cpus + DECODING_CPUS <= float(node["cpu"]) * group["maxReplicas"]
            assert (resources.workers if resources.gpu else 0) == int(node.get("nvidia.com/gpu", 0))


def test_the_server_runs_the_application_that_there_is_with_settings_that_it_takes(overlay):
    from serve import gateway

    service = named(overlay, "RayService", "serve")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, _, attribute = application["import_path"].partition(":")
    assert module == gateway.__name__
    assert callable(getattr(gateway, attribute))
    settings = validate(Settings, application["args"])
    names = {deployment["name"] for deployment in application["deployments"]}
    assert names == {"gateway", *(f"generator-{pool}" for pool in settings.pools)}
    assert config["http_options"]["host"] == "0.0.0.0"
    workers = [pod for pod in ray_pods(overlay, "RayService") if not pod.where.endswith("/head")]
    has_gpus = any("nvidia.com/gpu" in pod.container["resources"]["requests"] for pod in workers)
    wanted = [deployment["ray_actor_options"].get("num_gpus", 0) for deployment in application["deployments"]]
    assert any(wanted) == has_gpus
    store = settings.limits.store.removeprefix("async+redis://").partition(":")[0]
    assert named(overlay, "Service", store)


def test_the_a100_overlay_serves_what_serve_deploy_would():
    served = named("a100", "RayService", "serve")["spec"]["serveConfigV2"]
    assert served == (ROOT / "serve" / "configs" / "cluster.yaml").read_text()


def test_the_state_of_the_server_is_kept_in_a_redis_with_a_password(overlay):
    options = ray_cluster(named(overlay, "RayService", "serve"))["gcsFaultToleranceOptions"]
    name, _, port = options["redisAddress"].partition(":")
    assert named(overlay, "Service", name)["spec"]["ports"] == [{"port": int(port)}]
    reference = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    (variable,) = named(overlay, "StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert variable["valueFrom"]["secretKeyRef"] == reference


def test_every_pod_is_locked_down(overlay):
    for pod in pods(overlay):
        assert pod.spec["securityContext"]["runAsNonRoot"], pod.where
        assert pod.spec["securityContext"]["runAsUser"] > 0, pod.where
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.where
        assert pod.container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, pod.where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec), pod.where
        token = pod.spec["automountServiceAccountToken"]
        assert token == pod.where.endswith("/head"), f"{pod.where}: only a head asks the API server"
    for item in of_kind(overlay, *RAY_KINDS):
        context = ray_cluster(item)["autoscalerOptions"]["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert context["runAsNonRoot"]


def test_every_container_asks_for_what_it_needs_and_names_its_image_exactly(overlay):
    for pod in pods(overlay):
        resources = pod.container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"]), pod.where
        assert resources["limits"]["memory"], pod.where
        tag = pod.container["image"].rpartition(":")[2]
        assert tag[0].isdigit(), f"{pod.where}: {pod.container['image']}"


def test_every_node_of_ray_has_shared_memory_and_room_to_write(overlay):
    for pod in ray_pods(overlay):
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod.container["volumeMounts"]}
        assert {"/tmp", "/home/counterray", "/dev/shm"} <= set(mounts), pod.where
        memory = mounts["/dev/shm"]["emptyDir"]
        assert memory["medium"] == "Memory"
        limit = pod.container["resources"]["limits"]["memory"]
        assert gibibytes(memory["sizeLimit"]) < gibibytes(limit), pod.where


def gibibytes(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


def test_secrets_are_named_and_never_written(overlay):
    assert of_kind(overlay, "Secret") == []
    text = "".join(path.read_text() for path in (ROOT / "infra").rglob("*") if path.is_file())
    for sign in ("BEGIN PRIVATE KEY", "BEGIN RSA", "AKIA", "aws_secret_access_key", "password: "):
        assert sign not in text


def test_the_dashboard_is_reached_by_the_operator_and_submitters_only(overlay):
    """Port 8265 runs code for whoever reaches it."""
    for item in of_kind(overlay, *RAY_KINDS):
        head = ray_cluster(item)["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP"
        assert not head.get("enableIngress")
    assert of_kind(overlay, "Ingress", "Gateway", "HTTPRoute") == []
    assert {item["spec"].get("type", "ClusterIP") for item in of_kind(overlay, "Service")} == {"ClusterIP"}
    assert named(overlay, "NetworkPolicy", "nothing")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    reaching = [
        peer
        for rule in named(overlay, "NetworkPolicy", "ray")["spec"]["ingress"]
        if "ports" not in rule or {"port": 8265} in rule["ports"]
        for peer in rule["from"]
    ]
    assert reaching == [
        {"podSelector": {"matchLabels": {"counterray/traffic": "ray"}}},
        {"podSelector": {"matchLabels": {"counterray/traffic": "submitter"}}},
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        },
    ]


def test_every_policy_and_budget_finds_pods(overlay):
    labels = [pod.labels for pod in pods(overlay)]
    operators = {"ray.io/node-type", "ray.io/serve"}  # the operator puts these on
    for item in of_kind(overlay, "NetworkPolicy", "PodDisruptionBudget"):
        selector = item["spec"].get("podSelector") or item["spec"].get("selector") or {}
        wanted = {k: v for k, v in selector.get("matchLabels", {}).items() if k not in operators}
        assert any(wanted.items() <= found.items() for found in labels), item["metadata"]["name"]
    for pod in pods(overlay):
        assert pod.labels["counterray/traffic"] in ("ray", "submitter", "redis"), pod.where


def test_budgets_of_rays_pods_are_of_the_kind_that_kubernetes_counts_for_them(overlay):
    """Of pods that a custom resource owns it counts a whole minAvailable only."""
    for item in of_kind(overlay, "PodDisruptionBudget"):
        if set(item["spec"]["selector"]["matchLabels"]) & {"ray.io/node-type"}:
            assert isinstance(item["spec"]["minAvailable"], int)
            assert "maxUnavailable" not in item["spec"]


def test_no_pod_reaches_the_identity_of_its_node(overlay):
    rules = named(overlay, "NetworkPolicy", "ray")["spec"]["egress"]
    blocks = [peer["ipBlock"] for rule in rules for peer in rule["to"] if "ipBlock" in peer]
    assert blocks
    assert all("169.254.0.0/16" in block["except"] for block in blocks)


def test_service_accounts_exist_and_are_two(overlay):
    accounts = {item["metadata"]["name"] for item in of_kind(overlay, "ServiceAccount")}
    used = {pod.where: pod.spec["serviceAccountName"] for pod in ray_pods(overlay)}
    assert set(used.values()) == accounts
    for where, account in used.items():
        assert account == ("counterray-serve" if where.startswith("RayService") else "counterray-train"), (
            where
        )


@pytest.fixture(scope="module")
def terraform() -> dict[str, Any]:
    with (ROOT / "infra" / "terraform" / "nodes.tf").open() as nodes:
        (local,) = load_hcl(nodes)["locals"]
    return local["node_groups"]


def test_workers_find_the_nodes_that_terraform_makes(terraform):
    for pod in ray_pods("a100"):
        selector = pod.spec["nodeSelector"]
        tolerated = {toleration["key"] for toleration in pod.spec.get("tolerations", ())}
        capacity = selector.get("eks.amazonaws.com/capacityType", "ON_DEMAND")
        fitting = [
            name
            for name, group in terraform.items()
            if plain(group["pool"]) == selector["counterray/pool"]
            and plain(group["capacity"]) == capacity
            and {plain(taint) for taint in group["taints"]} <= tolerated
        ]
        assert len(fitting) == 1, (pod.where, fitting)
        gpus = "nvidia.com/gpu" in pod.container["resources"]["requests"]
        assert gpus == fitting[0].strip('"').startswith("a100"), pod.where


def plain(text: str) -> str:
    return text.strip('"')


def test_a_spot_group_differs_from_its_own_by_its_nodes_alone():
    for item in of_kind("a100", "RayJob", "RayCluster"):
        groups = {g["groupName"]: copy.deepcopy(g["template"]) for g in ray_cluster(item)["workerGroupSpecs"]}
        if "spot" in groups:
            assert groups["spot"]["spec"]["nodeSelector"].pop("eks.amazonaws.com/capacityType") == "SPOT"
            assert (
                groups["workers"]["spec"]["nodeSelector"].pop("eks.amazonaws.com/capacityType") == "ON_DEMAND"
            )
            assert groups["spot"] == groups["workers"]
    train = ray_cluster(named("a100", "RayJob", "train"))["workerGroupSpecs"]
    assert {group["groupName"] for group in train} == {"workers", "spot"}


SPOT_NOTICE_SECONDS = 120


def test_a_worker_that_is_taken_away_is_drained_in_time(overlay):
    for pod in ray_pods(overlay):
        if not pod.where.endswith("/head"):
            python, flag, program = pod.container["lifecycle"]["preStop"]["exec"]["command"]
            assert (python, flag) == ("python", "-c")
            compile(program, "preStop", "exec")
            variables = {variable["name"]: variable.get("value") for variable in pod.container["env"]}
            drained = float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
            assert 0 < drained < pod.spec["terminationGracePeriodSeconds"] <= SPOT_NOTICE_SECONDS, pod.where


def test_accounts_and_bucket_are_those_of_terraform():
    text = (ROOT / "infra" / "terraform" / "access.tf").read_text()
    for item in of_kind("a100", "ServiceAccount"):
        name = item["metadata"]["name"]
        assert f'"counterray:{name}"' in text
        assert item["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].endswith(f":role/{name}")
    places = named("a100", "ConfigMap", "places")["data"]
    account = "123456789012"
    assert {places["COUNTERRAY_DATA"], places["COUNTERRAY_RUNS"]} == {
        f"s3://counterray-{account}/data",
        f"s3://counterray-{account}/runs",
    }
    variables = (ROOT / "infra" / "terraform" / "variables.tf").read_text()
    assert f'default     = "{KUBERNETES_VERSION.rpartition(".")[0]}"' in variables


def test_every_file_is_used():
    used: set[Path] = set()
    for file in KUBERAY.rglob("kustomization.yaml"):
        used.add(file)
        text = file.read_text()
        used |= {path for path in file.parent.glob("*.yaml") if path.name in text}
    assert {path for path in KUBERAY.rglob("*.yaml")} - used == {KUBERAY / "base" / "replacements.yaml"}
