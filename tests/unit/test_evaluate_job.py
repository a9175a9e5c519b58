"""From stored bundles and data to report, numbers and reading set: all that needs no Ray and no training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from counterray.bundle import Bundle, BundleError, write_bundle
from counterray.config import ConfigError, validate
from counterray.data.batching import read_batches
from counterray.data.chunks import write_shard
from counterray.data.dataset import Dataset, DatasetManifest, Shard
from counterray.data.loader import Plan
from counterray.data.phantom.scm import VOCABULARY
from counterray.data.phantom.studies import PhantomConfig, draw_rows
from counterray.data.study import ARROW_SCHEMA, Batch
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.identity import IdentityEncoderConfig, IdentityEncoderStage
from counterray.nn.backbone import BackboneConfig
from counterray.storage import resolve
from counterray.training.stage import Stage
from jobs import evaluation
from jobs.ancestry import require_apart
from jobs.common import user_errors
from jobs.evaluation import EvaluateConfig, EvaluationError, evaluate
from tests.small_gsvae import FINDINGS, INFO, SIZE, judge_bundles, make_stage
from tests.small_pathology_ldm import ldm_bundle, parent_bundles

STUDIES = 90
MARK = "Zebra stripes"
"""Words that no code of ours writes."""


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batches, read in this process."""

    def stream(
        dataset: Dataset, plan: Plan, config: object, *, batch_size: int, endless: bool, **what: object
    ) -> Iterator[tuple[Batch, None]]:
        del config, endless
        split = plan.pieces[0][0].partition("/")[0]
        for batch in read_batches(dataset, split, batch_size=batch_size, **what):
            yield batch, None

    monkeypatch.setattr(evaluation, "stream", stream)


@pytest.fixture(scope="module")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Phantom studies in all splits, said to be of a source, with prompts or without."""
    drawn = draw_rows(PhantomConfig(studies=STUDIES, image_size=SIZE), 0, STUDIES)
    people = list(dict.fromkeys(study.patient_id for study in drawn))

    def make(source: str = "phantom", *, prompts: bool = True) -> str:
        location = resolve(tmp_path_factory.mktemp("data"))
        shards: dict[str, tuple[Shard, ...]] = {}
        for number, split in enumerate(("train", "validation", "test")):
            rows = [
                {
                    **replace(
                        study,
                        split=split,
                        report=f"{MARK} {study.image_id}",
                        refined_report=f"{MARK}: severe edema." if prompts else None,
                    ).row()
                }
                for study in drawn
                if people.index(study.patient_id) % 3 == number
            ]
            shards[split] = (write_shard(location, split, "00000", pa.Table.from_pylist(rows, ARROW_SCHEMA)),)
        counts = {name: {"present": 1, "absent": 9, "uncertain": 0, "unknown": 0} for name in FINDINGS}
        manifest = DatasetManifest(
            study_schema=1,
            source=source,
            config={},
            code_version="1",
            image_size=SIZE,
            finding_names=FINDINGS,
            vocabulary=dict(VOCABULARY),
            measurement_names=tuple(drawn[0].measurements),
            mask_names=tuple(drawn[0].masks),
            counts={split: {"studies": 30, "patients": 30, "findings": counts} for split in shards},
            quarantined={},
            shards=shards,
            fingerprint="f",
        )
        (location / "manifest.json").write_json(manifest.model_dump(mode="json"))
        return location.uri

    return make


def write(stage: Stage, folder: Path, **lineage: object) -> Bundle:
    """The untrained stage as a bundle."""
    torch.manual_seed(0)
    return write_bundle(
        resolve(folder),
        method="predictors" if stage.name == "classifier" else "gsvae",
        stage=stage.name,
        config={**stage.config.model_dump(mode="json"), "seed": 1, "loader": {"fold": "b"}},
        export=stage.export(stage.build(lineage.get("parents", {}), INFO)),
        data_fingerprint="small",
        **lineage,
    )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = ClassifierConfig(backbone=BackboneConfig(widths=(8, 16), blocks=(1, 1)))
    return write(ClassifierStage(config), tmp_path_factory.mktemp("classifier") / "bundle")


@pytest.fixture(scope="module")
def gsvae(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    stage = make_stage(weights={"identity": 0.0, "pathology": 0.0})
    return write(stage, tmp_path_factory.mktemp("gsvae") / "bundle")


@pytest.fixture(scope="module")
def ldm(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return ldm_bundle(
        tmp_path_factory.mktemp("ldm") / "bundle", parent_bundles(tmp_path_factory.mktemp("parents"))
    )


def config(**settings: object) -> EvaluateConfig:
    return EvaluateConfig.model_validate({"cycles": (1,), "minimum_positives": 2, **settings})


def test_a_generator_is_compared_with_real_images_by_the_classifier(
    gsvae: Bundle, classifier: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    scored = evaluate(
        config(reading_set=3),
        model=gsvae.location.uri,
        data=make_dataset(),
        out=str(tmp_path / "out"),
        judges=[classifier.location.uri],
    )
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(stored) == set(scored["metrics"])
    for name in ("effectiveness_ratio_macro", "generated_f1_macro", "frechet_distance", "kernel_distance"):
        assert stored[name]["judge"].endswith(classifier.checksum[:8])
    for name in ("coverage", "perceptual_distance[reconstruction]", "judge.classifier.auroc_macro"):
        assert name in stored
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not computed: NIQE, because it needs images of at least 192" in page
    assert "features of the judge classifier" in page
    assert MARK not in page
    # The set and its key lie apart.
    pictures = sorted(path.name for path in (tmp_path / "out" / "reading_set").glob("*.png"))
    assert len(pictures) == 6
    assert len((tmp_path / "out" / "reading_set_key.csv").read_text().splitlines()) == 4
    assert "3 pairs in reading_set" in page


def test_without_judges_the_report_says_what_is_missing(
    gsvae: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    scored = evaluate(
        config(), model=gsvae.location.uri, data=make_dataset("iu_xray"), out=str(tmp_path / "out")
    )
    assert "reconstruction_ssim" in scored["metrics"]
    assert "ground_truth_error" not in scored["metrics"]
    page = (tmp_path / "out" / "report.html").read_text()
    for missing in ("perceptual distance", "identity", "effectiveness, off-target change"):
        assert f"Not computed: {missing}, because no " in page
    assert not (tmp_path / "out" / "reading_set").exists()


@pytest.mark.parametrize(("source", "shown"), [("phantom", True), ("iu_xray", False)])
def test_a_text_guided_generator_reads_words_and_the_report_quotes_only_simulated_ones(
    ldm: Bundle, make_dataset: Callable[..., str], tmp_path: Path, source: str, shown: bool
) -> None:
    scored = evaluate(config(), model=ldm.location.uri, data=make_dataset(source), out=str(tmp_path / "out"))
    assert "reversibility_error[1 cycle]" in scored["metrics"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The generator did not see the donor&#39;s image" in page
    assert (f"told “{MARK}: severe edema.”" in page) == shown
    assert (MARK in page) == shown
    assert MARK not in (tmp_path / "out" / "metrics.json").read_text()


def test_words_that_are_not_there_are_no_empty_prompts(
    ldm: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    data, out = make_dataset(prompts=False), str(tmp_path / "out")
    with pytest.raises(
        EvaluationError, match=r"has a refined report .* jobs refine .*generation\.prompts=labels"
    ):
        evaluate(config(), model=ldm.location.uri, data=data, out=out)
    scored = evaluate(config(generation={"prompts": "labels"}), model=ldm.location.uri, data=data, out=out)
    assert "reconstruction_ssim" in scored["metrics"]


def test_a_bundle_that_edits_no_images_is_the_user_s_to_change(
    make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    stage = ClassifierStage(ClassifierConfig(backbone=BackboneConfig(widths=(8, 16), blocks=(1, 1))))
    other = write_bundle(
        resolve(tmp_path / "other"),
        method="gsvae",
        stage="classifier",
        config={},
        export=stage.export(stage.build({}, INFO)),
        data_fingerprint="small",
    )
    with pytest.raises(EvaluationError, match=r"which edits no images\. Generators that do are"):
        evaluate(config(), model=other.location.uri, data=make_dataset(), out=str(tmp_path / "out"))


def test_a_judge_of_other_findings_is_the_user_s_to_change(
    gsvae: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    stage = ClassifierStage(ClassifierConfig(backbone=BackboneConfig(widths=(8, 16), blocks=(1, 1))))
    narrow = write_bundle(
        resolve(tmp_path / "narrow"),
        method="predictors",
        stage="classifier",
        config={"seed": 1, "loader": {"fold": "b"}},
        export=stage.export(stage.build({}, replace(INFO, finding_names=("edema",)))),
        data_fingerprint="small",
    )
    places = {"model": gsvae.location.uri, "data": make_dataset(), "out": str(tmp_path / "out")}
    with pytest.raises(EvaluationError, match=r"has no output .*It has: edema"):
        evaluate(config(), **places, judges=[narrow.location.uri])


def test_a_defect_of_ours_keeps_its_name(
    gsvae: Bundle, make_dataset: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user's error it would lose its traceback."""

    def broken(*_: object, **__: object) -> None:
        raise ValueError("shapes of ours do not fit")

    monkeypatch.setattr(evaluation, "generator_report", broken)
    with pytest.raises(ValueError, match="shapes of ours") as raised:
        evaluate(config(), model=gsvae.location.uri, data=make_dataset(), out=str(tmp_path / "out"))
    assert not isinstance(raised.value, user_errors())


def test_the_scored_split_is_not_compared_with_itself(
    gsvae: Bundle, classifier: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    scored = evaluate(
        config(split="validation"),
        model=gsvae.location.uri,
        data=make_dataset(),
        out=str(tmp_path / "out"),
        judges=[classifier.location.uri],
    )
    assert "effectiveness_ratio_macro" in scored["metrics"]
    assert not {"frechet_distance", "generated_f1_macro"} & set(scored["metrics"])


def test_a_judge_of_a_parents_loss_is_not_apart(make_dataset: Callable[..., str], tmp_path: Path) -> None:
    judges = judge_bundles(tmp_path)
    generator = write(make_stage(), tmp_path / "gsvae", parents=judges)
    child = ldm_bundle(tmp_path / "ldm", {"gsvae": generator, "text": judges["pathology"]})
    with pytest.raises(BundleError, match="is not apart from the generator's loss 'identity'"):
        evaluate(
            config(),
            model=child.location.uri,
            data=make_dataset(),
            out=str(tmp_path / "out"),
            judges=[judges["identity"].location.uri],
        )


@pytest.mark.parametrize(
    ("stage", "fold", "seed", "apart"),
    [
        ("identity_encoder", "b", 2, False),
        ("identity_encoder", "all", 2, False),
        ("identity_encoder", "a", 1, True),
        ("classifier", "b", 2, False),
        ("classifier", "a", 1, False),
        ("classifier", "a", 2, True),
    ],
)
def test_a_judge_that_saw_a_loss_s_patients_is_not_apart_whatever_its_stage(
    classifier: Bundle, tmp_path: Path, stage: str, fold: str, seed: int, apart: bool
) -> None:
    """The judge that scores is a classifier of fold b with seed 1; like seeds matter to its like alone."""
    backbone = BackboneConfig(widths=(8,), blocks=(1,))
    made = {
        "classifier": ClassifierStage(ClassifierConfig(backbone=backbone)),
        "identity_encoder": IdentityEncoderStage(IdentityEncoderConfig(backbone=backbone)),
    }[stage]
    loss = write_bundle(
        resolve(tmp_path / "loss"),
        method="predictors",
        stage=stage,
        config={"seed": seed, "loader": {"fold": fold}},
        export=made.export(made.build({}, INFO)),
        data_fingerprint="small",
    )
    record = {"uri": loss.location.uri, "checksum": loss.checksum}
    if apart:
        require_apart(classifier, "guide", record, loss)
        return
    with pytest.raises(
        BundleError, match=r"loss 'guide', .* another seed, and the two on loader\.fold a and b"
    ):
        require_apart(classifier, "guide", record, loss)


def test_a_bundle_of_another_image_size_is_named_with_both_sizes(
    gsvae: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    stage = ClassifierStage(ClassifierConfig(backbone=BackboneConfig(widths=(8,), blocks=(1,))))
    wide = write_bundle(
        resolve(tmp_path / "wide"),
        method="predictors",
        stage="classifier",
        config={"seed": 1, "loader": {"fold": "b"}},
        export=stage.export(stage.build({}, replace(INFO, image_size=64))),
        data_fingerprint="small",
    )
    places = {"data": make_dataset(), "out": str(tmp_path / "out")}
    message = r"wide works on images of 64 px; those of .* have 32 px\. Ingest the data with image_size=64"
    with pytest.raises(EvaluationError, match=message):
        evaluate(config(), model=wide.location.uri, **places)
    with pytest.raises(EvaluationError, match=message):
        evaluate(config(), model=gsvae.location.uri, judges=[wide.location.uri], **places)


def test_the_key_of_a_reading_set_is_never_overwritten(
    classifier: Bundle, gsvae: Bundle, make_dataset: Callable[..., str], tmp_path: Path
) -> None:
    """Without it what readers have answered means nothing."""
    key = tmp_path / "reading_set_key.csv"
    key.write_text("what the readers' answers need")
    places = {"data": make_dataset(), "out": str(tmp_path)}
    with pytest.raises(EvaluationError, match=r"holds a reading set and its key .* Give another --out"):
        evaluate(config(reading_set=3), model=gsvae.location.uri, **places)
    assert [path.name for path in tmp_path.iterdir()] == [key.name]
    evaluate(config(), model=classifier.location.uri, **places)
    assert key.read_text() == "what the readers' answers need"


@pytest.mark.parametrize("cycles", [(), (0,), (1, 0), (-1,)])
def test_cycles_are_one_or_more_numbers_from_one(cycles: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="cycles"):
        validate(EvaluateConfig, {"cycles": cycles})
