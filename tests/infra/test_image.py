"""The Dockerfile: by hadolint, and by what the manifests and Ray expect of the image."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.submission.package import SENT_FOLDERS
from tests.conftest import ROOT
from tests.infra.rendered import ray_pods

FILE = ROOT / "infra" / "docker" / "Dockerfile"
TEXT = FILE.read_text()


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of a name, with lines that go on joined."""
    joined = re.sub(r"\\\n\s*", " ", TEXT)
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_hadolint_has_nothing_against_it():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", FILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_say_what_is_wrong(tmp_path):
    """So that a tool that does nothing is noticed."""
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN apt-get install wget\n")
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, tmp_path / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DL3007" in done.stdout


def test_the_base_is_named_exactly_and_is_of_a_python_that_the_project_takes():
    (version,) = re.findall(r"^ARG PYTHON=(\d+\.\d+)\.\d+-slim-\w+$", TEXT, flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tuple(map(int, version.split("."))) >= tuple(
        map(int, project["requires-python"].removeprefix(">=").split("."))
    )
    assert f"/opt/venv/lib/python{version}/" in TEXT
    assert set(instructions("FROM")) == {"python:${PYTHON} AS packages", "python:${PYTHON} AS image"}


def test_packages_are_those_of_the_lock():
    installs = re.findall(r"pip install (.+?)(?: &&|$)", "\n".join(instructions("RUN")), flags=re.MULTILINE)
    assert len(installs) == 2
    assert all("--constraint requirements.lock" in line for line in installs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["llm"], *extras["onnx"]]
    locked = {
        line.partition("==")[0].lower() for line in (ROOT / "requirements.lock").read_text().splitlines()
    }
    assert {re.match(r"[\w.-]+", text).group().lower().replace("-", "_") for text in wanted} <= {
        name.replace("-", "_") for name in locked
    }


def test_it_runs_as_the_user_of_the_manifests():
    (user,) = instructions("USER")
    for overlay in ("dev", "a100"):
        for pod in ray_pods(overlay):
            context = pod.spec["securityContext"]
            assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_what_is_copied_exists_and_is_let_through_to_the_builder():
    ignore = (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[[line.startswith("#") for line in ignore].index(False)] == "*"
    copied = [
        word
        for line in instructions("COPY")
        if "--from" not in line
        for word in line.split()[:-1]
    ]  # fmt: skip
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignore, name
    there = {folder for folder in SENT_FOLDERS if (ROOT / folder).is_dir()}
    assert there <= set(copied), "the image carries what a submitted job carries"


@pytest.mark.parametrize("pattern", ["**/.*", "**/__pycache__"])
def test_hidden_files_never_reach_the_builder(pattern):
    ignore = (FILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore.index(pattern) > max(i for i, line in enumerate(ignore) if line.startswith("!"))


def test_what_is_written_goes_to_places_that_a_cluster_mounts():
    (environment,) = [line for line in instructions("ENV") if "HOME=" in line]
    values = dict(word.split("=", 1) for word in environment.split())
    mounted = {mount["mountPath"] for pod in ray_pods("a100") for mount in pod.container["volumeMounts"]}
    for name in ("HOME", "TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR"):
        assert any(values[name] == place or values[name].startswith(f"{place}/") for place in mounted), name
    assert values["PYTHONDONTWRITEBYTECODE"] == "1"
    assert values["RAY_AUTH_MODE"] == "token"
    assert values["PYTHONPATH"] == "/app/platform:/app"


def test_a_container_by_itself_is_a_head_that_is_watched():
    assert instructions("CMD") == ['["ray", "start", "--head", "--block"]']
    (check,) = instructions("HEALTHCHECK")
    assert check.endswith('CMD ["ray", "health-check"]')
    ray = Path(sys.executable).with_name("ray")
    known = subprocess.run([ray, "health-check", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--address" in known
    assert instructions("ENTRYPOINT") == ['["tini", "--"]']
    assert "wget" in TEXT  # KubeRay's probes
