"""Published text models from local folders: tiny ones, saved as the real ones are."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest
import torch

from counterray.config import ConfigError
from counterray.nn.text_backends import OpenClipTextEncoder, TransformersTextEncoder

transformers = pytest.importorskip("transformers", reason="published text models need transformers")

WORDS = ["pleural", "effusion", "cardiomegaly", "left", "moderate", "no", "finding", "."]
TEXTS = ["moderate left pleural effusion .", "", "cardiomegaly .", "moderate left pleural effusion ."]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONTEXT = 8


def bert_tokenizer(folder: Path):
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*marks, *WORDS]))
    return transformers.BertTokenizerFast(str(folder / "vocab.txt"))


def gpt_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.WordLevel({word: code for code, word in enumerate(["<end>", *WORDS])}, unk_token="<end>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def save(kind: str, folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = gpt_tokenizer() if kind == "gpt2" else bert_tokenizer(folder)
    size = len(tokenizer)
    if kind == "bert":
        model = transformers.BertModel(
            transformers.BertConfig(vocab_size=size, max_position_embeddings=32, **SIZES)
        )
    elif kind == "clip_text":
        model = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(vocab_size=size, max_position_embeddings=32, eos_token_id=3, **SIZES)
        )
    elif kind == "clip":
        model = transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={"vocab_size": size, "max_position_embeddings": 32, "eos_token_id": 3, **SIZES},
                vision_config={"image_size": 8, "patch_size": 4, **SIZES},
            )
        )
    elif kind == "t5":
        model = transformers.T5Model(
            transformers.T5Config(
                vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
            )
        )
    else:
        model = transformers.GPT2Model(
            transformers.GPT2Config(vocab_size=size, n_positions=32, n_embd=16, n_layer=2, n_head=2)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*args, **named):
        raise AssertionError("a local folder needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("kind", ["bert", "clip_text", "clip", "t5", "gpt2"])
def test_a_local_model_keeps_the_contract(kind, tmp_path, no_network):
    encoder = TransformersTextEncoder(save(kind, tmp_path), context=CONTEXT)
    encoder.train()
    found = encoder.encode(TEXTS)
    assert found.states.shape == (4, CONTEXT, 16)
    assert (encoder.width, encoder.context) == (16, CONTEXT)
    assert found.states.dtype == torch.float32
    assert found.present.any(dim=1).all(), "the null prompt has a state too"
    assert found.present.sum(dim=1)[0] > found.present.sum(dim=1)[2]
    assert torch.equal(found.states[0], found.states[3])
    assert torch.equal(encoder.encode(TEXTS).states, found.states), "no dropout, even in training"
    alone = encoder.encode(TEXTS[:1])
    assert torch.allclose(alone.states[0], found.states[0], atol=1e-6), "whatever stands beside it"
    assert not torch.allclose(found.states[0][found.present[0]][:2], found.states[2][:2])
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_states_are_the_model_s_own(tmp_path):
    folder = save("bert", tmp_path)
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS[:1], return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state
    found = TransformersTextEncoder(folder, context=CONTEXT).encode(TEXTS[:1])
    assert torch.allclose(found.states[:, : expected.shape[1]][:, :CONTEXT], expected[:, :CONTEXT], atol=1e-5)


def test_a_long_text_is_cut(tmp_path):
    found = TransformersTextEncoder(save("bert", tmp_path), context=4).encode([" ".join(WORDS)])
    assert found.states.shape == (1, 4, 16)
    assert found.present.all()


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        TransformersTextEncoder(tmp_path / "absent")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="holds no text model with its tokenizer"):
        TransformersTextEncoder(tmp_path)


def test_more_context_than_the_model_has_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"context = 33, but .* reads 32"):
        TransformersTextEncoder(save("bert", tmp_path), context=33)


def open_clip_works() -> bool:
    if importlib.util.find_spec("open_clip") is None:
        return False
    try:
        import open_clip  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def save_open_clip(folder: Path, language: Path) -> None:
    """A BiomedCLIP of toy size: its config's form, a BERT that is named by the hub, weights in one file."""
    import open_clip

    save("bert", language)
    bert_tokenizer(folder).save_pretrained(folder)
    model = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {
            "hf_model_name": str(language),
            "hf_tokenizer_name": str(language),
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": CONTEXT,
        },
    }
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.manual_seed(1)
    weights = open_clip.create_model(f"local-dir:{folder}").state_dict()
    torch.save(weights, folder / "open_clip_pytorch_model.bin")
    model["text_cfg"]["hf_model_name"] = model["text_cfg"]["hf_tokenizer_name"] = "nobody/at-the-hub"
    path.write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))


@pytest.mark.skipif(not open_clip_works(), reason="open_clip of the extra hub cannot be imported")
def test_an_open_clip_model_from_local_folders(tmp_path, no_network):
    folder, language = tmp_path / "clip", tmp_path / "bert"
    save_open_clip(folder, language)
    before = (folder / "open_clip_config.json").read_text()
    encoder = OpenClipTextEncoder(folder, language_model=language)
    found = encoder.encode(TEXTS)
    assert found.states.shape == (4, CONTEXT, 16)
    weights = torch.load(folder / "open_clip_pytorch_model.bin")
    stored = weights["text.transformer.embeddings.word_embeddings.weight"]
    assert torch.equal(encoder.network.embeddings.word_embeddings.weight, stored), "the folder's own weights"
    assert (folder / "open_clip_config.json").read_text() == before
    with pytest.raises(ConfigError, match="context = 9"):
        OpenClipTextEncoder(folder, language_model=language, context=9)


@pytest.mark.skipif(open_clip_works(), reason="open_clip is installed")
def test_without_open_clip_the_error_names_the_extra(tmp_path):
    with pytest.raises(ConfigError, match=r"open_clip.*counterray\[hub\]"):
        OpenClipTextEncoder(tmp_path, language_model=tmp_path)
