"""``augment`` from targets to a dataset: attempts until every finding has what it needs, then the shards."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from counterray.bundle import Bundle, BundleError, code_version, open_bundle
from counterray.data.chunks import Index
from counterray.data.dataset import DatasetManifest, open_dataset
from counterray.evaluation.judge import open_judge
from counterray.models.generator import PREFIX, EditError
from counterray.storage import Location, resolve
from counterray.training.run_folder import RunLock
from jobs.augmentation.assembly import (
    Part,
    PartWriter,
    real_parts,
    remove_stale,
    synthetic_part,
    write_manifest,
    written,
)
from jobs.augmentation.attempts import (
    ATTEMPT_SCHEMA,
    ATTEMPTS_FILE,
    STUDIES_FILE,
    AttemptChunk,
    AttemptMaker,
    attempt_chunk,
    candidates,
)
from jobs.augmentation.gate import GATE_FILE, prepare_gate
from jobs.augmentation.progress import Progress
from jobs.augmentation.request import AugmentConfig, augment_request, needed
from jobs.generation.chunks import parquet, read_parquet
from jobs.generation.job import remove_leftovers
from jobs.generation.request import REQUEST_FILE, GenerationError, Request, check_folder, claim
from jobs.generation.workers import workers

logger = logging.getLogger(__name__)

Do = Callable[[Sequence[Any]], Iterator[Any]]
"""Does pieces of work on the workers, see `workers`."""


def augment(
    config: AugmentConfig, *, model: str, data: str, out: str, judge: str, near_judge: str | None = None
) -> Mapping[str, Any]:
    """Writes a dataset whose training split has the target prevalences; returns the job's result.

    Args:
        config: Targets and gates.
        model: The generator's bundle.
        data: The dataset.
        out: Folder of the new dataset, which belongs to this request alone.
        judge: Bundle of the classifier that must see the finding.
        near_judge: Bundle whose features tell near copies; ``judge`` where ``None``.

    Raises:
        BundleError: If a bundle cannot be trusted, or the judge is none of findings.
        GenerationError: If a target is missed within the attempts allowed; what was made is a dataset all
            the same. Also if ``out`` holds something else.
        StorageError: If something cannot be read or written.
    """
    started = time.monotonic()
    dataset, bundle, scorer = open_dataset(data), open_bundle(model), open_bundle(judge)
    comparer = scorer if near_judge is None else open_bundle(near_judge)
    wanted = needed(config, dataset)
    _require_judge(scorer, config)
    request = augment_request(bundle, dataset, config, {"judge": scorer, "near_judge": comparer})
    target = resolve(out)
    check_folder(target, request)
    with RunLock(target, work="augmentation"):
        claim(target, request)
        maker = AttemptMaker(
            bundle, scorer, comparer, dataset, target, config, request.checksum, code_version()
        )
        hands, most = (
            Hands(maker),
            sum(wanted.values()) + sum(len(group) for group in dataset.manifest.shards.values()),
        )
        with workers(lambda: hands, config.resources, at_most=most) as do:
            try:
                progress = _attempts(maker, wanted, do)
            except (EditError, GenerationError):
                if not (target / "attempts").exists():  # so that a corrected request finds the folder free
                    for name in (REQUEST_FILE, GATE_FILE):
                        (target / name).delete()
                raise
            manifest, accepted = _assembled(maker, request, progress, do)
    reached = {name: float(manifest.prevalence([name.removeprefix(PREFIX)])[0]) for name in config.targets}
    _require_met(progress, accepted, reached, target)
    return {
        "dataset": target.uri,
        "synthetic": {name: len(rows) for name, rows in accepted.items()},
        "rejected": manifest.quarantined,
        "prevalence": reached,
        "fingerprint": manifest.fingerprint,
        "seconds": round(time.monotonic() - started, 1),
    }


@dataclass
class Hands:
    """What a worker can do: prepare the gate, make attempts, write shards; it opens what that needs."""

    maker: AttemptMaker
    is_open: bool = False

    def __call__(self, piece: Location | AttemptChunk | Part) -> Any:
        """Prepares the gate at a place, makes a chunk of attempts, or writes a part of the dataset."""
        maker = self.maker
        if isinstance(piece, Part):
            return PartWriter(maker.dataset, maker.target)(piece)
        if isinstance(piece, Location):
            return prepare_gate(
                maker.dataset,
                maker.near_judge,
                piece,
                studies=maker.config.compared_studies,
                percentile=maker.config.near_copy_percentile,
            )
        if not self.is_open:
            maker.open()
            self.is_open = True
        return maker(piece)


def _require_judge(judge: Bundle, config: AugmentConfig) -> None:
    names = [name.removeprefix(PREFIX) for name in config.targets]
    try:
        open_judge(judge).columns(tuple(names))
    except ValueError as error:
        raise BundleError(f"--judge {judge.location.uri} cannot judge the targets: {error}") from error


def _attempts(maker: AttemptMaker, wanted: Mapping[str, int], do: Do) -> list[Progress]:
    """Makes attempts until every finding has what it needs, or has used up what it may."""
    config, target = maker.config, maker.target
    progress = [
        Progress(
            name,
            need,
            math.ceil(need * config.attempts_per_study / config.chunk_images),
            config.chunk_images,
        )
        for name, need in wanted.items()
        if need
    ]
    healthy = {item.finding: candidates(maker.dataset, item.finding, config.seed) for item in progress}
    sizes = target.sizes()
    for item in progress:
        remove_leftovers(target / "attempts" / item.finding.removeprefix(PREFIX))
        for number in range(item.limit):
            folder = attempt_chunk(healthy[item.finding], item.finding, number, images=1).folder
            if {f"{folder}/{ATTEMPTS_FILE}", f"{folder}/{STUDIES_FILE}"} <= set(sizes):
                item.tables[number] = read_parquet(target / folder / ATTEMPTS_FILE, ATTEMPT_SCHEMA)
    if config.near_copy_percentile and _round(progress, healthy, config):
        list(do([target / GATE_FILE]))
    found = {item.finding: item for item in progress}
    while pieces := _round(progress, healthy, config):
        for finding, number, rows in do(pieces):
            found[finding].tables[number] = rows
        for item, accepted in zip(progress, _accepted(progress), strict=True):
            logger.info(
                "%s: %d of %d studies after %d chunks of attempts (at most %d)",
                *(item.finding, len(accepted), item.need, len(item.tables), item.limit),
            )
    return progress


def _round(
    progress: Sequence[Progress], healthy: Mapping[str, pa.Table], config: AugmentConfig
) -> list[AttemptChunk]:
    return [
        attempt_chunk(healthy[item.finding], item.finding, number, images=config.chunk_images)
        for item, accepted in zip(progress, _accepted(progress), strict=True)
        for number in item.next_chunks(len(accepted))
    ]


def _accepted(progress: Sequence[Progress]) -> list[list[dict[str, Any]]]:
    seen: set[bytes] = set()
    return [item.outcome(seen)[0] for item in progress]


def _assembled(
    maker: AttemptMaker, request: Request, progress: Sequence[Progress], do: Do
) -> tuple[DatasetManifest, dict[str, list[dict[str, Any]]]]:
    target, dataset = maker.target, maker.dataset
    seen: set[bytes] = set()
    outcomes = {item.finding: item.outcome(seen) for item in progress}
    parts = real_parts(dataset, train=maker.config.train == "real_and_synthetic")
    chosen: dict[str, list[str]] = {}
    for finding, (accepted, _) in outcomes.items():
        for row in accepted:
            folder = AttemptChunk(finding, row["chunk"], pa.table({})).folder
            chosen.setdefault(folder, []).append(row["image_id"])
    parts += [synthetic_part(folder, names) for folder, names in chosen.items()]
    indexes = _written(target, parts, do)
    made = [row for accepted, _ in outcomes.values() for row in accepted]
    rejected = [row for _, rows in outcomes.values() for row in rows]
    for name, rows in (("provenance.parquet", made), ("quarantine.parquet", rejected)):
        (target / name).write_bytes(parquet(pa.Table.from_pylist(rows, ATTEMPT_SCHEMA)))
    notes = {f"synthetic.{name.removeprefix(PREFIX)}": len(rows) for name, (rows, _) in outcomes.items()}
    manifest = write_manifest(
        target,
        dataset,
        [indexes[part] for part in parts],
        config=request.content,
        rejected=[row["reason"] for row in rejected],
        notes={"synthetic": len(made), **notes},
    )
    remove_stale(target, manifest, parts)
    return manifest, {finding: accepted for finding, (accepted, _) in outcomes.items()}


def _written(target: Location, parts: Sequence[Part], do: Do) -> dict[Part, Index]:
    """All parts, those that are missing written first."""
    there = written(target, parts)
    missing = [part for part in parts if part not in there]
    if missing:
        list(do(missing))
        there = written(target, parts)
    return there


def _require_met(
    progress: Sequence[Progress],
    accepted: Mapping[str, Sequence[Any]],
    reached: Mapping[str, float],
    target: Location,
) -> None:
    missed = [
        f"{item.finding} has {len(accepted[item.finding])} of {item.need} studies after "
        f"{sum(len(table) for table in item.tables.values())} attempts (prevalence "
        f"{reached[item.finding]:.2%})"
        for item in progress
        if len(accepted[item.finding]) < item.need
    ]
    if missed:
        raise GenerationError(
            f"Targets are missed: {'; '.join(missed)}. The dataset at {target.uri} holds what was accepted; "
            "quarantine.parquet says why the rest was not. Raise attempts_per_study, which continues, or "
            "lower threshold or the targets in another folder."
        )
