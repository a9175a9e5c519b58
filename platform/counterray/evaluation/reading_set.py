"""A blinded reading set: pairs of pictures for radiologists, the answers kept apart, and their scores.

So a site can repeat the paper's Table 3 (pathology accuracy, anatomy on a scale of 1 to 5) with its own
readers.
"""

from __future__ import annotations

import csv
import hmac
import io
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import patients
from counterray.evaluation.intervals import summarise
from counterray.evaluation.metric import Metric, UnscorableError
from counterray.storage import Location, publish

PICTURE_SIZE = 512
"""Edge of a picture [px]."""

FORM = "form.csv"
FORM_COLUMNS = ("item", "finding", "finding_in_a", "finding_in_b", "anatomy_a", "anatomy_b", "synthetic")
KEY_COLUMNS = ("item", "patient", "row", "finding", "finding_in_a", "finding_in_b", "synthetic")
ANSWERS = {
    "finding_in_a": ("yes", "no"),
    "finding_in_b": ("yes", "no"),
    "anatomy_a": ("1", "2", "3", "4", "5"),
    "anatomy_b": ("1", "2", "3", "4", "5"),
    "synthetic": ("a", "b", "unsure"),
}
"""What a reader may write in each column; an empty cell is no answer."""

INSTRUCTIONS = """Reading set

Each item is two pictures of one patient, <item>_a.png and <item>_b.png. One of them is synthetic; which, and
whether it shows the finding named in form.csv, differs from item to item. For each row of form.csv write:

finding_in_a, finding_in_b   yes or no: does the picture show the finding?
anatomy_a, anatomy_b         1 to 5: is the anatomy plausible? (5 fully, 1 not at all)
synthetic                    a, b or unsure: which picture is synthetic?

An empty cell counts as no answer. Copy the form for each reader; readers answer alone and without the key.
The synthetic pictures show no real person's radiograph and must never be read as a finding of a patient.
"""


@dataclass(frozen=True)
class _Item:
    """One pair: what stands in the key."""

    name: str
    patient: str
    row: int
    finding: str
    truths: tuple[bool, bool]
    synthetic: str


def export_reading_set(
    place: Location,
    key: Location,
    source: Batch,
    generated: Tensor,
    asked: Batch,
    *,
    items: int = 100,
    size: int = PICTURE_SIZE,
    salt: bytes | None = None,
) -> int:
    """Writes pairs of a real and its edited picture in random order, a form, and apart from them the key.

    A pair asks about one finding that the edit turned on or off. Names of items and patients are random to
    whoever lacks the salt, and neither pictures nor files carry identifiers; the key leads back to rows of
    ``source`` alone.

    Args:
        place: Folder of the set: ``form.csv``, ``instructions.txt`` and two PNG files an item.
        key: File of the answer key (CSV), outside of ``place``.
        source: B real images with findings and patients.
        generated: Their edits, ``[B, 1, H, W]`` in [-1, 1].
        asked: B rows with the findings that the edits were to show.
        items: Most pairs to export, drawn at random from the edits that change a finding.
        size: Edge of the pictures [px]; smaller images are enlarged by Lanczos interpolation, both of a pair
            alike.
        salt: Secret from which all random choices follow; drawn anew where ``None``.

    Returns:
        Number of items written.

    Raises:
        ValueError: If the key lies within the set, batches do not fit, or images are not finite.
        UnscorableError: If no edit changes a known finding.
        StorageError: If storage cannot be used.

    Reference: the protocol of Nie et al., Causal Disentanglement for Robust Long-tail Medical Image
        Generation, Table 3; pairing with the real picture and blinding are ours.
    """
    if f"{key.uri}/".startswith(f"{place.uri.rstrip('/')}/"):
        raise ValueError(f"The answer key {key.uri} lies within the set {place.uri}; put it elsewhere.")
    if items < 1:
        raise ValueError(f"items ({items}) must be 1 or more.")
    _require_fit(source, generated, asked)
    salt = secrets.token_bytes(16) if salt is None else salt
    chosen = _choose(source, asked, salt)[:items]
    if not chosen:
        raise UnscorableError(
            f"None of the {len(asked)} edits changes a finding whose label is known, so there is nothing to "
            "ask readers about. Export edits that turn a finding on or off."
        )
    key.write_bytes(_table(KEY_COLUMNS, [_key_row(item) for item in chosen]))
    with publish(place, last=FORM) as folder:
        for item in chosen:
            pair = (source.image[item.row], generated[item.row])
            for letter, image in zip("ab", pair if item.synthetic == "b" else pair[::-1], strict=True):
                _write_picture(folder / f"{item.name}_{letter}.png", image, size)
        (folder / "instructions.txt").write_text(INSTRUCTIONS, encoding="utf-8")
        blank = [(item.name, item.finding, *[""] * len(ANSWERS)) for item in chosen]
        (folder / FORM).write_bytes(_table(FORM_COLUMNS, blank))
    return len(chosen)


def score_reading_set(forms: Mapping[str, bytes], key: bytes, *, seed: int = 0) -> list[Metric]:
    """What readers' answers say.

    ``reading_pathology_accuracy``: share of answers that agree with the finding asked for (synthetic
    pictures) or labelled (real ones, what the readers and the labels allow). ``reading_anatomy``: mean score
    from 1 to 5. ``reading_synthetic_found``: share of items whose synthetic picture was named; 0.5 is
    chance, and "unsure" is left out.

    Args:
        forms: Reader's name, such as ``reader 1``, to a filled form.
        key: The answer key.
        seed: Of the bootstrap, which resamples patients with all readers' answers.

    Raises:
        ValueError: If there is no form, a form lacks a column, answers anything else than it may, or has an
            item that the key does not know.
    """
    if not forms:
        raise ValueError("There is no filled form to score.")
    answers = {row["item"]: row for row in _rows("the key", key, KEY_COLUMNS)}
    kinds = ("synthetic", "real")
    correct, anatomy = ({kind: list[float]() for kind in kinds} for _ in range(2))
    found: list[float] = []
    who: list[str] = []
    for reader, form in forms.items():
        for row in _rows(f"the form of {reader}", form, FORM_COLUMNS):
            truth = _truth(reader, row, answers)
            who.append(truth["patient"])
            for letter in "ab":
                kind = kinds[truth["synthetic"] != letter]
                column = f"finding_in_{letter}"
                correct[kind].append(float(row[column] == truth[column]) if row[column] else math.nan)
                anatomy[kind].append(float(row[f"anatomy_{letter}"] or math.nan))
            guess = row["synthetic"]
            found.append(float(guess == truth["synthetic"]) if guess in ("a", "b") else math.nan)
    note = f"{len(forms)} readers, {len(answers)} items"
    measured = [
        *(("reading_pathology_accuracy", kind, correct[kind], "of answers", note) for kind in kinds),
        *(("reading_anatomy", kind, anatomy[kind], "", f"scale 1 to 5; {note}") for kind in kinds),
        ("reading_synthetic_found", "", found, "of items", f"0.5 is chance; {note}"),
    ]
    return [
        summarise(
            name,
            np.array(values),
            patients=who,
            direction="higher" if kind == "synthetic" else "none",
            subset=kind,
            unit=unit,
            note=words,
            seed=seed,
        )
        for name, kind, values, unit, words in measured
    ]


def _require_fit(source: Batch, generated: Tensor, asked: Batch) -> None:
    if source.finding_names != asked.finding_names or not len(source) == len(asked) == len(generated):
        raise ValueError(
            f"Reading set: {len(source)} sources, {len(generated)} edits and {len(asked)} rows of findings "
            "do not fit, or name different findings; one row each is needed, of one dataset."
        )
    for kind, image in (("source", source.image), ("edited", generated)):
        if not image.isfinite().all():
            wrong = int((~image.isfinite()).flatten(1).any(dim=1).sum())
            raise ValueError(f"Reading set: {wrong} of {len(image)} {kind} images are not finite.")


def _choose(source: Batch, asked: Batch, salt: bytes) -> list[_Item]:
    """All edits that change a known finding, in an order that only the salt explains."""
    before, after = source.findings > 0.5, asked.findings > 0.5
    changed = (before != after) & source.finding_mask.bool() & asked.finding_mask.bool()
    chosen = []
    for row, patient in enumerate(patients(source)):
        options = torch.nonzero(changed[row]).flatten().tolist()
        if not options:
            continue
        finding = options[_draw(salt, f"finding {row}") % len(options)]
        truths = (bool(before[row, finding]), bool(after[row, finding]))
        second = _draw(salt, f"order {row}") % 2 == 1
        chosen.append(
            _Item(
                name=_code(salt, f"item {row}"),
                patient=_code(salt, f"patient {patient}"),
                row=row,
                finding=source.finding_names[finding],
                truths=truths if second else (truths[1], truths[0]),
                synthetic="b" if second else "a",
            )
        )
    return sorted(chosen, key=lambda item: item.name)


def _digest(salt: bytes, text: str) -> str:
    return hmac.new(salt, text.encode(), "sha256").hexdigest()


def _code(salt: bytes, text: str) -> str:
    return _digest(salt, text)[:12]


def _draw(salt: bytes, text: str) -> int:
    return int(_digest(salt, text), 16)


def _key_row(item: _Item) -> tuple[str, ...]:
    truths = ("yes" if truth else "no" for truth in item.truths)
    return (item.name, item.patient, str(item.row), item.finding, *truths, item.synthetic)


def _write_picture(path: Path, image: Tensor, size: int) -> None:
    grey = ((image[0].detach().cpu().double().clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    scale = size / max(grey.shape)
    edges = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    Image.fromarray(grey).resize(edges, Image.Resampling.LANCZOS).save(path, format="PNG")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
    return stream.getvalue().encode()


def _rows(what: str, table: bytes, columns: Sequence[str]) -> list[dict[str, str]]:
    # Spreadsheets write a byte order mark, and readers write "Yes ".
    reader = csv.DictReader(io.StringIO(table.decode("utf-8-sig")))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"Reading set: {what} lacks the columns {', '.join(missing)}.")
    return [{column: (row[column] or "").strip().lower() for column in columns} for row in reader]


def _truth(reader: str, row: Mapping[str, str], answers: Mapping[str, dict[str, str]]) -> dict[str, str]:
    """The key's row of a form's row, whose answers are checked."""
    if row["item"] not in answers:
        raise ValueError(f"Reading set: item {row['item']!r} of {reader} is not in the key.")
    for column, allowed in ANSWERS.items():
        if row[column] and row[column] not in allowed:
            raise ValueError(
                f"Reading set: {reader} answers {row[column]!r} in column {column} of item {row['item']}; "
                f"it may be {', '.join(allowed)} or empty."
            )
    return answers[row["item"]]
