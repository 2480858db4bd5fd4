import copy
import itertools
import math

import numpy
import pytest
import scipy.integrate
import scipy.stats
import torch
from time_members import NESTED, PLAIN

from cflow import times
from cflow.registry import configuration
from cflow.times import Antithetic, Beta, CosMap, LogitNormal, Mode, Shifted, Stratified, Times, Uniform

ALARM = 1e-4  # every KS test below fails for one seed in 10,000 when the law is right

each = pytest.mark.parametrize("law", PLAIN + NESTED, ids=repr)


def source_mode(u, scale):
    """The map of the source, whose t = 1 is noise, seen with t = 1 as data."""
    return 1 - (1 - u - scale * (math.cos(math.pi * u / 2) ** 2 - 1 + u))


def source_cosine(u):
    return 1 - (1 - 1 / (math.tan(math.pi * u / 2) + 1))


@pytest.mark.parametrize(
    ("law", "cdf"),
    [
        (Uniform(), scipy.stats.uniform().cdf),
        (LogitNormal(0.5, 0.8), lambda t: scipy.stats.norm(0.5, 0.8).cdf(numpy.log(t / (1 - t)))),
        (CosMap(), lambda t: 2 / math.pi * numpy.arctan(t / (1 - t))),
        (Beta(1.0, 1.5), scipy.stats.beta(1, 1.5).cdf),
        (Beta(2.0, 1.0), scipy.stats.beta(2, 1).cdf),
        (Beta(0.6, 2.5), scipy.stats.beta(0.6, 2.5).cdf),
        (Antithetic(Beta(1.0, 1.5)), scipy.stats.beta(1, 1.5).cdf),
        # If 1 - t is s v / (1 + (s - 1) v) with v uniform, then v = (1 - t) / (s - (s - 1)(1 - t)).
        (Shifted(Uniform(), 3.0), lambda t: 1 - (1 - t) / (3 - 2 * (1 - t))),
    ],
    ids=lambda each: repr(each) if isinstance(each, Times) else "cdf",  # the same in every process
)
def test_draws_follow_the_law_they_name(law, cdf, generator):
    t = law(20_000, generator=generator).double().numpy()
    if isinstance(law, Antithetic):
        t = t[::2]  # pairs depend on each other; one of each does not
    assert scipy.stats.kstest(t, cdf).pvalue > ALARM


@pytest.mark.parametrize("law", PLAIN, ids=repr)
def test_densities_integrate_to_the_distribution_function(law, float64):
    for u in (0.01, 0.2, 0.5, 0.77, 0.99):
        t = law.icdf(torch.tensor(u)).item()
        share, _ = scipy.integrate.quad(lambda x: law.density(torch.tensor(x)).item(), 0, t, limit=200)
        assert share == pytest.approx(u, abs=2e-6)
    ends = law.icdf(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0]))
    whole, _ = scipy.integrate.quad(lambda x: law.density(torch.tensor(x)).item(), 0, 1, limit=200)
    assert whole == pytest.approx(1, abs=1e-5)


@each
def test_densities_are_the_slopes_of_the_inverse(law, float64):
    u = torch.linspace(0.02, 0.98, 25, requires_grad=not isinstance(getattr(law, "inner", law), Beta))
    if u.requires_grad:
        t = law.icdf(u)
        slope = torch.autograd.grad(t.sum(), u)[0]
        torch.testing.assert_close(law.density(t.detach()), 1 / slope, rtol=1e-8, atol=0)
    else:
        step = 1e-6
        slope = (law.icdf(u + step) - law.icdf(u - step)) / (2 * step)
        torch.testing.assert_close(law.density(law.icdf(u)), 1 / slope, rtol=1e-6, atol=0)
    outside = law.log_density(torch.tensor([-0.1, 1.1]))
    assert (outside == -torch.inf).all()
    assert not law.log_density(torch.tensor([0.0, 1.0])).isnan().any()


def test_beta_and_its_closed_forms_match_scipy(float64):
    u = torch.linspace(0, 1, 33)
    for alpha, beta in ((1.0, 1.5), (2.0, 1.0), (1.0, 1.0), (0.6, 2.5), (30.0, 4.0)):
        law = scipy.stats.beta(alpha, beta)
        numpy.testing.assert_allclose(Beta(alpha, beta).icdf(u), law.ppf(u), rtol=1e-10, atol=1e-12)
        numpy.testing.assert_allclose(Beta(alpha, beta).log_density(u), law.logpdf(u), rtol=1e-10, atol=1e-12)


def test_maps_of_the_source_are_turned_to_data_at_one(float64):
    for u in (0.1, 0.3, 0.8):
        for scale in (-1.0, 0.7, 1.75):
            assert Mode(scale).icdf(torch.tensor(u)).item() == pytest.approx(source_mode(u, scale), abs=1e-14)
        assert CosMap().icdf(torch.tensor(u)).item() == pytest.approx(1 - source_cosine(u), abs=1e-14)
        for shift in (0.3, 3.0):
            noise_time = shift * (1 - u) / (1 + (shift - 1) * (1 - u))
            assert times.shift_times(u, shift) == pytest.approx(1 - noise_time, abs=1e-14)
    assert times.shift_times(0.5, 3.0) < 0.5  # a shift above one spends more time near the noise


def test_shifts_compose_and_undo(float64):
    t = torch.linspace(0, 1, 11)
    twice = times.shift_times(times.shift_times(t, 3.0), 0.7)
    torch.testing.assert_close(twice, times.shift_times(t, 2.1), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(times.shift_times(times.shift_times(t, 5.0), 1 / 5.0), t, rtol=1e-14, atol=1e-15)
    assert torch.equal(times.shift_times(t, 1.0), t)
    assert times.shift_times(0.0, 3.0) == 0.0
    assert times.shift_times(1.0, 3.0) == 1.0
    nested = Shifted(Shifted(CosMap(), 3.0), 0.7)
    torch.testing.assert_close(nested.log_density(t), Shifted(CosMap(), 2.1).log_density(t))


@each
def test_draws_have_the_promised_shape_dtype_and_range(law):
    for count in (0, 1, 2, 7):
        t = law(count, generator=torch.Generator().manual_seed(3))
        assert t.shape == (count,)
        assert t.dtype == torch.float32
        assert ((t >= 0) & (t <= 1)).all()
    assert law(5, dtype=torch.float64).dtype == torch.float64
    narrow = law(5, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(narrow, law(5, generator=torch.Generator().manual_seed(3)).bfloat16())


@each
def test_draws_are_reproducible_and_objects_rebuild(law):
    first = law(20, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, law(20, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(first, law(20, generator=torch.Generator().manual_seed(6)))
    state = torch.get_rng_state()
    rebuilt = type(law)(**configuration(law))
    assert rebuilt == law == copy.deepcopy(law)
    assert torch.equal(first, rebuilt(20, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(state, torch.get_rng_state())
    law(3)
    assert not torch.equal(state, torch.get_rng_state())
    with pytest.raises(AttributeError):
        law.inner = Uniform()


def test_a_shift_of_dependent_draws_keeps_them_dependent():
    """Draws in strata, or in mirrored pairs, are shifted one by one: with one generator they are the inner law's."""
    for inner in (Stratified(), Antithetic(LogitNormal(0.5, 0.8)), Stratified(CosMap())):
        draw = lambda law: law(40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        found = draw(Shifted(inner, 3.0))
        assert torch.allclose(found, times.shift_times(draw(inner), 3.0), rtol=1e-12)
    u = times.shift_times(draw(Shifted(Stratified(), 3.0)), 1 / 3)
    assert (u * 40).long().sort().values.tolist() == list(range(40))


@pytest.mark.parametrize("inner", [Uniform(), LogitNormal(0.5, 0.8), Shifted(Uniform(), 3.0)], ids=repr)
def test_strata_hold_one_draw_each_in_random_order(inner, generator, float64):
    count = 64
    uniform = Stratified(inner).uniforms(count, generator, None, torch.float64)
    assert torch.equal((uniform * count).floor().sort().values, torch.arange(count).double())
    assert not torch.equal(uniform, uniform.sort().values)
    # The place of a draw in the batch says nothing of its stratum: the first of 2,000 calls is uniform.
    firsts = [Stratified(inner)(count, generator=generator)[0].item() for _ in range(2000)]
    law = inner(2000, generator=generator)
    assert scipy.stats.ks_2samp(firsts, law.numpy()).pvalue > ALARM


def test_strata_and_mirrors_lower_the_variance_of_a_mean(generator):
    def variance(law):
        return torch.stack([law(64, generator=generator).square().mean() for _ in range(300)]).var()

    plain = variance(Uniform())
    # Theory: a 64th of 0.0889 plain; with strata about 1 / (3 * 64^3); the mean of u^2 and (1 - u)^2 has 1 / 180.
    assert plain == pytest.approx(4 / 45 / 64, rel=0.4)
    assert variance(Stratified()) == pytest.approx(1 / 9 / 64**3, rel=0.4)
    assert variance(Antithetic()) == pytest.approx(1 / 180 / 32, rel=0.4)
    assert variance(Antithetic(Stratified())) < variance(Antithetic()) / 50


def test_mirrored_draws_are_neighbours(generator, float64):
    law = LogitNormal(0.0, 1.3)  # symmetric: mirrored u give mirrored times
    t = Antithetic(law)(7, generator=generator)
    torch.testing.assert_close(t[0:6:2] + t[1:6:2], torch.ones(3))
    assert len(t.unique()) == 7


def test_no_time_of_a_singular_law_is_an_end(generator):
    ends = torch.tensor([0.0, 1.0])

    class Ends(Uniform):
        def uniforms(self, count, generator, device, dtype):
            return ends.to(dtype)

        def icdf(self, u):
            return LogitNormal().icdf(u)

    t = Ends()(2)
    assert (t > 0).all()
    assert (t < 1).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize(
    "lay",
    [
        times.uniform_grid,
        lambda n: times.shifted_grid(n, 3.0),
        lambda n: times.shifted_grid(n, 0.2),
        times.cosine_grid,
        lambda n: times.power_grid(n, 2.0),
        lambda n: times.power_grid(n, 0.5),
        times.edm_grid,
        lambda n: times.quantile_grid(n, LogitNormal(0.5)),
    ],
)
def test_grids_rise_between_exact_ends(lay, steps):
    grid = lay(steps)
    assert isinstance(grid, tuple)
    assert len(grid) == steps + 1
    assert all(type(t) is float for t in grid)
    assert grid[0] == 0.0
    assert grid[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(grid))
    assert lay(steps) == grid


def test_grids_lie_where_their_formulas_say():
    assert times.uniform_grid(4) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert times.shifted_grid(4, 1.0) == times.uniform_grid(4)
    noise = [3 * s / (1 + 2 * s) for s in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert times.shifted_grid(4, 3.0) == pytest.approx([1 - s for s in noise], abs=1e-15)
    assert times.cosine_grid(6) == pytest.approx([(1 - math.cos(math.pi * i / 6)) / 2 for i in range(7)], abs=1e-15)
    assert times.power_grid(4, 2.0) == pytest.approx([0, 7 / 16, 3 / 4, 15 / 16, 1], abs=1e-15)
    sigma = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(5)]
    assert times.edm_grid(5) == pytest.approx([0.0, *(1 / (1 + s) for s in sigma[1:]), 1.0], abs=1e-14)
    assert times.edm_grid(5)[-2] == pytest.approx(1 / 1.002)
    quantiles = 1 / (1 + numpy.exp(-scipy.stats.norm(0.5, 2).ppf([0.25, 0.5, 0.75])))
    assert times.quantile_grid(4, LogitNormal(0.5, 2.0)) == pytest.approx([0, *quantiles, 1], abs=1e-14)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogitNormal(scale=0.0), r"LogitNormal\(scale=0.0\): pass a positive number"),
        (lambda: LogitNormal(loc=math.nan), "loc=nan"),
        (lambda: Mode(-1.01), "monotone"),
        (lambda: Mode(1.76), "monotone only for -1 <= scale <= 1.7519"),
        (lambda: Beta(0.0, 1.0), "alpha=0.0"),
        (lambda: Beta(1.0, -2.0), "beta=-2.0"),
        (lambda: Shifted(Uniform(), 0.0), "shift=0.0"),
        (lambda: Stratified(Antithetic()), "Antithetic draws dependent times"),
        (lambda: Stratified(Shifted(Stratified(), 2.0)), "Stratified draws dependent times"),
        (lambda: Antithetic(Shifted(Antithetic(), 2.0)), "use Antithetic once"),
        (lambda: times.uniform_grid(0), r"uniform_grid\(steps=0\)"),
        (lambda: times.cosine_grid(2.5), "steps are whole"),
        (lambda: times.shifted_grid(4, -1.0), r"shifted_grid\(shift=-1.0\)"),
        (lambda: times.power_grid(4, 0.0), r"power_grid\(power=0.0\)"),
        (lambda: times.power_grid(1000, 9.0), "neighbouring times are equal"),
        (lambda: times.edm_grid(4, sigma_min=2.0, sigma_max=1.0), "below sigma_max"),
        (lambda: times.edm_grid(4, rho=0.0), "rho=0.0"),
    ],
)
def test_bad_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_an_inner_law_must_be_one():
    for nest in (Stratified, Antithetic, lambda inner: Shifted(inner, 2.0)):
        with pytest.raises(TypeError, match="expected a distribution of times"):
            nest(torch.rand)
