"""The language-model refiner against an existing engine: ``transformers serve`` with two tiny models."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from counterray.reports.llm import Endpoint, LlmConfig, LlmRefiner
from counterray.reports.rules import RulesRefiner
from counterray.storage import resolve

transformers = pytest.importorskip("transformers", reason="the engine is an extra")
pytest.importorskip("accelerate", reason="transformers serve needs accelerate")
pytest.importorskip("openai", reason="the llm refiner is an extra")

pytestmark = pytest.mark.slow

REPORTS = ["There is a large pneumothorax on the right.", "The heart is enlarged."]
ANSWER = json.dumps(
    {
        "mentions": [
            {
                "finding": "pneumothorax",
                "location": "right",
                "severity": "severe",
                "negated": False,
                "uncertain": False,
            }
        ]
    }
)
TURN, END = "<|assistant|>", "</s>"


def save_model(folder: Path, *, says_answer: bool) -> Path:
    """A one-layer causal language model with its tokenizer.

    With random weights it babbles. For an answer its layers are silent, so that the next token depends on the
    last one alone, and its head leads from the assistant's turn to the answer, one token, and to the end.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = {word: code for code, word in enumerate(["[UNK]", "heart", "lungs", "pneumothorax", "is"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([TURN, END])
    tokenizer.add_tokens([AddedToken(ANSWER, normalized=False)])
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}" + TURN
    wrapped.save_pretrained(folder)
    size = len(wrapped)
    assert size == 8
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    if says_answer:
        turn, end, answer = wrapped.convert_tokens_to_ids([TURN, END, ANSWER])
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(size))
            for silent in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
                silent.weight.zero_()
            model.lm_head.weight.zero_()
            model.lm_head.weight[answer, turn] = model.lm_head.weight[end, answer] = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Iterator[str]:
    """Address of a running ``transformers serve``, which loads the models that requests name by folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = Path(sys.executable).with_name("transformers")
    log = (tmp_path_factory.mktemp("engine") / "log").open("w+")
    process = subprocess.Popen(
        [str(command), "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                log.seek(0)
                assert process.poll() is None, log.read()[-3000:]
                assert time.monotonic() < until, log.read()[-3000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def test_an_engine_s_right_answer_is_taken(engine, tmp_path):
    model = save_model(tmp_path / "model", says_answer=True)
    refiner = LlmRefiner(LlmConfig(), Endpoint(engine, str(model)), resolve(tmp_path / "cache"))
    refined = refiner.refine(REPORTS)
    assert [one.prompt for one in refined] == ["Severe right pneumothorax."] * 2
    assert refiner.tally == {}
    again = LlmRefiner(LlmConfig(), Endpoint(engine, str(model)), resolve(tmp_path / "cache"))
    assert again.refine(REPORTS) == refined
    assert again.tally == {"cached": 2}


def test_an_engine_that_babbles_is_replaced_by_the_rules(engine, tmp_path):
    model = save_model(tmp_path / "model", says_answer=False)
    config = LlmConfig(max_tokens=32)
    refiner = LlmRefiner(config, Endpoint(engine, str(model)), resolve(tmp_path / "cache"))
    assert refiner.refine(REPORTS) == RulesRefiner().refine(REPORTS)
    assert sum(refiner.tally.values()) == 2
    assert set(refiner.tally) <= {"fell_back.invalid", "fell_back.cut_off"}
