"""`PlantedClassifier`: a classifier on the phantom whose dependence is planted; its settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.special import expit
from torch import Tensor

from counterray.audits.errors import AuditError
from counterray.audits.scores import Target
from counterray.audits.worlds.image_networks import (
    ExcludedHead,
    NetworkConfig,
    Reader,
    ThumbnailClassifier,
    applied,
)
from counterray.audits.worlds.level_images import Attribute, rerender
from counterray.causal.mechanism import Values
from counterray.config import Config
from counterray.data.phantom.scm import FINDING_NAMES, VOCABULARY
from counterray.evaluation.intervals import Floats

Kind = Literal["rerendered", "excluded", "confounded"]


class ImagePoolConfig(Config):
    """A pool of image classifiers of known truth."""

    attribute: Attribute = "scanner"
    """What dependence is planted on."""
    levels: tuple[str, ...] = ()
    """Levels between which truths are told, of individuals at one of them; all by default. A generator that
    has seen a level a few dozen times cannot draw it."""
    level: str = "mobile"
    """Level that the planted part takes for the finding."""
    reference: str = "digital"
    """Level at which ``rerendered`` classifiers see every study."""
    findings: tuple[str, ...] = ("cardiomegaly", "pleural_effusion")
    """Findings; each kind and strength has a classifier of each."""
    kinds: tuple[Kind, ...] = ("rerendered", "excluded", "confounded")
    """Kinds of classifier; without ``rerendered`` all need the image alone."""
    strengths: tuple[float, ...] = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
    """Dial of each kind [0 to 1]."""
    gain: float = Field(default=2.0, gt=0)
    """Logits that a shortcut of strength 1 adds where the planted level is read, and takes where not."""
    share: float = Field(default=0.999, gt=0, lt=1)
    """Part of the attribute's squared trace in the features that ``excluded`` heads lose."""
    network: NetworkConfig = NetworkConfig()
    """The networks."""
    image_size: int = Field(default=64, ge=32)
    """Edge of the images [px]."""
    studies: int = Field(default=1500, ge=50)
    """Studies that the pool learns from."""
    truth_studies: int = Field(default=600, ge=20)
    """Studies of other patients by which truths are simulated."""
    seed: int = Field(default=0, ge=0)
    """Of data and networks."""

    def checked(self) -> ImagePoolConfig:
        """This, once its levels, findings and strengths are known to exist.

        Raises:
            AuditError: If one does not.
        """
        for name in (self.level, self.reference, *self.levels):
            self.position(name)
        if self.levels and (len(set(self.levels)) < 2 or self.reference not in self.levels):
            raise AuditError(
                f"levels {list(self.levels)} must be two or more different ones, with reference = "
                f"{self.reference!r} among them."
            )
        unknown = [name for name in self.findings if name not in FINDING_NAMES]
        if unknown or not self.findings:
            raise AuditError(
                f"findings {list(self.findings)} must be one or more of {', '.join(FINDING_NAMES)}."
            )
        wrong = [strength for strength in self.strengths if not 0 <= strength <= 1]
        if wrong or not self.strengths or not self.kinds:
            raise AuditError(
                f"strengths {list(self.strengths)} must lie within 0 to 1, and kinds {list(self.kinds)} name "
                "one or more."
            )
        return self

    def position(self, level: str) -> int:
        """Position of a level of the attribute.

        Raises:
            AuditError: If the attribute has no such level.
        """
        levels = VOCABULARY[self.attribute]
        if level not in levels:
            raise AuditError(f"{self.attribute!r} has no level {level!r}; it has {', '.join(levels)}.")
        return levels.index(level)


class Sight:
    """What classifiers look at: images and, where there are any, the records behind them.

    Renderings and networks' answers are kept, so that a pool that shares a network asks it once.

    Attributes:
        image: ``[N, 1, S, S]`` in [-1, 1].
    """

    def __init__(
        self,
        image: Tensor,
        record: Values | None,
        config: ImagePoolConfig,
        *,
        rerendered: Tensor | None = None,
    ) -> None:
        self.image = image
        self._record, self._config = record, config
        self._rerendered = rerendered
        self._answers: dict[tuple[str, int], Floats] = {}

    @property
    def rerendered(self) -> Tensor:
        """The studies at the reference level, ``[N, 1, S, S]``.

        Raises:
            AuditError: If there are no records.
        """
        if self._rerendered is None:
            if self._record is None:
                raise AuditError(
                    "A rerendered classifier needs the records of the studies; leave 'rerendered' out of "
                    "kinds where only images are at hand."
                )
            config = self._config
            self._rerendered = rerender(
                self._record,
                attribute=config.attribute,
                level=config.position(config.reference),
                image_size=self.image.shape[-1],
            )
        return self._rerendered

    def answer(
        self, network: ThumbnailClassifier, what: Literal["logits", "features", "rerendered"]
    ) -> Floats:
        """Logits or features of the image, or logits of the image rendered anew."""
        key = (what, id(network))
        if key not in self._answers:
            function = network.embedding if what == "features" else network
            self._answers[key] = applied(function, self.rerendered if what == "rerendered" else self.image)
        return self._answers[key]

    def reading(self, reader: Reader) -> Floats:
        """What is read of the planted level, ``[N]``."""
        key = ("reading", id(reader))
        if key not in self._answers:
            level = self._config.position(self._config.level)
            self._answers[key] = reader.reading(self.image, level)
        return self._answers[key]


@dataclass(frozen=True, kw_only=True)
class PlantedClassifier:
    """A classifier and what was planted in it.

    Attributes:
        kind: See the module.
        finding: What it tells.
        strength: Its dial.
        threshold: Youden's, on the studies it learned from as observed.
        config: Of its pool.
        network: Its network.
        head: Its head, of kind ``excluded``.
        reader: Of the attribute, for a shortcut.
    """

    kind: Kind
    finding: str
    strength: float
    config: ImagePoolConfig
    network: ThumbnailClassifier
    head: ExcludedHead | None = None
    reader: Reader | None = None
    threshold: float = 0.5

    @property
    def name(self) -> str:
        """Kind, attribute and strength."""
        return f"{self.kind} {self.config.attribute} s={self.strength:g}"

    @property
    def target(self) -> Target:
        """What a verdict on it is about."""
        return Target(classifier=self.name, finding=self.finding, threshold=self.threshold)

    def seen(self, sight: Sight) -> Floats:
        """Probabilities ``[N]`` of what it looks at."""
        if self.head is not None:
            logits = self.head.logits(sight.answer(self.network, "features"), self.finding)
        else:
            answer = sight.answer(self.network, "rerendered" if self.kind == "rerendered" else "logits")
            logits = answer[:, self.network.finding_names.index(self.finding)]
        if self.reader is not None and self.strength:
            logits = logits + self.strength * self.config.gain * sight.reading(self.reader)
        return np.asarray(expit(logits), dtype=np.float64)

    def probabilities(self, image: Tensor, record: Values | None = None) -> Floats:
        """Probabilities ``[N]`` of images ``[N, 1, S, S]`` in [-1, 1]; ``rerendered`` needs the records."""
        return self.seen(Sight(image, record, self.config))
