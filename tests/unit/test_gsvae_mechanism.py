"""Which donor a bank finds, what it says when there is none, and samples."""

import pytest
import torch

from counterray.models.gsvae.bank import NoDonorError, PathologyBank
from counterray.models.gsvae.mechanism import GSVAEMechanism
from tests.small_gsvae import FINDINGS, INFO, UNSUPERVISED, make_batch, make_stage, parents_of


@pytest.fixture(scope="module")
def stage():
    return make_stage(weights=UNSUPERVISED)


@pytest.fixture(scope="module")
def network(stage):
    torch.manual_seed(0)
    network = stage.build({}, INFO).eval()
    torch.nn.init.normal_(network.transformer.out.weight, std=0.1)
    return network


def bank(**changes):
    """Four donors: healthy young f, healthy old m, edema old f, both findings young f."""
    fields = {
        "pathology": torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8),
        "anatomy": torch.zeros(4, 48),
        "findings": torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]]),
        "age": torch.tensor([30.0, 70.0, 70.0, 30.0]),
        "sex": torch.tensor([0.0, 1.0, 0.0, 0.0]),
        "finding_names": FINDINGS,
    }
    return PathologyBank(**{**fields, **changes})


def chosen(target, parents, **changes):
    identity = torch.zeros(len(target), 3, 8, 8)
    found = bank(**changes).pathology_for(torch.tensor(target), identity=identity, parents=parents)
    return found[:, 0, 0, 0].tolist()


def test_donor_has_the_findings_and_is_nearest_in_age_and_sex():
    old_male = {"age": torch.tensor([68.0]), "sex": torch.tensor([1.0])}
    young_female = {"age": torch.tensor([33.0]), "sex": torch.tensor([0.0])}
    assert chosen([[1.0, 0, 0]], old_male) == [1]
    assert chosen([[1.0, 0, 0]], young_female) == [0]
    assert chosen([[0.0, 0, 1]], young_female) == [2]  # forty years off, but the only edema alone


def test_no_finding_follows_from_the_others():
    assert chosen([[1.0, 1, 1]], {}) == [3]  # do(cardiomegaly) need not also undo no_finding


def test_what_is_not_known_excludes_no_donor():
    nan = torch.tensor([torch.nan])
    assert chosen([[torch.nan, 1.0, torch.nan]], {"age": nan, "sex": nan}) == [3]
    unknown = torch.full((4,), torch.nan)
    assert chosen([[0.0, 0, 1]], {"age": torch.tensor([30.0])}, age=unknown, sex=unknown) == [2]


def test_a_donor_with_an_unknown_finding_does_not_match():
    findings = torch.tensor([[1.0, 0, torch.nan], [1, 0, 0], [0, 0, 1], [0, 1, 1]])
    assert chosen([[1.0, 0, 0]], {"age": torch.tensor([30.0])}, findings=findings) == [1]


def test_anatomy_decides_among_equals():
    anatomy = torch.zeros(4, 48)
    anatomy[0] = 1.0
    same = {"age": torch.full((4,), 50.0), "sex": torch.zeros(4)}
    assert chosen([[1.0, 0, 0]], {}, anatomy=anatomy, **same) == [1]


def test_missing_combination_lists_those_there_are():
    with pytest.raises(NoDonorError) as caught:
        chosen([[0.0, 0, 1], [0.0, 1, 0]], {})
    message = str(caught.value)
    assert "exactly: cardiomegaly." in message
    assert "none (2); edema (1); cardiomegaly + edema (1)" in message


def test_bank_of_batches_keeps_every_image(network):
    batches = [make_batch(8), make_batch(4, seed=1)]
    built = PathologyBank.build(network, batches)
    assert built.pathology.shape == (12, 1, 8, 8)
    assert built.anatomy.shape == (12, 3 * 16)
    with torch.no_grad():
        expected = network.encode(batches[1].image)[0]
    assert torch.equal(built.pathology[8:], expected[:, -1:])
    assert torch.equal(built.age[8:], batches[1].attributes["age"])
    with pytest.raises(ValueError, match="at least one batch"):
        PathologyBank.build(network, [])


def test_changed_rows_take_a_donors_pathology_and_others_keep_theirs(stage, network):
    batch, donors = make_batch(), make_batch(16, seed=5)
    mechanism = GSVAEMechanism(
        network, stage.config, finding_names=FINDINGS, bank=PathologyBank.build(network, [donors])
    )
    parents = parents_of(batch)
    noise = mechanism.abduct(batch.image, parents)
    edited = {**parents, "finding.edema": torch.zeros(8)}
    before, after = mechanism.predict(noise, parents), mechanism.predict(noise, edited)
    had_edema = parents["finding.edema"] == 1
    assert torch.equal(after[~had_edema], before[~had_edema])
    assert (after[had_edema] != before[had_edema]).flatten(1).any(dim=1).all()


def test_with_pathology_is_the_donors_channel_under_the_patients_identity(stage, network):
    batch, donor = make_batch(), make_batch(seed=9).image
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS)
    parents = parents_of(batch)
    noise = mechanism.with_pathology(mechanism.abduct(batch.image, parents), donor)
    with torch.no_grad():
        identity, pathology = network.encode(batch.image)[0][:, :3], network.encode(donor)[0][:, 3:]
        expected = network.decode(torch.cat([identity, pathology], dim=1)).clamp(-1, 1)
    assert torch.equal(mechanism.predict(noise, parents), expected)


def test_change_without_a_bank_is_refused(stage, network):
    batch = make_batch()
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS)
    noise = mechanism.abduct(batch.image, parents_of(batch))
    with pytest.raises(ValueError, match=r"PathologyBank\.build"):
        mechanism.predict(noise, {"finding.edema": torch.ones(8)})


def test_unknown_findings_stay_unknown_until_set(stage, network):
    batch = make_batch()
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS)
    noise = mechanism.abduct(batch.image, {})
    assert noise.findings.isnan().all()
    assert torch.equal(mechanism.predict(noise, {}), mechanism.predict(noise, {"scanner": torch.ones(8)}))


def test_samples_follow_the_generator(stage, network):
    mechanism = GSVAEMechanism(network, stage.config, finding_names=FINDINGS)
    parents = {"age": torch.tensor([40.0, 50.0, 60.0])}
    first = mechanism.sample(parents, torch.Generator().manual_seed(1))
    again = mechanism.sample(parents, torch.Generator().manual_seed(1))
    other = mechanism.sample(parents, torch.Generator().manual_seed(2))
    assert first.shape == (3, 1, 32, 32)
    assert first.abs().max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match="batch size"):
        mechanism.sample({}, torch.Generator())


def test_one_channel_has_all_of_an_image_as_pathology():
    stage = make_stage({"latent_channels": 1}, UNSUPERVISED)
    network, batch = stage.build({}, INFO).eval(), make_batch()
    mechanism = GSVAEMechanism(
        network, stage.config, finding_names=FINDINGS, bank=PathologyBank.build(network, [batch])
    )
    noise = mechanism.abduct(batch.image, parents_of(batch))
    donor = mechanism.with_pathology(noise, batch.image.flip(0))
    assert torch.equal(mechanism.predict(donor, {}), mechanism.predict(noise, {}).flip(0))
    assert mechanism.predict(noise, {"finding.edema": torch.zeros(8)}).isfinite().all()
