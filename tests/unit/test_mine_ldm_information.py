"""The information bound by hand and on a Gaussian whose information is known; T_ξ's length; the turns."""

import math

import pytest
import torch
from torch import nn

from counterray.models.mine_ldm.information import (
    Critic,
    CriticConfig,
    donsker_varadhan,
    log_mean_exp,
    other_rows,
)
from counterray.models.mine_ldm.perturbation import Perturbation, PerturbationConfig
from counterray.models.mine_ldm.perturbation_stage import CRITIC, PERTURBATION
from counterray.training.config import OptimizerConfig
from counterray.training.optimizer import Alternating, TurnAdamW, make_optimizer, set_rates
from tests.predictor_toys import DATA, batch
from tests.small_mine_ldm import perturbation_stage, saved, trained, vae_stage

CORRELATION = 0.8
INFORMATION = -0.5 * math.log(1 - CORRELATION**2)  # 0.511 nats


def test_the_bound_by_hand():
    """E_joint[S] = 2; E_product[e^S] = (1 + 3) / 2, so that the bound is 2 - log 2."""
    product = torch.tensor([0.0, math.log(3.0)])
    assert float(log_mean_exp(product)) == pytest.approx(math.log(2.0))
    joint = torch.tensor([1.0, 3.0])
    assert float(donsker_varadhan(joint, product)) == pytest.approx(2 - math.log(2.0))
    assert float(log_mean_exp(torch.tensor([1000.0, 1000.0]))) == pytest.approx(1000.0)


def gaussian_pairs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    noise = torch.randn(count, generator=generator)
    return x, CORRELATION * x + math.sqrt(1 - CORRELATION**2) * noise


def test_the_true_log_ratio_gives_the_information_of_a_gaussian():
    def ratio(x, y):
        inner = (x**2 + y**2) * CORRELATION**2 - 2 * CORRELATION * x * y
        return INFORMATION - inner / (2 * (1 - CORRELATION**2))

    x, y = gaussian_pairs(200_000, seed=0)
    found = donsker_varadhan(ratio(x, y), ratio(x, y.roll(1)))
    assert float(found) == pytest.approx(INFORMATION, abs=0.02)


def test_a_critic_learns_the_information_of_a_gaussian():
    """The moving average leads to the same optimum: 0.51 nats, found as about 0.5."""

    class Small(Critic):
        """S of two numbers, with the critic's own objective."""

        def __init__(self):
            super().__init__(CriticConfig(widths=(8,), blocks=1, average_rate=0.05), channels=1, levels=1)
            self.network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))

        def forward(self, latent, one_hot):
            return self.network(torch.stack([latent, one_hot], dim=1))[:, 0]

    torch.manual_seed(0)
    critic = Small()
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for step in range(400):
        x, y = gaussian_pairs(512, seed=step)
        loss = critic.objective(critic(x, y), critic(x, y.roll(1)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    critic.eval()
    x, y = gaussian_pairs(50_000, seed=9999)
    with torch.no_grad():
        found = float(donsker_varadhan(critic(x, y), critic(x, y.roll(1))))
    assert found == pytest.approx(INFORMATION, abs=0.05)


def test_the_corrected_gradient_divides_by_the_moving_average():
    critic = Critic(CriticConfig(widths=(8,), blocks=1, average_rate=0.25), channels=1, levels=1)
    product = torch.tensor([0.0, math.log(3.0)], requires_grad=True)
    critic.objective(torch.zeros(2), product).backward()
    average = 0.75 * 1 + 0.25 * 2  # it begins at e^0
    assert float(critic.log_average.exp()) == pytest.approx(average)
    torch.testing.assert_close(product.grad, torch.tensor([1.0, 3.0]) / 2 / average)
    critic.eval()
    critic.objective(torch.zeros(2), torch.full((2,), 5.0))
    assert float(critic.log_average.exp()) == pytest.approx(average)


@pytest.mark.parametrize("count", [2, 3, 17])
def test_a_partner_is_never_oneself(count):
    partner = other_rows(count, torch.device("cpu"))
    assert sorted(partner.tolist()) == list(range(count))
    assert not (partner == torch.arange(count)).any()


@pytest.mark.parametrize(("channels", "size"), [(4, 8), (8, 16)])
def test_t_moves_every_latent_by_the_same_length(channels, size):
    torch.manual_seed(0)
    perturbation = Perturbation(PerturbationConfig(widths=(8, 16)), channels=channels, size=size)
    latent = torch.randn(6, channels, size, size)
    step = (perturbation(latent) - latent).detach()
    length = 0.1 * math.sqrt(channels * size * size)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((6,), length), rtol=1e-4, atol=0)
    relative = step.flatten(1).norm(dim=1) / latent.flatten(1).norm(dim=1)
    assert float(relative.mean()) == pytest.approx(0.1, rel=0.05)
    assert float((step[0] - step[1]).abs().max()) > 1e-3
    alone = (perturbation(latent[2:3]) - latent[2:3]).detach()
    torch.testing.assert_close(alone, step[2:3], atol=1e-5, rtol=0)


def test_latents_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match=r"edge \(4\) is not divisible by 8"):
        Perturbation(PerturbationConfig(), channels=4, size=4)


# The turns.


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    stage = vae_stage()
    return saved(tmp_path_factory.mktemp("vae") / "vae", stage, trained(stage, steps=20))


def test_five_steps_of_the_critic_then_one_of_the_perturbation():
    stage = perturbation_stage()
    assert isinstance(stage, Alternating)
    assert [stage.turn(step) for step in range(12)] == ([CRITIC] * 5 + [PERTURBATION]) * 2
    assert [perturbation_stage(critic_steps=1).turn(step) for step in range(3)] == [
        CRITIC,
        PERTURBATION,
        CRITIC,
    ]


def test_each_step_moves_and_clips_one_part_alone(vae):
    stage = perturbation_stage(critic_steps=1)
    torch.manual_seed(0)
    module = stage.build({"vae": vae}, DATA)
    optimizer = make_optimizer(stage, module, OptimizerConfig(lr=1e-2))
    for step in range(4):
        before = {name: value.detach().clone() for name, value in module.named_parameters()}
        set_rates(optimizer, stage, step, 1e-2)
        optimizer.zero_grad()
        stage.loss(module, batch(8, step), step).total.backward()
        with_gradient = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
        assert with_gradient == {stage.turn(step)}
        optimizer.step()
        moved = {name.split(".")[0] for name, p in module.named_parameters() if not p.equal(before[name])}
        assert moved == {stage.turn(step)}
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_group_that_sits_out_keeps_its_moments_even_if_an_engine_gives_it_a_gradient_of_zero():
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = TurnAdamW([{"params": [first]}, {"params": [second]}], lr=0.1)
    for parameter in (first, second):
        parameter.grad = torch.ones(2)
    optimizer.step()
    value, moment = second.detach().clone(), optimizer.state[second]["exp_avg"].clone()
    optimizer.param_groups[1]["lr"] = 0.0
    first.grad, second.grad = torch.ones(2), torch.zeros(2)
    optimizer.step()
    assert torch.equal(second.detach(), value)
    assert torch.equal(optimizer.state[second]["exp_avg"], moment)
    assert optimizer.state[second]["step"] == 1


def test_the_perturbation_takes_information_out(vae):
    """Alternating for a while lowers what a critic that is trained afterwards still finds."""
    stage = perturbation_stage(attributes=("sex",), perturbation={"widths": (8, 16), "relative_size": 0.5})
    torch.manual_seed(0)
    module = stage.build({"vae": vae}, DATA)
    optimizer = make_optimizer(stage, module, OptimizerConfig(lr=3e-3))
    learnt = [0.0, 0.0]
    for step in range(180):
        set_rates(optimizer, stage, step, 3e-3)
        optimizer.zero_grad()
        losses = stage.loss(module, batch(32, step), step)
        losses.total.backward()
        optimizer.step()
        learnt[step >= 90] += float(losses.parts["information"]) / 90
    assert max(learnt) < math.log(2) + 0.1  # no more than there is
    metrics = stage.validate(module, [batch(64, 1000)])
    assert metrics["relative_change"] == pytest.approx(0.5, rel=0.25)
    assert metrics["information"] < math.log(2)


def test_studies_of_unknown_attributes_take_no_part(vae):
    stage = perturbation_stage()
    module = stage.build({"vae": vae}, DATA)
    unknown = batch(4, 0)
    unknown.attributes["sex"][:3] = torch.nan
    losses = stage.loss(module, unknown, 0)
    assert float(losses.total.detach()) == 0
    losses.total.backward()
    with pytest.raises(ValueError, match="no batch with two images whose scanner, sex are known"):
        stage.validate(module, [unknown])
