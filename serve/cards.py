"""What models can do, read from their bundles' manifests without loading a network."""

from __future__ import annotations

from collections.abc import Sequence

from counterray.bundle import Bundle
from counterray.models.generator import PREFIX
from serve.schemas import FindingLevels, ModelCard
from serve.settings import ModelSettings


def card_of(name: str, bundle: Bundle, settings: ModelSettings, *, judges: Sequence[str]) -> ModelCard:
    """A model's card, not loaded.

    Args:
        name: What requests call it.
        bundle: The generator's.
        settings: Its settings.
        judges: Labels of the judges that score its images.
    """
    config = bundle.metadata["config"]
    sampler = {**config.get("sampler", {}), **settings.generator.get("sampler", {})}
    abduction = {**config.get("abduction", {}), **settings.generator.get("abduction", {})}
    levels = bundle.metadata.get("levels", {})
    findings = () if levels else tuple(bundle.metadata.get("finding_names", ()))
    prompted = bundle.stage == "pathology_ldm"
    return ModelCard(
        name=name,
        stage=bundle.stage,
        checksum=bundle.checksum,
        image_size=int(bundle.metadata["image_size"]),
        variables=(
            *(FindingLevels(name=f"{PREFIX}{finding}", levels=("absent", "present")) for finding in findings),
            *(FindingLevels(name=attribute, levels=tuple(named)) for attribute, named in levels.items()),
        ),
        prompts=prompted,
        severity=prompted,
        seeded=bool(sampler) and abduction.get("noise", "fresh") == "fresh",
        steps=sampler.get("steps"),
        guidance=sampler.get("guidance_scale"),
        judges=tuple(judges),
        loaded=False,
    )
