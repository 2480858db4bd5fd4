"""Stochastic interpolants against closed forms, and what they refuse."""

import math

import pytest
import torch

import cflow
from cflow import bases, fields, paths, solvers
from cflow.testing import check_interpolant

GAMMAS = {
    "brownian": paths.BrownianGamma(0.7),
    "quadratic": paths.QuadraticGamma(2.0),
    "sine": paths.SineGamma(0.8),
    "sigmoid": paths.SigmoidGamma(0.8, steepness=8.0),
}
every_prediction = pytest.mark.parametrize("predict", paths.Interpolant.predictions)


@every_prediction
@pytest.mark.parametrize("gamma", GAMMAS.values(), ids=GAMMAS)
def test_every_gamma_conforms(gamma, predict):
    check_interpolant(paths.Interpolant(gamma=gamma, predict=predict))


@every_prediction
def test_other_schedules_conform(predict):
    check_interpolant(paths.Interpolant(paths.Cosine(), paths.BrownianGamma(0.5), predict))


def test_the_bridge_is_the_linear_interpolant_with_brownian_noise(generator):
    x0, x1, noise = torch.randn(3, 50, 2, generator=generator, dtype=torch.float64)
    t = torch.rand(50, generator=generator, dtype=torch.float64)
    bridge, general = paths.BrownianBridge(0.6), paths.Interpolant(gamma=paths.BrownianGamma(0.6))
    assert torch.equal(bridge.sample(x0, x1, t, noise=noise).xt, general.sample(x0, x1, t, noise=noise).xt)
    expected = x0 + t[:, None] * (x1 - x0) + 0.6 * (t * (1 - t)).sqrt()[:, None] * noise
    assert torch.allclose(bridge.sample(x0, x1, t, noise=noise).xt, expected)


def test_the_bridges_sde_with_its_own_diffusion_has_the_bridges_drift(generator):
    """b + sigma^2 s / 2 = E[(x1 - x_t) / (1 - t)]: pinned at the data, no trace of where the path came from."""
    sigma, t = 0.9, torch.full((40,), 0.3, dtype=torch.float64)
    path = paths.BrownianBridge(sigma)
    x0, x1, x = torch.randn(3, 40, 2, generator=generator, dtype=torch.float64)
    z = (x - 0.7 * x0 - 0.3 * x1) / (sigma * math.sqrt(0.21))
    prediction = torch.stack((x1 - x0, -z / (sigma * math.sqrt(0.21))), 1)
    drift = path.velocity(prediction, x, t) + 0.5 * sigma**2 * path.score(prediction, x, t)
    assert torch.allclose(drift, (x1 - x) / 0.7)


@every_prediction
def test_a_masked_entry_has_no_loss(predict, generator):
    path = paths.BrownianBridge(predict=predict)
    x0, x1 = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64)
    t = torch.rand(8, generator=generator, dtype=torch.float64)
    sample = path.sample(x0, x1, t, mask=torch.tensor([True, False, True]), generator=generator)
    prediction = torch.zeros_like(sample.target)
    spoilt = prediction.clone()
    spoilt[..., 1] = 1e6
    assert torch.equal(path.loss(prediction, sample), path.loss(spoilt, sample))
    assert (path.loss(prediction, sample) > 0).all()


def test_paths_compare_by_what_they_are():
    assert paths.BrownianBridge(0.5) == paths.BrownianBridge(0.5) != paths.BrownianBridge(0.6)
    assert paths.Interpolant(paths.Cosine()) != paths.Interpolant()


def test_a_flow_is_saved_with_its_bridge(tmp_path, generator):
    path = paths.Interpolant(paths.Cosine(), paths.SigmoidGamma(0.4), "noise")
    flow = cflow.ContinuousFlow(
        fields.MLP(2, hidden=(8,), outputs=2), bases.Empirical(torch.randn(9, 2, generator=generator)), path=path
    )
    loaded = cflow.load(cflow.save(flow, tmp_path / "model"))
    assert loaded.path == path
    assert torch.equal(loaded.base.samples, flow.base.samples)
    draw = lambda each: each.sample((3,), solver=solvers.EulerMaruyama(4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(loaded), draw(flow))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"one of score, velocity\+score, noise, velocity"):
        paths.BrownianBridge(predict="x1")
    with pytest.raises(ValueError, match="scale=0.0"):
        paths.BrownianBridge(0.0)
    with pytest.raises(ValueError, match="steepness=-1"):
        paths.SigmoidGamma(1.0, steepness=-1)
    with pytest.raises(TypeError, match=r"gamma=0.5\): pass an object"):
        paths.Interpolant(gamma=0.5)
    with pytest.raises(ValueError, match="omit predict in the schedule"):
        paths.Interpolant(paths.Linear("x1"))
    with pytest.raises(ValueError, match="differ in shape"):
        paths.BrownianBridge().sample(torch.zeros(3, 2), torch.zeros(3, 1), torch.zeros(3))
    bridge, base = paths.BrownianBridge(), bases.Normal(2)
    with pytest.raises(ValueError, match=r"returns 1 outputs .* build the field with outputs=2, or choose"):
        cflow.ContinuousFlow(fields.MLP(2), base, path=bridge)
    with pytest.raises(ValueError, match=r"returns 2 outputs .* build the field with outputs=1\."):
        cflow.ContinuousFlow(fields.MLP(2, outputs=2), base, path=paths.Linear())
    flow = cflow.ContinuousFlow(fields.MLP(2, outputs=2), base, path=bridge)
    with pytest.raises(ValueError, match="only affine paths"):
        flow.with_path(paths.Linear())

    class Wrong(torch.nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            return x

    with pytest.raises(ValueError, match="needs two outputs"):
        cflow.ContinuousFlow(Wrong(), base, path=bridge).sample((2,))
