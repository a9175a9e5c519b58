"""What a run leaves behind while it trains: metrics as JSON lines, TensorBoard events, image grids."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from counterray.storage import Location

logger = logging.getLogger(__name__)


class Tracker:
    """Writes a run's metrics and pictures on rank 0, and publishes them to storage at each checkpoint.

    Args:
        out: The run's folder on storage.
        scratch: A local folder of this process.
        mlflow: Whether to log to the MLflow server of ``MLFLOW_TRACKING_URI`` too.
        run_name: The run's name in MLflow.
    """

    def __init__(self, out: Location, scratch: Path, *, mlflow: bool, run_name: str) -> None:
        self.out = out
        self.lines: list[dict[str, float | int | str]] = []
        self.events = scratch / "tensorboard"
        self.writer = SummaryWriter(str(self.events))
        self.mlflow = MLflow(run_name) if mlflow else None
        self.pictures: dict[str, Path] = {}
        self.scratch = scratch

    def resume(self, path: Path) -> None:
        """Continues from the lines in a checkpoint, so that no step is logged twice."""
        self.lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in self.lines:
            self._events(line)

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Adds one line: ``split`` (train or validation), ``step``, the time and the values."""
        line: dict[str, float | int | str] = {"split": split, "step": step, "time": round(time.time(), 3)}
        line |= values
        self.lines.append(line)
        self._events(line)
        if self.mlflow:
            self.mlflow.log(split, step, values)

    def grid(self, name: str, step: int, images: Tensor, *, columns: int = 8) -> None:
        """Keeps ``images`` ``[B, C, H, W]`` in [-1, 1] as one PNG and as a TensorBoard image."""
        picture = _grid(images, columns)
        path = self.scratch / f"step-{step:07d}-{name}.png"
        Image.fromarray(picture).save(path)
        self.pictures[path.name] = path
        self.writer.add_image(name, picture, step, dataformats="HW" if picture.ndim == 2 else "HWC")

    def save(self, path: Path) -> None:
        """Writes all lines to a local file, for a checkpoint."""
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines))

    def publish(self) -> None:
        """Copies lines, events and new pictures to the run's folder."""
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        (self.out / "metrics.jsonl").write_bytes(text.encode())
        self.writer.flush()
        for path in self.events.iterdir():
            (self.out / "tensorboard" / path.name).write_bytes(path.read_bytes())
        for name, path in self.pictures.items():
            (self.out / "images" / name).write_bytes(path.read_bytes())
        self.pictures = {}

    def close(self) -> None:
        """Ends TensorBoard's and MLflow's runs."""
        self.writer.close()
        if self.mlflow:
            self.mlflow.close()

    def _events(self, line: Mapping[str, float | int | str]) -> None:
        for name, value in line.items():
            if name not in ("split", "step", "time"):
                self.writer.add_scalar(f"{line['split']}/{name}", float(value), int(line["step"]))


class MLflow:
    """A run on the MLflow server of ``MLFLOW_TRACKING_URI``.

    Args:
        run_name: Name of the run there.

    Raises:
        ImportError: If the extra ``[mlflow]`` is not installed.
    """

    def __init__(self, run_name: str) -> None:
        try:
            import mlflow
        except ImportError:
            raise ImportError(
                "mlflow: true needs the extra [mlflow]: pip install 'counterray[mlflow]'. "
                "Or set mlflow: false."
            ) from None
        self.client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment("counterray")
        self.run_id = self.client.create_run(experiment.experiment_id, run_name=run_name).info.run_id

    def log(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Logs values as ``split/name``."""
        for name, value in values.items():
            if np.isfinite(value):
                self.client.log_metric(self.run_id, f"{split}/{name}", value, step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self.client.set_terminated(self.run_id)


def _grid(images: Tensor, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    count, channels, height, width = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    canvas = torch.full((rows * columns, channels, height, width), -1.0)
    canvas[:count] = images.detach().float().cpu()
    tiles = canvas.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    merged = tiles.reshape(channels, rows * height, columns * width)
    pixels = ((merged.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    return pixels[0] if channels == 1 else pixels.transpose(1, 2, 0)
