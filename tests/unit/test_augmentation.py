"""How many studies a target takes, which attempts count, and what is a near copy: all that needs no Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from counterray.config import ConfigError, validate
from counterray.data.dataset import Dataset, DatasetManifest
from counterray.storage import resolve
from jobs.augmentation.attempts import ATTEMPT_SCHEMA, attempt_chunk, judged
from jobs.augmentation.gate import Gate, no_gate
from jobs.augmentation.progress import Progress
from jobs.augmentation.request import AugmentConfig, needed, smallest
from jobs.generation.selection import STUDY_SCHEMA


def test_one_target_by_hand():
    # (10 + 43) / (1000 + 43) = 5.08 % and (10 + 42) / (1000 + 42) = 4.99 %
    assert smallest({"finding.edema": 0.05}, {"finding.edema": 10}, {"finding.edema": 1000}) == {
        "finding.edema": 43
    }


def test_a_target_that_is_met_exactly_or_exceeded_needs_nothing():
    for positive in (50, 51, 400):
        assert smallest({"a": 0.05}, {"a": positive}, {"a": 1000}) == {"a": 0}


@pytest.mark.parametrize(
    ("targets", "positive", "known"),
    [
        ({"a": 0.1, "b": 0.2}, {"a": 3, "b": 40}, {"a": 500, "b": 480}),
        ({"a": 0.45, "b": 0.45}, {"a": 0, "b": 0}, {"a": 100, "b": 100}),
        ({"a": 0.3, "b": 0.01}, {"a": 0, "b": 90}, {"a": 1000, "b": 1000}),
    ],
)
def test_several_targets_are_met_and_no_study_is_made_for_nothing(targets, positive, known):
    wanted = smallest(targets, positive, known)
    total = sum(wanted.values())
    for name, share in targets.items():
        assert (positive[name] + wanted[name]) / (known[name] + total) >= share - 1e-9
        if wanted[name]:
            assert (positive[name] + wanted[name] - 1) / (known[name] + total) < share


def dataset(**findings: tuple[int, int]) -> Dataset:
    """One whose training split has these numbers of present and absent."""
    labels = {
        name: {"present": present, "absent": absent, "uncertain": 9, "unknown": 9}
        for name, (present, absent) in findings.items()
    }
    manifest = DatasetManifest(
        study_schema=1,
        source="phantom",
        config={},
        code_version="1",
        image_size=32,
        finding_names=tuple(findings),
        vocabulary={},
        counts={"train": {"findings": labels}},
        quarantined={},
        shards={},
        fingerprint="f",
    )
    return Dataset(resolve("/nowhere"), manifest)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ({"finding.edema": 0.05}, {"finding.edema": 50}),
        # 10 % and 20 % of 1000, though the real studies alone have more than enough of them.
        ({"finding.edema": 0.1, "finding.mass": 0.2}, {"finding.edema": 100, "finding.mass": 200}),
        # 48 % of 1000 and of 10 would leave fracture 1 %: half of 960 and a little more.
        ({"finding.edema": 0.48, "finding.fracture": 0.48}, {"finding.edema": 480, "finding.fracture": 444}),
    ],
)
def test_real_studies_that_are_left_out_fill_up_no_target(targets, wanted):
    real = dataset(edema=(300, 700), mass=(900, 100), fracture=(2, 8))
    config = validate(AugmentConfig, {"targets": targets, "train": "synthetic"})
    made = needed(config, real)
    assert made == wanted
    assert all(made[name] / sum(made.values()) >= share for name, share in targets.items())


def test_real_studies_that_stay_fill_up_the_targets():
    real = dataset(edema=(10, 990), mass=(900, 100))
    config = validate(AugmentConfig, {"targets": {"finding.edema": 0.05}})
    assert needed(config, real) == {"finding.edema": 43}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({}, "at least one finding"),
        ({"edema": 0.1}, r"edema=0.1 is not of the form finding\.<name>"),
        ({"finding.edema": 1.0}, "share between 0 and 1"),
        ({"finding.edema": 0.6, "finding.fracture": 0.5}, "sum to 1.1"),
        ({"finding.no_finding": 0.6}, "cannot be given to a patient"),
    ],
)
def test_impossible_targets_are_refused(targets, message):
    with pytest.raises(ConfigError, match=message):
        validate(AugmentConfig, {"targets": targets})


def table(*outcomes: str | None, first: int = 0, pixels: int | None = None) -> pa.Table:
    """A chunk of attempts with these reasons; ``None`` was accepted."""
    rows: list[dict[str, Any]] = []
    for place, reason in enumerate(outcomes):
        number = first + place
        digest = (number if pixels is None else pixels).to_bytes(32, "big")
        rows.append(
            {
                "number": number,
                "image_id": f"synthetic-{number}",
                "source_image_id": f"s{number}",
                "finding": "finding.edema",
                "sample": 0,
                "seed": number,
                "pixels": None if reason else digest,
                "bundle": "b",
                "code_version": "1",
                "reason": reason,
            }
        )
    return pa.Table.from_pylist(rows, ATTEMPT_SCHEMA)


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["number"] for row in rows]


def test_the_first_that_are_needed_count_whatever_was_made_beyond():
    tables = {0: table(None, "not_shown", None, None), 1: table(None, "near_copy", None, None, first=4)}
    short = Progress("finding.edema", need=4, limit=5, images=4, tables=dict(tables))
    accepted, rejected = short.outcome(set())
    assert numbers(accepted) == [0, 2, 3, 4]
    assert numbers(rejected) == [1]
    assert [row["chunk"] for row in accepted] == [0, 0, 0, 1]
    longer = Progress("finding.edema", 4, 5, 4, {**tables, 2: table(None, None, first=8)})
    assert longer.outcome(set()) == (accepted, rejected)
    assert short.next_chunks(4) == []


def test_a_gap_ends_what_counts():
    """A killed run may have left chunk 2 and not chunk 1: which of them counts must not depend on that."""
    progress = Progress("finding.edema", 6, 5, 2, {0: table(None, None), 2: table(None, None, first=4)})
    assert numbers(progress.outcome(set())[0]) == [0, 1]
    assert progress.next_chunks(2)[0] == 1


def test_equal_pixels_are_accepted_once_over_all_findings():
    progress = Progress("finding.edema", 3, 2, 2, {0: table(None, None, pixels=7), 1: table(None, first=2)})
    seen: set[bytes] = set()
    accepted, rejected = progress.outcome(seen)
    assert numbers(accepted) == [0, 2]
    assert [row["reason"] for row in rejected] == ["duplicate"]
    assert Progress("finding.other", 3, 2, 2, progress.tables).outcome(seen)[0] == []


def test_the_next_round_follows_the_rate_of_success():
    progress = Progress("finding.edema", need=20, limit=100, images=10)
    assert progress.next_chunks(0) == [0, 1]
    progress.tables = {0: table(), 1: table()}
    assert progress.next_chunks(10) == [2, 3], "half of them passed: 10 more take 20"
    assert len(progress.next_chunks(0)) == 40, "at the lowest rate"
    progress.limit = 3
    assert progress.next_chunks(0) == [2]


def healthy(count: int) -> pa.Table:
    rows = [
        {"image_id": f"i{n}", "patient_id": f"p{n}", "file": "f", "group": 0, "row": n} for n in range(count)
    ]
    return pa.Table.from_pylist(rows, STUDY_SCHEMA)


def test_every_candidate_is_tried_once_before_one_is_tried_again():
    chunks = [attempt_chunk(healthy(5), "finding.edema", number, images=4) for number in range(3)]
    items = pa.concat_tables([chunk.items for chunk in chunks])
    assert items["number"].to_pylist() == list(range(12))
    assert items["image_id"].to_pylist() == [f"i{n % 5}" for n in range(12)]
    assert items["sample"].to_pylist() == [0] * 5 + [1] * 5 + [2] * 2
    assert chunks[1].folder == "attempts/edema/00001"


def test_the_gate_measures_the_distance_to_other_patients_only():
    training = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    gate = Gate(training, np.array(["a", "b", "c"]), threshold=1.0)
    features = torch.tensor([[0.0, 0.0], [0.0, 0.0], [6.0, 8.5]])
    distance = gate.distance(features, ("a", "b", "a"))
    assert torch.allclose(distance, torch.tensor([5.0, 0.0, 0.5]).double())
    assert no_gate().distance(features, ("a", "b", "c")).isinf().all()


@pytest.mark.parametrize(
    ("probability", "distance", "reason"),
    [(0.49, 9.0, "not_shown"), (0.5, 0.99, "near_copy"), (0.5, 1.0, None), (0.1, 0.1, "not_shown")],
)
def test_judges_pass_or_reject(probability, distance, reason):
    refusal = judged(probability, distance, threshold=0.5, nearest=1.0)
    assert (refusal.reason if refusal else None) == reason
