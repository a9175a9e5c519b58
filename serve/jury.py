"""What the server's judges say of images: scores before and after, and what was observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterray.bundle import Bundle, open_bundle
from counterray.config import ConfigError
from counterray.evaluation.judge import demographic_judges, open_judge
from counterray.evaluation.metric import Judge
from counterray.models.generator import PREFIX

_FINDINGS = ("classifier", "image_text_encoder")
"""Stages whose judges give probabilities of findings."""

_PRESENT = 0.5
"""Probability from which a finding counts as shown."""


@dataclass(frozen=True)
class Reader:
    """One judge, of findings or of one attribute.

    Attributes:
        judge: Images to probabilities.
        attribute: The attribute whose levels it tells apart; empty for findings.
    """

    judge: Judge
    attribute: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What its probabilities are called: findings, or ``attribute=level``."""
        prefix = f"{self.attribute}=" if self.attribute else ""
        return tuple(f"{prefix}{output}" for output in self.judge.outputs)


Scores = Mapping[tuple[str, str], float]
"""(judge's label, name) to a probability."""


class Jury:
    """The judges of a server.

    Args:
        bundles: Classifiers, image-text encoders and demographic classifiers.
        device: Where they compute.

    Raises:
        ConfigError: If a bundle is of another stage.
    """

    def __init__(self, bundles: Sequence[Bundle], device: torch.device) -> None:
        self.device = device
        self.checksums = {bundle.checksum for bundle in bundles}
        self.readers: list[Reader] = []
        for bundle in bundles:
            if bundle.stage == "demographic":
                judges = demographic_judges(bundle, device=device)
                self.readers += [Reader(judge, attribute) for attribute, judge in judges.items()]
            elif bundle.stage in _FINDINGS:
                self.readers.append(Reader(open_judge(bundle, device=device)))
            else:
                raise ConfigError(
                    f"judges: the bundle {bundle.location.uri} is of stage {bundle.stage}, which gives no "
                    f"probabilities of findings or levels. Give one of: {', '.join(_FINDINGS)}, demographic."
                )

    @classmethod
    def open(cls, uris: Sequence[str], device: torch.device) -> Jury:
        """The judges of bundles by their addresses.

        Raises:
            BundleError: If one cannot be trusted.
            ConfigError: If one is no such judge.
            StorageError: If one cannot be read.
        """
        return cls([open_bundle(uri) for uri in uris], device)

    def require_apart(self, bundle: Bundle) -> None:
        """Refuses a generator whose losses one of these judges took part in: it would flatter it.

        Raises:
            ConfigError: With the judge's checksum.
        """
        parents = (parent["checksum"] for parent in bundle.manifest["parents"].values())
        for checksum in self.checksums & {*parents, *bundle.manifest["judges"].values()}:
            raise ConfigError(
                f"judges: {checksum[:8]} took part in training {bundle.location.uri} and cannot score it."
            )

    def scores(self, image: Tensor) -> list[Scores]:
        """What every judge says of each image ``[B, 1, H, W]`` in [-1, 1]."""
        found: list[dict[tuple[str, str], float]] = [{} for _ in image]
        for reader in self.readers:
            values = reader.judge.scores(image.to(self.device)).tolist()
            for row, probabilities in zip(found, values, strict=True):
                for name, value in zip(reader.names, probabilities, strict=True):
                    row[reader.judge.label, name] = value
        return [*found]

    def infer(self, scores: Scores) -> dict[str, float | str]:
        """What an image shows, by its scores: findings as 0 or 1, attributes by their likeliest level.

        "No finding" follows from the others. Of two judges of one finding the first has the word.
        """
        read: dict[str, float | str] = {}
        for reader in reversed(self.readers):
            values = {name: scores[reader.judge.label, name] for name in reader.names}
            if reader.attribute:
                likeliest = max(values, key=lambda name: values[name])
                read[reader.attribute] = likeliest.removeprefix(f"{reader.attribute}=")
            else:
                read |= {f"{PREFIX}{name}": float(value >= _PRESENT) for name, value in values.items()}
        shown = [value for name, value in read.items() if name.startswith(PREFIX) and name != _NOTHING]
        if _NOTHING in read:
            read[_NOTHING] = float(not any(shown))
        return dict(sorted(read.items()))


_NOTHING = f"{PREFIX}no_finding"
