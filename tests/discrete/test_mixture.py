import math

import numpy as np
import pytest
import scipy.special
import torch

from cflow.discrete import MixtureLogistic


def test_it_is_the_logit_of_a_mixtures_distribution_function(generator, float64):
    family = MixtureLogistic(components=4, clamp=3.0, floor=0.01)
    x, raw = 3 * torch.randn(300, generator=generator), torch.randn(300, family.size, generator=generator)
    a, b, logits, means, scales = raw.split((1, 1, 4, 4, 4), -1)
    weights = scipy.special.softmax(logits.numpy(), -1)
    means = means.numpy() + np.linspace(-1, 1, 4)
    scales = (3 * (scales / 3).tanh()).exp().numpy()
    mass = (weights * scipy.special.expit((x[:, None].numpy() - means) / scales)).sum(-1)
    inner = 0.99 * torch.from_numpy(scipy.special.logit(mass)) + 0.01 * x
    expected = (3 * (a[:, 0] / 3).tanh()).exp() * inner + b[:, 0]
    assert mass.min() > 1e-9  # where the plain formula still has digits
    assert mass.max() < 1 - 1e-7
    torch.testing.assert_close(family.encode(x, raw)[0], expected, rtol=1e-8, atol=1e-8)


def test_over_a_logistic_base_the_density_is_the_mixtures(generator, float64):
    family = MixtureLogistic(components=3, floor=1e-15)
    x, raw = 4 * torch.randn(300, generator=generator), torch.randn(300, family.size, generator=generator)
    raw[:, :2] = 0
    z, ladj = family.encode(x, raw)
    found = torch.nn.functional.logsigmoid(z) + torch.nn.functional.logsigmoid(-z) + ladj
    _, logits, means, scales = raw.split((2, 3, 3, 3), -1)
    scales = 5 * (scales / 5).tanh()
    u = (x[:, None] - means - torch.tensor([-1.0, 0.0, 1.0])) * (-scales).exp()
    parts = torch.nn.functional.logsigmoid(u) + torch.nn.functional.logsigmoid(-u) - scales
    torch.testing.assert_close(found, (logits.log_softmax(-1) + parts).logsumexp(-1), rtol=1e-10, atol=1e-10)


def test_one_component_is_affine(float64):
    family = MixtureLogistic(components=1, floor=0.25)
    raw = torch.tensor([0.0, 0.7, 9.0, 2.0, 0.0])  # shift, the weight of the only one, mean
    x = torch.linspace(-1000, 1000, 9)
    z, ladj = family.encode(x, raw.expand(9, -1))
    torch.testing.assert_close(z, 0.75 * (x - 2) + 0.25 * x + 0.7)
    torch.testing.assert_close(ladj, torch.zeros(9))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_both_tails_keep_their_digits_in_float32(sign, generator):
    family, x = MixtureLogistic(), sign * torch.logspace(0, 6, 400)
    raw = torch.randn(400, family.size, generator=generator)
    exact = family.encode(x.double(), raw.double())
    for found, true in zip(family.encode(x, raw), exact):
        torch.testing.assert_close(found.double(), true, rtol=1e-5, atol=1e-4)
    back, _ = family.decode(exact[0].float(), raw)
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-4)


def test_slopes_stay_within_their_bounds(generator, float64):
    family = MixtureLogistic(components=5, clamp=2.0, floor=0.01)
    x = 10 * torch.randn(5000, generator=generator)
    raw = 100 * torch.randn(5000, family.size, generator=generator)
    _, ladj = family.encode(x, raw)
    assert float(ladj.min()) >= math.log(0.01) - 2
    assert float(ladj.max()) <= 4
    assert float(ladj.min()) < -5  # the floor is what holds it: between distant components the logit is flat


def test_components_part_from_the_start(float64):
    family = MixtureLogistic(components=6)
    raw = torch.zeros(1, family.size, requires_grad=True)
    z, _ = family.encode(torch.tensor([1.3]), raw)
    (gradient,) = torch.autograd.grad(z.sum(), raw)
    for part in gradient[0, 2:].split(6):
        assert len(part.unique()) == 6


@pytest.mark.parametrize("arguments", [{"components": 0}, {"clamp": 0.0}, {"clamp": math.inf}, {"floor": 0.0}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="pass MixtureLogistic"):
        MixtureLogistic(**arguments)
