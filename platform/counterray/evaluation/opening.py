"""From what is stored to what is evaluated: editors out of bundles, exact counterfactuals out of data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from counterray.bundle import Bundle
from counterray.config import Config, ConfigError, validate
from counterray.data.dataset import DatasetManifest
from counterray.data.phantom.render import exact_scm
from counterray.data.phantom.scm import VOCABULARY, swap_pathology
from counterray.data.phantom.studies import parents_of
from counterray.data.study import Batch
from counterray.evaluation.counterfactuals import Editor, editor, swap_editor
from counterray.evaluation.generator import Exact
from counterray.evaluation.metric import UnscorableError
from counterray.models.generator import Generator, generation_device
from counterray.models.gsvae.generator import GSVAEGenerator
from counterray.models.gsvae.mechanism import GSVAEMechanism
from counterray.models.gsvae.stages import GSVAEConfig
from counterray.models.gsvae.stages import load as load_gsvae
from counterray.models.mine_ldm.generator import AttributeGenerator, open_conditional_vae, open_ldm
from counterray.models.mine_ldm.generator import GenerationConfig as AttributeGeneration
from counterray.models.mine_ldm.mechanism import AttributeMechanism
from counterray.models.mine_ldm.model import AttributeModel
from counterray.models.pathology_ldm.editing import text_editor
from counterray.models.pathology_ldm.generator import (
    GenerationConfig,
    PathologyLDMGenerator,
    open_model,
)
from counterray.models.pathology_ldm.prompts import PromptSource
from counterray.models.pathology_ldm.stages import prompt_source
from counterray.training.stage import Stage

GenerationSettings = Mapping[str, Any]
"""How a generator generates: plain values of its stage's own configuration, such as `GenerationConfig`."""


@dataclass(frozen=True)
class _Opener:
    """How the bundles of one stage are opened.

    Attributes:
        editor: Bundle, plain settings and seed of the noise to an editor.
        generator: Bundle, batches of the training split and plain settings to a generator.
        words: Where the words come from that the editor reads, by bundle and settings; ``None`` where it
            reads the donor's image.
        settings: What the settings have to be; without, there are none.
    """

    editor: Callable[[Bundle, GenerationSettings, int], Editor]
    generator: Callable[[Bundle, Iterable[Batch], GenerationSettings], Generator]
    words: Callable[[Bundle, GenerationSettings], PromptSource] | None = None
    settings: type[Config] = Config


def _gsvae_editor(bundle: Bundle, settings: GenerationSettings, seed: int) -> Editor:
    _refuse(bundle, settings)
    metadata = bundle.metadata
    return swap_editor(
        GSVAEMechanism(
            load_gsvae(bundle),
            GSVAEConfig.model_validate(metadata["config"]),
            finding_names=metadata["finding_names"],
        )
    )


def _gsvae_generator(bundle: Bundle, training: Iterable[Batch], settings: GenerationSettings) -> Generator:
    _refuse(bundle, settings)
    return GSVAEGenerator(bundle, training)


def _refuse(bundle: Bundle, settings: GenerationSettings) -> None:
    if settings:
        raise ConfigError(f"A {bundle.stage} generator has no settings; leave out {', '.join(settings)}.")


def _pathology_ldm_editor(bundle: Bundle, settings: GenerationSettings, seed: int) -> Editor:
    config = validate(GenerationConfig, settings)
    if config.optimise is not None:
        raise ConfigError(
            "optimise goes with findings that are asked for by name, not with a donor's words: use generate, "
            "or leave it out."
        )
    source = config.prompts or prompt_source(bundle)
    return text_editor(open_model(bundle, config), source=source, seed=seed)


def _pathology_ldm_generator(
    bundle: Bundle, training: Iterable[Batch], settings: GenerationSettings
) -> Generator:
    return PathologyLDMGenerator(bundle, training, validate(GenerationConfig, settings))


def _pathology_ldm_words(bundle: Bundle, settings: GenerationSettings) -> PromptSource:
    return validate(GenerationConfig, settings).prompts or prompt_source(bundle)


def _attribute_model(bundle: Bundle, settings: GenerationSettings) -> AttributeModel:
    if bundle.stage == "mine_vae":
        _refuse(bundle, settings)
        return open_conditional_vae(bundle).to(generation_device())
    return open_ldm(bundle, validate(AttributeGeneration, settings)).to(generation_device())


def _attribute_editor(bundle: Bundle, settings: GenerationSettings, seed: int) -> Editor:
    mechanism = AttributeMechanism(_attribute_model(bundle, settings), seed=seed)
    return editor(mechanism, lambda batch: batch.attributes)


def _attribute_generator(
    bundle: Bundle, training: Iterable[Batch], settings: GenerationSettings
) -> Generator:
    return AttributeGenerator(_attribute_model(bundle, settings))


_OPENERS: Mapping[str, _Opener] = {
    "gsvae": _Opener(_gsvae_editor, _gsvae_generator),
    "pathology_ldm": _Opener(
        _pathology_ldm_editor, _pathology_ldm_generator, _pathology_ldm_words, GenerationConfig
    ),
    "mine_ldm": _Opener(_attribute_editor, _attribute_generator, settings=AttributeGeneration),
    "mine_vae": _Opener(_attribute_editor, _attribute_generator),
}


def require_settings(stage: Stage, settings: GenerationSettings) -> None:
    """Raises unless the generators of ``stage`` can take all of ``settings``, before there is one.

    What stands in the place of the stage's own settings has to go with the others of these.

    Raises:
        ConfigError: If a setting is unknown or refused.
    """
    checked = validate(_OPENERS[stage.name].settings if stage.name in _OPENERS else Config, settings)
    values = stage.config.model_dump()
    for name, value in checked.model_dump(exclude_none=True).items():
        if name in values:
            values[name] = {**values[name], **value} if isinstance(value, Mapping) else value
    validate(type(stage.config), values)


def open_editor(bundle: Bundle, settings: GenerationSettings | None = None, *, seed: int = 0) -> Editor:
    """The editor of a generator's bundle: this patient with that patient's pathology.

    Args:
        bundle: Of a stage that edits given images.
        settings: How it generates.
        seed: Of the noise, for an editor that draws.

    Raises:
        ConfigError: If a setting is unknown or refused.
        UnscorableError: If the bundle is no generator that edits a given image.
    """
    return _opener(bundle).editor(bundle, settings or {}, seed)


def word_source(bundle: Bundle, settings: GenerationSettings | None = None) -> PromptSource | None:
    """Where the words come from that the editor reads; ``None`` if it reads the donor's image.

    Raises:
        ConfigError: If a setting is unknown or refused.
        UnscorableError: If the bundle is no generator that edits a given image.
    """
    words = _opener(bundle).words
    return None if words is None else words(bundle, settings or {})


def open_generator(
    bundle: Bundle, training: Iterable[Batch] = (), settings: GenerationSettings | None = None
) -> Generator:
    """The generator of a bundle.

    Args:
        bundle: Of a stage that edits given images.
        training: Batches of the training split, read only by generators that take pathology from there.
        settings: How it generates.

    Raises:
        ConfigError: If a setting is unknown or refused.
        UnscorableError: If the bundle is no generator that edits a given image.
    """
    return _opener(bundle).generator(bundle, training, settings or {})


def _opener(bundle: Bundle) -> _Opener:
    if bundle.stage not in _OPENERS:
        raise UnscorableError(
            f"The bundle at {bundle.location.uri} was made by the stage {bundle.stage!r}, which edits no "
            f"images. Generators that do are: {', '.join(_OPENERS)}."
        )
    return _OPENERS[bundle.stage]


def attributes_set_by(bundle: Bundle) -> dict[str, tuple[str, ...]]:
    """Attributes that a generator's editor takes from the target, each with its levels; none where pathology.

    Raises:
        UnscorableError: If the bundle is no generator that edits a given image.
    """
    _opener(bundle)
    return {name: tuple(levels) for name, levels in bundle.metadata.get("levels", {}).items()}


def require_levels(levels: Mapping[str, Sequence[str]], vocabulary: Mapping[str, Sequence[str]]) -> None:
    """Refuses data whose codes mean other levels than a generator's.

    Raises:
        UnscorableError: With both.
    """
    for name, known in levels.items():
        there = vocabulary.get(name, ())
        if tuple(there) != tuple(known):
            raise UnscorableError(
                f"The generator knows the levels {', '.join(known)} of {name}; the data have "
                f"{', '.join(there) or 'none'}. Ingest data with the same levels in the same order."
            )


def exact_counterfactuals(manifest: DatasetManifest, attributes: Collection[str] = ()) -> Exact | None:
    """The exact counterfactuals of a dataset, ``None`` where its causal model is not known.

    They are known of the phantom: severity, side and zone of every finding are set to the donor's, or the
    named attributes are, and the phantom's own causal model abducts, propagates and renders.
    """
    if manifest.source != "phantom":
        return None
    vocabulary = {**VOCABULARY, **manifest.vocabulary}

    def exact(source: Batch, donor: Batch) -> Tensor:
        model = exact_scm(source.image.shape[-1])
        observed = {"image": source.image.cpu(), **parents_of(source, vocabulary)}
        theirs = parents_of(donor, vocabulary)
        do = {name: theirs[name] for name in attributes} or swap_pathology(theirs)
        return model.counterfactual(observed, do)["image"].to(source.image)

    return exact


def gather(batches: Iterable[Batch], *, limit: int | None = None) -> Batch:
    """One batch of all images of ``batches``, or of the first ``limit``.

    Raises:
        UnscorableError: If there is no image.
    """
    parts: list[Batch] = []
    rows = 0
    for batch in batches:
        parts.append(batch)
        rows += len(batch)
        if limit is not None and rows >= limit:
            break
    if not rows:
        raise UnscorableError("There is no image to evaluate; choose a split that has some.")

    whole = Batch.join(parts)
    return whole if limit is None or rows <= limit else whole.select(torch.arange(limit))
