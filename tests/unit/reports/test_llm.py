"""The language-model refiner against a local endpoint: schema, cache, retries, limits and fallbacks."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from counterray.config import validate
from counterray.reports import llm
from counterray.reports.llm import Endpoint, LlmConfig, LlmRefiner, answer_schema, endpoint_from_environment
from counterray.reports.refine import Refined, RefineError
from counterray.reports.refiners import make_refiner
from counterray.reports.rules import RulesConfig, RulesRefiner
from counterray.storage import resolve
from tests.llm_server import KEY, MODEL, LlmServer, Reply, by_rules, conforms, serving

pytest.importorskip("openai", reason="the llm refiner is an extra")

REPORTS = [
    "INDICATION: Patient of Dr. Who.\nFINDINGS: Moderate left pleural effusion. No pneumothorax.",
    "Possible pneumonia in the right lower lobe.",
    "The lungs are clear.",
]
VALID = '{"mentions": []}'


@pytest.fixture
def server(monkeypatch) -> Iterator[LlmServer]:
    monkeypatch.setenv(llm.API_KEY, KEY)
    with serving() as state:
        yield state


@pytest.fixture
def make(server, tmp_path) -> Callable[..., LlmRefiner]:
    def make_one(model: str = MODEL, **settings) -> LlmRefiner:
        config = validate(LlmConfig, {"retries": 2, **settings})
        return LlmRefiner(config, Endpoint(server.url, model), resolve(tmp_path / "cache"))

    return make_one


def test_reports_are_refined_in_order_by_the_schema_s_answers(server, make):
    refiner = make()
    assert refiner.refine([*REPORTS, ""]) == [*RulesRefiner().refine(REPORTS), Refined()]
    assert refiner.tally == {}
    assert len(server.requests) == 3
    for request in server.requests:
        asked = request["response_format"]
        assert asked["type"] == "json_schema"
        assert asked["json_schema"]["strict"] is True
        assert asked["json_schema"]["schema"] == answer_schema()
        assert request["temperature"] == 0
        conforms(by_rules(request["messages"][-1]["content"], 1).content or "", request)


def test_only_the_describing_sections_are_sent(server, make):
    make().refine(REPORTS)
    assert "Who" not in json.dumps(server.requests)
    make().refine(["INDICATION: pneumonia?"])
    assert len(server.requests) == 3, "nothing describes the image, so nothing is asked"


def test_an_answer_is_asked_for_once(server, make, tmp_path):
    first = make()
    expected = first.refine([REPORTS[0], REPORTS[0]])
    assert len(server.requests) == 1
    again = make()
    assert again.refine([REPORTS[0], REPORTS[0]]) == expected
    assert again.tally == {"cached": 2}
    assert len(server.requests) == 1
    cached = list((tmp_path / "cache").rglob("*.json"))
    assert len(cached) == 1
    assert "effusion on" not in cached[0].read_text()


def test_another_model_prompt_or_text_is_another_answer(server, make, monkeypatch):
    refiner = make()
    names = {refiner._file("a"), refiner._file("b"), make("other")._file("a")}
    monkeypatch.setattr(llm, "PROMPT_VERSION", "other")
    assert len(names | {refiner._file("a")}) == 4


def test_a_damaged_cache_entry_is_asked_again(server, make, tmp_path):
    make().refine(REPORTS[:1])
    (entry,) = (tmp_path / "cache").rglob("*.json")
    entry.write_bytes(b"\xff{")
    assert make().refine(REPORTS[:1]) == RulesRefiner().refine(REPORTS[:1])
    assert len(server.requests) == 2


def test_the_cache_may_be_a_bucket(server, make_bucket, monkeypatch):
    monkeypatch.setenv(llm.API_KEY, KEY)
    place = resolve(f"{make_bucket()}/answers")
    for _ in range(2):
        refiner = LlmRefiner(LlmConfig(), Endpoint(server.url, MODEL), place)
        refiner.refine(REPORTS)
    assert refiner.tally == {"cached": 3}
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_fault_is_retried(server, make, status):
    server.answer = lambda text, attempt: Reply(status=status) if attempt < 3 else by_rules(text, attempt)
    refiner = make()
    assert refiner.refine(REPORTS[:1]) == RulesRefiner().refine(REPORTS[:1])
    assert refiner.tally == {}
    assert len(server.requests) == 3
    assert server.times[1] - server.times[0] > 0.3, "it backs off"
    assert server.times[2] - server.times[1] > server.times[1] - server.times[0], "and more each time"


def test_retry_after_is_honoured(server, make):
    slow_down = Reply(status=429, headers={"Retry-After": "2"})
    server.answer = lambda text, attempt: slow_down if attempt == 1 else by_rules(text, attempt)
    assert make().refine(REPORTS[:1]) == RulesRefiner().refine(REPORTS[:1])
    assert server.times[1] - server.times[0] >= 2


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (Reply(status=429, headers={"Retry-After": "0.1"}), "rate_limit"),
        (Reply(status=500, headers={"Retry-After": "0.1"}), "server_error"),
        (Reply(status=400), "refused"),
        (Reply(delay_seconds=0.6, content=VALID), "timeout"),
        (Reply("Sure! The report says"), "invalid"),
        (Reply('{"mentions": [{"finding": "edema"}]}'), "invalid"),
        (Reply(None), "invalid"),
        (Reply(body="<html>"), "invalid"),
        (Reply(body='{"choices": []}'), "invalid"),
        (Reply(body='{"choices": null}'), "invalid"),
        (Reply(body='{"choices": [null]}'), "invalid"),
        (Reply(body='{"choices": [{"finish_reason": "stop", "message": null}]}'), "invalid"),
        (Reply(body='{"choices": [{"finish_reason": "stop", "message": "ill"}]}'), "invalid"),
        (Reply(body='{"choices": [{"finish_reason": "stop", "message": {"content": 7}}]}'), "invalid"),
        (Reply(body="[]"), "invalid"),
        (Reply(VALID, finish_reason="length"), "cut_off"),
    ],
    ids=[
        "429",
        "500",
        "400",
        "slow",
        "prose",
        "half a mention",
        "null",
        "html",
        "no choice",
        "null for choices",
        "null for a choice",
        "null for a message",
        "text for a message",
        "a number for text",
        "a list",
        "cut off",
    ],
)
def test_what_cannot_be_answered_is_read_by_rules_and_counted(server, make, tmp_path, reply, cause):
    bad = "pneumonia"
    server.answer = lambda text, attempt: reply if bad in text else by_rules(text, attempt)
    refiner = make(timeout_seconds=0.3, retries=1)
    assert refiner.refine(REPORTS) == RulesRefiner().refine(REPORTS)
    assert refiner.tally == {f"fell_back.{cause}": 1}
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2, "a fallback is not an answer"


@pytest.mark.parametrize(
    "changes",
    [
        {"finding": "dragon"},
        {"location": "somewhere"},
        {"severity": "huge"},
        {"negated": "yes"},
        {"negated": True, "uncertain": True},
        {"remark": "none"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_valid_json_outside_of_the_contract_is_invalid(server, make, changes):
    mention = {"finding": "edema", "location": "", "severity": "", "negated": False, "uncertain": False}
    content = json.dumps({"mentions": [{**mention, **changes}]})
    server.answer = lambda text, attempt: Reply(content)
    refiner = make()
    assert refiner.refine(REPORTS[:1]) == RulesRefiner().refine(REPORTS[:1])
    assert refiner.tally == {"fell_back.invalid": 1}


def test_no_more_requests_than_allowed_are_in_flight(server, make):
    server.answer = lambda text, attempt: Reply(VALID, delay_seconds=0.1)
    texts = [f"Report number {number}." for number in range(12)]
    started = time.monotonic()
    make(concurrency=4).refine(texts)
    assert server.most_in_flight == 4
    assert 0.3 <= time.monotonic() - started < 1.2, "three rounds of four"


def test_a_wrong_key_or_model_ends_the_work(server, make, monkeypatch):
    with pytest.raises(RefineError, match=rf"status 404 for the model 'other'.*{llm.MODEL}"):
        make("other").refine(REPORTS)
    monkeypatch.setenv(llm.API_KEY, "wrong")
    with pytest.raises(RefineError, match="status 401") as refused:
        make().refine(REPORTS)
    assert "wrong" not in str(refused.value)


def test_an_endpoint_that_is_not_there_ends_the_work(tmp_path):
    endpoint = Endpoint("http://user:secret@127.0.0.1:9/v1?key=secret", MODEL)
    refiner = LlmRefiner(LlmConfig(retries=0), endpoint, resolve(tmp_path))
    with pytest.raises(RefineError, match=r"Nothing answers at .*http://127\.0\.0\.1:9/v1") as refused:
        refiner.refine(REPORTS)
    assert "secret" not in str(refused.value)


def test_no_text_is_ever_logged(server, make, caplog, monkeypatch):
    monkeypatch.setenv("OPENAI_LOG", "debug")
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)
    server.answer = lambda text, attempt: Reply(status=500) if attempt == 1 else Reply(f"no: {text}")
    make().refine(REPORTS)
    assert "effusion" not in caplog.text


def test_without_the_package_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RefineError, match=r"pip install 'counterray\[llm\]'"):
        LlmRefiner(LlmConfig(), Endpoint("http://127.0.0.1:9/v1", MODEL), resolve(tmp_path))


def test_nothing_is_sent_unless_the_site_sets_an_endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.delenv(llm.BASE_URL, raising=False)
    monkeypatch.setenv(llm.MODEL, MODEL)
    with pytest.raises(RefineError, match=rf"needs {llm.BASE_URL} in the environment"):
        endpoint_from_environment()
    monkeypatch.setenv(llm.BASE_URL, "http://127.0.0.1:9/v1")
    assert endpoint_from_environment() == Endpoint("http://127.0.0.1:9/v1", MODEL)


def test_a_configuration_becomes_its_refiner(server, tmp_path):
    place = resolve(tmp_path)
    assert isinstance(make_refiner(RulesConfig(), None, place), RulesRefiner)
    assert isinstance(make_refiner(LlmConfig(), Endpoint(server.url, MODEL), place), LlmRefiner)
