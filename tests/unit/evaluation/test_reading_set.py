from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from counterray.data.study import Batch
from counterray.evaluation.metric import Metric
from counterray.evaluation.reading_set import export_reading_set, score_reading_set
from counterray.storage import resolve
from jobs.__main__ import app

SALT = b"a salt for tests"


def study(labels: list[list[int]], *, level: float = -0.5) -> Batch:
    findings = torch.tensor(labels).float()
    return Batch(
        image=torch.full((len(labels), 1, 8, 8), level),
        attributes={},
        findings=findings,
        finding_mask=torch.ones_like(findings, dtype=torch.bool),
        finding_names=("edema", "mass"),
        image_ids=tuple(f"image-of-{row}" for row in range(len(labels))),
        patient_ids=tuple(f"person-{row // 2}" for row in range(len(labels))),
    )


SOURCE = study([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0], [0, 0]])
ASKED = study([[1, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 1]])  # the fifth edit changes nothing
GENERATED = torch.full((6, 1, 8, 8), 0.5)


def export(folder: Path, **changes: object) -> int:
    settings = {"salt": SALT, "size": 16} | changes
    return export_reading_set(
        resolve(folder / "set"), resolve(folder / "key.csv"), SOURCE, GENERATED, ASKED, **settings
    )


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_pairs_form_and_key_belong_together(tmp_path: Path) -> None:
    assert export(tmp_path) == 5
    form, key = table(tmp_path / "set" / "form.csv"), table(tmp_path / "key.csv")
    assert [row["item"] for row in form] == [row["item"] for row in key]
    assert sorted(int(row["row"]) for row in key) == [0, 1, 2, 3, 5]
    assert {row["synthetic"] for row in key} == {"a", "b"}
    for asked, truth in zip(form, key, strict=True):
        row, column = int(truth["row"]), SOURCE.finding_names.index(truth["finding"])
        assert asked["finding"] == truth["finding"]
        for letter in "ab":
            synthetic = truth["synthetic"] == letter
            present = (ASKED if synthetic else SOURCE).findings[row, column] > 0.5
            assert truth[f"finding_in_{letter}"] == ("yes" if present else "no")
            grey = np.asarray(Image.open(tmp_path / "set" / f"{asked['item']}_{letter}.png"))
            assert grey.shape == (16, 16)
            assert (grey == (191 if synthetic else 64)).all()
        assert truth["finding_in_a"] != truth["finding_in_b"]


def test_readers_learn_nothing_but_the_question(tmp_path: Path) -> None:
    export(tmp_path)
    form = table(tmp_path / "set" / "form.csv")
    assert all(set(row.values()) == {row["item"], row["finding"], ""} for row in form)
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    expected = [f"{row['item']}_{letter}.png" for row in form for letter in "ab"]
    assert names == sorted([*expected, "form.csv", "instructions.txt"])
    assert [row["item"] for row in form] == sorted(row["item"] for row in form)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "set").iterdir())
    everything += (tmp_path / "key.csv").read_bytes()
    assert b"person-" not in everything
    assert b"image-of" not in everything


def test_images_of_one_patient_share_a_code_in_the_key(tmp_path: Path) -> None:
    export(tmp_path)
    codes = {int(row["row"]): row["patient"] for row in table(tmp_path / "key.csv")}
    assert codes[0] == codes[1] != codes[2] == codes[3] != codes[5]


def test_the_salt_decides_names_and_order(tmp_path: Path) -> None:
    for name, salt in (("one", SALT), ("same", SALT), ("other", b"x" * 16), ("fresh", None)):
        export(tmp_path / name, salt=salt)
    one, same, other, fresh = (
        (tmp_path / name / "key.csv").read_text() for name in ("one", "same", "other", "fresh")
    )
    assert one == same
    assert len({one, other, fresh}) == 3


def test_no_more_items_than_asked_for(tmp_path: Path) -> None:
    assert export(tmp_path, items=2) == 2
    assert len(table(tmp_path / "key.csv")) == 2


def filled(folder: Path, answer: Callable[[dict[str, str]], dict[str, str]]) -> bytes:
    """The form as somebody fills it who is shown the key."""
    rows = [row | answer(row) for row in table(folder / "key.csv")]
    columns = ("item", "finding", "finding_in_a", "finding_in_b", "anatomy_a", "anatomy_b", "synthetic")
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return b"\xef\xbb\xbf" + stream.getvalue().encode()  # as spreadsheets save it


def score(folder: Path, *forms: bytes) -> dict[str, Metric]:
    named = {f"reader {number}": form for number, form in enumerate(forms)}
    return {m.key: m for m in score_reading_set(named, (folder / "key.csv").read_bytes())}


def test_scores_of_a_reader_who_knows(tmp_path: Path) -> None:
    export(tmp_path)

    def knows(truth: dict[str, str]) -> dict[str, str]:
        synthetic_is_a = truth["synthetic"] == "a"
        return {"anatomy_a": "4" if synthetic_is_a else "5", "anatomy_b": "5" if synthetic_is_a else "4"}

    def says_yes(truth: dict[str, str]) -> dict[str, str]:
        return {"finding_in_a": " Yes", "finding_in_b": "yes", "synthetic": "unsure"}

    metrics = score(
        tmp_path, filled(tmp_path, knows), filled(tmp_path, lambda row: knows(row) | says_yes(row))
    )
    # Two of five edits turn their finding on: "yes" is right of 2 synthetic and of 3 real pictures.
    assert metrics["reading_pathology_accuracy[synthetic]"].value == pytest.approx((5 + 2) / 10)
    assert metrics["reading_pathology_accuracy[real]"].value == pytest.approx((5 + 3) / 10)
    assert metrics["reading_anatomy[synthetic]"].value == 4.0
    assert metrics["reading_anatomy[real]"].value == 5.0
    assert metrics["reading_synthetic_found"].value == 1.0
    assert metrics["reading_synthetic_found"].n == 5
    assert metrics["reading_synthetic_found"].note.startswith("0.5 is chance; 2 readers, 5 items")
    assert metrics["reading_pathology_accuracy[synthetic]"].direction == "higher"


def test_empty_cells_are_no_answers(tmp_path: Path) -> None:
    export(tmp_path)
    nothing = dict.fromkeys(("finding_in_a", "finding_in_b", "anatomy_a", "anatomy_b", "synthetic"), "")
    metrics = score(tmp_path, filled(tmp_path, lambda row: nothing))
    assert {metric.n for metric in metrics.values()} == {0}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        (
            {"finding_in_a": "maybe"},
            "reader 0 answers 'maybe' in column finding_in_a .* may be yes, no or empty",
        ),
        ({"anatomy_b": "6"}, "answers '6' in column anatomy_b"),
        ({"item": "unknown"}, "item 'unknown' of reader 0 is not in the key"),
    ],
)
def test_answers_that_are_none(tmp_path: Path, changed: dict[str, str], complaint: str) -> None:
    export(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        score(tmp_path, filled(tmp_path, lambda row: {"anatomy_a": "1", "anatomy_b": "1"} | changed))


def test_forms_that_are_none(tmp_path: Path) -> None:
    export(tmp_path)
    with pytest.raises(ValueError, match="form of reader 0 lacks the columns finding, finding_in_a"):
        score(tmp_path, b"item\n1\n")
    with pytest.raises(ValueError, match="no filled form"):
        score(tmp_path)


def test_bad_exports(tmp_path: Path) -> None:
    place = resolve(tmp_path / "set")
    with pytest.raises(ValueError, match="lies within the set"):
        export_reading_set(place, place / "key.csv", SOURCE, GENERATED, ASKED)
    with pytest.raises(ValueError, match="None of the 6 edits changes a finding"):
        export_reading_set(place, resolve(tmp_path / "k"), SOURCE, GENERATED, SOURCE)
    with pytest.raises(ValueError, match="6 sources, 5 edits and 6 rows"):
        export_reading_set(place, resolve(tmp_path / "k"), SOURCE, GENERATED[:5], ASKED)
    with pytest.raises(ValueError, match="6 of 6 edited images are not finite"):
        export_reading_set(place, resolve(tmp_path / "k"), SOURCE, GENERATED * torch.nan, ASKED)
    with pytest.raises(ValueError, match=r"items \(0\) must be 1 or more"):
        export(tmp_path, items=0)
    assert not (tmp_path / "set").exists()


def test_the_job_scores_forms_and_says_which_file_is_missing(tmp_path: Path) -> None:
    export(tmp_path)
    form, runner = tmp_path / "filled.csv", CliRunner()
    form.write_bytes(filled(tmp_path, lambda truth: {"synthetic": truth["synthetic"]}))
    line = ["readings", "--key", str(tmp_path / "key.csv"), "--form", str(form), "--json"]
    scored = runner.invoke(app, line)
    assert scored.exit_code == 0, scored.output
    found = json.loads(scored.stdout.splitlines()[-1])["metrics"]["reading_synthetic_found"]
    assert (found["value"], found["n"] > 0) == (1.0, True)
    missing = runner.invoke(app, [*line, "--form", str(tmp_path / "none.csv")])
    assert missing.exit_code != 0
    assert "There is no file" in missing.output
    form.write_text("item\n1\n")
    wrong = runner.invoke(app, line)
    assert wrong.exit_code != 0
    assert "column" in wrong.output
