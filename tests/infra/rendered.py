"""The manifests as kustomize renders them, and what is in them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.conftest import ROOT

KUBERAY = ROOT / "infra" / "kuberay"
OVERLAYS = ("dev", "a100")
KUBERNETES_VERSION = "1.34.0"
"""Whose schemas are used; infra/terraform makes a cluster of the same."""


@functools.cache
def render(overlay: str) -> tuple[dict[str, Any], ...]:
    """All objects of an overlay; kustomize is that of kubectl."""
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("kubectl")),
            *("kustomize", "--load-restrictor", "LoadRestrictionsNone", str(KUBERAY / "overlays" / overlay)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, *kinds: str) -> list[dict[str, Any]]:
    """Objects of some kinds."""
    return [item for item in render(overlay) if item["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> dict[str, Any]:
    """One object."""
    return next(item for item in of_kind(overlay, kind) if item["metadata"]["name"] == name)


def ray_cluster(item: dict[str, Any]) -> dict[str, Any]:
    """The cluster that a custom resource of KubeRay describes."""
    spec = item["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@dataclass(frozen=True)
class Pod:
    """A pod template in its place."""

    where: str
    template: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        return self.template["spec"]

    @property
    def labels(self) -> dict[str, str]:
        return self.template["metadata"]["labels"]

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.spec["containers"]
        return only


def pods(overlay: str) -> Iterator[Pod]:
    """Every pod that an overlay leads to."""
    for item in of_kind(overlay, "Deployment", "StatefulSet"):
        yield Pod(item["metadata"]["name"], item["spec"]["template"])
    for item in of_kind(overlay, "RayJob"):
        yield Pod(f"{item['metadata']['name']}/submitter", item["spec"]["submitterPodTemplate"])
    yield from ray_pods(overlay)


def ray_pods(overlay: str, *kinds: str) -> Iterator[Pod]:
    """The nodes of every Ray cluster."""
    for item in of_kind(overlay, *(kinds or ("RayCluster", "RayJob", "RayService"))):
        cluster, name = ray_cluster(item), f"{item['kind']}/{item['metadata']['name']}"
        yield Pod(f"{name}/head", cluster["headGroupSpec"]["template"])
        for group in cluster["workerGroupSpecs"]:
            yield Pod(f"{name}/{group['groupName']}", group["template"])


@functools.cache
def _schemas() -> Registry[Any]:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES_VERSION}-local-strict"
    definitions = json.loads((folder / "_definitions.json").read_text())
    return Registry().with_resource(definitions["$id"], Resource.from_contents(definitions))


def mistakes(item: dict[str, Any]) -> list[str]:
    """What the schemas have against an object: KubeRay's fields for its kinds, else Kubernetes' own."""
    if item["apiVersion"] == "ray.io/v1":
        schema = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
    else:
        group, _, version = item["apiVersion"].rpartition("/")
        parts = [item["kind"].lower(), *([group.split(".")[0]] if group else []), version]
        folder = files("kubernetes_validate") / "kubernetes-json-schema"
        file = folder / f"v{KUBERNETES_VERSION}-local-strict" / f"{'-'.join(parts)}.json"
        schema = json.loads(file.read_text())
    validator = Draft202012Validator(schema, registry=_schemas())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(item)]
