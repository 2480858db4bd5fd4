import pytest
import torch
from torch import nn

from cflow.training.ema import EMA, Average


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.narrow = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        self.wide = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("running", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


@pytest.mark.parametrize("warmup", [True, False])
def test_it_follows_the_recursion(warmup, generator):
    module = Mixed()
    average, expected = Average(module, EMA(0.9, warmup)), torch.zeros(3, dtype=torch.float64)
    for number in range(1, 40):
        value = torch.randn(3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            for each in (module.weight, module.narrow, module.wide):
                each.copy_(value)
            module.running = value.float()  # replaced, not written into
            module.count += 1
        average.update()
        decay = min(0.9, (1 + number) / (10 + number)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * value
    raw = {name: value.clone() for name, value in module.state_dict().items()}
    with average.applied():
        torch.testing.assert_close(module.wide.detach(), expected)
        torch.testing.assert_close(module.weight.detach(), expected.float())
        torch.testing.assert_close(module.running, expected.float())
        torch.testing.assert_close(module.narrow.detach().double(), expected, atol=1e-2, rtol=1e-2)
        assert module.count == 39
        assert module.mask.tolist() == [0.0, -torch.inf]
    assert all(torch.equal(value, raw[name]) for name, value in module.state_dict().items())


def test_the_average_of_half_precision_weights_takes_small_steps():
    """A step of a thousandth of the weight is lost in bfloat16 and kept in the average."""
    module = Mixed()
    nn.init.ones_(module.narrow)
    average = Average(module, EMA(0.999, warmup=False))
    with torch.no_grad():
        module.narrow.fill_(1.5)
    average.update()
    position = [id(each) for each in average._live()].index(id(module.narrow))
    torch.testing.assert_close(average.shadow[position], torch.full((3,), 1.0005))


def test_the_state_goes_round():
    module = Mixed()
    average = Average(module, EMA(0.5))
    nn.init.ones_(module.weight)
    average.update()
    other = Average(Mixed(), EMA(0.5))
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    assert all(torch.equal(a, b) for a, b in zip(average.shadow, other.shadow, strict=True))


def test_a_frozen_parameter_takes_no_memory():
    assert len(Average(Mixed(), EMA()).shadow) == 4


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay):
    with pytest.raises(ValueError, match=r"EMA\(decay=.*pass a value in \[0, 1\)"):
        EMA(decay)


def test_fixed_buffers_are_left_alone():
    from cflow import bases

    module = nn.ModuleList([nn.Linear(2, 2), bases.Empirical(torch.rand(100, 2)), nn.BatchNorm1d(2)])
    average = Average(module, EMA())
    assert sum(each.numel() for each in average.shadow) == 6 + 4 + 4  # weights, gains and running statistics
