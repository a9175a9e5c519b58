"""Downstream utility: does a diagnostic network get better when synthetic images join its training?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from counterray.config import Config
from counterray.data.study import Batch
from counterray.evaluation.auroc import auroc
from counterray.evaluation.counterfactuals import patients, pieces
from counterray.evaluation.decisions import Truths, f1_threshold, threshold_scores
from counterray.evaluation.intervals import Floats, Rows, patient_bootstrap
from counterray.evaluation.metric import Direction, Metric
from counterray.evaluation.report import Cell, Table
from counterray.models.predictors.augmentation import augment
from counterray.models.predictors.classifier import masked_binary_cross_entropy
from counterray.models.predictors.common import labels_of, repeatable
from counterray.nn.resnet import ResNet18

Arm = Literal["real", "with synthetic"]
ARMS: tuple[Arm, Arm] = ("real", "with synthetic")
MEASURES = ("auroc", "accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
"""The columns of the paper's Table 5."""


class DownstreamConfig(Config):
    """How the diagnostic network is trained; the same in both arms."""

    width: int = Field(default=64, ge=1)
    """Channels of ResNet-18's first stage; 64 is the published network, 16 suits a CPU."""
    steps: int = Field(default=2000, ge=1)
    """Optimizer steps. Equal in both arms: with epochs, more images would also mean more training."""
    batch_size: int = Field(default=64, ge=2)
    """Images per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's, at the start; it falls to 0 along a cosine."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """AdamW's."""


@dataclass(frozen=True)
class DownstreamUtility:
    """The outcome.

    Attributes:
        metrics: Means over seeds of each arm and of the gain, with intervals over test patients.
        scores: For each arm ``[seeds, findings, measures]``, in the order of `MEASURES`.
        findings: The findings, in order.
    """

    metrics: list[Metric]
    scores: Mapping[Arm, Floats]
    findings: tuple[str, ...]

    def table(self) -> Table:
        """Mean ± standard deviation over seeds by finding and arm, and of the paired differences."""
        real, synthetic = (self.scores[arm] for arm in ARMS)
        groups = {ARMS[0]: real, ARMS[1]: synthetic, "difference": synthetic - real}
        rows: list[list[Cell]] = [
            [
                finding.replace("_", " "),
                name,
                *(_mean_and_deviation(values[:, k, m]) for m in range(len(MEASURES))),
            ]
            for k, finding in enumerate(self.findings)
            for name, values in groups.items()
        ]
        columns = [
            "Finding",
            "Training images",
            "AUROC",
            "Accuracy",
            "Sensitivity",
            "Specificity",
            "PPV",
            "NPV",
            "F1",
        ]
        caption = (
            f"A diagnostic network trained without and with synthetic images: mean ± standard deviation over "
            f"{len(real)} seeds, on real test images."
        )
        return Table(columns, rows, caption)


def downstream_utility(
    real: Batch,
    synthetic: Batch,
    validation: Batch,
    test: Batch,
    *,
    findings: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    config: DownstreamConfig | None = None,
    bootstrap_seed: int = 0,
) -> DownstreamUtility:
    """Trains ResNet-18 on real images alone and on real and synthetic ones, and compares them on real ones.

    Both arms of a seed start from the same weights and take equally many steps. The threshold behind
    accuracy and the like is chosen on the validation images, where F1 is largest.

    Args:
        real: Real training images.
        synthetic: Synthetic images with the findings that they were asked to show; their patients, where
            named, are those that they were made from.
        validation: Real images for thresholds.
        test: Real images for the comparison.
        findings: What the network learns and is compared on.
        seeds: Of initialisation, order and augmentation; one training each and arm.
        config: Of the training; the published network's where ``None``.
        bootstrap_seed: Of the intervals, which resample test patients and average over seeds.

    Returns:
        ``downstream_<measure>`` of each finding and of their mean (subset ``all findings``), of both arms,
        and ``downstream_<measure>_gain``, the second less the first.

    Raises:
        ValueError: If a finding is not in the data, a label is neither 0 nor 1, patients of different parts
            overlap, there are no seeds or a seed twice, or a part has no image.
        FloatingPointError: If a training diverges.

    Reference: the protocol of Nie et al., Causal Disentanglement for Robust Long-tail Medical Image
        Generation, Table 5. Departs from it in equal steps in place of equal epochs.
    """
    config = config or DownstreamConfig()
    names = tuple(findings)
    _require_apart({"real training": real, "synthetic": synthetic, "validation": validation, "test": test})
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Downstream utility: seeds {list(seeds)} must be one or more different numbers.")
    labels, known = (part.cpu().numpy() for part in labels_of(test, names))
    cuts: dict[Arm, list[Floats]] = {arm: [] for arm in ARMS}
    scores: dict[Arm, list[Floats]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        for arm, parts in zip(ARMS, ((real,), (real, synthetic)), strict=True):
            network = _train(parts, names, config, seed=seed)
            cuts[arm].append(_thresholds(_score(network, validation.image), validation, names))
            scores[arm].append(_score(network, test.image))
    measured = {
        arm: _Measured(np.stack(scores[arm]), np.stack(cuts[arm]), labels > 0.5, known) for arm in ARMS
    }
    everything = np.arange(len(test))
    return DownstreamUtility(
        _metrics(
            measured, names, patients(test), judge=f"resnet-18, width {config.width}", seed=bootstrap_seed
        ),
        {arm: measured[arm](everything) for arm in ARMS},
        names,
    )


@dataclass(frozen=True)
class _Measured:
    """An arm's scores on the test images: all measures of any rows of them.

    Attributes:
        scores: ``[seeds, n, F]``.
        cuts: ``[seeds, F]``; NaN where the validation images gave none.
        labels: ``[n, F]`` bool.
        known: ``[n, F]`` bool.
    """

    scores: Floats
    cuts: Floats
    labels: Truths
    known: Truths

    def __call__(self, rows: Rows) -> Floats:
        """Measures ``[seeds, F, measures]``."""
        seeds, findings = self.cuts.shape
        values = np.full((seeds, findings, len(MEASURES)), math.nan)
        for k in range(findings):
            kept = rows[self.known[rows, k]]
            labels = self.labels[kept, k]
            for seed in range(seeds):
                scores, cut = self.scores[seed, kept, k], self.cuts[seed, k]
                values[seed, k, 0] = auroc(scores, labels)
                if not np.isnan(cut):
                    values[seed, k, 1:] = threshold_scores(scores >= cut, labels)
        return values


def _metrics(
    measured: Mapping[Arm, _Measured], names: Sequence[str], who: Sequence[str], *, judge: str, seed: int
) -> list[Metric]:
    """Means over seeds with intervals: real, with synthetic and gain, by finding and over findings."""

    def groups(rows: Rows) -> Floats:
        real, synthetic = (measured[arm](rows) for arm in ARMS)
        arms = np.stack([real, synthetic, synthetic - real])
        return np.concatenate([arms.mean(axis=2, keepdims=True), arms], axis=2)

    everything = np.arange(len(who))
    values = groups(everything)  # [arms and gain, seeds, all and each finding, measures]
    intervals = patient_bootstrap(lambda rows: groups(rows).mean(axis=1).ravel(), who, seed=seed)
    means, deviations = values.mean(axis=1), _deviation(values)
    known = measured["real"].known
    metrics = []
    for (arm, finding, measure), interval in zip(np.ndindex(means.shape), intervals, strict=True):
        gain = arm == len(ARMS)
        subset = "all findings" if not finding else names[finding - 1]
        direction: Direction = "higher" if gain else "none"
        metrics.append(
            Metric(
                name=f"downstream_{MEASURES[measure]}" + ("_gain" if gain else ""),
                subset=subset if gain else f"{subset}, {ARMS[arm]}",
                value=float(means[arm, finding, measure]),
                low=interval.low,
                high=interval.high,
                n=int(known[:, finding - 1].sum()) if finding else len(who),
                direction=direction,
                judge=judge,
                note=_note(float(deviations[arm, finding, measure]), values.shape[1]),
            )
        )
    return metrics


def _train(parts: Sequence[Batch], names: Sequence[str], config: DownstreamConfig, *, seed: int) -> ResNet18:
    image = torch.cat([part.image for part in parts])
    labels, known = (
        torch.cat(each) for each in zip(*(labels_of(part, names) for part in parts), strict=True)
    )
    order = torch.Generator().manual_seed(seed)
    with repeatable(seed):
        network = ResNet18(len(names), width=config.width).to(image.device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        waiting = torch.empty(0, dtype=torch.long)
        for step in range(config.steps):
            # Whole epochs in a new order each; the last images of one join the first of the next.
            while len(waiting) < config.batch_size:
                waiting = torch.cat([waiting, torch.randperm(len(image), generator=order)])
            rows, waiting = waiting[: config.batch_size], waiting[config.batch_size :]
            logits = network(augment(image[rows]))
            loss = masked_binary_cross_entropy(logits, labels[rows], known[rows])
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"Downstream utility: the loss is not finite at step {step} of seed {seed}. Set a "
                    f"learning_rate below {config.learning_rate:g}."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def _score(network: nn.Module, image: Tensor, *, batch_size: int = 256) -> Floats:
    """Probabilities ``[n, F]``."""
    scores: list[Tensor] = [network(image[rows]).sigmoid() for rows in pieces(len(image), batch_size)]
    values: Floats = torch.cat(scores).double().cpu().numpy()
    return values


def _thresholds(scores: Floats, validation: Batch, names: Sequence[str]) -> Floats:
    labels, known = (part.cpu().numpy() for part in labels_of(validation, names))
    columns = range(len(names))
    return np.array([f1_threshold(scores[known[:, k], k], labels[known[:, k], k] > 0.5) for k in columns])


def _require_apart(parts: Mapping[str, Batch]) -> None:
    """Refuses empty parts, and patients in two of training, validation and test."""
    for name, part in parts.items():
        if not len(part):
            raise ValueError(f"Downstream utility: there is no {name} image.")
    training = {*parts["real training"].patient_ids, *parts["synthetic"].patient_ids}
    validation, test = set(parts["validation"].patient_ids), set(parts["test"].patient_ids)
    shared = len(training & validation) + len((training | validation) & test)
    if shared:
        raise ValueError(
            f"Downstream utility: {shared} patients are in two of training, validation and test images, so "
            "the comparison would reward memory. Make synthetic images from the training split."
        )


def _deviation(values: Floats) -> Floats:
    seeds = values.shape[1]
    return values.std(axis=1, ddof=1) if seeds > 1 else np.full_like(values[:, 0], math.nan)


def _note(deviation: float, seeds: int) -> str:
    if seeds == 1:
        return "one seed"
    if math.isnan(deviation):
        return (
            "undefined in a seed: no image called positive (or negative), or no threshold or label of a kind"
        )
    return f"mean of {seeds} seeds, standard deviation {deviation:.3f}"


def _mean_and_deviation(values: Floats) -> Cell:
    mean = float(values.mean())
    if math.isnan(mean):
        return mean
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {values.std(ddof=1):.3f}"
