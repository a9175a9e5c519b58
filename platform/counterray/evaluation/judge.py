"""Metrics of a judge by itself: how far its word can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from counterray.bundle import Bundle
from counterray.data.study import Batch
from counterray.evaluation.auroc import MINIMUM_POSITIVES, auroc_metrics
from counterray.evaluation.counterfactuals import patients
from counterray.evaluation.intervals import summarise
from counterray.evaluation.metric import Direction, Judge, Metric, UnscorableError
from counterray.models.predictors.classifier import Classifier
from counterray.models.predictors.demographic import Demographic
from counterray.models.predictors.identity import IdentityEncoder
from counterray.models.predictors.image_text import ImageTextEncoder
from counterray.models.predictors.judges import load_judge
from counterray.models.predictors.regressor import Regressor
from counterray.models.predictors.retrieval import ranks
from counterray.models.predictors.segmentor import Segmentor


def open_judge(bundle: Bundle, *, name: str = "", device: torch.device | str = "cpu") -> Judge:
    """The judge of a bundle, which scores images with one tensor.

    Args:
        bundle: Of a classifier, segmentor, regressor, identity encoder or image–text encoder (its finding
            head). A demographic classifier has an answer for each attribute: see `demographic_judges`.
        name: What reports call it; the stage's name where empty.
        device: Where it computes, and where the images that it scores are.

    Raises:
        ValueError: If the bundle is none of these.
    """
    network, label = load_judge(bundle).to(device), name or bundle.stage
    if isinstance(network, Classifier):
        return Judge(
            name=label,
            checksum=bundle.checksum,
            predict=lambda image: network(image).sigmoid(),
            outputs=network.finding_names,
        )
    if isinstance(network, Segmentor):
        return Judge(
            name=label,
            checksum=bundle.checksum,
            predict=lambda image: network(image).sigmoid(),
            outputs=network.mask_names,
        )
    if isinstance(network, ImageTextEncoder):
        return Judge(
            name=label,
            checksum=bundle.checksum,
            predict=lambda image: network.finding_logits(network.features(image)).sigmoid(),
            outputs=network.finding_names,
        )
    if isinstance(network, Regressor):
        return Judge(name=label, checksum=bundle.checksum, predict=network, outputs=network.target_names)
    if isinstance(network, IdentityEncoder):
        return Judge(name=label, checksum=bundle.checksum, predict=network)
    raise UnscorableError(f"A bundle of stage {bundle.stage!r} does not score images with one tensor.")


def demographic_judges(bundle: Bundle, *, device: torch.device | str = "cpu") -> dict[str, Judge]:
    """A judge for each attribute of a demographic classifier's bundle.

    Args:
        bundle: Of a demographic classifier.
        device: Where it computes, and where the images that it scores are.

    Raises:
        UnscorableError: If the bundle is of another stage.
    """
    network = load_judge(bundle).to(device)
    if not isinstance(network, Demographic):
        raise UnscorableError(f"A bundle of stage {bundle.stage!r} is no demographic classifier.")

    def judge(attribute: str, values: tuple[str, ...]) -> Judge:
        return Judge(
            name=bundle.stage,
            checksum=bundle.checksum,
            predict=lambda image: network(image)[attribute].softmax(dim=1),
            outputs=values,
        )

    return {attribute: judge(attribute, values) for attribute, values in network.vocabulary.items()}


def judge_metrics(
    bundle: Bundle, batch: Batch, *, name: str = "", minimum_positives: int = MINIMUM_POSITIVES
) -> list[Metric]:
    """The metrics that fit the bundle's stage, on images that it was not trained on.

    Raises:
        ValueError: If the bundle is no judge, or the data lack what it is measured against.
    """
    if bundle.stage == "demographic":
        return [
            metric
            for attribute, judge in demographic_judges(bundle).items()
            for metric in category_metrics(judge, batch, attribute, minimum_positives=minimum_positives)
        ]
    judge = open_judge(bundle, name=name)
    if bundle.stage in ("classifier", "image_text_encoder"):
        return classifier_metrics(judge, batch, minimum_positives=minimum_positives)
    measure = {
        "segmentor": segmentor_metrics,
        "regressor": regressor_metrics,
        "identity_encoder": identity_metrics,
    }
    return measure[bundle.stage](judge, batch)


def classifier_metrics(
    judge: Judge, batch: Batch, *, minimum_positives: int = MINIMUM_POSITIVES, batch_size: int = 64
) -> list[Metric]:
    """AUROC of each finding that both the judge and the batch name, and the macro average.

    Raises:
        UnscorableError: If they have no finding in common.
    """
    names = tuple(name for name in batch.finding_names if name in judge.outputs)
    if not names:
        raise UnscorableError(
            f"Judge {judge.label} names {', '.join(judge.outputs) or 'no findings'}; the data have "
            f"{', '.join(batch.finding_names)}. Evaluate it on data of its own vocabulary."
        )
    columns = [batch.finding_names.index(name) for name in names]
    return auroc_metrics(
        "auroc",
        judge.scores(batch.image, batch_size=batch_size)[:, judge.columns(names)],
        batch.findings[:, columns],
        batch.finding_mask[:, columns],
        outputs=names,
        patients=patients(batch),
        judge=judge.label,
        minimum_positives=minimum_positives,
    )


def category_metrics(
    judge: Judge,
    batch: Batch,
    attribute: str,
    *,
    minimum_positives: int = MINIMUM_POSITIVES,
    batch_size: int = 64,
) -> list[Metric]:
    """AUROC of each value of a categorical attribute against all others.

    Args:
        judge: Probabilities ``[B, K]`` of the attribute's K values, in the order of their codes.
        batch: Images with ``attributes[attribute]``, a code or NaN.
        attribute: Name of the attribute, such as ``sex``.
        minimum_positives: What a value needs for the macro average.
        batch_size: Images at a time.
    """
    code = batch.attributes[attribute]
    known = ~code.isnan()
    labels = torch.stack([code == value for value in range(len(judge.outputs))], dim=1)
    return auroc_metrics(
        f"auroc_{attribute}",
        judge.scores(batch.image, batch_size=batch_size),
        labels.float(),
        known[:, None].expand_as(labels),
        outputs=judge.outputs,
        patients=patients(batch),
        judge=judge.label,
        minimum_positives=minimum_positives,
    )


def dice(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Dice overlap of each structure, ``2 |A ∩ B| / (|A| + |B|)``; 1 is best, 0 is none.

    Args:
        probabilities: ``[B, K, H, W]``; a pixel belongs to a structure above 0.5.
        masks: ``[B, K, H, W]`` in {0, 1}; NaN throughout where an image has no such mask.

    Returns:
        ``[B, K]``; NaN where there is no mask, 1 where both are empty.

    Reference: Dice, 1945, https://doi.org/10.2307/1932409.
    """
    found, truth = (probabilities > 0.5).flatten(2), masks.flatten(2)
    overlap = (found & (truth > 0.5)).sum(dim=2)
    size = found.sum(dim=2) + (truth > 0.5).sum(dim=2)
    value = torch.where(size > 0, 2 * overlap / size.clamp(min=1), torch.ones_like(size).double())
    return torch.where(truth.isnan().any(dim=2), torch.nan, value)


def segmentor_metrics(judge: Judge, batch: Batch, *, batch_size: int = 64) -> list[Metric]:
    """Mean Dice of each structure that both the judge and the batch name.

    Raises:
        UnscorableError: If they have no structure in common.
    """
    names = tuple(name for name in judge.outputs if name in batch.masks)
    if not names:
        raise UnscorableError(
            f"Judge {judge.label} segments {', '.join(judge.outputs)}; the data have masks of "
            f"{', '.join(batch.masks) or 'nothing'}."
        )
    found = judge.scores(batch.image, batch_size=batch_size)[:, judge.columns(names)]
    values = dice(found, torch.cat([batch.masks[name] for name in names], dim=1))
    return _by_output("dice", values, names, judge, batch, direction="higher")


def regressor_metrics(
    judge: Judge, batch: Batch, *, units: Sequence[str] = (), batch_size: int = 64
) -> list[Metric]:
    """Mean absolute error of each measurement or continuous attribute that the judge names.

    Args:
        judge: Estimates ``[B, K]`` in the data's own units.
        batch: Images with these measurements or attributes.
        units: Of the K outputs; empty for none.
        batch_size: Images at a time.

    Raises:
        UnscorableError: If the data lack one.
    """
    truths = {**batch.attributes, **batch.measurements}
    missing = [name for name in judge.outputs if name not in truths]
    if missing:
        raise UnscorableError(
            f"Judge {judge.label} estimates {', '.join(missing)}, which the data do not have. "
            f"They have: {', '.join(truths) or 'none'}."
        )
    estimate = judge.scores(batch.image, batch_size=batch_size).double()
    truth = torch.stack([truths[name].double() for name in judge.outputs], dim=1)
    return _by_output(
        "absolute_error",
        (estimate - truth).abs(),
        judge.outputs,
        judge,
        batch,
        direction="lower",
        units=units,
    )


def identity_metrics(judge: Judge, batch: Batch, *, batch_size: int = 64) -> list[Metric]:
    """Share of images whose nearest other image is of the same patient, of patients with two or more.

    Args:
        judge: Features ``[B, D]``.
        batch: Images, some patients with several.
        batch_size: Images at a time.
    """
    who = patients(batch)
    features = normalize(judge.scores(batch.image, batch_size=batch_size).double(), dim=1)
    repeated = [patient for patient in who if who.count(patient) > 1]
    found = ranks(features, features, who, who, exclude_self=True)
    return [
        summarise(
            "identity_top1",
            (found == 1).double(),
            patients=repeated,
            direction="higher",
            judge=judge.label,
            note="" if repeated else "no patient of this split has two images",
        )
    ]


def _by_output(
    name: str,
    values: Tensor,
    outputs: Sequence[str],
    judge: Judge,
    batch: Batch,
    *,
    direction: Direction,
    units: Sequence[str] = (),
) -> list[Metric]:
    return [
        summarise(
            name,
            values[:, k],
            patients=patients(batch),
            direction=direction,
            judge=judge.label,
            subset=output,
            unit=units[k] if units else "",
        )
        for k, output in enumerate(outputs)
    ]
