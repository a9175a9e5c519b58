"""What the judges share: labels out of batches, scores into metrics, modules into exports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from counterray.data.dataset import DatasetInfo
from counterray.data.study import Batch
from counterray.training.stage import Export, StageConfig

Built = TypeVar("Built")


class PredictorStage:
    """Base of the judges' stages: they need no earlier bundle, freeze nothing and paint nothing."""

    inputs: Mapping[str, str] = {}
    needs_masks: tuple[str, ...] = ()
    needs_tensors: tuple[str, ...] = ()
    needs_reports: bool = False

    def __init__(self) -> None:
        self.frozen: dict[str, nn.Module] = {}

    def preview(self, module: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Nothing: a judge has no images to show."""
        return {}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back afterwards."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


@contextmanager
def repeatable(seed: int = 0) -> Iterator[None]:
    """Draws made inside are the same every time, and leave torch's global random state as it was.

    Validation draws under it, so that its metrics compare between epochs and training is not disturbed.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def chosen(
    wanted: Sequence[str] | None, available: Sequence[str], *, setting: str, what: str
) -> tuple[str, ...]:
    """``wanted`` names, or all that are available where ``None``.

    Raises:
        ValueError: If nothing is available or a wanted name is not among them.
    """
    names = tuple(available if wanted is None else wanted)
    missing = sorted(set(names) - set(available))
    if missing or not names:
        raise ValueError(
            f"Setting {setting} asks for {', '.join(missing) or 'nothing'}, which the dataset does not have. "
            f"Its {what}: {', '.join(available) or 'none'}."
        )
    return names


def labels_of(batch: Batch, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Labels ``[B, F]`` in {0, 1} of the named findings and a bool mask of those that are known.

    Raises:
        ValueError: If the batch lacks a finding, or a known label is neither 0 nor 1 (the policy ``keep``
            leaves uncertain labels at -1, which no predictor can be trained on).
    """
    columns = [
        batch.finding_names.index(name)
        for name in chosen(names, batch.finding_names, setting="findings", what="findings")
    ]
    labels, known = batch.findings[:, columns].float(), batch.finding_mask[:, columns]
    labels = torch.where(known, labels, torch.zeros_like(labels))
    if bool(((labels != 0) & (labels != 1)).any()):
        raise ValueError(
            f"A known finding has a label of {float(labels[(labels != 0) & (labels != 1)][0]):g}; predictors "
            "need 0 or 1. Set the uncertainty policy to ignore, zeros or ones (keep leaves -1)."
        )
    return labels, known


def auroc(scores: Tensor, labels: Tensor) -> float | None:
    """Area under the ROC curve of ``scores [N]`` for ``labels [N]`` in {0, 1}; 1 is best, 0.5 is chance.

    ``None`` where only one class is present: the area is then undefined.
    """
    if len(labels) == 0 or bool((labels == labels[0]).all()):
        return None
    from sklearn.metrics import roc_auc_score  # takes a second, of every process that trains

    return float(roc_auc_score(labels.cpu().numpy(), scores.float().cpu().numpy()))


def finding_metrics(
    scores: Tensor, labels: Tensor, known: Tensor, names: Sequence[str], *, prefix: str = "auroc"
) -> dict[str, float]:
    """AUROC of each finding and their mean.

    Args:
        scores: ``[N, F]``, larger for present.
        labels: ``[N, F]`` in {0, 1}.
        known: ``[N, F]`` bool, true where the label counts.
        names: The F findings.
        prefix: First part of each metric's name.

    Returns:
        ``<prefix>.<finding>`` for every finding with both classes among its known labels,
        ``<prefix>_macro`` (their unweighted mean) and ``<prefix>_findings`` (how many they are).

    Raises:
        ValueError: If no finding has both classes.
    """
    areas: dict[str, float] = {}
    for column, name in enumerate(names):
        rows = known[:, column]
        area = auroc(scores[rows, column], labels[rows, column])
        if area is not None:
            areas[f"{prefix}.{name}"] = area
    if not areas:
        raise ValueError(
            f"No finding has both a positive and a negative among {len(labels)} validation images, so no "
            "AUROC is defined. Use a larger validation split or other findings."
        )
    mean = sum(areas.values()) / len(areas)
    return {f"{prefix}_macro": mean, f"{prefix}_findings": float(len(areas)), **areas}


def export(
    module: nn.Module,
    config: StageConfig,
    data: DatasetInfo,
    *,
    intended_use: str,
    limits: str,
    files: Mapping[str, bytes] | None = None,
    **metadata: Any,
) -> Export:
    """The export of a judge: its weights, and its config and vocabulary as metadata."""
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    described = {"config": config.model_dump(mode="json"), "image_size": data.image_size, **metadata}
    return Export({"model": state}, described, files or {}, intended_use, limits)


def require_built(made: Built | None) -> Built:
    """What `build` was given or made.

    Raises:
        RuntimeError: If `build` has not been called.
    """
    if made is None:
        raise RuntimeError("The stage has not been built: call build before loss, validate or export.")
    return made
