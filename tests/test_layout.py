"""The house rules that a machine can check: where things lie, how long they are, who imports whom."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("jobs", "serve", "tune")
"""Packages imported from the repository root, beside the library."""

TOP_FOLDERS = ("platform", *PACKAGES, "infra", "tests")
MAXIMUM_MODULE_LINES = 500
MAXIMUM_README_LINES = 59


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_platform_is_a_source_root_and_no_package():
    """With an ``__init__.py`` it would hide the standard library's module of that name."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert [path.name for path in (ROOT / "platform").glob("*/__init__.py")] == ["__init__.py"]


def test_import_platform_at_the_root_is_the_standard_librarys():
    program = "import platform, sys; sys.stdout.write(platform.__file__ + ' ' + platform.python_version())"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    file, version = done.stdout.split()
    assert ROOT not in Path(file).parents
    assert version == ".".join(str(number) for number in sys.version_info[:3])


def test_tests_are_no_package():
    assert [path for path in python_files("tests") if path.name == "__init__.py"] == []


@pytest.mark.parametrize("folder", ["platform/counterray", *PACKAGES])
def test_every_folder_with_modules_is_a_package(folder):
    """Setuptools leaves a folder without ``__init__.py`` out of the wheel."""
    folders = {path.parent for path in python_files(folder)}
    assert [path for path in sorted(folders) if not (path / "__init__.py").is_file()] == []


def test_no_folder_waits_for_its_code():
    tracked = run("git", "ls-files").stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    empty = [
        path
        for path in tracked
        if path.endswith("/__init__.py")
        and not any(
            other.startswith(path.removesuffix("__init__.py")) and other != path
            for other in tracked
            if other.endswith(".py")
        )
    ]
    assert empty == []


def test_modules_are_short_enough_to_read():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files("platform", *PACKAGES, "tests")
    }
    assert len(lengths) > 50
    assert {path: lines for path, lines in lengths.items() if lines > MAXIMUM_MODULE_LINES} == {}


@pytest.mark.parametrize("folder", [name for name in TOP_FOLDERS if (ROOT / name).is_dir()])
def test_each_top_folder_has_a_short_readme(folder):
    readme = ROOT / folder / "README.md"
    assert readme.is_file()
    assert 0 < len(readme.read_text(encoding="utf-8").splitlines()) <= MAXIMUM_README_LINES


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "Makefile", "pyproject.toml"])
def test_the_root_has_what_a_newcomer_looks_for(name):
    assert (ROOT / name).is_file()


def test_the_import_contracts_hold():
    done = run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert done.returncode == 0, done.stdout


def test_the_science_imports_without_ray_or_deepspeed():
    """The contract reads the source; this asks the interpreter, with both made unimportable."""
    program = """
import importlib, pkgutil, sys
sys.modules.update({name: None for name in ("ray", "deepspeed")})
for name in ("causal", "nn", "models", "evaluation", "audits", "training.stage", "training.loop", "bundle"):
    module = importlib.import_module(f"counterray.{name}")
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{module.__name__}."):
        importlib.import_module(found.name)
"""
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
