"""What a worker writes of a chunk, and the checksum that does not depend on how it was cut."""

from __future__ import annotations

import io
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from counterray.config import validate
from counterray.data import chunks, summary
from counterray.data.chunks import Chunk
from counterray.data.dataset import ROW_GROUP_ROWS
from counterray.data.pixels import encode
from counterray.data.sources.phantom import Phantom
from counterray.data.sources.table import Table
from counterray.data.splits import SplitConfig, hash_split
from counterray.data.study import ARROW_SCHEMA, Study
from counterray.storage import resolve
from tests.radiographs import image_bytes, radiograph, write_image

STUDY = Study(
    image_id="i",
    patient_id="p",
    split="train",
    source="table",
    image=image_bytes(radiograph(1)),
    height=64,
    width=64,
    pixel_spacing=0.7,
    age=41.3,
    findings={"edema": 1},
    measurements={"area.heart": 12.5},
    masks={"heart": encode(radiograph(2) > 127)},
    report="Clear.",
)

CHANGES = {
    "image_id": "j",
    "patient_id": "q",
    "split": "test",
    "source": "other",
    "image": image_bytes(radiograph(9)),
    "height": 63,
    "width": 63,
    "pixel_spacing": 0.8,
    "view": "AP",
    "sex": "female",
    "age": 42.3,
    "race": "r",
    "group": "g",
    "site": "s",
    "scanner": "c",
    "findings": {"edema": -1},
    "measurements": {"area.heart": 12.25},
    "masks": {"heart": encode(radiograph(3) > 127)},
    "report": "Opaque.",
    "refined_report": "x",
}


def write(name, source, root, out, **settings):
    records = source.listing(resolve(root)).records
    given = {"size": 64, "fit": "letterbox", "splits": SplitConfig(), **settings}
    return chunks.write_chunk(
        Chunk(name, chunks.pack(records)), resolve(root), resolve(out), source=source, **given
    )


def table(root, seeds) -> Table:
    lines = ["path,patient_id"]
    for seed in seeds:
        write_image(root / f"{seed}.png", seed)
        lines.append(f"{seed}.png,p{seed}")
    (root / "t.csv").write_text("\n".join(lines) + "\n")
    return validate(Table, {"file": "t.csv"})


def test_the_fingerprint_is_a_sum():
    one, two = (1).to_bytes(32, "big"), (2).to_bytes(32, "big")
    assert chunks.fingerprint([one, two]) == chunks.fingerprint([two, one]) == f"{3:064x}"
    assert chunks.fingerprint([b"\xff" * 32, one]) == "0" * 64, "modulo 2**256"
    assert chunks.fingerprint([one, one]) != chunks.fingerprint([]), "what occurs twice is not lost"


def test_every_field_of_a_study_counts():
    assert set(CHANGES) == set(ARROW_SCHEMA.names)
    digests = {chunks.study_digest(replace(STUDY, **{name: value}))[1] for name, value in CHANGES.items()}
    assert len(digests | {chunks.study_digest(STUDY)[1]}) == len(CHANGES) + 1


def test_pixels_count_and_not_their_compression():
    other = io.BytesIO()
    Image.fromarray(radiograph(1)).save(other, format="PNG", compress_level=0)
    assert other.getvalue() != STUDY.image
    assert chunks.study_digest(replace(STUDY, image=other.getvalue())) == chunks.study_digest(STUDY)


def test_a_study_is_worth_the_same_before_and_after_storage():
    stored = pa.Table.from_pylist([STUDY.row()], ARROW_SCHEMA).to_pylist()[0]
    stored["measurements"], stored["masks"] = dict(stored["measurements"]), dict(stored["masks"])
    assert chunks.study_digest(Study(**stored)) == chunks.study_digest(STUDY)


def test_a_chunk_is_written_alike_every_time(tmp_path):
    source = Phantom(studies=20)
    for name in ("a", "b"):
        assert write("00000-x", source, tmp_path, tmp_path / name, size=32) == {"studies": 20, "rejected": 0}
    files = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*.parquet"))
    assert "index/00000-x.parquet" in files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_shards_hold_the_schema_and_only_their_split(tmp_path):
    write("00000-x", Phantom(studies=20), tmp_path, tmp_path / "out", size=32)
    index = chunks.read_index(resolve(tmp_path / "out"), "00000-x")
    assert sum(shard.rows for shard in index.shards.values()) == 20
    for split, shard in index.shards.items():
        path = tmp_path / "out" / shard.file
        assert path.stat().st_size == shard.bytes
        assert resolve(path).sha256() == shard.sha256
        rows = pq.read_table(path)
        assert rows.schema.equals(ARROW_SCHEMA)
        assert rows.schema.metadata == ARROW_SCHEMA.metadata
        assert set(rows["split"].to_pylist()) == {split}
        for patient in rows["patient_id"].to_pylist():
            assert hash_split(patient, SplitConfig()) == split
        assert pq.ParquetFile(path).metadata.row_group(0).column(4).compression == "ZSTD"


def test_row_groups_stay_small(tmp_path):
    rows = [replace(STUDY, image_id=str(number)).row() for number in range(ROW_GROUP_ROWS + 1)]
    shard = chunks.write_shard(resolve(tmp_path), "train", "x", pa.Table.from_pylist(rows, ARROW_SCHEMA))
    metadata = pq.ParquetFile(tmp_path / shard.file).metadata
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS, 1]


def test_a_bad_image_is_a_row_of_the_index_and_the_rest_is_written(tmp_path):
    source = table(tmp_path, [1, 2, 3])
    (tmp_path / "2.png").write_bytes(b"no image")
    assert write("00000-x", source, tmp_path, tmp_path / "out") == {"studies": 2, "rejected": 1}
    rows = chunks.read_index(resolve(tmp_path / "out"), "00000-x").rows.to_pylist()
    assert [(row["image_id"], row["reason"]) for row in rows] == [
        ("1.png", None),
        ("2.png", "unreadable"),
        ("3.png", None),
    ]


def test_setting_aside_takes_a_study_out_of_its_shard(tmp_path):
    source = table(tmp_path, [1, 2])
    out = resolve(tmp_path / "out")
    write("00000-x", source, tmp_path, tmp_path / "out", splits=SplitConfig(train=1, validation=0, test=0))
    index = chunks.set_aside(out, "00000-x", chunks.read_index(out, "00000-x"), ["1.png"])
    assert pq.read_table(tmp_path / "out" / index.shards["train"].file)["image_id"].to_pylist() == ["2.png"]
    assert chunks.read_index(out, "00000-x") == index
    empty = chunks.set_aside(out, "00000-x", index, ["1.png", "2.png"])
    assert empty.shards == {}
    assert empty.rows["reason"].to_pylist() == ["duplicate", "duplicate"]


@pytest.fixture
def index_rows(tmp_path) -> pa.Table:
    write("00000-x", Phantom(studies=40), tmp_path, tmp_path / "out", size=32)
    return chunks.read_index(resolve(tmp_path / "out"), "00000-x").rows


def test_counts_add_up(index_rows):
    counted = summary.counts(index_rows)
    assert sum(split["studies"] for split in counted.values()) == 40
    train = counted["train"]
    assert sum(train["sex"].values()) == sum(train["age_band"].values()) == train["studies"]
    for values in train["findings"].values():
        assert sum(values.values()) == train["studies"]
    assert train["patients"] < train["studies"]


def test_vocabulary_keeps_the_fixed_order_and_appends_what_else_was_seen(index_rows):
    rows = index_rows.set_column(3, "view", pa.array(["LL", "AP"] * 20))
    values = summary.vocabulary(rows, {"sex": ("male", "female"), "view": ("PA", "AP")})
    assert values["sex"] == ("male", "female")
    assert values["view"] == ("PA", "AP", "LL")
    assert "race" not in values, "nothing is known of it"


def test_age_bands_by_hand(index_rows):
    ages = pa.array([0.0, 17.9, 18.0, 39.0, 40.0, 60.0, 80.0, 120.0, None, None], pa.float32())
    rows = index_rows.slice(0, 10).set_column(5, "age", ages).set_column(2, "split", pa.array(["train"] * 10))
    assert summary.counts(rows)["train"]["age_band"] == {
        "0-17": 2,
        "18-39": 2,
        "40-59": 1,
        "60-79": 1,
        "80-120": 2,
        "unknown": 2,
    }


def test_a_leak_is_seen(index_rows):
    assert summary.leaking_patients(index_rows) == 0
    rows = index_rows.slice(0, 3).set_column(1, "patient_id", pa.array(["a", "a", "b"]))
    rows = rows.set_column(2, "split", pa.array(["train", "test", "test"]))
    assert summary.leaking_patients(rows) == 1
