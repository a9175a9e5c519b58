"""One loaded model with its judges: requests in, pictures and scores out; knows neither HTTP nor Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterray.bundle import Bundle, code_version, open_bundle
from counterray.config import ConfigError
from counterray.data.dataset import open_dataset
from counterray.data.synthetic_png import to_grey
from counterray.data.training_batches import TrainingBatches
from counterray.evaluation.opening import open_generator
from counterray.models.generator import Abduction, EditError, Generator, generation_device
from serve.jury import Jury, Scores
from serve.observed import check_observed, patients_of
from serve.pictures import effect_map, given_picture, made_dicom, made_picture
from serve.problems import ProblemError, problem_of
from serve.schemas import MadeImage, Provenance, Score
from serve.settings import ModelSettings
from serve.work import Kept, Made, Preview, Sealed, Work

PREVIEWS = 16
"""Previews of an image on its way, about; samplers with fewer steps show each."""

_NEED_DATA = ("gsvae",)
"""Stages whose generators take the pathology from training images."""


class AbandonedError(Exception):
    """Nobody waits for this any more."""


@dataclass
class Engine:
    """A model that answers.

    The same work gives the same images, whatever is computed beside it.

    Attributes:
        name: What requests call the model.
        bundle: The generator's.
        generator: The generator.
        jury: The judges.
        levels: Attributes that may be observed, each with its levels in the order of their codes.
        rows: Images that the generator makes at a time.
    """

    name: str
    bundle: Bundle
    generator: Generator
    jury: Jury
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: int = 32

    @classmethod
    def open(cls, name: str, settings: ModelSettings, jury: Jury, *, rows: int) -> Engine:
        """Loads a model.

        Raises:
            BundleError: If its bundle cannot be trusted.
            ConfigError: If a setting is refused, or a judge took part in its training.
            StorageError: If something cannot be read.
            UnscorableError: If the bundle is no generator.
        """
        bundle = open_bundle(settings.bundle)
        jury.require_apart(bundle)
        if not settings.data:
            if bundle.stage in _NEED_DATA:
                raise ConfigError(f"models.{name}: a {bundle.stage} takes pathologies from data; set data.")
            generator = open_generator(bundle, settings=settings.generator)
            return cls(name, bundle, generator, jury, dict(generator.levels), rows)
        dataset = open_dataset(settings.data)
        training = TrainingBatches(dataset, settings.bank_studies)
        generator = open_generator(bundle, training, settings.generator)
        sexes = {name: tuple(dataset.manifest.vocabulary.get(name, ())) for name in ("sex",)}
        return cls(name, bundle, generator, jury, {**sexes, **generator.levels}, rows)

    @property
    def provenance(self) -> Provenance:
        """Where its images come from."""
        return Provenance(
            model=self.name,
            stage=self.bundle.stage,
            checksum=self.bundle.checksum,
            code_version=code_version(),
            device=generation_device().type,
        )

    def do(
        self,
        works: Sequence[Work],
        *,
        stopped: Callable[[], bool] = lambda: False,
        on_preview: Callable[[Preview], None] | None = None,
    ) -> list[Made | ProblemError]:
        """Does works together; those that cannot be done get a problem, and the others go on.

        Args:
            works: What is asked for.
            stopped: Asked between the sampler's steps whether to give up.
            on_preview: Told of images on their way; for one work alone.

        Raises:
            AbandonedError: If ``stopped`` said so.
        """
        return _Batch(self, [work.renewed() for work in works], stopped, on_preview).done()


@dataclass
class _Batch:
    """Works on their way: each ends with what was made, or with a problem."""

    engine: Engine
    works: list[Work]
    stopped: Callable[[], bool]
    on_preview: Callable[[Preview], None] | None
    kept: dict[int, Kept] = field(default_factory=dict)
    made: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)
    problems: dict[int, ProblemError] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def done(self) -> list[Made | ProblemError]:
        """Abducts, predicts, scores and packs."""
        for place, work in enumerate(self.works):
            try:
                self._check(work)
            except (EditError, ProblemError) as error:
                self.problems[place] = problem_of(error, doing="check a request")
            if work.kept is not None:
                self.kept[place] = work.kept
        fresh = [place for place, work in enumerate(self.works) if work.kept is None]
        self._timed("abduct", self._abduct, fresh)
        self._timed("predict", self._predict, list(range(len(self.works))))
        started = time.perf_counter()
        after = self._after()
        self.seconds["score"] = time.perf_counter() - started
        return [
            self.problems[place] if place in self.problems else self._packed(place, after[place])
            for place in range(len(self.works))
        ]

    def _check(self, work: Work) -> None:
        engine, generator = self.engine, self.engine.generator
        if len(work.seeds) > 1 and not generator.seeded and not work.edit.anatomy_only:
            raise EditError(f"{engine.name} gives one image whatever the seed: send one seed.")
        if work.edit.severity and not generator.prompted:
            raise EditError(f"{engine.name} knows no severity: leave it out.")
        check_observed(work.observed or {}, generator.finding_names, engine.levels)

    def _timed(self, stage: str, step: Callable[[list[int]], None], places: list[int]) -> None:
        """Runs a step on groups that agree on sampler and kind; where a group fails, on each work alone."""
        started = time.perf_counter()
        for group in self._groups(places):
            try:
                step(group)
            except AbandonedError:
                raise
            except Exception as error:  # Whatever one request causes must not hit those beside it.
                for place in group if len(group) > 1 else ():
                    self._alone(stage, step, place)
                if len(group) == 1:
                    self.problems[group[0]] = problem_of(error, doing=f"{stage} with {self.engine.name}")
        self.seconds[stage] = time.perf_counter() - started

    def _alone(self, stage: str, step: Callable[[list[int]], None], place: int) -> None:
        try:
            step([place])
        except AbandonedError:
            raise
        except Exception as error:
            self.problems[place] = problem_of(error, doing=f"{stage} with {self.engine.name}")

    def _groups(self, places: list[int]) -> Iterator[list[int]]:
        groups: dict[tuple[int | None, float | None, bool], list[int]] = {}
        for place in places:
            if place not in self.problems:
                key = (*self.works[place].sampling, self.works[place].edit.anatomy_only)
                groups.setdefault(key, []).append(place)
        yield from groups.values()

    def _generator(self, place: int) -> Generator:
        steps, guidance = self.works[place].sampling
        if (steps, guidance) == (None, None):
            return self.engine.generator
        return self.engine.generator.sampling(steps=steps, guidance=guidance)

    def _abduct(self, places: list[int]) -> None:
        engine, works = self.engine, [self.works[place] for place in places]
        images = [work.image for work in works if work.image is not None]
        pixels = torch.from_numpy(np.stack(images)).unsqueeze(1).float() / 127.5 - 1.0
        before = engine.jury.scores(pixels)
        inferred = [
            self._inferred(scores) if work.observed is None else {}
            for work, scores in zip(works, before, strict=True)
        ]
        known = [
            said if work.observed is None else work.observed
            for work, said in zip(works, inferred, strict=True)
        ]
        findings, levels = engine.generator.finding_names, engine.levels
        batch = patients_of(images, known, findings=findings, levels=levels)
        only = works[0].edit if works[0].edit.anatomy_only else None
        abduction = self._generator(places[0]).abduct(batch, only).to("cpu")
        for row, place in enumerate(places):
            self.kept[place] = Kept(
                abduction=Sealed(abduction.select(torch.tensor([row]))),
                image=images[row],
                inferred=inferred[row],
                before=before[row],
                observed=works[row].observed,
                sampling=works[row].sampling,
            )

    def _inferred(self, scores: Scores) -> dict[str, float | str]:
        engine = self.engine
        found = {
            name: value
            for name, value in engine.jury.infer(scores).items()
            if name.removeprefix("finding.") in engine.generator.finding_names
            or value in engine.levels.get(name, ())
        }
        if not found:
            raise ProblemError("nothing-inferred", f"No judge here reads what {engine.name} needs to know.")
        return found

    def _predict(self, places: list[int]) -> None:
        generator = self._generator(places[0])
        rows = [(place, seed) for place in places for seed in self.works[place].seeds]
        greys: list[NDArray[np.uint8]] = []
        for start in range(0, len(rows), self.engine.rows):
            part = rows[start : start + self.engine.rows]
            abduction = Abduction.join([self.kept[place].abduction.open() for place, _ in part])
            image = generator.predict(
                abduction,
                [self.works[place].edit for place, _ in part],
                seeds=torch.tensor([seed for _, seed in part]),
                on_step=partial(self._step, part),
            )
            if not image.isfinite().all():
                raise FloatingPointError("The generator made values that are not finite.")
            greys += [to_grey(one, 8).astype(np.uint8) for one in image]
        for (place, _), grey in zip(rows, greys, strict=True):
            self.made.setdefault(place, []).append(grey)

    def _step(
        self, part: Sequence[tuple[int, int]], number: int, count: int, image: Callable[[], Tensor]
    ) -> None:
        if self.stopped():
            raise AbandonedError
        if self.on_preview is None or number == count or number % max(1, count // PREVIEWS):
            return
        for (_, seed), one in zip(part, image(), strict=True):
            picture = made_picture(to_grey(one, 8).astype(np.uint8), self.engine.provenance, seed=seed)
            self.on_preview(Preview(seed=seed, step=number, steps=count, image=picture))

    def _after(self) -> dict[int, list[Scores]]:
        """Place of a work to the scores of its images."""
        places = [place for place in range(len(self.works)) if place not in self.problems]
        images = [image for place in places for image in self.made[place]]
        if not images:
            return {}
        pixels = torch.from_numpy(np.stack(images)).unsqueeze(1).float() / 127.5 - 1.0
        scores = iter(self.engine.jury.scores(pixels))
        return {place: [next(scores) for _ in self.made[place]] for place in places}

    def _packed(self, place: int, after: list[Scores]) -> Made:
        work, kept, provenance = self.works[place], self.kept[place], self.engine.provenance
        images = tuple(
            MadeImage(
                seed=seed,
                image=made_picture(grey, provenance, seed=seed),
                dicom=made_dicom(grey, provenance, work.edit, seed=seed, of=kept.image)
                if work.dicom
                else None,
                effect=made_picture(effect_map(kept.image, grey), provenance, seed=seed),
                scores=tuple(
                    Score(judge=judge, name=name, before=value, after=scores[judge, name])
                    for (judge, name), value in kept.before.items()
                ),
            )
            for seed, grey, scores in zip(work.seeds, self.made[place], after, strict=True)
        )
        return Made(
            images=images,
            input=given_picture(kept.image),
            kept=kept,
            provenance=provenance,
            seconds=self.seconds,
            batch=len(self.works),
        )
