"""The phantom's structural causal model: which variables there are, and how each follows from its parents.

    patient_seed -> site       noise_seed -> scanner, severities, sides, zones
    group -> site -> scanner   age, group -> severity of each finding
    sex, age -> lung and heart areas <- severity of cardiomegaly
    everything -> image

Sex, age and group are roots. The seeds are exogenous: they name the noise, so it can be abducted exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from counterray.causal.graph import CausalGraph, Variable
from counterray.causal.mechanism import Mechanism, Values
from counterray.data.phantom.mechanisms import SeededCategory, SeededSeverity, SteppedArea
from counterray.data.phantom.randomness import SEED_LIMIT

VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "sex": ("female", "male"),
    "group": ("a", "b", "c"),
    "site": ("harbor", "hill", "valley"),
    "scanner": ("analog", "compact", "digital", "mobile"),
    "view": ("PA",),
}
"""Values of the categorical attributes, in the order of their codes."""

SIDES = ("left", "right", "both")
"""Codes of ``side.<finding>``: the patient's left lung is on the right of the image."""

ZONES = ("upper", "middle", "lower")
"""Codes of ``zone.<finding>``."""


@dataclass(frozen=True)
class FindingLaw:
    """How often a finding occurs, and where.

    Attributes:
        prevalence: Probability at age 55 under a group risk of 1.
        age_slope: Relative change of the probability for 40 more years.
        group_risk: Factor of the probability for each group.
        sides: Probability of each of `SIDES`, or ``None`` where the finding has no side.
        zones: Probability of each of `ZONES`, or ``None`` where the finding has no zone.
    """

    prevalence: float
    age_slope: float
    group_risk: tuple[float, float, float]
    sides: tuple[float, float, float] | None = None
    zones: tuple[float, float, float] | None = None


FINDING_LAWS: Mapping[str, FindingLaw] = {
    "cardiomegaly": FindingLaw(0.20, 0.8, (0.85, 1.40, 0.90)),
    "pleural_effusion": FindingLaw(0.24, 0.7, (0.85, 1.35, 1.00), sides=(0.36, 0.40, 0.24)),
    "consolidation": FindingLaw(
        0.10, 0.2, (0.90, 1.10, 1.35), sides=(0.40, 0.48, 0.12), zones=(0.25, 0.30, 0.45)
    ),
    "atelectasis": FindingLaw(
        0.15, 0.4, (1.10, 0.80, 0.90), sides=(0.42, 0.42, 0.16), zones=(0.15, 0.30, 0.55)
    ),
    "edema": FindingLaw(0.06, 0.9, (0.80, 1.50, 0.90)),
    "pneumothorax": FindingLaw(0.015, -0.6, (1.10, 0.70, 1.20), sides=(0.46, 0.54, 0.0)),
}
"""The six findings; prevalences are long-tailed on purpose, with the rarest under 2 %."""

FINDING_NAMES = tuple(FINDING_LAWS)
"""Names of the phantom's findings, in the order of `make_batch`'s labels."""


@dataclass(frozen=True)
class AreaLaw:
    """Area of a region as a fraction of the image.

    Attributes:
        mean: Mean over the sexes at age 55, without cardiomegaly.
        male: Relative difference of males from the mean; females differ by as much the other way.
        aging: Relative change for 40 more years.
        sd: Relative standard deviation of the noise.
        cardiomegaly: Fraction added at severity 1.
    """

    mean: float
    male: float
    aging: float
    sd: float
    cardiomegaly: float = 0.0


AREA_LAWS: Mapping[str, AreaLaw] = {
    "left_lung_upper": AreaLaw(0.064, 0.06, -0.05, 0.06),
    "left_lung_lower": AreaLaw(0.062, 0.07, -0.06, 0.06),
    "right_lung_upper": AreaLaw(0.068, 0.06, -0.05, 0.06),
    "right_lung_lower": AreaLaw(0.063, 0.07, -0.06, 0.06),
    "heart": AreaLaw(0.070, 0.05, 0.10, 0.07, cardiomegaly=0.055),
}
"""Regions whose areas are variables; lungs are split at half the image's height."""

REGIONS = tuple(AREA_LAWS)

GROUP_SHARES = (0.60, 0.28, 0.12)
_SITE_BY_GROUP = ((0.60, 0.25, 0.15), (0.25, 0.60, 0.15), (0.20, 0.30, 0.50))
_SCANNER_BY_SITE = ((0.06, 0.20, 0.72, 0.02), (0.10, 0.36, 0.50, 0.04), (0.16, 0.22, 0.60, 0.02))


def finding_probability(finding: str, parents: Values) -> Tensor:
    """Probability of a finding given ``age`` and ``group``, ``[B]``."""
    law = FINDING_LAWS[finding]
    risk = torch.tensor(law.group_risk, dtype=torch.float64)[parents["group"].long()]
    aging = (1.0 + law.age_slope * (parents["age"].double() - 55.0) / 40.0).clamp(0.15, 2.5)
    return (law.prevalence * aging * risk).clamp(0.0, 0.9)


def mean_area(region: str, parents: Values) -> Tensor:
    """Mean fraction of the image that a region takes given ``sex``, ``age`` (and cardiomegaly), ``[B]``."""
    law = AREA_LAWS[region]
    sex = 2.0 * parents["sex"].double() - 1.0
    decades = (parents["age"].double().clamp(0.0, 100.0) - 55.0) / 40.0
    area = law.mean * (1.0 + law.male * sex + law.aging * decades)
    if law.cardiomegaly:
        area = area + law.cardiomegaly * parents["severity.cardiomegaly"].double()
    return area


def build_graph(image_size: int) -> CausalGraph:
    """The causal graph; areas are in px^2 of an image with edge ``image_size``."""
    variables = [
        Variable("patient_seed", "continuous", mean=SEED_LIMIT / 2, sd=SEED_LIMIT / 12**0.5),
        Variable("noise_seed", "continuous", mean=SEED_LIMIT / 2, sd=SEED_LIMIT / 12**0.5),
        Variable("sex", "binary"),
        Variable("age", "continuous", mean=55.0, sd=16.0),
        Variable("group", "categorical", size=3),
        Variable("site", "categorical", size=3),
        Variable("scanner", "categorical", size=4),
    ]
    parents: dict[str, tuple[str, ...]] = {
        "site": ("patient_seed", "group"),
        "scanner": ("noise_seed", "site"),
    }
    for name, law in FINDING_LAWS.items():
        variables.append(Variable(f"severity.{name}", "continuous", mean=0.1, sd=0.25))
        parents[f"severity.{name}"] = ("noise_seed", "age", "group")
        for part, shares in (("side", law.sides), ("zone", law.zones)):
            if shares is not None:
                variables.append(Variable(f"{part}.{name}", "categorical", size=3))
                parents[f"{part}.{name}"] = ("noise_seed",)
    for region, area in AREA_LAWS.items():
        pixels = area.mean * image_size**2
        variables.append(Variable(f"area.{region}", "continuous", mean=pixels, sd=0.1 * pixels))
        heart = ("severity.cardiomegaly",) if area.cardiomegaly else ()
        parents[f"area.{region}"] = ("sex", "age", *heart)
    parents["image"] = tuple(variable.name for variable in variables if variable.name != "site")
    return CausalGraph((*variables, Variable("image", "image")), parents)


def attribute_mechanisms(image_size: int) -> dict[str, Mechanism]:
    """Mechanism of each variable that has parents, except the image."""
    mechanisms: dict[str, Mechanism] = {
        "site": SeededCategory("site", _SITE_BY_GROUP, given="group", seed="patient_seed"),
        "scanner": SeededCategory("scanner", _SCANNER_BY_SITE, given="site", seed="noise_seed"),
    }
    for name, law in FINDING_LAWS.items():
        mechanisms[f"severity.{name}"] = SeededSeverity(name, finding_probability)
        for part, shares in (("side", law.sides), ("zone", law.zones)):
            if shares is not None:
                mechanisms[f"{part}.{name}"] = SeededCategory(
                    f"{part}.{name}", (shares,), given=None, seed="noise_seed"
                )
    for region, area in AREA_LAWS.items():
        mechanisms[f"area.{region}"] = SteppedArea(
            region, mean_area, sd=area.mean * area.sd, pixels=image_size**2
        )
    return mechanisms


def pathology_variables() -> tuple[str, ...]:
    """Names of all severities, sides and zones: what is exchanged when two patients swap pathology."""
    names = []
    for name, law in FINDING_LAWS.items():
        names.append(f"severity.{name}")
        names += [f"side.{name}"] * (law.sides is not None) + [f"zone.{name}"] * (law.zones is not None)
    return tuple(names)


def swap_pathology(donor: Values) -> dict[str, Tensor]:
    """The intervention that gives a patient the pathology of a donor.

    Args:
        donor: Values of the donors, ``[B]`` each.

    Returns:
        An intervention for `SCM.counterfactual`.
    """
    return {name: donor[name] for name in pathology_variables()}
