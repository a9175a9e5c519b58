"""Fixtures that every test may use."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from counterray.config import validate
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.ingest import IngestConfig, ingest
from tests.s3_server import S3Server, serve

ROOT = Path(__file__).resolve().parent.parent

# Tiny networks gain nothing from more threads, which wait for each other where cores are shared.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real radiographs for development; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("COUNTERRAY_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data are absent: set COUNTERRAY_TEST_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small local Ray for the session."""
    os.environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, while it starts
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=300 << 20,
            logging_level="ERROR",
            log_to_driver=False,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the session; most tests want `make_bucket` instead."""
    with serve(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def make_bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Makes an empty bucket and returns its ``s3://`` URI; the AWS variables point at the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)

    def make() -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        s3_server.make_bucket(name)
        return f"s3://{name}"

    return make


@pytest.fixture(scope="session")
def phantom_dataset(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """600 small phantom studies, ingested once for the session."""
    out = tmp_path_factory.mktemp("phantom") / "dataset"
    config = validate(
        IngestConfig,
        {"source": {"name": "phantom", "studies": 600}, "image_size": 32, "shard_rows": 300},
    )
    ingest(config, None, str(out))
    return open_dataset(str(out))
