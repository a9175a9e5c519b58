"""A small phantom dataset written without Ray, for what jobs do in one process."""

import pyarrow as pa

from counterray.data.chunks import write_shard
from counterray.data.dataset import Dataset, DatasetManifest, open_dataset
from counterray.data.labels import FINDINGS
from counterray.data.phantom.scm import FINDING_NAMES, VOCABULARY
from counterray.data.phantom.studies import PhantomConfig, draw_rows
from counterray.data.study import ARROW_SCHEMA
from counterray.storage import resolve

SIZE = 32


def write_dataset(folder, **splits) -> Dataset:
    """A dataset with so many studies of each split, in shards of 25; ``test=40``."""
    location, total = resolve(folder), sum(splits.values())
    drawn = iter(study.row() for study in draw_rows(PhantomConfig(studies=total, image_size=SIZE), 0, total))
    shards = {}
    for split, count in splits.items():
        rows = [{**next(drawn), "split": split} for _ in range(count)]
        parts = [rows[start : start + 25] for start in range(0, count, 25)]
        shards[split] = tuple(
            write_shard(location, split, f"{number:05d}", pa.Table.from_pylist(part, ARROW_SCHEMA))
            for number, part in enumerate(parts)
        )
    known = {"no_finding", *FINDING_NAMES}
    measured = [name for name, _ in rows[0]["measurements"]]
    manifest = DatasetManifest(
        study_schema=1,
        source="phantom",
        config={},
        code_version="1",
        image_size=SIZE,
        finding_names=tuple(name for name in FINDINGS if name in known),
        vocabulary=dict(VOCABULARY),
        measurement_names=tuple(measured),
        counts={},
        quarantined={},
        shards=shards,
        fingerprint="f",
    )
    (location / "manifest.json").write_json(manifest.model_dump(mode="json"))
    return open_dataset(str(folder))
