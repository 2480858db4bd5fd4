"""Conformance suites: one per contract, for the members shipped here and for yours.

Each raises an ``AssertionError`` that names the property which fails. They run in float64 on the CPU, take a copy of
what they are given, and draw from fixed generators.
"""

from __future__ import annotations

import copy
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from . import bases
from .continuous import ContinuousFlow
from .flow import BaseInvertibleFlow, Flow
from .io import load, save
from .paths import AffinePath
from .registry import register
from .shapes import as_shape, expand_like, rows
from .solvers import Dopri5
from .solvers.conformance import check_solver

__all__ = ["GaussianField", "check_coupling", "check_flow", "check_path", "check_solver"]


def _demand(holds, message: str) -> None:
    if not bool(holds):
        raise AssertionError(message)


def _close(left: Tensor, right: Tensor, tolerance: float, message: str) -> None:
    gap = float((left - right).detach().abs().max()) if left.numel() else 0.0
    _demand(left.shape == right.shape, f"{message}: shapes {tuple(left.shape)} and {tuple(right.shape)} differ")
    _demand(gap <= tolerance, f"{message}: off by {gap:.3g}, more than {tolerance:.3g}")


# Paths


@register
class GaussianField(nn.Module):
    r"""Answers what a perfect network would, for data :math:`\mathcal N(m, s^2)` and a standard normal base.

    .. math:: \mathbb E[x_1 | x_t] = m + \frac{\alpha s^2 (x_t - \alpha m)}{\alpha^2 s^2 + \sigma^2}, \qquad
              \mathbb E[x_0 | x_t] = \frac{\sigma (x_t - \alpha m)}{\alpha^2 s^2 + \sigma^2}

    The oracle for paths, solvers and guidance: :meth:`carry` is the flow map and ``log|det|`` in closed form.

    Example:
        >>> from cflow import paths
        >>> field = GaussianField(paths.Linear(), 1, mean=1.0, std=0.5)
        >>> field(torch.tensor(0.0), torch.zeros(1, 1)).item()
        1.0
    """

    two_times = False

    def __init__(self, path: AffinePath, event_shape=1, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        self.path, self.event_shape, self.context_shape = path, as_shape(event_shape), None
        self.mean, self.std = mean, std
        self.scale = nn.Parameter(torch.ones(()))  # a parameter, so that dtype and gradients are like a network's

    def ends(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = expand_like(self.path.alpha(t), x), expand_like(self.path.sigma(t), x)
        ratio = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        return self.mean + alpha * self.std**2 * ratio, sigma * ratio

    def forward(self, t: Tensor, x: Tensor, context=None, *, s=None) -> Tensor:
        return self.scale * self.path.express(*self.ends(t, x), t)

    def _spread(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.path.alpha(t) ** 2 * self.std**2 + self.path.sigma(t) ** 2)

    def carry(self, x: Tensor, t0: float, t1: float) -> tuple[Tensor, Tensor]:
        """Carries ``x [B, *event]`` from ``t0`` to ``t1`` exactly: ``(x, ladj [B])``."""
        start, end = (torch.tensor(t, dtype=x.dtype) for t in (t0, t1))
        ratio = self._spread(end) / self._spread(start)
        moved = self.path.alpha(end) * self.mean + ratio * (x - self.path.alpha(start) * self.mean)
        return moved, rows(x).shape[1] * torch.log(ratio).expand(x.shape[0])


def check_path(path: AffinePath) -> None:
    """Checks an affine path: schedule, derivatives, conversions, targets and a whole Gaussian flow in closed form."""
    double = {"dtype": torch.float64}
    ends = torch.tensor([0.0, 1.0], **double)
    alpha, sigma = path.alpha(ends), path.sigma(ends)
    _demand(
        float(alpha[0]) < 0.02 and abs(float(alpha[1]) - 1) < 1e-12, f"alpha runs from 0 to 1, not {alpha.tolist()}"
    )
    _demand(abs(float(sigma[0]) - 1) < 1e-4 and float(sigma[1]) < 0.5, f"sigma falls from 1, not {sigma.tolist()}")

    t = torch.linspace(0.02, 0.98, 33, **double)
    _demand((path.alpha(t).diff() > 0).all() and (path.sigma(t).diff() < 0).all(), "alpha rises and sigma falls")
    _close(path.time_at(path.alpha(t), path.sigma(t)), t, 1e-9, "time_at inverts the schedule")
    inside = t.clone().requires_grad_()
    for name in ("alpha", "sigma"):
        slope = torch.autograd.grad(getattr(path, name)(inside).sum(), inside)[0]
        _close(getattr(path, f"d_{name}")(t), slope, 1e-9, f"d_{name} is the derivative of {name}")

    _check_path_training(path)
    _check_path_flow(path)


def _check_path_training(path: AffinePath) -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = path.interval
    x0, x1 = torch.randn(2, 64, 3, generator=generator, dtype=torch.float64)
    for where in (low, high, (low + high) / 2):
        at = torch.full((64,), where, dtype=torch.float64)
        sample = path.sample(x0, x1, at)
        _demand(sample.target.isfinite().all(), f"the target is finite at t = {where}")
        _demand(
            (path.loss(sample.target, sample) < 1e-20).all(), f"the loss of the target itself is zero at t = {where}"
        )
        _demand(path.loss(sample.target + 1, sample).shape == (64,), "the loss is per item")
    mask = torch.tensor([True, True, False])
    sample = path.sample(x0, x1, at, mask=mask)
    error = torch.tensor([1.0, 1.0, 100.0], dtype=torch.float64)
    _close(
        path.loss(sample.target + error, sample),
        path.loss(sample.target + 1, sample),
        1e-9,
        "a masked entry has no loss",
    )

    # The least-squares predictor of the target from x_t is the optimum that the conversions assume.
    count, mean, std = 400_000, 0.7, 0.5
    x0, x1 = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    x1 = mean + std * x1
    oracle = GaussianField(path, 1, mean, std).double().requires_grad_(False)
    for where in (0.2, 0.6):
        sample = path.sample(x0, x1, torch.full((count,), where, dtype=torch.float64))
        design = torch.cat([torch.ones_like(sample.xt), sample.xt], 1)
        fitted = design @ torch.linalg.lstsq(design, sample.target).solution
        gap = (fitted - oracle(sample.t, sample.xt)).square().mean().sqrt() / sample.target.std()
        # Two coefficients from 400,000 draws: the gap is about 0.002; five times that is never reached by chance.
        _demand(
            float(gap) < 0.01, f"the regression target at t = {where} is not the optimum: relative gap {float(gap):.3g}"
        )


def _check_path_flow(path: AffinePath) -> None:
    mean, std = 0.7, 0.5
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(32, 2, generator=generator, dtype=torch.float64)
    low, high = path.interval
    for where in (low, 0.3, 0.9, high):
        at = torch.tensor(where, dtype=torch.float64)
        field = GaussianField(path, 2, mean, std).double()
        c = path.coefficients(at, x0)
        x1_mean, x0_mean = field.ends(at, x0)
        exact = c.d_alpha * x1_mean + c.d_sigma * x0_mean
        scale = 1 + float(exact.abs().max())
        _close(path.velocity(field(at, x0), x0, at), exact, 1e-8 * scale, f"the velocity at t = {where}")
        if path.ends_interval[0] <= where:
            for found, true in zip(path.ends(field(at, x0), x0, at), (x1_mean, x0_mean)):
                _close(found, true, 1e-7 * scale, f"the expected ends at t = {where}")

    tight = Dopri5(rtol=1e-9, atol=1e-9)
    flow = ContinuousFlow(field, bases.Normal(2), path=path, solver=tight).double()
    whole, margin = path.interval == (0.0, 1.0), path.margin
    exact, ladj = field.carry(x0, 0.0, 1.0)
    # The closed-form steps at the ends are second order in a stretch of about the margin.
    second = 1e-7 if whole else 10 * margin**2 + 1e-7
    with torch.no_grad():
        _close(flow.transport(x0, 0.0, 1.0).y, exact, second, "samples are the closed-form flow map's")
        _close(flow.transport(exact, 1.0, 0.0).y, x0, 10 * second, "so are the latents")
        # With a density the ends are crossed by a change of scale, right to first order in the margin.
        first = 1e-6 if whole else 5 * margin
        normal = torch.distributions.Normal(0.0, 1.0)
        logp = normal.log_prob(x0).sum(1) - ladj
        _close(flow.log_prob(exact), logp, 10 * first, "the log-density is the closed form's")
        # An imperfect network's density is a density all the same: what is drawn has the density that is evaluated.
        field.scale.mul_(0.8)
        x, logp = flow.sample_and_log_prob((32,), generator=generator)
        _close(flow.log_prob(x), logp, 1e-5, "log_prob agrees with sample_and_log_prob for an imperfect network")
        z, ladj = flow.encode(x)
        back, inverse = flow.decode(z)
        _close(back, x, 1e-5 * (1 + float(x.abs().max())), "decode undoes encode for an imperfect network")
        _close(ladj, -inverse, 1e-5, "the two log-determinants are opposite for an imperfect network")


# Couplings


def check_coupling(
    coupling,
    *,
    rows: str = "permuted",
    cheaper: bool = True,
    conditional: bool = False,
    dimension: int = 3,
    count: int = 24,
) -> None:
    """Checks a coupling: pairs made of the rows given, contexts with their data, reproducible, safe in threads.

    Args:
        coupling: the coupling.
        rows: what becomes of the rows: ``"permuted"`` (each of both sides exactly once), ``"kept"`` (each of ``x1``
            exactly once, in its place, those of ``x0`` drawn), ``"fewer"`` (a part of both sides, none twice) or
            ``"drawn"`` (both drawn, as many as there were).
        cheaper: whether pairs cost no more than as they came: one by one where they are permuted, on average over
            draws otherwise.
        conditional: whether the coupling demands a context.
        dimension: of the samples.
        count: rows of the batch.
    """
    kinds = ("permuted", "kept", "fewer", "drawn")
    if rows not in kinds:
        raise ValueError(f"check_coupling(rows={rows!r}): no such promise; pass one of {', '.join(map(repr, kinds))}.")
    for dtype in (torch.float64, torch.float32):
        x0, x1, context = _coupling_batch(0, count, dimension, dtype)
        given = copy.deepcopy((x0, x1, context))
        state = torch.get_rng_state()
        first = coupling(x0, x1, context, generator=torch.Generator().manual_seed(1))
        again = coupling(x0, x1, context, generator=torch.Generator().manual_seed(1))
        _demand(torch.equal(torch.get_rng_state(), state), "with a generator no other random number is drawn")
        _demand(_same(first, again), "the same generator gives the same coupling")
        _demand(_same((x0, x1, context), given), "the inputs are left as they were")
        _check_coupling_rows(x0, x1, first, rows)
    with torch.random.fork_rng(devices=[]):
        draws = []
        for _ in range(2):
            torch.manual_seed(2)
            draws.append(coupling(x0, x1, context))
        _demand(_same(*draws), "without a generator PyTorch's own decides")

    labels = coupling(x0, x1, context["label"], generator=torch.Generator().manual_seed(1))[2]
    _demand(torch.is_tensor(labels) and labels.dtype == torch.long, "a tensor of contexts stays one")
    if not conditional:
        _demand(coupling(x0, x1, None, generator=torch.Generator())[2] is None, "no context stays no context")
    if cheaper:
        _check_coupling_cost(coupling, rows, dimension, count)
    _check_coupling_edges(coupling, dimension, count)
    _check_coupling_threads(coupling, dimension, count)


def _coupling_batch(seed: int, count: int, dimension: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, count, dimension, generator=generator, dtype=dtype)
    x1 = 1.5 * x1 + 1
    number = torch.linspace(0, 1, count, dtype=dtype)
    return x0, x1, {"label": torch.arange(count) % 2, "parts": {"number": number}}


def _same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    return torch.equal(first, second) if isinstance(first, Tensor) else first is second


def _places(part: Tensor, whole: Tensor, name: str) -> Tensor:
    """Finds which row of the whole each row of the part is."""
    _demand(part.dtype == whole.dtype and part.shape[1:] == whole.shape[1:], f"{name} keeps its dtype and event shape")
    equal = (part[:, None] == whole).flatten(2).all(2)
    _demand((equal.sum(1) == 1).all(), f"every row of {name} is one of those given")
    return equal.int().argmax(1)


def _check_coupling_rows(x0: Tensor, x1: Tensor, pairs, rows: str) -> None:
    y0, y1, context = pairs
    count = len(x1)
    at0, at1 = _places(y0, x0, "x0"), _places(y1, x1, "x1")
    _demand(len(y0) == len(y1), "as many base samples as data samples come back")
    _demand(torch.equal(context["label"], at1 % 2), "contexts travel with their data rows")
    number = context["parts"]["number"]
    _demand(torch.equal(number, torch.linspace(0, 1, count, dtype=number.dtype)[at1]), "and so do parts of contexts")
    if rows == "fewer":
        _demand(0 < len(y1) < count, "fewer rows come back than went in")
    else:
        _demand(len(y1) == count, "as many rows come back as went in")
    if rows in ("permuted", "fewer"):
        _demand(len(at0.unique()) == len(y0), "no row of x0 is used twice")
        _demand(len(at1.unique()) == len(y1), "no row of x1 is used twice")
    if rows == "kept":
        _demand(torch.equal(at1, torch.arange(count)), "every row of x1 keeps its place")


def _check_coupling_cost(coupling, rows: str, dimension: int, count: int) -> None:
    gaps = []
    for seed in range(20):
        x0, x1, context = _coupling_batch(10 + seed, count, dimension, torch.float64)
        y0, y1, _ = coupling(x0, x1, context["label"], generator=torch.Generator().manual_seed(seed))
        gaps.append(float((y0 - y1).square().sum(1).mean() - (x0 - x1).square().sum(1).mean()))
        if rows in ("permuted", "fewer"):
            _demand(gaps[-1] <= 1e-9, "the pairs cost no more than as they came")
    _demand(sum(gaps) <= 1e-9, "the pairs cost no more than as they came, on average over draws")


def _check_coupling_edges(coupling, dimension: int, count: int) -> None:
    x0, x1, context = _coupling_batch(3, count, dimension, torch.float64)
    label = context["label"]
    for size, what in ((1, "a batch of one is its own pair"), (0, "an empty batch stays empty")):
        given = x0[:size], x1[:size], label[:size]
        _demand(_same(coupling(*given, generator=torch.Generator()), given), what)
    event = (2, 1, dimension)
    images = [x.reshape(-1, 1, 1, dimension).expand(-1, *event) for x in (x0, x1)]
    for got in coupling(*images, label, generator=torch.Generator())[:2]:
        _demand(got.shape[1:] == event, "events of any shape are paired")
    for wrong, what in (
        ((x0[:-1], x1, label), "fewer base samples than data samples"),
        ((x0, x1, label[:-1]), "fewer contexts than data samples"),
        ((x0, x1, {"label": label[:-1]}), "fewer contexts than data samples, in a dict"),
    ):
        try:
            coupling(*wrong, generator=torch.Generator())
        except ValueError:
            continue
        raise AssertionError(f"{what} are refused with a ValueError")


def _check_coupling_threads(coupling, dimension: int, count: int) -> None:
    batches = [_coupling_batch(20 + i, count, dimension, torch.float64) for i in range(8)]
    call = lambda i: coupling(*batches[i], generator=torch.Generator().manual_seed(i))
    alone = [call(i) for i in range(len(batches))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, range(len(batches))))
    _demand(_same(alone, together), "calls in several threads give what they give alone")


# Flows


def check_flow(flow: Flow, context=None, *, tolerance: float = 1e-5, density: bool = True) -> None:
    """Checks a flow of any kind: shapes, errors, distribution view, copies and saving; for an invertible one also both
    directions, log-determinants against autograd, gradients, and the density's integral in one and two dimensions.

    Args:
        flow: the flow; a copy is tested, in float64, with zero-initialised parameters made random.
        context: one context ``[*context_shape]`` for a conditional flow.
        tolerance: absolute, for a round trip; a solver's own tolerances must be some hundred times tighter.
        density: whether to integrate the density where the event has one or two dimensions.
    """
    flow = copy.deepcopy(flow).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.numel() and not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    _demand(isinstance(flow, Flow), "the flow has every member of the Flow protocol")
    if isinstance(flow.event_shape, dict):
        _check_parts(flow, context)
        return
    _check_shapes(flow, context)
    if flow.likelihood != "none" and flow.has_rsample and isinstance(flow, BaseInvertibleFlow):
        _check_bijection(flow, context, tolerance)
        _check_gradients(flow, context)
        if density and flow.likelihood == "exact" and math.prod(flow.event_shape) <= 2:
            _check_integral(flow, context)
    _check_saving(flow, context)


def _repeat(context, count: int):
    return None if context is None else context.expand(count, *context.shape)


def _check_parts(flow, context) -> None:
    x = flow.sample((3,), _repeat(context, 1))
    _demand(set(x) == set(flow.event_shape), "a sample of a joint flow has the parts of its event")


def _check_shapes(flow, context) -> None:
    event = flow.event_shape
    generator = torch.Generator().manual_seed(2)
    for shape in ((), (1,), (0,), (2, 3)):
        x = flow.sample(shape, context, generator=generator)
        _demand(x.shape == (*shape, *event), f"sample({shape}) has shape {(*shape, *event)}, not {tuple(x.shape)}")
        _demand(not x.requires_grad, "sample builds no graph")
        if flow.likelihood != "none":
            with torch.no_grad():
                logp = flow.log_prob(x, context, generator=generator)
            _demand(logp.shape == shape, f"log_prob of {tuple(x.shape)} has shape {shape}, not {tuple(logp.shape)}")
            y, logp = flow.sample_and_log_prob(shape, context, generator=generator)
            _demand(y.shape == x.shape and logp.shape == shape, "sample_and_log_prob has the shapes of its parts")
    seeds = [flow.sample((4,), context, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    _demand(torch.equal(*seeds), "a generator reproduces samples")
    if context is not None:
        x = flow.sample((2,), _repeat(context, 5))
        _demand(x.shape == (2, 5, *event), "a batch of contexts follows the sample shape")
    distribution = flow(context)
    _demand(isinstance(distribution, torch.distributions.Distribution), "flow(context) is a torch Distribution")
    _demand(distribution.event_shape == event and distribution.batch_shape == (), "the distribution's shapes")
    wide = distribution.expand((3,))
    _demand(
        wide.batch_shape == (3,) and wide.sample((2,)).shape == (2, 3, *event),
        "expand gives the batch it was asked for",
    )
    for call, wrong in ((flow.sample, "missing"), (flow.sample, "misspelt")):
        try:
            extra = (
                {"context": None if context is not None else torch.zeros(1)} if wrong == "missing" else {"sovler": 1}
            )
            call((2,), **({"context": context} | extra))
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"a {wrong} context or option is an error")


def _check_bijection(flow, context, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x = flow.sample((6,), context, generator=generator)
    with torch.no_grad():
        z, ladj = flow.encode(x, context, generator=generator)
        back, inverse = flow.decode(z, context, generator=generator)
    scale = 1 + float(x.abs().max())
    _close(back, x, tolerance * scale, "decode undoes encode")
    exact = flow.likelihood == "exact"
    if exact:
        _close(ladj, -inverse, 10 * tolerance, "the two log-determinants are opposite")
        for name, point, value in (("encode", x, ladj), ("decode", z, inverse)):
            function = lambda row, name=name: getattr(flow, name)(row[None], context)[0].flatten()
            for i in range(2):
                jacobian = torch.autograd.functional.jacobian(function, point[i]).reshape(rows(x).shape[1], -1)
                slogdet = torch.linalg.slogdet(jacobian).logabsdet
                _close(value[i], slogdet, 100 * tolerance, f"{name}'s log-determinant against autograd")
        y, logp = flow.rsample_and_log_prob((5,), context, generator=generator)
        _close(flow.log_prob(y, context), logp, 10 * tolerance, "log_prob agrees with rsample_and_log_prob")
    with torch.no_grad():
        alone = torch.cat([flow.encode(row[None], context, generator=torch.Generator().manual_seed(5))[0] for row in x])
    _close(alone, z, tolerance * scale, "a sample alone and in a batch have the same latent")
    _check_latents(flow, context)


def _check_latents(flow, context) -> None:
    """Encoded samples follow the base: a Kolmogorov-Smirnov test of each of up to four coordinates."""
    from scipy.stats import ks_2samp

    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        z = rows(flow.encode(flow.sample((300,), context, generator=generator), context, generator=generator)[0])
    base = rows(flow.base.sample((3000,), generator=generator))
    for i in range(min(4, z.shape[1])):
        # Two independent draws from one law fall below 1e-6 once in a million seeds; the seed is fixed.
        _demand(ks_2samp(z[:, i], base[:, i]).pvalue > 1e-6, f"coordinate {i} of encoded samples follows the base")


def _check_gradients(flow, context) -> None:
    parameters = {name: each for name, each in flow.named_parameters() if each.requires_grad}
    if not parameters:
        return
    x = flow.sample((4,), context, generator=torch.Generator().manual_seed(6))
    for name, value in (
        ("log_prob", flow.log_prob(x, context)),
        ("rsample", flow.rsample((4,), context, generator=torch.Generator().manual_seed(6)).square()),
    ):
        gradients = torch.autograd.grad(value.sum(), list(parameters.values()), allow_unused=True)
        # Null conditions and the like are rightly unused here; everything else must be reached.
        missing = [key for key, each in zip(parameters, gradients) if each is None and "null" not in key]
        _demand(not missing, f"{name} sends no gradient to {missing[:3]}")
        _demand(all(each is None or each.isfinite().all() for each in gradients), f"{name} has finite gradients")


def _check_integral(flow, context) -> None:
    x = rows(flow.sample((4000,), context, generator=torch.Generator().manual_seed(7)))
    # Eleven deviations of a normal; wide enough for the tails of a Student-t with five degrees of freedom.
    middle, half = x.median(0).values, 16 * (x - x.median(0).values).abs().median(0).values + 1e-3
    count = 2001 if x.shape[1] == 1 else 121
    axes = [torch.linspace(float(m - h), float(m + h), count, dtype=x.dtype) for m, h in zip(middle, half)]
    grid = torch.cartesian_prod(*axes).reshape(-1, *flow.event_shape)
    with torch.no_grad():
        density = torch.cat([flow.log_prob(part, context).exp() for part in grid.split(20_000)])
    integral = float(density.sum() * math.prod(float(axis[1] - axis[0]) for axis in axes))
    _demand(abs(integral - 1) < 2e-3, f"the density integrates to {integral:.5f}, not 1")


def _check_saving(flow, context) -> None:
    draw = lambda each: each.sample((3,), context, generator=torch.Generator().manual_seed(8))
    before = draw(flow)
    _demand(torch.equal(draw(copy.deepcopy(flow)), before), "a deep copy is the same flow")
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(flow, f"{folder}/model"))
    _demand(type(loaded) is type(flow), "a loaded flow has its class")
    states = flow.state_dict(), loaded.state_dict()
    _demand(all(torch.equal(states[0][name], states[1][name]) for name in states[0]), "a loaded flow has its weights")
    _demand(torch.equal(draw(loaded), before), "a loaded flow draws the same samples")
