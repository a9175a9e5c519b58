"""The list of stages: every entry opens, and costs its own imports alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from counterray import catalog
from counterray.config import ConfigError
from counterray.training.stage import StageConfig


@pytest.mark.parametrize("name", sorted(catalog.CATALOG))
def test_every_entry_opens(name: str) -> None:
    entry = catalog.entry(name)
    assert issubclass(entry.config, StageConfig)
    assert entry.stage(entry.config()).name == name
    assert callable(entry.load)


def test_a_stage_does_not_import_what_only_others_need() -> None:
    code = (
        "import sys; from counterray import catalog; catalog.entry('classifier').stage; "
        "sys.exit(', '.join({'diffusers', 'transformers', 'sklearn', 'ray'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_stage_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"Unknown stage 'vae'\. Available: classifier, .*segmentor"):
        catalog.entry("vae")
