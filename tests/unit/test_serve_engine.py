"""The engine: what a request gives, alone and beside others."""

import base64
import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from counterray.bundle import open_bundle
from counterray.config import ConfigError
from counterray.models.generator import Edit
from serve.engine import AbandonedError, Engine
from serve.jury import Jury
from serve.problems import ProblemError
from serve.settings import ModelSettings, Settings
from serve.work import Made, Work
from tests.serve_world import radiograph, write_models

EDEMA = Edit(do={"finding.edema": 1.0}, severity="mild")
WORDS = Edit(prompt="Severe cardiomegaly.")
MALE = Edit(do={"sex": "male"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Settings.model_validate(write_models(tmp_path_factory.mktemp("engine")))


@pytest.fixture(scope="module")
def engines(world):
    jury = Jury.open(world.judges, torch.device("cpu"))
    return {name: Engine.open(name, model, jury, rows=4) for name, model in world.models.items()}


def work(edit=WORDS, number=0, **given):
    asked = {"seeds": (number,), "image": radiograph(32, number), "observed": {}, **given}
    return Work(edit=edit, **asked)


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))).astype(int)


def same(one, other):
    """Whether two answers show the same images, but for one grey level where a last bit rounds."""
    for made, again in zip(one.images, other.images, strict=True):
        difference = np.abs(pixels(made.image) - pixels(again.image))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
    return True


@pytest.mark.parametrize("name", ["words", "kept"])
def test_a_request_gives_the_same_alone_and_beside_others(name, engines):
    """Others with another edit, seed, guidance and number of steps."""
    engine = engines[name]
    works = [
        work(WORDS, 0),
        work(EDEMA, 1),
        work(WORDS, 2, guidance=1.0),
        work(EDEMA, 3, steps=2),
        work(Edit(prompt="Mild bilateral edema.", anatomy_only=True), 4, seeds=(4, 5)),
    ]
    together = engine.do(works)
    assert [len(made.images) for made in together] == [1, 1, 1, 1, 2]
    for one, made in zip(works, together, strict=True):
        [alone] = engine.do([one])
        assert same(alone, made)
        assert alone.batch == 1
        assert made.batch == len(works)
        assert set(made.seconds) == {"abduct", "predict", "score"}
    assert not np.array_equal(pixels(together[0].images[0].image), pixels(together[1].images[0].image))


def test_attributes_are_set_from_what_is_observed(engines):
    engine = engines["attributes"]
    [known, other] = engine.do(
        [work(MALE, observed={"sex": "male", "scanner": "a"}), work(MALE, observed={"sex": "female"})]
    )
    assert isinstance(known, Made)
    assert isinstance(other, Made)


@pytest.mark.parametrize("name", ["words", "kept"])
def test_another_intervention_on_what_was_kept_is_that_of_the_image(name, engines):
    engine = engines[name]
    [first] = engine.do([work(WORDS)])
    [again] = engine.do([Work(edit=EDEMA, seeds=(0,), kept=first.kept)])
    handed_on = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(first.kept))))
    [later] = engine.do([Work(edit=EDEMA, seeds=(0,), kept=handed_on)])
    assert same(later, again)
    assert handed_on.nbytes == first.kept.nbytes
    [fresh] = engine.do([work(EDEMA)])
    assert same(again, fresh)
    assert again.seconds["abduct"] < first.seconds["abduct"]


@pytest.mark.parametrize("sampler", [{"steps": 2}, {"guidance": 4.0}])
@pytest.mark.parametrize("observed", [{}, None])
def test_another_sampler_on_what_was_kept_is_that_of_the_image(sampler, observed, engines):
    engine = engines["words"]
    [first] = engine.do([work(WORDS, observed=observed)])
    other = Work(edit=EDEMA, seeds=(0,), kept=first.kept, **sampler)
    [again] = engine.do([other])
    [fresh] = engine.do([work(EDEMA, observed=observed, **sampler)])
    [plain] = engine.do([work(EDEMA, observed=observed)])
    assert same(again, fresh)
    assert (pixels(again.images[0].image) != pixels(plain.images[0].image)).any()


def test_scores_are_of_the_image_before_and_after(engines):
    engine = engines["words"]
    [made] = engine.do([work(WORDS)])
    scores = made.images[0].scores
    judge = engine.jury.readers[0].judge
    image = torch.from_numpy(radiograph(32, 0).copy())[None, None].float() / 127.5 - 1
    before = dict(zip(judge.outputs, judge.scores(image)[0].tolist(), strict=True))
    assert {score.name: score.before for score in scores} == pytest.approx(before)
    assert {score.judge for score in scores} == {judge.label}
    assert any(abs(score.before - score.after) > 1e-6 for score in scores)
    effect, image = pixels(made.images[0].effect), pixels(made.images[0].image)
    assert np.abs(effect - (128 + (image - radiograph(32, 0).astype(int)) / 2)).max() <= 0.5


def test_what_is_to_be_inferred_is_read_by_the_judges_and_told(engines):
    engine = engines["words"]
    [made] = engine.do([work(WORDS, observed=None)])
    read = made.kept.inferred
    assert set(read) == {"finding.no_finding", "finding.cardiomegaly", "finding.edema"}
    for name in ("cardiomegaly", "edema"):
        score = made.kept.before[engine.jury.readers[0].judge.label, name]
        assert read[f"finding.{name}"] == float(score >= 0.5)
    shown = read["finding.cardiomegaly"] or read["finding.edema"]
    assert read["finding.no_finding"] == float(not shown)
    [refused] = engines["attributes"].do([work(MALE, observed=None)])
    assert refused.kind == "nothing-inferred"


@pytest.mark.parametrize(
    ("name", "wrong", "kind", "said"),
    [
        ("words", {"edit": Edit(do={"finding.fracture": 1})}, "edit-refused", "no such finding"),
        ("words", {"edit": Edit(prompt="Lorem ipsum.")}, "edit-refused", "says nothing of a finding"),
        ("words", {"steps": 900_000}, "edit-refused", "steps"),
        ("words", {"observed": {"sex": "male"}}, "edit-refused", "no such attribute"),
        ("words", {"observed": {"finding.edema": 0.5}}, "edit-refused", "0 or 1"),
        ("words", {"observed": {"age": 900}}, "edit-refused", "0 to 120"),
        ("kept", {"seeds": (1, 2)}, "edit-refused", "one seed"),
        ("attributes", {"edit": WORDS}, "edit-refused", "knows no words"),
        ("attributes", {"edit": EDEMA}, "edit-refused", "no severity"),
    ],
)
def test_a_request_that_cannot_be_met_leaves_those_beside_it_alone(name, wrong, kind, said, engines):
    fine = work(MALE if name == "attributes" else WORDS, 1)
    asked = work(**{"edit": fine.edit, **wrong})
    refused, made = engines[name].do([asked, fine])
    assert isinstance(refused, ProblemError)
    assert refused.kind == kind
    assert said in refused.detail
    assert isinstance(made, Made)


def test_a_defect_in_one_request_is_one_problem(engines, monkeypatch):
    """Whatever goes wrong with a batch is found by doing each work alone."""
    engine = engines["words"]
    predict = engine.generator.predict

    def broken(abduction, edits, **given):
        if any(edit == EDEMA for edit in edits):
            raise ZeroDivisionError("of patient 123")
        return predict(abduction, edits, **given)

    monkeypatch.setattr(engine.generator, "predict", broken)
    made, failed = engine.do([work(WORDS), work(EDEMA)])
    assert isinstance(made, Made)
    assert failed.kind == "internal"
    assert "123" not in failed.detail


def test_previews_come_before_the_image_and_giving_up_ends_it(engines):
    engine, seen = engines["words"], []
    [made] = engine.do([work(WORDS)], on_preview=seen.append)
    assert [preview.step for preview in seen] == list(range(1, seen[0].steps))
    assert pixels(seen[0].image).shape == pixels(made.images[0].image).shape
    asked = []

    def stopped():
        asked.append(None)
        return len(asked) == 2

    with pytest.raises(AbandonedError):
        engine.do([work(WORDS)], stopped=stopped)
    assert len(asked) == 2


def test_a_judge_of_the_training_does_not_score(world):
    bundle = open_bundle(world.models["words"].bundle)
    text = bundle.manifest["parents"]["text"]["uri"]
    jury = Jury.open([text], torch.device("cpu"))
    with pytest.raises(ConfigError, match="took part in training"):
        Engine.open("words", world.models["words"], jury, rows=4)
    gsvae = ModelSettings(bundle=bundle.manifest["parents"]["gsvae"]["uri"])
    with pytest.raises(ConfigError, match="takes pathologies from data"):
        Engine.open("swap", gsvae, Jury([], torch.device("cpu")), rows=4)


def test_a_work_is_of_one_thing():
    with pytest.raises(ValueError, match="of an image, or"):
        replace(work(), image=None)
