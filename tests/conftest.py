"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs for development; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("COUNTERRAY_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data are absent: set COUNTERRAY_TEST_DATA to the folder that holds them")
    return folder
