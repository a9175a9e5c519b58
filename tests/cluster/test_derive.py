"""Datasets derived on a real Ray: what is done stays done, and a worker's error keeps its words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from counterray.bundle import BundleError
from counterray.config import ConfigError
from counterray.data.dataset import ROW_GROUP_ROWS, Dataset
from counterray.data.derive import Derived, derive
from counterray.reports.refine import RefineError
from counterray.storage import Location, StorageError, resolve

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

FILE = "reports.parquet"
ROWS = 10 * ROW_GROUP_ROWS + 7


@pytest.fixture
def texts(phantom_dataset: Dataset, tmp_path: Path) -> Dataset:
    """The phantom with reports beside its images."""
    folder = Path(shutil.copytree(phantom_dataset.location.uri, tmp_path / "data"))
    table = pa.table(
        {"image_id": [f"r{n}" for n in range(ROWS)], "report": [f"Report {n}." for n in range(ROWS)]}
    )
    pq.write_table(table, folder / FILE, row_group_size=ROW_GROUP_ROWS)
    return replace(phantom_dataset, location=resolve(folder))


def shouting(log: Path, *, until: int = ROWS) -> Callable[[], Any]:
    """Makes a transform that writes reports in capitals, logs them, and fails from row ``until`` on."""

    def make() -> Any:
        def transform(table: pa.Table, split: str) -> tuple[pa.Table, dict[str, int]]:
            first = table["image_id"][0].as_py()
            if not split and int(first[1:]) >= until:
                raise StorageError("The endpoint is gone.")
            (log / f"{split}{first}").write_text(str(len(table)))
            place = table.schema.get_field_index("report")
            return table.set_column(place, "report", pc.utf8_upper(table["report"])), {"rows": len(table)}

        return transform

    return make


def run(dataset: Dataset, out: Path, make: Callable[[], Any]) -> Derived:
    return derive(dataset, str(out), make, kind="shouted", settings={}, beside=[FILE], workers=2)


def test_reports_beside_images_go_on_where_they_were_broken_off(
    texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (texts.location / FILE).size()
    read_bytes = Location.read_bytes

    def bounded(place: Location) -> bytes:
        assert place.size() < whole / 2, f"{place.uri} is held whole by the driver"
        return read_bytes(place)

    monkeypatch.setattr(Location, "read_bytes", bounded)
    logs = [tmp_path / name for name in ("first", "second", "third")]
    for log in logs:
        log.mkdir()
    out = tmp_path / "out"
    with pytest.raises(StorageError, match=r"^The endpoint is gone\.$"):
        run(texts, out, shouting(logs[0], until=6 * ROW_GROUP_ROWS))
    assert not (out / FILE).exists()
    kept = {part.stem.partition("-")[2] for part in (out / "parts").iterdir()}
    assert kept

    derived = run(texts, out, shouting(logs[1]))
    assert len(list(logs[1].iterdir())) == 11 - len(kept), "what was done is not done again"
    before, after = pq.read_table(texts.location.path + f"/{FILE}"), pq.read_table(out / FILE)
    assert after["image_id"].equals(before["image_id"])
    assert after["report"].to_pylist() == [text.upper() for text in before["report"].to_pylist()]
    assert [count["rows"] for count in derived.counts[FILE]] == [ROW_GROUP_ROWS] * 10 + [7]
    metadata = pq.read_metadata(out / FILE)
    assert max(metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)) == ROW_GROUP_ROWS
    assert not (out / "parts").exists()

    written = (out / FILE).stat().st_mtime_ns
    again = run(texts, out, shouting(logs[2]))
    assert again.counts == derived.counts
    assert again.manifest == derived.manifest
    assert not list(logs[2].iterdir())
    assert (out / FILE).stat().st_mtime_ns == written


def test_other_reports_are_derived_anew(texts: Dataset, tmp_path: Path) -> None:
    run(texts, tmp_path / "out", shouting(tmp_path))
    table = pa.table({"image_id": ["r0"], "report": ["Another."]})
    pq.write_table(table, Path(texts.location.path) / FILE)
    derived = run(texts, tmp_path / "out", shouting(tmp_path))
    assert pq.read_table(tmp_path / "out" / FILE)["report"].to_pylist() == ["ANOTHER."]
    assert derived.counts[FILE] == [{"rows": 1}]


@pytest.mark.parametrize("kind", [BundleError, ConfigError, RefineError, StorageError])
@pytest.mark.parametrize("fails_in", ["make", "transform"])
def test_an_error_in_a_worker_is_told_in_its_own_words(
    phantom_dataset: Dataset, tmp_path: Path, kind: type[Exception], fails_in: str
) -> None:
    def fail(*_: object) -> Any:
        raise kind("resources.gpus = 1 is too many.")

    def make() -> Any:
        return fail() if fails_in == "make" else fail

    with pytest.raises(kind, match=r"^resources\.gpus = 1 is too many\.$") as raised:
        derive(phantom_dataset, str(tmp_path / "out"), make, kind="broken", settings={})
    assert type(raised.value) is kind
