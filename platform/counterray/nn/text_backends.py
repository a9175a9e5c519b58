"""Published text models behind the contract of `counterray.nn.text`, from local folders; no hub is asked."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from counterray.config import ConfigError
from counterray.nn.text import TextStates


class _FrozenTextEncoder(nn.Module):
    """A tokenizer and a network whose last hidden states are the texts' states; see `TextEncoder`.

    It stays in evaluation mode, so that dropout never changes a text's states.

    Args:
        tokenizer: A tokenizer of ``transformers``.
        network: Its text network.
        context: Tokens to which every text is padded or cut.
        width: Channels of a state.
    """

    def __init__(self, tokenizer: Any, network: nn.Module, *, context: int, width: int) -> None:
        super().__init__()
        self.context, self.width = context, width
        self.tokenizer, self.network = tokenizer, network
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> _FrozenTextEncoder:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> TextStates:
        """States ``[B, context, width]`` of ``texts`` in float32, on the network's device.

        Equal texts are computed once.
        """
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        device = next(self.network.parameters()).device
        codes, present = (part.to(device) for part in self._tokens(list(places)))
        states = self.network(input_ids=codes, attention_mask=present.long()).last_hidden_state
        rows = torch.tensor([places[text] for text in texts], device=device)
        return TextStates(states.float()[rows], present[rows])

    def _tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        found = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.context, return_tensors="pt"
        )
        present = found["attention_mask"].bool()
        # A tokenizer without marks of its own has no token for the null prompt: its first padding stands.
        present[:, 0] |= ~present.any(dim=1)
        return found["input_ids"], present


class TransformersTextEncoder(_FrozenTextEncoder):
    """Any text model of ``transformers`` (BERT, CLIP's text tower, T5's encoder, ...) from a local folder.

    Args:
        folder: A folder that ``save_pretrained`` of model and tokenizer wrote.
        context: Tokens to which every text is padded or cut.

    Raises:
        ConfigError: If ``transformers`` is not installed, the folder does not hold a model and its tokenizer,
            or the model reads fewer than ``context`` tokens.
    """

    def __init__(self, folder: str | Path, *, context: int = 77) -> None:
        transformers = _installed("transformers", "pip install transformers")
        place = _folder(folder, "config.json")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
            model = transformers.AutoModel.from_pretrained(place, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"The folder {place} holds no text model with its tokenizer that transformers "
                f"{transformers.__version__} can read ({type(error).__name__}). Save both there with "
                "save_pretrained."
            ) from error
        text = model.config.get_text_config()
        most = getattr(text, "max_position_embeddings", None) or context
        if context > most:
            raise ConfigError(f"context = {context}, but the model in {place} reads {most} tokens at most.")
        network = model.get_encoder() if model.config.is_encoder_decoder else model
        # A model of images and texts, such as CLIP's, has its text tower below.
        network = network.text_model if text is not model.config else network
        super().__init__(tokenizer, network, context=context, width=text.hidden_size)


class OpenClipTextEncoder(_FrozenTextEncoder):
    """The language model in an open_clip model such as BiomedCLIP, from local folders.

    open_clip asks the hub for ``text_cfg.hf_model_name`` even where the weights are local; a temporary copy
    of its config names a local folder instead. States are those before pooling and projection.

    Args:
        folder: ``open_clip_config.json``, the weights and the tokenizer's files, as BiomedCLIP publishes
            them.
        language_model: A folder with the ``config.json`` of the language model that ``hf_model_name`` names;
            its weights are in ``folder``.
        context: Tokens to which every text is padded or cut; the config's ``context_length`` where ``None``.

    Raises:
        ConfigError: If ``open_clip`` (of the extra ``hub``) is not installed, or a folder lacks a file.

    Reference: Zhang et al., "BiomedCLIP", 2023, https://arxiv.org/abs/2303.00915
    """

    def __init__(self, folder: str | Path, *, language_model: str | Path, context: int | None = None) -> None:
        open_clip = _installed("open_clip", "pip install 'counterray[hub]'")
        place, language = _folder(folder, "open_clip_config.json"), _folder(language_model, "config.json")
        settings = json.loads((place / "open_clip_config.json").read_text(encoding="utf-8"))
        text = settings.get("model_cfg", {}).get("text_cfg", {})
        if "hf_model_name" not in text:
            raise ConfigError(
                f"{place}/open_clip_config.json names no language model (text_cfg.hf_model_name): this "
                "encoder is for open_clip models with one, such as BiomedCLIP."
            )
        most = int(text.get("context_length", 77))
        if context is not None and context > most:
            raise ConfigError(f"context = {context}, but the model in {place} reads {most} tokens at most.")
        text |= {"hf_model_name": str(language), "hf_tokenizer_name": str(language)}
        with tempfile.TemporaryDirectory(prefix="counterray-") as scratch:
            for file in place.iterdir():
                if file.name != "open_clip_config.json":
                    (Path(scratch) / file.name).symlink_to(file)
            (Path(scratch) / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
            model = open_clip.create_model(f"local-dir:{scratch}")
            tokenizer = open_clip.get_tokenizer(f"local-dir:{scratch}").tokenizer
        network = model.text.transformer
        width = int(network.config.hidden_size)
        super().__init__(tokenizer, network, context=context or most, width=width)


def _installed(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        # RuntimeError: a torchvision that does not fit this torch, which open_clip imports.
        raise ConfigError(
            f"This text encoder needs the package {name}, which cannot be imported ({type(error).__name__}): "
            f"{remedy}."
        ) from error


def _folder(folder: str | Path, file: str) -> Path:
    place = Path(folder).expanduser().resolve()
    if not (place / file).is_file():
        raise ConfigError(f"{place} is no folder of a text model: it has no {file}. Give a local folder.")
    return place
