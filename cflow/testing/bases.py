"""Conformance of base distributions: samples have the density that ``log_prob`` computes."""

from __future__ import annotations

import copy
import math

import torch
from torch import Size, Tensor

from cflow.shapes import rows
from cflow.testing.checks import demand
from cflow.testing.copies import check_copies, check_draws
from cflow.testing.far import check_far

__all__ = ["check_base"]

COUNT = 40_000


def check_base(base, context: Tensor | None = None, *, density: bool = True, saved: bool = True) -> None:
    r"""Checks a base distribution.

    The suite checks shapes and dtypes, generators, invalid arguments and copies. If the base has a density, the density
    must integrate to one (events of one or two numbers), and samples must follow it.

    The last check uses boxes :math:`A` around some samples, in which other samples must satisfy
    :math:`\mathbb E[1_A(x) / p(x)] = |A|` within five standard errors. A correct base fails once in two million seeds;
    the seed is fixed. The check assumes that the support contains the box between samples that are near each other.

    Args:
        base: the base, a :class:`cflow.bases.Base` or another module with ``has_density`` and ``context_shape``; a copy
            is tested, in float64.
        context: one context, for a base that reads one.
        density: whether to test the density.
        saved: whether the base can be saved.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.bases import Normal
        >>> check_base(Normal(2))
    """
    base = copy.deepcopy(base).double()
    event = base.event_shape
    demand(isinstance(event, Size), f"event_shape is a torch.Size, not {type(event).__name__}")
    has_density = base.has_density
    _check_shapes(base, context, has_density)
    _check_refusals(base, context, has_density)
    check_draws(lambda generator: base.sample((6,), context, generator=generator), "a sample")
    draw = lambda each: each.sample((6,), context, generator=torch.Generator().manual_seed(5)).detach()
    check_copies(base, draw, "base", saved)
    if has_density and density:
        _check_density(base, context)
        if event.numel() <= 2:
            _check_integral(base, context)
        _check_gradients(base, context)
        if event.numel():
            near = base.sample((3,), context, generator=torch.Generator().manual_seed(7)).detach()
            check_far(base, near, lambda each, x: each.log_prob(x, context))


def _check_shapes(base, context, has_density: bool) -> None:
    event = base.event_shape
    for dtype in (torch.float64, torch.float32):
        base = copy.deepcopy(base).to(dtype)
        for shape in ((), (1,), (0,), (2, 3)):
            x = base.sample(shape, context, mask=None, generator=torch.Generator().manual_seed(1))
            demand(x.shape == (*shape, *event), f"sample({shape}) has shape {(*shape, *event)}, not {tuple(x.shape)}")
            demand(x.dtype == dtype, f"samples of a base in {dtype} are of {dtype}, not {x.dtype}")
            demand(x.isfinite().all(), "samples are finite")
            if has_density:
                logp = base.log_prob(x, context, mask=None)
                demand(logp.shape == shape, f"log_prob of {tuple(x.shape)} has shape {shape}, not {tuple(logp.shape)}")
                demand(logp.dtype == dtype, f"log-densities of a base in {dtype} are of {dtype}, not {logp.dtype}")
                demand(logp.isfinite().all(), "the density of a sample is not zero")
        if dtype == torch.float64 and has_density:
            x = base.sample((50,), context, generator=torch.Generator().manual_seed(1))
            demand(not torch.equal(x.float().double(), x), "samples in float64 have more digits than float32")


def _check_refusals(base, context, has_density: bool) -> None:
    event, needs, double = base.event_shape, base.context_shape is not None, {"dtype": torch.float64}
    wrong = [
        (lambda: base.sample((2,), context, mask=torch.ones(2, dtype=torch.bool)), "a mask that is not read"),
        (lambda: base.sample((2,), None if needs else torch.zeros(2, 1)), "a context that is not read, or missing"),
    ]
    if not has_density:
        wrong.append(
            (lambda: base.log_prob(torch.zeros(2, *event, **double), context), "a density that does not exist")
        )
    elif event:
        longer = torch.zeros(2, *event, event.numel() + 1, **double)
        wrong.append((lambda: base.log_prob(longer, context), "a point of another shape"))
    for call, what in wrong:
        try:
            call()
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"{what} must raise a ValueError")


def _check_density(base, context) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        first, second = (rows(base.sample((COUNT,), context, generator=generator).reshape(COUNT, -1)) for _ in range(2))
        logp = base.log_prob(second.reshape(COUNT, *base.event_shape), context)
        scale = (first - first.median(0).values).abs().median(0).values
        for centre in first[:5]:
            distance = ((first - centre) / scale).square().sum(1)
            near = first[distance.argsort()[: COUNT // 20]]
            low, high = near.min(0).values, near.max(0).values
            inside = ((second >= low) & (second <= high)).all(1)
            volume = (high - low).log().sum()
            weight = torch.where(inside, torch.exp(-logp - volume), 0.0)
            value, error = float(weight.mean()), float(weight.std()) / COUNT**0.5
            demand(
                abs(value - 1) < 5 * error,
                f"samples follow log_prob: a box near {[round(float(c), 2) for c in centre]} has {value:.3f} times "
                f"as many samples, {abs(value - 1) / max(error, 1e-12):.1f} standard errors from 1",
            )


def _check_integral(base, context) -> None:
    """Integrates over u with x = middle + width tan(u), which covers heavy tails."""
    x = base.sample((4000,), context, generator=torch.Generator().manual_seed(3)).reshape(4000, -1)
    middle, width = x.median(0).values, 1.5 * (x - x.median(0).values).abs().median(0).values
    count = 40_001 if x.shape[1] == 1 else 701
    u = math.pi * ((torch.arange(count, dtype=x.dtype) + 0.5) / count - 0.5)
    axes = [m + w * u.tan() for m, w in zip(middle, width)]
    stretches = [w / u.cos().square() * (math.pi / count) for w in width]
    grid = torch.cartesian_prod(*axes).reshape(-1, *base.event_shape)
    cells = torch.cartesian_prod(*stretches).reshape(len(grid), -1).prod(1)
    with torch.no_grad():
        integral = float((base.log_prob(grid, context).exp() * cells).sum())
    # The tolerance allows for half a cell at every edge of a bounded support.
    tolerance = 2e-3 if x.shape[1] == 1 else 2e-2
    demand(abs(integral - 1) < tolerance, f"the density integrates to {integral:.5f}, not 1")


def _check_gradients(base, context) -> None:
    parameters = {name: each for name, each in base.named_parameters() if each.requires_grad}
    if not parameters:
        return
    x = base.sample((20,), context, generator=torch.Generator().manual_seed(4)).detach()
    total = base.log_prob(x, context).sum()
    demand(total.requires_grad, f"no finite gradient of log_prob reaches {list(parameters)}")
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    missing = [name for name, each in zip(parameters, gradients) if each is None or not each.isfinite().all()]
    demand(not missing, f"no finite gradient of log_prob reaches {missing[:3]}")
