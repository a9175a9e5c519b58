"""`Generator`: the one interface through which jobs, evaluation and servers ask for counterfactuals."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from counterray.causal.mechanism import Values
from counterray.data.study import ATTRIBUTES, Batch
from counterray.diffusion.sampling import OnStep

Severity = Literal["", "mild", "moderate", "severe"]
"""How marked a finding that is asked for should be; empty leaves it to the generator."""

_NO_DISEASE = ("no_finding", "support_devices")
"""Labels that leave an image without a finding (Irvin et al., 2019, https://arxiv.org/abs/1901.07031)."""

PREFIX = "finding."
"""Prefix of a finding among the variables that an edit sets, as in ``finding.edema``."""


class NoMatchError(LookupError):
    """An edit that cannot be made of one image, though it can of others; the message names no image."""


class EditError(ValueError):
    """An edit that this generator cannot make, of any image; the message says what it can."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What to ask for, in one of three ways: variables, words, or another image's pathology.

    Attributes:
        do: Variable to value, together one intervention; what is not named stays as it is. A finding such as
            ``finding.edema`` is set to 0 or 1, an attribute such as ``sex`` to one of its levels, by name
            (``male``) or by code, a continuous one such as ``age`` to a number in its unit.
        prompt: What the image should show, in words.
        severity: Goes with findings in ``do``: how marked those that are set to 1 should be.
        anatomy_only: Goes with ``prompt``: of the image nothing but its anatomy is kept, so that what a model
            else takes over of a patient's picture is drawn anew.
    """

    do: Mapping[str, float | str] = field(default_factory=dict)
    prompt: str = ""
    severity: Severity = ""
    anatomy_only: bool = False

    def __post_init__(self) -> None:
        if self.do and self.prompt:
            raise EditError("An edit is by variables (do) or by words (prompt), not by both.")
        if self.anatomy_only and not self.prompt:
            raise EditError("Images from text alone need words that say what they show.")
        if self.severity not in get_args(Severity):
            raise EditError(f"severity = {self.severity!r} is none of: mild, moderate, severe.")
        for name, value in self.do.items():
            if name.startswith(PREFIX) and value not in (0.0, 1.0):
                raise EditError(f"do {name}={value}: findings can be set to 0 or 1, such as finding.edema=1.")
            if ATTRIBUTES.get(name) == "continuous":
                if isinstance(value, str) or not math.isfinite(value):
                    raise EditError(f"do {name}={value}: {name} can be set to a number, such as {name}=60.")
            elif not isinstance(value, str) and not (value >= 0 and float(value).is_integer()):
                raise EditError(
                    f"do {name}={value:g}: attributes can be set to a level, by name or by code (0, 1, …), "
                    "such as sex=male; findings are named finding.<name>."
                )
        shown = [name for name, value in self.findings.items() if value == 1]
        nothing = self.findings.get("no_finding")
        if nothing == 1 and len(shown) > 1:
            raise EditError(f"do {' and '.join(sorted(shown))}: an image cannot show no finding and another.")
        if nothing == 0 and not shown:
            raise EditError(f"do {PREFIX}no_finding=0 does not say what to show: set a finding to 1.")
        if self.severity and not shown:
            raise EditError(
                "severity goes with a finding that do sets to 1; write it into the prompt, or leave it out."
            )

    @property
    def findings(self) -> dict[str, float]:
        """Finding, without prefix, to 0 or 1."""
        return {n.removeprefix(PREFIX): float(v) for n, v in self.do.items() if n.startswith(PREFIX)}

    def codes(
        self,
        levels: Mapping[str, Sequence[str]],
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> dict[str, float]:
        """Attribute to the code of the level, or to the number, that it is set to.

        Args:
            levels: Attributes that can be set, each with its levels in the order of their codes.
            ranges: Continuous attributes that can be set, each with the least and the most, in its unit.

        Raises:
            EditError: If an attribute or a level is none of these, or a number outside, with what there is.
        """
        found: dict[str, float] = {}
        for name, value in self.do.items():
            if name.startswith(PREFIX):
                continue
            if ranges and name in ranges:
                low, high = ranges[name]
                if isinstance(value, str) or not low <= value <= high:
                    raise EditError(f"do {name}={value}: {name} can be set to {low:g} to {high:g}.")
                found[name] = float(value)
                continue
            if name not in levels:
                there = ", ".join([*levels, *(ranges or ())]) or "none (findings are named finding.<name>)"
                raise EditError(f"do {name}: no such attribute. Attributes that can be set: {there}.")
            named = [str(level) for level in levels[name]]
            code = named.index(value) if value in named else value
            if isinstance(code, str) or not 0 <= code < len(named):
                options = ", ".join(f"{level} ({index})" for index, level in enumerate(named))
                raise EditError(f"do {name}={value}: no such level. There are: {options}.")
            found[name] = int(code)
        return found

    def require(
        self,
        finding_names: Sequence[str],
        levels: Mapping[str, Sequence[str]] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> Edit:
        """The edit itself, if it names only findings, attributes and levels that there are.

        Raises:
            EditError: With the names that there are.
        """
        for name in self.findings:
            if name not in finding_names:
                there = ", ".join(finding_names) or "none that can be set"
                raise EditError(f"do {PREFIX}{name}: no such finding. There are: {there}.")
        self.codes(levels or {}, ranges)
        return self


@dataclass(frozen=True, kw_only=True)
class Abduction:
    """What a generator keeps of B observed images: all that it needs to predict their counterfactuals.

    Attributes:
        patients: What is known of the images, without their pixels.
        tensors: Name to ``[B, ...]``: the noise and whatever else the generator read from the pixels.
    """

    patients: Batch
    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.patients)

    @classmethod
    def join(cls, parts: Sequence[Abduction]) -> Abduction:
        """One abduction of all rows of ``parts``, at least one, by the same generator.

        Raises:
            ValueError: If they keep different things, as for an only edit and for any.
        """
        kept = [set(part.tensors) for part in parts]
        if any(names != kept[0] for names in kept):
            raise ValueError(f"Abductions that keep different things cannot be joined: {kept}.")
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        return cls(patients=Batch.join([part.patients for part in parts]), tensors=tensors)

    def to(self, device: torch.device | str) -> Abduction:
        """The same on ``device``."""
        tensors = {name: value.to(device, non_blocking=True) for name, value in self.tensors.items()}
        return Abduction(patients=self.patients.to(device), tensors=tensors)

    def select(self, index: Tensor) -> Abduction:
        """The rows ``index`` (a long tensor ``[b]``)."""
        tensors = {name: value[index.to(value.device)] for name, value in self.tensors.items()}
        return Abduction(patients=self.patients.select(index), tensors=tensors)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors [bytes]."""
        return sum(value.nbytes for value in self.tensors.values())


class Generator(ABC):
    """Makes counterfactuals of given images: abducts what is kept of them, predicts under an edit.

    Attributes:
        image_size: Edge of its images [px].
        finding_names: Findings that an edit may set; empty where it sets none.
        levels: Attributes that an edit may set, each with its levels in the order of their codes; empty where
            it sets none.
        ranges: Continuous attributes that an edit may set, each with the least and the most, in its unit;
            empty where it sets none.
        seeded: Whether another seed makes another image; if not, several samples of an image are one.
        prompted: Whether an edit may be in words.
    """

    image_size: int
    finding_names: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, tuple[float, float]]
    seeded: bool
    prompted: bool = False

    def edit(self, batch: Batch, edit: Edit, *, seeds: Tensor, donor: Batch | None = None) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]`` in [-1, 1]: `predict` of `abduct`.

        Args:
            batch: The patients. Several rows may be of one image, for several samples.
            edit: What to ask for.
            seeds: ``[B]`` long; the same seed, edit and image give the same counterfactual, whatever is
                beside it in the batch.
            donor: Whose pathology each row takes; the edit then sets and says nothing.

        Raises:
            EditError: If this generator cannot make such edits at all.
            NoMatchError: If it cannot make this one of some image of the batch.
        """
        given = None if donor is None else self.abduct(donor, Edit())
        return self.predict(self.abduct(batch, edit), [edit] * len(batch), seeds=seeds, donor=given)

    @abstractmethod
    def abduct(self, batch: Batch, edit: Edit | None = None) -> Abduction:
        """What is kept of images; it depends on no seed.

        Args:
            batch: The patients.
            edit: The only edit that will be asked for: what it does not read may be left out. By default
                everything is kept that any edit reads.
        """

    @abstractmethod
    def predict(
        self,
        abduction: Abduction,
        edits: Sequence[Edit],
        *,
        seeds: Tensor,
        donor: Abduction | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Counterfactuals ``[B, 1, H, W]`` in [-1, 1] of what was abducted.

        Args:
            abduction: By this generator.
            edits: What to ask for, one for each row.
            seeds: As in `edit`.
            donor: Whose pathology each row takes, as in `edit`.
            on_step: Told of the sampler's steps and the images by then, where the generator samples.

        Raises:
            EditError: As in `edit`.
            NoMatchError: As in `edit`.
        """

    def sampling(self, *, steps: int | None, guidance: float | None) -> Generator:
        """This generator with another sampler; weights are shared.

        Args:
            steps: Of the sampler; ``None`` leaves them.
            guidance: Scale of guidance; ``None`` leaves it.

        Raises:
            EditError: If it does not sample, or its sampler refuses them.
        """
        if steps is not None or guidance is not None:
            raise EditError("This generator does not sample: leave out steps and guidance.")
        return self


def by_edit(edits: Sequence[Edit]) -> list[tuple[Edit, Tensor]]:
    """Each different edit with the rows (a long tensor) that ask for it."""
    found: list[tuple[Edit, list[int]]] = []
    for row, edit in enumerate(edits):
        rows = next((rows for other, rows in found if other == edit), None)
        if rows is None:
            found.append((edit, [row]))
        else:
            rows.append(row)
    return [(edit, torch.tensor(rows)) for edit, rows in found]


def generation_device() -> torch.device:
    """Where generators compute: the first GPU that this process may use, else the CPU.

    A Ray worker sees the GPUs that it asked for and no others.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def image_seed(seed: int, image_id: str, sample: int = 0) -> int:
    """Seed of one image, 0 to 2^63 - 1: it depends on nothing but its own study and sample."""
    digest = hashlib.sha256(f"{seed}\0{image_id}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def edited_findings(batch: Batch, edit: Edit) -> Tensor:
    """The findings that ``batch`` shows after ``edit.do``, ``[B, F]`` in {0, 1}, NaN where not known.

    Setting a finding clears "no finding", and removing the last one sets it; rows that the edit does not
    change keep all their labels.
    """
    findings = batch.findings.where(batch.finding_mask, torch.nan).clone()
    names = batch.finding_names
    changed = torch.zeros(len(batch), dtype=torch.bool, device=findings.device)
    for name, value in edit.findings.items():
        column = names.index(name)
        changed |= findings[:, column] != value
        findings[:, column] = value
    if "no_finding" in names and "no_finding" not in edit.findings:
        others = [column for column, name in enumerate(names) if name not in _NO_DISEASE]
        shown = (findings[:, others] == 1).any(dim=1)
        clear = (findings[:, others] == 0).all(dim=1)
        derived = torch.where(shown, 0.0, torch.where(clear, 1.0, torch.nan)).to(findings)
        position = names.index("no_finding")
        findings[:, position] = torch.where(changed, derived, findings[:, position])
    return findings


def shows_already(
    batch: Batch,
    edit: Edit,
    levels: Mapping[str, Sequence[str]],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Tensor:
    """Rows ``[B]`` bool that show all that ``edit`` sets by variables: nothing of them is to change.

    Args:
        batch: The patients.
        edit: What is asked for.
        levels: Attributes that can be set, as in `Generator`.
        ranges: Continuous ones.
    """
    if edit.prompt or edit.severity or not edit.do:
        return torch.zeros(len(batch), dtype=torch.bool)
    target = edited_findings(batch, edit)
    known = batch.findings.where(batch.finding_mask, torch.nan)
    shown = ~((target != known) & ~target.isnan()).any(dim=1)
    for name, code in edit.codes(levels, ranges).items():
        shown &= batch.attributes[name] == code
    return shown.cpu()


def parents_of_findings(batch: Batch, findings: Tensor) -> Values:
    """What mechanisms read: ``finding.<name>`` of ``findings`` ``[B, F]``, and the attributes."""
    named = {f"{PREFIX}{name}": findings[:, column] for column, name in enumerate(batch.finding_names)}
    return {**named, **batch.attributes}
