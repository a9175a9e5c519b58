"""A training in numbers for Prometheus, through Ray's own exporter; infra/monitoring draws them."""

from __future__ import annotations

import math

from ray.util.metrics import Counter, Gauge

_TAGS = ("run", "stage")


class TrainingMetrics:
    """What rank 0 shows. Ray puts ``ray_`` before each name, and ``_total`` after that of a counter.

    Args:
        run: The run's name: the last part of its folder.
        stage: The stage's name.
    """

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._step = Gauge("counterray_training_step", "Optimizer steps that are done.", _TAGS)
        self._loss = Gauge("counterray_training_loss", "Total loss of the last logged step.", _TAGS)
        self._images = Gauge("counterray_training_images_per_second", "Images a second, all ranks.", _TAGS)
        self._waited = Counter(
            "counterray_training_data_wait_seconds", "Time for which rank 0 waited for its data.", _TAGS
        )
        self._score = Gauge("counterray_training_score", "Validation metrics.", (*_TAGS, "metric"))

    def trained(self, step: int, *, loss: float, images_per_second: float, waited: float) -> None:
        """Shows a logged step.

        Args:
            step: Optimizer steps that are done.
            loss: Total loss.
            images_per_second: Images a second of all ranks, since the run began or went on.
            waited: Time for which rank 0 waited for its data since the last call [s].
        """
        self._step.set(step, self._tags)
        self._loss.set(loss, self._tags)
        self._images.set(images_per_second, self._tags)
        if waited > 0:  # Ray refuses to count nothing
            self._waited.inc(waited, self._tags)

    def validated(self, metrics: dict[str, float]) -> None:
        """Shows a validation; a metric that is not finite has no point."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self._score.set(value, {**self._tags, "metric": name})
