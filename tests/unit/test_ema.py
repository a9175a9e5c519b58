"""The moving average by hand, its restart, and what it refuses."""

import pytest
import torch

from counterray.nn.ema import EMA


def test_two_updates_by_hand():
    ema = EMA({"w": torch.tensor([1.0])}, decay=0.15)
    ema.update({"w": torch.tensor([2.0])})  # rate min(0.15, 1/10) = 0.1
    assert ema.average["w"].item() == pytest.approx(0.1 * 1.0 + 0.9 * 2.0)
    ema.update({"w": torch.tensor([4.0])})  # rate min(0.15, 2/11) = 0.15
    assert ema.average["w"].item() == pytest.approx(0.15 * 1.9 + 0.85 * 4.0)


def test_average_of_a_constant_is_the_constant():
    value = torch.randn(7)
    ema = EMA({"w": value}, decay=0.999)
    for _ in range(50):
        ema.update({"w": value})
    torch.testing.assert_close(ema.average["w"], value, rtol=0, atol=1e-6)


def test_bfloat16_is_averaged_in_float32():
    ema = EMA({"w": torch.ones(1, dtype=torch.bfloat16)}, decay=0.0)
    ema.decay = 0.999
    ema.updates = 10**6
    for _ in range(100):
        ema.update({"w": torch.full((1,), 2.0, dtype=torch.bfloat16)})
    # In bfloat16 a step of 0.001 would be rounded away and the average stay at 1.
    assert ema.average["w"].dtype == torch.float32
    assert ema.average["w"].item() == pytest.approx(2 - 0.999**100, abs=1e-5)


def test_integers_are_copied():
    ema = EMA({"count": torch.tensor(3)}, decay=0.9)
    ema.update({"count": torch.tensor(8)})
    assert ema.average["count"].item() == 8


def test_applied_average_is_put_back_bitwise():
    module = torch.nn.Linear(3, 2)
    first = module.weight.detach().clone()
    ema = EMA(module.state_dict(), decay=0.5)
    with torch.no_grad():
        module.weight.add_(1.0)
    own = module.weight.detach().clone()
    with ema.applied_to(module.state_dict()):
        assert torch.equal(module.weight, first)
    assert torch.equal(module.weight, own)
    assert not torch.equal(own, first)


def test_own_values_return_after_an_error():
    value = torch.tensor([5.0])
    ema = EMA({"w": torch.tensor([1.0])}, decay=0.5)
    with pytest.raises(RuntimeError, match="inside"):
        _fail_inside(ema, value)
    assert value.item() == 5.0


def _fail_inside(ema, value):
    with ema.applied_to({"w": value}):
        assert value.item() == 1.0
        raise RuntimeError("inside")


def test_state_restores_exactly():
    torch.manual_seed(0)
    values = [torch.randn(4) for _ in range(6)]
    whole = EMA({"w": values[0]}, decay=0.9)
    for value in values[1:4]:
        whole.update({"w": value})
    restored = EMA({"w": torch.zeros(4)}, decay=0.9)
    restored.load_state_dict({name: tensor.clone() for name, tensor in whole.state_dict().items()})
    for value in values[4:]:
        whole.update({"w": value})
        restored.update({"w": value})
    assert torch.equal(whole.average["w"], restored.average["w"])


def test_average_is_a_copy():
    value = torch.tensor([1.0])
    ema = EMA({"w": value}, decay=0.5)
    value.add_(1.0)
    assert ema.average["w"].item() == 1.0


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_decay_outside_range(decay):
    with pytest.raises(ValueError, match=r"ema\.decay"):
        EMA({"w": torch.ones(1)}, decay=decay)


def test_other_names_are_refused():
    ema = EMA({"w": torch.ones(1)}, decay=0.5)
    for call in (ema.update, ema.copy_to, ema.load_state_dict):
        with pytest.raises(KeyError, match="bias"):
            call({"w": torch.ones(1), "bias": torch.ones(1)})
