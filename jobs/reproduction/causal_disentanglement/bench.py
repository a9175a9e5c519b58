"""What every measurement of an experiment reads: images, judges, a model, and rare findings' references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from counterray.bundle import Bundle, open_bundle
from counterray.config import ConfigError, validate
from counterray.data.batching import fold_of, read_batches
from counterray.data.dataset import Dataset, open_dataset
from counterray.data.study import Batch
from counterray.diffusion.noise_optimisation import NoiseOptimisationConfig
from counterray.diffusion.targets import targets_for
from counterray.evaluation.effectiveness_ratio import COMMON
from counterray.evaluation.opening import gather
from counterray.models.pathology_ldm.abduction import Abducted
from counterray.models.pathology_ldm.editing import optimised_noise
from counterray.models.pathology_ldm.encoding import EncodeConfig
from counterray.models.pathology_ldm.generator import GenerationConfig, open_model
from counterray.models.pathology_ldm.model import PathologyLDM
from counterray.models.pathology_ldm.prompts import PromptSource
from counterray.nn.text import TextStates
from jobs.reproduction.causal_disentanglement.experiment import Arm, Experiment

Kind = Literal["scores", "rare", "utility"]
"""What is measured; the name of the file that it leaves."""


@dataclass(frozen=True)
class Bench:
    """One arm of one seed, ready to be measured.

    Attributes:
        experiment: The experiment.
        arm: The arm.
        seed: The seed.
        data: Dataset with prompts.
        model: Bundle of stage 2.
        classifier: Bundle of the judge that scores findings.
        segmentor: Bundle of the judge that measures areas.
    """

    experiment: Experiment
    arm: str
    seed: int
    data: str
    model: str
    classifier: str
    segmentor: str

    @property
    def folder(self) -> str:
        """Where its measurements lie."""
        return f"seed-{self.seed}/{self.arm}"

    @property
    def settings(self) -> Arm:
        """What the arm changes."""
        return self.experiment.ablation[self.arm]

    @property
    def prompts(self) -> PromptSource:
        """Where the arm's words come from."""
        return EncodeConfig.model_validate(self.settings.encode).prompts

    def bundles(self) -> dict[str, Bundle]:
        """Model and judges by role."""
        uris = {"model": self.model, "classifier": self.classifier, "segmentor": self.segmentor}
        return {role: open_bundle(uri) for role, uri in uris.items()}

    def generator(self) -> PathologyLDM:
        """The arm's model, which draws and abducts as the arm says."""
        return open_model(open_bundle(self.model), validate(GenerationConfig, self.settings.generation))

    def rare_noise(self, training: Batch) -> RareNoise:
        """The arm's model with the references of the rare findings among ``training``."""
        rare, findings = self.experiment.rare, rare_findings(self.prevalence())
        return RareNoise(
            self.generator(), training, findings, references=rare.references, optimise=rare.optimise
        )

    def dataset(self) -> Dataset:
        """The data."""
        return open_dataset(self.data)

    def request(self, kind: Kind) -> dict[str, Any]:
        """What decides a measurement, as plain JSON: measured already is only what was measured so."""
        sections = {"scoring"}
        sections |= {"rare"} if kind != "scores" or self.settings.optimise else set()
        sections |= {"downstream"} if kind == "utility" else set()
        return {
            "bundles": {role: bundle.checksum for role, bundle in self.bundles().items()},
            "data": self.dataset().manifest.fingerprint,
            "arm": self.settings.model_dump(mode="json", include={"encode", "generation", "optimise"}),
            "seed": self.seed,
            "settings": self.experiment.model_dump(mode="json", include=sections),
        }

    def read(self, split: str, limit: int | None = None) -> Batch:
        """Studies of a split with their texts, the first ``limit``; all where ``None``."""
        return gather(read_batches(self.dataset(), split, batch_size=256, reports=True), limit=limit)

    def training(self) -> Batch:
        """The training studies that are looked at."""
        return self.read("train", self.experiment.scoring.training_studies)

    def prevalence(self) -> dict[str, float]:
        """Share of positives of each finding in the training split."""
        manifest = self.dataset().manifest
        names = manifest.finding_names
        return dict(zip(names, manifest.prevalence(names).tolist(), strict=True))

    def unseen_by(self, judge: Bundle) -> Batch:
        """Real images of patients that a judge was not trained on.

        These are the test split and the training patients of the other fold, since a test split alone has few
        images of a rare finding.
        """
        fold = judge.config["loader"]["fold"]
        parts = [self.read("test")]
        training = self.training()
        rows = [k for k, who in enumerate(training.patient_ids) if fold != "all" and fold_of(who) != fold]
        if rows:
            parts.append(training.select(torch.tensor(rows)))
        return gather(parts)


def rare_findings(prevalence: Mapping[str, float]) -> tuple[str, ...]:
    """Findings that at most 5 % of the training images show, the rarest first; where none, the rarest."""
    order = sorted(prevalence, key=lambda name: prevalence[name])
    return tuple(name for name in order if prevalence[name] <= COMMON) or tuple(order[:1])


def shows(batch: Batch, finding: str, value: int) -> Tensor:
    """Rows, long, that are known to show (1) or not to show (0) a finding."""
    column = batch.finding_names.index(finding)
    known = batch.finding_mask[:, column].bool()
    return (known & (batch.findings[:, column] == value)).nonzero().flatten()


class RareNoise:
    """A model that draws rare findings from optimised noise.

    Args:
        model: The model.
        training: Training studies, for reference images.
        findings: The rare findings.
        references: m.
        optimise: How noise is optimised unless told otherwise.

    Raises:
        ConfigError: If fewer than two training images show one of them.
    """

    def __init__(
        self,
        model: PathologyLDM,
        training: Batch,
        findings: tuple[str, ...],
        *,
        references: int,
        optimise: NoiseOptimisationConfig,
    ) -> None:
        self.model, self.findings, self.optimise = model, findings, optimise
        self._references: dict[str, Tensor] = {}
        for name in findings:
            images = training.image[shows(training, name, 1)[:references]]
            if len(images) < 2:
                raise ConfigError(
                    f"{len(images)} of {len(training)} training images show {name.replace('_', ' ')}; noise "
                    "optimisation needs 2 or more: ingest more studies or raise scoring.training_studies."
                )
            with torch.no_grad():
                self._references[name] = self.model.features(images)

    def targets(self, finding: str, seeds: Tensor, config: NoiseOptimisationConfig | None = None) -> Tensor:
        """What each sample is drawn to, ``[B, D]``."""
        return targets_for(self._references[finding], (config or self.optimise).targets, seeds=seeds)

    def noise(
        self,
        finding: str,
        condition: TextStates,
        patients: Abducted,
        *,
        noise: Tensor,
        seeds: Tensor,
        config: NoiseOptimisationConfig | None = None,
    ) -> Tensor:
        """Initial noise ``[B, 1, h, w]`` from which the finding comes out; ``noise`` is where it starts."""
        return optimised_noise(
            self.model,
            config or self.optimise,
            condition,
            self._references[finding],
            patients,
            noise=noise,
            seeds=seeds,
        ).noise
