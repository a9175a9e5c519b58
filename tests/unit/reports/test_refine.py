"""The contract: what a mention may be, the normal form, the prompt and the label values."""

from __future__ import annotations

from dataclasses import asdict
from itertools import permutations

import pytest

from counterray.data.labels import FINDINGS
from counterray.reports.refine import NO_FINDING_PROMPT, NOUNS, PARENTS, Mention, Refined, normalise

EFFUSION = Mention(finding="pleural_effusion", location="left", severity="moderate")
HEART = Mention(finding="cardiomegaly")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"finding": "dragon"}, "finding is none of.*'pneumothorax'"),
        ({"finding": "edema", "location": "north"}, "location is none of.*'left'"),
        ({"finding": "edema", "severity": "huge"}, "severity is none of.*'severe'"),
        ({"finding": "edema", "negated": True, "uncertain": True}, "not both"),
    ],
)
def test_a_mention_outside_of_the_contract_is_refused_without_quoting_it(values, expected):
    with pytest.raises(ValueError, match=expected) as refused:
        Mention(**values)
    assert not {"dragon", "north", "huge"} & set(str(refused.value).replace("'", " ").split())


def test_the_prompt_by_hand():
    refined = normalise([EFFUSION, HEART, Mention(finding="edema", negated=True)])
    assert refined.prompt == "Cardiomegaly. Moderate left pleural effusion."
    doubtful = Mention(finding="pneumonia", location="right lower", severity="mild", uncertain=True)
    assert normalise([doubtful]).prompt == "Possible mild right lower zone pneumonia."


@pytest.mark.parametrize(
    "mentions",
    [(), (Mention(finding="no_finding"),), (Mention(finding="edema", negated=True),)],
    ids=["nothing", "normal", "denied"],
)
def test_nothing_affirmed_gives_the_fixed_prompt(mentions):
    assert normalise(mentions).prompt == NO_FINDING_PROMPT == "No acute finding."


def test_equal_facts_give_equal_prompts_whatever_their_order_and_repetition():
    facts = [EFFUSION, HEART, Mention(finding="pleural_effusion"), Mention(finding="atelectasis")]
    forms = {normalise([*order, *order]) for order in permutations(facts)}
    assert len(forms) == 1
    assert forms.pop().prompt == "Cardiomegaly. Atelectasis. Moderate left pleural effusion."


def test_normalising_twice_changes_nothing():
    once = normalise([EFFUSION, Mention(finding="pleural_effusion", location="bilateral"), HEART])
    assert normalise(once.mentions) == once


def test_both_sides_of_a_finding_stay_apart():
    right = Mention(finding="pleural_effusion", location="right", severity="mild")
    assert (
        normalise([right, EFFUSION]).prompt == "Moderate left pleural effusion. Mild right pleural effusion."
    )


def test_certain_beats_uncertain_and_the_highest_grade_counts():
    said = [
        Mention(finding="edema", uncertain=True, severity="severe"),
        Mention(finding="edema", severity="mild"),
        Mention(finding="edema", negated=True),
    ]
    assert normalise(said).mentions == (Mention(finding="edema", severity="severe"),)


def test_a_vague_place_repeats_a_precise_one():
    said = [
        Mention(finding="atelectasis", location=place)
        for place in ("", "left", "basal", "left basal", "right")
    ]
    assert [mention.location for mention in normalise(said).mentions] == ["right", "left basal"]


def test_a_wider_finding_is_said_only_where_it_adds_something():
    opacity = Mention(finding="lung_opacity", location="left basal")
    certain = Mention(finding="atelectasis", location="left basal")
    doubtful = Mention(finding="atelectasis", location="left basal", uncertain=True)
    elsewhere = Mention(finding="atelectasis", location="right")
    assert normalise([opacity, certain]).prompt == "Left basal atelectasis."
    assert (
        normalise([opacity, doubtful]).prompt == "Left basal lung opacity. Possible left basal atelectasis."
    )
    assert normalise([opacity, elsewhere]).prompt == "Left basal lung opacity. Right atelectasis."


def test_label_values_and_what_they_imply():
    said = [
        Mention(finding="pneumonia"),
        Mention(finding="cardiomegaly", uncertain=True),
        Mention(finding="edema", negated=True),
    ]
    assert normalise(said).findings == {
        "no_finding": 0,
        "enlarged_cardiomediastinum": -1,
        "cardiomegaly": -1,
        "lung_opacity": 1,
        "edema": 0,
        "pneumonia": 1,
    }
    assert "lung_opacity" not in normalise([Mention(finding="edema", negated=True)]).findings


def test_a_certain_implication_outweighs_a_doubtful_mention_of_the_wider_finding():
    said = [Mention(finding="lung_opacity", uncertain=True), Mention(finding="edema")]
    assert normalise(said).findings["lung_opacity"] == 1


def test_normal_is_kept_only_where_nothing_else_is_said():
    normal = Mention(finding="no_finding")
    assert normalise([normal]).findings == {"no_finding": 1}
    assert normalise([normal, HEART]).mentions == (HEART,)


def test_every_finding_has_a_noun_and_parents_are_findings():
    assert set(NOUNS) == set(FINDINGS)
    assert {*PARENTS, *PARENTS.values()} <= set(FINDINGS)
    assert not set(PARENTS) & set(PARENTS.values()), "one step to the widest finding"


def test_a_refined_report_is_plain_data():
    assert [asdict(mention) for mention in Refined((HEART,)).mentions] == [
        {"finding": "cardiomegaly", "location": "", "severity": "", "negated": False, "uncertain": False}
    ]
