"""The audit's report: numbers by hand, the same in page, JSON and Markdown; no identifier; no script."""

import json
import math
import re

import numpy as np
import pytest
import torch

from counterray.audits.cit_lr import CitLr
from counterray.audits.counterfactual_effect import counterfactual_effect
from counterray.audits.dose_response import dose_response
from counterray.audits.dose_scores import DoseScores
from counterray.audits.errors import AuditError
from counterray.audits.gates import Reading
from counterray.audits.report import AuditReport, verdicts_of
from counterray.audits.reporting.causes import CausalStatement
from counterray.audits.reporting.doses import DoseResults
from counterray.audits.reporting.gallery import Example, Pick, most_affected, patient_code
from counterray.audits.reporting.groups import associations, level_counts
from counterray.audits.reporting.results import AttributeResults
from counterray.audits.reporting.wording import direction_sentence
from counterray.audits.scores import Target
from counterray.audits.settings import AuditConfig
from counterray.evaluation.report import Missing, format_number
from tests.audit_scores import config, noisy_scores, scores_of

SALT = b"a salt of sixteen bytes"
PATIENTS = ["MRN-77001", "MRN-77002", "MRN-77003", "MRN-77004"]
HOSTILE = "<script>alert(1)</script>|*x*"

# Four patients, two at each level; scores as female and as male, threshold 0.5:
#   1 (female, ill):     0.6 -> 0.4   missed as male
#   2 (female, healthy): 0.4 -> 0.7   false alarm as male
#   3 (male, ill):       0.2 -> 0.2
#   4 (male, healthy):   0.9 -> 0.8   called either way
HAND = scores_of(
    [[[0.6, 0.4], [0.4, 0.7], [0.2, 0.2], [0.9, 0.8]]],
    own=[0, 0, 1, 1],
    labels=[[1, 0, 1, 0]],
    levels=["female", "male"],
    patients=PATIENTS,
)
GRAPH = CausalStatement(
    parents={"sex": (), "heart": ("sex",), "disease": ("heart",), "image": ("sex", "heart", "disease")},
    legitimate={"heart": "hearts differ in size"},
)


def audit_of(scores, *, readings=(), **settings):
    return counterfactual_effect(scores, config(minimum_patients=2, **settings), readings=list(readings))


def example(pick, scores=HAND):
    grey = torch.zeros(1, 8, 8)
    return Example.of(scores, pick, salt=SALT, observed=grey, repainted=grey, counterfactual=grey + 0.2)


def results_of(scores, *, audits=None, **more):
    return AttributeResults.of(scores, audits or [audit_of(scores)], resamples=20, **more)


def report_of(*results, **more):
    about = {"facts": {"Code version": "1.2", "Seed": 7}, "bundles": {"Classifier": "ab12cd"}} | more
    return AuditReport(title=about.pop("title", "Audit"), results=results, **about)


@pytest.fixture(scope="module")
def hand():
    examples = [example(pick) for pick in most_affected(HAND, count=3, salt=SALT)]
    return report_of(results_of(HAND, causes=GRAPH, examples=examples))


@pytest.fixture(scope="module")
def page(hand):
    return hand.html()


def text_of(page):
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


# Numbers.


def test_the_json_has_the_numbers_by_hand(hand):
    [attribute] = json.loads(json.dumps(hand.as_json(), allow_nan=False))["attributes"]
    [audit] = attribute["audits"]
    numbers = audit["findings"][0]["numbers"]
    assert numbers["absolute"]["value"] == pytest.approx(0.15)
    assert numbers["flip"]["value"] == 0.5
    assert numbers["up@female"]["value"] == numbers["down@female"]["value"] == 0.5
    assert numbers["up@male"]["value"] == numbers["down@male"]["value"] == 0
    assert attribute["counts"]["c0, edema"]["female"] == {"images": 2, "patients": 2, "ill": 1, "healthy": 1}
    performance = attribute["performance"]["c0, edema"]["by_level"]
    assert performance["female"]["auroc"]["value"] == 1.0  # 0.6 ill, 0.4 healthy
    assert performance["male"]["auroc"]["value"] == 0.0  # 0.2 ill, 0.8 healthy
    assert performance["male"]["positives"]["value"] == 1


def test_page_json_and_summary_say_the_same(hand, page):
    text = text_of(page)
    [audit] = hand.as_json()["attributes"][0]["audits"]
    assert verdicts_of(hand.as_json()) == {hand.results[0].attribute: audit["verdicts"]}
    [finding] = audit["findings"]
    for name in ("mean", "median", "absolute", "placebo", "excess", "mean_square"):
        value, low, high = (format_number(finding["numbers"][name][end]) for end in ("value", "low", "high"))
        assert f"{value} ({low} to {high})" in text, name
    for name in ("flip", "up", "down", "missed_at_second", "flip@female", "alarm_at_second@female"):
        value, low, high = (f"{100 * finding['numbers'][name][end]:.1f}" for end in ("value", "low", "high"))
        assert f"{value} % ({low} to {high})" in text, name
    for p in (finding["p"]["raw"], finding["p"]["corrected"], *finding["p"]["equivalence"].values()):
        assert format_number(p) in text
    assert finding["sentence"] in text
    assert finding["direction"] in text
    assert f"{finding['numbers']['flip']['value']:.1%}" in hand.markdown()


def test_direction_and_errors_in_words():
    audit = audit_of(HAND)
    words = direction_sentence(audit, audit.findings[0])
    assert words.startswith("As male instead of female, the score is +0.000 (95 % interval ")
    assert "over 4 images of 4 patients; 25.0% of decisions turn positive, 25.0% negative." in words
    assert re.search(r"Of those with the finding, 50\.0% \([^)]*\) are missed only as male and 0\.0%", words)
    assert re.search(r"Of those without it, 50\.0% \([^)]*\) are false alarms only as male and 0\.0%", words)


def test_errors_carry_the_number_of_images_that_they_rest_on(page):
    text = text_of(page)
    assert re.search(r"50\.0 % \([^)]*\), n = 2", text)  # two ill among all
    assert re.search(r"100\.0 % \([^)]*\), n = 1", text)  # one ill among the female


def test_what_p_values_are_corrected_over_is_one_attribute():
    scores = noisy_scores(targets=2, size=60, levels=3)
    report = report_of(results_of(scores))
    over = "over the 6 tests of this attribute (classifiers × findings × pairs of levels)"
    text = text_of(report.html())
    assert f"once corrected {over}" in text
    assert f"corrected by holm {over}" in report.markdown()
    assert "within each attribute and effect, not over several of them" in text
    assert any("within each attribute" in limit for limit in report.as_json()["limits"])


def test_verdicts_come_first(page):
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page)
    assert headings[0] == "Verdicts"
    assert headings[1] == "Sex: is the generator fit to say?"
    assert headings[-2:] == ["Assumptions and limits", "Provenance"]
    assert len(set(headings)) == len(headings)


def test_provenance_has_seeds_and_checksums(page, hand):
    text = text_of(page)
    assert "ab12cd" in text
    assert "sex (total effect).seed 0" in text
    assert "- Classifier: `ab12cd`" in hand.markdown()


# Safety of the page.


def test_the_page_has_no_script_and_no_outside_address(page):
    assert "<script" not in page
    assert "://" not in page
    assert not re.search(r"\son\w+=", page)
    assert all(
        a.startswith(("data:image/png;base64,", "#")) for a in re.findall(r'(?:src|href)="([^"]*)"', page)
    )


def test_nobody_is_named(hand, page):
    told = page + json.dumps(hand.as_json()) + hand.markdown()
    assert not any(patient in told for patient in PATIENTS)
    assert patient_code(PATIENTS[1], salt=SALT) in page


def test_hostile_names_stay_words():
    scores = scores_of(
        HAND.intervened,
        own=HAND.own,
        labels=HAND.labels,
        patients=PATIENTS,
        targets=[Target(classifier=HOSTILE, finding="edema")],
        levels=[HOSTILE, "other"],
    )
    report = report_of(results_of(scores), title=HOSTILE, facts={HOSTILE: HOSTILE})
    assert "<script" not in report.html()
    told = report.markdown()
    assert "<script" not in told.replace("\\<", "")
    rows = [line for line in told.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {7}


# One target and many; those that cannot be audited; generators that cannot tell.


def test_many_targets_are_all_listed_and_the_charts_stay_short():
    scores = noisy_scores(targets=40, size=60, levels=3)
    report = report_of(results_of(scores))
    page = report.html()
    [audit] = report.as_json()["attributes"][0]["audits"]
    assert len(audit["findings"]) == 40 * 3
    assert all(f"c{t}, edema" in page for t in range(40))
    assert "the 16 largest of 120; the table has all." in page
    assert "16 more verdicts" in page
    assert "40 classifiers, 1 finding, audited for sex" in page


def test_a_target_that_cannot_be_audited_is_named_with_the_reason():
    intervened = np.concatenate([HAND.intervened, np.full((1, 4, 2), 0.3)])
    scores = scores_of(
        intervened, own=HAND.own, labels=np.tile(HAND.labels, (2, 1)), patients=PATIENTS, levels=HAND.levels
    )
    report = report_of(results_of(scores))
    assert "the score is 0.3 for all 4 individuals" in text_of(report.html())
    assert "Not audited: c1, edema: For sex: c1, edema: the score is 0.3" in report.markdown()
    assert [a["target"] for a in report.as_json()["attributes"][0]["associations"]] == ["c0, edema"] * 3


def test_cannot_tell_says_why_and_what_would_help():
    settings = AuditConfig(minimum_patients=2, resamples=200)
    readings = [
        Reading(gate="effectiveness", value=0.4, judge="judge-a:12ab", note="on 50 images"),
        Reading(gate="composition", value=0.01, note="on 60 images"),
    ]
    audit = counterfactual_effect(HAND, settings, readings=readings)
    report = report_of(results_of(HAND, audits=[audit]))
    text, told = text_of(report.html()), report.markdown()
    first = text.index("Cannot tell. Gate effectiveness is closed: 0.4 is below gates.effectiveness = 0.8")
    assert first < text.rindex("how far scores move")  # its heading; the first is the page's index
    assert "train the generator longer" in text
    assert "judge-a:12ab" in text
    assert "on 60 images" in text
    assert "they describe the generator as much as the classifier" in text
    assert "| Cannot tell | – | – | – |" in told
    assert "- effectiveness: closed, 0.400 (at least 0.8; judge: judge-a:12ab)" in told
    assert "- identity: closed, not measured" in told
    gates = {gate["name"]: gate for gate in report.as_json()["attributes"][0]["audits"][0]["gates"]}
    assert gates["identity"]["value"] is None
    assert gates["composition"]["note"] == "on 60 images"


def test_inconclusive_says_how_many_patients_it_would_take():
    base = np.random.default_rng(0).random(20)
    still = scores_of(np.repeat(base[None, :, None], 2, axis=2), own=np.arange(20) % 2)
    text = text_of(report_of(results_of(still)).html())
    assert "About 59 patients to show invariance if there is no effect" in text


def test_several_attributes_and_total_beside_direct():
    direct = scores_of(
        HAND.intervened,
        own=HAND.own,
        labels=HAND.labels,
        patients=PATIENTS,
        levels=HAND.levels,
        effect="direct",
    )
    other = scores_of(HAND.intervened, own=HAND.own, patients=PATIENTS, attribute="scanner")
    both = results_of(HAND, audits=[audit_of(HAND), audit_of(direct)], causes=GRAPH)
    page = report_of(both, results_of(other)).html()
    assert "Total and direct effect" in page
    assert "Scanner: causal graph as stated" in page
    assert "No causal graph was stated." in page
    with pytest.raises(AuditError, match="has 2 results"):
        report_of(both, both)
    with pytest.raises(AuditError, match="are of the total effect"):
        results_of(HAND, audits=[audit_of(HAND), audit_of(HAND)])
    with pytest.raises(AuditError, match="scanner, sex were given as those of one"):
        results_of(HAND, audits=[audit_of(HAND), audit_of(other)])
    with pytest.raises(AuditError, match="one attribute or more"):
        report_of()


def test_what_was_left_out_is_told_even_where_nothing_was_audited():
    refused = {"classifiers": {"remote": "it did not answer"}, "attributes": {"view": "it has 1 level"}}
    report = report_of(refused=refused, warnings=["two studies are left out"])
    text, told = text_of(report.html()), report.markdown()
    for shown in (text, told):
        assert "it did not answer" in shown
        assert "it has 1 level" in shown
        assert "two studies are left out" in shown
    assert "Nothing could be audited." in text
    assert report.as_json()["refused"] == refused


def test_a_gate_says_how_sure_it_is_and_on_how_many_images():
    reading = Reading(gate="effectiveness", value=0.9, low=0.85, high=0.94, images=120, judge="j")
    audit = counterfactual_effect(HAND, AuditConfig(minimum_patients=2, resamples=200), readings=[reading])
    report = report_of(results_of(HAND, audits=[audit]))
    assert "0.900 (0.850 to 0.940), 120 images" in text_of(report.html())
    assert (
        "effectiveness: open, 0.900 (0.850 to 0.940), 120 images (at least 0.8; judge: j)"
        in report.markdown()
    )
    [gate, *_] = report.as_json()["attributes"][0]["audits"][0]["gates"]
    assert (gate["low"], gate["high"], gate["images"]) == (0.85, 0.94, 120)


# Groups.


def test_counts_by_hand():
    counts = level_counts(HAND)["c0, edema"]["male"]
    assert (counts.images, counts.patients, counts.ill, counts.healthy) == (2, 2, 1, 1)


def test_associations_by_hand_and_why_one_could_not_be_made():
    parity, opportunity, odds = associations(HAND, minimum_patients=2)
    assert parity.value == 0  # one of two is called at each level
    assert (parity.n, opportunity.n, odds.n) == (4, 2, 4)
    assert math.isnan(opportunity.value)
    assert "level 'female' has 1 patients" in opportunity.reason
    assert opportunity.as_json()["p"] == {"raw": None, "corrected": None}


def test_associations_are_corrected_over_the_targets_of_a_test():
    scores = noisy_scores(targets=3, size=400, shift=0.2, noise=0.02, seed=3)
    found = [each for each in associations(scores) if each.test == "demographic_parity"]
    smallest = min(each.p_value for each in found)
    assert min(each.p_corrected for each in found) == pytest.approx(min(1, 3 * smallest))


def test_cit_lr_stands_beside_the_verdict():
    made = CitLr(
        delta=np.array([0.02]),
        p_value=np.array([math.nan]),
        p_two_sample=np.array([0.5]),
        orthogonal_delta=np.array([0.01]),
        p_orthogonal=np.array([0.2]),
        effect=np.array([0.04]),
        brier_f=np.array([0.2]),
        calibration_f=np.array([0.1]),
        rows=4,
    )
    plain, orthogonal = associations(HAND, cit_lr=made, minimum_patients=2)[3:]
    assert (plain.value, plain.reason) == (0.02, "all its differences are equal")
    assert (orthogonal.quantity, orthogonal.value, orthogonal.p_corrected) == (
        "estimated flip rate",
        0.04,
        0.2,
    )
    text = text_of(report_of(results_of(HAND, cit_lr=made)).html())
    assert "CIT-LR asks whether predictions still vary" in text
    with pytest.raises(AuditError, match="CIT-LR was made of 1 targets, the audit of 2"):
        associations(noisy_scores(targets=2), cit_lr=made)


def test_performance_that_cannot_be_had_says_why():
    unknown = scores_of(
        HAND.intervened, own=HAND.own, labels=np.full((1, 4), math.nan), patients=PATIENTS, levels=HAND.levels
    )
    results = results_of(unknown)
    assert isinstance(results.performance["c0, edema"], Missing)
    report = report_of(results)
    assert "None of 4 labels is known" in report.html()
    assert report.as_json()["attributes"][0]["performance"]["c0, edema"]["missing"].startswith("None of 4")


# Causes.


def test_paths_by_hand():
    paths = GRAPH.paths("sex")
    assert [str(path) for path in paths] == [
        "sex → image",
        "sex → heart → image",
        "sex → heart → disease → image",
    ]
    assert [path.legitimate for path in paths] == [False, True, True]
    assert [path.direct for path in paths] == [True, False, False]


def test_the_page_says_which_paths_are_legitimate(page):
    text = text_of(page)
    assert "2 of 3 paths are declared legitimate." in text
    assert "sex → heart → image through what lies between legitimate hearts differ in size" in text
    assert "the direct effect would tell" in text


def test_a_graph_that_is_none_is_refused():
    with pytest.raises(AuditError, match="cycle through 'a'"):
        CausalStatement(parents={"a": ("b",), "b": ("a",), "image": ("a",)})
    with pytest.raises(AuditError, match="no variable 'heart'"):
        CausalStatement(parents={"image": ("sex",)}, legitimate={"heart": "why"})
    with pytest.raises(AuditError, match="'age' is not in the causal graph"):
        GRAPH.paths("age")


# Gallery.


def test_the_most_affected_first_and_nobody_twice():
    assert most_affected(HAND, count=9, salt=SALT) == [Pick(0, 1, 1), Pick(0, 0, 1), Pick(0, 3, 0)]
    twice = scores_of(HAND.intervened, own=HAND.own, patients=["a", "a", "b", "b"])
    assert most_affected(twice, count=9, salt=SALT) == [Pick(0, 1, 1), Pick(0, 3, 0)]


@pytest.mark.parametrize(
    ("pick", "outcome"),
    [
        (Pick(0, 0, 1), "missed as male"),
        (Pick(0, 1, 1), "false alarm only as male"),
        (Pick(0, 3, 0), "the decision stays"),
    ],
)
def test_outcomes(pick, outcome):
    assert example(pick).outcome == outcome


def test_the_caption_has_both_predictions_and_the_threshold():
    code = patient_code(PATIENTS[0], salt=SALT)
    assert example(Pick(0, 0, 1)).caption == (
        f"Patient {code}, female, with the finding. c0, edema: 0.60 as observed, 0.60 repainted as female, "
        "0.40 as male; threshold 0.5: missed as male."
    )


def test_codes_need_a_salt_and_follow_it():
    assert patient_code("1", salt=SALT) == patient_code("1", salt=SALT)
    assert patient_code("1", salt=SALT) != patient_code("1", salt=SALT + b"x")
    assert re.fullmatch(r"[0-9a-f]{10}", patient_code("1", salt=SALT))
    with pytest.raises(AuditError, match="has 4 bytes; 16 or more"):
        patient_code("1", salt=b"four")


# Continuous attributes.


def test_doses_by_hand():
    doses = DoseScores(
        attribute="age",
        unit="years",
        doses=[40.0, 60.0, 80.0],
        targets=[Target(classifier="c0", finding="edema")],
        own=np.full(60, 60.0),
        at_own=np.full((1, 60), 0.45),
        intervened=np.tile([0.4, 0.45, 0.55], (1, 60, 1)),
        placebo=np.full((1, 60, 1), 0.45),
        patients=[f"MRN-{row}" for row in range(60)],
    )
    results = DoseResults(
        audit=dose_response(doses, config(minimum_patients=2), readings=[]), individuals=60, patients=60
    )
    report = report_of(doses=[results])
    [dose] = json.loads(json.dumps(report.as_json(), allow_nan=False))["doses"]
    [finding] = dose["findings"]
    assert [point["value"] for point in finding["curve"]] == pytest.approx([0, 0.05, 0.15])
    assert finding["slope"]["value"] == pytest.approx(0.15 / 40)
    assert finding["verdict"] == "depends"
    page = report.html()
    assert (
        "From 40 to 80 years, where it moves most, the score changes by +0.150 (95 % interval +0.150 to "
        "+0.150) on average; from 40 to 80 years, where most do, 100.0% of decisions change, in 60 images of "
        "60 patients" in text_of(page)
    )
    assert [finding[name]["first"] for name in ("largest_change", "most_flips")] == [40, 40]
    assert "Age: how scores follow it" in page
    assert "MRN-" not in page + report.markdown()
    assert "From 40 to 80 years" in report.markdown()


def test_doses_of_a_generator_that_cannot_tell():
    doses = DoseScores(
        attribute="age",
        unit="years",
        doses=[40.0, 80.0],
        targets=[Target(classifier="c0", finding="edema")],
        own=np.full(20, 40.0),
        at_own=np.full((1, 20), 0.4),
        intervened=np.tile([0.4, 0.55], (1, 20, 1)),
        placebo=np.full((1, 20, 1), 0.4),
        patients=[f"p{row}" for row in range(20)],
    )
    audit = dose_response(doses, AuditConfig(minimum_patients=2, resamples=200), readings=[])
    report = report_of(doses=[DoseResults(audit=audit, individuals=20, patients=20)])
    text = text_of(report.html())
    assert "Nothing can be said about age. Gate effectiveness is closed: it was not measured." in text
    assert report.as_json()["doses"][0]["findings"][0]["sentence"].startswith("Cannot tell.")
