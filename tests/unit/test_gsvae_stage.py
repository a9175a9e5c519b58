"""The stage's metrics, previews and settings, and what it says when a judge is missing."""

import pickle

import pytest
import torch

from counterray.bundle import BundleError
from counterray.config import ConfigError, load
from counterray.models.gsvae.stages import GSVAEConfig, GSVAEStage
from counterray.models.gsvae.stages import load as load_network
from counterray.training.stage import Stage
from tests.small_gsvae import FINDINGS, INFO, UNSUPERVISED, judge_bundles, make_batch, make_stage


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    return judge_bundles(tmp_path_factory.mktemp("judges"))


def test_inputs_follow_the_weights():
    both = {"identity": "identity_encoder", "pathology": "image_text_encoder"}
    assert make_stage().inputs == both
    assert make_stage(weights={"identity": 0.0}).inputs == {"pathology": "image_text_encoder"}
    assert make_stage(weights=UNSUPERVISED).inputs == {}


def test_missing_judge_names_role_stage_and_remedy(judges):
    with pytest.raises(
        KeyError, match=r"'image_text_encoder' judge as input 'pathology'.*weights\.pathology=0"
    ):
        make_stage().build({"identity": judges["identity"]}, INFO)


def test_stage_can_be_sent_before_it_is_built():
    stage: Stage = make_stage()
    assert pickle.loads(pickle.dumps(stage)).config == stage.config


def test_what_needs_the_judges_asks_for_build(judges):
    """Without them the group losses would silently be zero."""
    network, batch = make_stage().build(judges, INFO), make_batch()
    stage = make_stage()
    for use in (
        lambda: stage.loss(network, batch, 4),
        lambda: stage.validate(network, [batch]),
        lambda: stage.export(network),
    ):
        with pytest.raises(RuntimeError, match="not been built: call build before"):
            use()


def test_a_judge_in_the_wrong_role_is_refused(judges):
    with pytest.raises(BundleError, match="image_text_encoder"):
        make_stage().build({**judges, "identity": judges["pathology"]}, INFO)


def test_validation_reports_every_part(judges):
    stage = make_stage()
    torch.manual_seed(0)
    network = stage.build(judges, INFO)
    metrics = stage.validate(network, [make_batch(8), make_batch(6, seed=1)])
    assert network.training
    parts = ("reconstruction", "kl", "classification", "identity", "pathology")
    weights = (1.0, 0.1, 5.0, 1.0, 2.5)
    total = sum(weight * metrics[f"loss_{part}"] for part, weight in zip(parts, weights, strict=True))
    assert metrics[stage.monitor] == pytest.approx(total, rel=1e-5)
    assert metrics["loss_kl"] == pytest.approx(
        (3 * metrics["kl_identity"] + metrics["kl_pathology"]) / 4, rel=1e-5
    )
    assert metrics["loss_pathology"] > 0
    assert -1 <= metrics["ssim"] <= 1
    assert {f"auroc.{name}" for name in FINDINGS} <= metrics.keys()
    assert stage.validate(network, [make_batch(8), make_batch(6, seed=1)]) == metrics  # nothing is drawn


def test_psnr_by_hand():
    stage = make_stage(weights=UNSUPERVISED)
    batch = make_batch()

    class Shifted(torch.nn.Module):
        def forward(self, image, partner=None, *, sample=True):
            zero = torch.zeros(len(image), 4, 8, 8)
            logits = batch.findings * 2 - 1
            return {
                "mean": zero,
                "log_variance": zero,
                "reconstruction": image + 0.2,
                "finding_logits": logits,
            }

    stage.build({}, INFO)
    metrics = stage.validate(Shifted(), [batch])
    assert metrics["psnr"] == pytest.approx(20.0, abs=1e-3)  # 10 log10(2^2 / 0.2^2)
    assert metrics["kl_identity"] == metrics["kl_pathology"] == 0.0
    assert metrics["auroc_macro"] == 1.0


def test_empty_validation_split():
    stage = make_stage(weights=UNSUPERVISED)
    with pytest.raises(ValueError, match="validation split is empty"):
        stage.validate(stage.build({}, INFO), [])


def test_preview_shows_the_next_image_as_donor(judges):
    stage, batch = make_stage(), make_batch()
    grids = stage.preview(stage.build(judges, INFO), batch)
    assert list(grids) == ["input", "reconstruction", "donor", "swapped"]
    assert torch.equal(grids["donor"], batch.image.roll(-1, 0))
    assert all(grid.shape == batch.image.shape and grid.abs().max() <= 1 for grid in grids.values())


def test_pairing_as_printed_compares_with_the_recipient(judges):
    """Equation 8 as printed asks that a swapped image keep its own pathology: no distance without a swap."""
    batch = make_batch()
    partner = torch.arange(8).roll(1)
    for pairing, unchanged_is_zero in (("as_printed", True), ("donor", False)):
        stage = make_stage(pathology_pairing=pairing)
        stage.build(judges, INFO)
        distance = stage._group_losses(batch.image, batch.image, partner)["pathology"]
        assert (distance.item() < 1e-6) == unchanged_is_zero


def test_group_step_needs_two_images(judges):
    stage = make_stage()
    network = stage.build(judges, INFO)
    with pytest.raises(ValueError, match="at least 2"):
        stage.loss(network, make_batch(1), step=4)
    assert stage.loss(network, make_batch(1), step=3).total.isfinite()


def test_unknown_labels_do_not_count(judges):
    stage = make_stage(weights=UNSUPERVISED)
    network, batch = stage.build({}, INFO), make_batch()
    known = batch.finding_mask.clone()
    known[:, 1] = False
    labels = batch.findings.clone()
    results = []
    for value in (0.0, torch.nan):
        labels[:, 1] = value
        changed = type(batch)(**{**vars(batch), "findings": labels.clone(), "finding_mask": known})
        torch.manual_seed(0)
        results.append(stage.loss(network, changed, 0).total)
    assert torch.equal(*results)


def test_another_stages_bundle_is_refused(judges):
    with pytest.raises(BundleError, match="identity_encoder"):
        load_network(judges["identity"])


def test_settings_by_name():
    config = load(GSVAEConfig, None, ["network.latent_channels=2", "weights.kl=0.01"])
    assert (config.network.latent_channels, config.weights.kl) == (2, 0.01)
    assert GSVAEStage(config).inputs == make_stage().inputs
    with pytest.raises(ConfigError, match="latent_channels"):
        load(GSVAEConfig, None, ["network.latent_chanels=2"])
    with pytest.raises(ConfigError, match=r"weights\.kl"):
        load(GSVAEConfig, None, ["weights.kl=0"])
