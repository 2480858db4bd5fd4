"""Conformance of flows of every kind."""

from __future__ import annotations

import copy
import math
import tempfile

import torch

from cflow.flow import Flow
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.io import load, save
from cflow.shapes import rows
from cflow.testing.checks import close, demand
from cflow.testing.far import check_far

__all__ = ["check_flow"]


def check_flow(flow: Flow, context=None, *, tolerance: float = 1e-5, density: bool = True) -> None:
    """Checks a flow of any kind.

    The suite checks shapes, errors, ``flow(context)`` as a distribution, copies and saving. For an invertible flow it
    also checks both directions, log-determinants against autograd, gradients, and the integral of the density in one
    and two dimensions. On a manifold, log-determinants are those between tangent spaces, with respect to Riemannian
    volumes, and the integral is over the manifold, for any dimension.

    Args:
        flow: the flow; a copy is tested, in float64. Parameters that are zero are made random.
        context: one context ``[*context_shape]``, for a conditional flow.
        tolerance: absolute tolerance of a round trip; the solver's tolerances must be about a hundred times smaller.
        density: whether to integrate the density, where the event has one or two dimensions.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> import cflow
        >>> check_flow(cflow.discrete.maf(2, layers=1, hidden=(8,)))
    """
    flow = copy.deepcopy(flow).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.numel() and not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    demand(isinstance(flow, Flow), "the flow has every member of the Flow protocol")
    if isinstance(flow.event_shape, dict):
        _check_parts(flow, context)
        _check_saving(flow, context)
        return
    _check_shapes(flow, context)
    if flow.likelihood == "exact":
        near = flow.sample((3,), context, generator=torch.Generator().manual_seed(10))
        check_far(flow, near, lambda each, x: each.log_prob(x, _like(context, x)))
    if flow.likelihood != "none" and flow.has_rsample and isinstance(flow, BaseInvertibleFlow):
        _check_bijection(flow, context, tolerance)
        _check_gradients(flow, context)
        if density and flow.likelihood == "exact":
            if flow.manifold is not None and flow.base.has_density:
                _check_integral_over_manifold(flow, context)
            elif math.prod(flow.event_shape) <= 2:
                _check_integral(flow, context)
    _check_saving(flow, context)


def _like(context, x):
    return context if context is None or not context.is_floating_point() else context.to(x.dtype)


def _repeat(context, count: int):
    return None if context is None else context.expand(count, *context.shape)


def _check_parts(flow, context) -> None:
    """Checks shapes, seeds and independence of rows, for flows over named parts."""
    draw = lambda shape, seed=3: flow.sample(shape, context, generator=torch.Generator().manual_seed(seed))
    for shape in ((), (0,), (2, 3)):
        x = draw(shape)
        demand(set(x) == set(flow.event_shape), "a sample of a joint flow has the parts of the event")
        for name, part in flow.event_shape.items():
            demand(
                x[name].shape == (*shape, *part), f"the part {name!r} of sample({shape}) has shape {(*shape, *part)}"
            )
            demand(not x[name].requires_grad, "sample builds no graph")
    demand(same(draw((4,)), draw((4,))), "a generator reproduces samples")
    demand(not same(draw((4,)), draw((4,), 4)), "samples change with the generator")
    if flow.likelihood == "none":
        return
    x = draw((5,))
    with torch.no_grad():
        score = lambda rows: flow.log_prob(rows, context, generator=torch.Generator().manual_seed(5))
        logp = score(x)
        demand(logp.shape == (5,), "log_prob has one number per row")
        if flow.likelihood != "exact":  # random numbers are drawn for the whole batch
            return
        alone = torch.cat([score({name: part[i : i + 1] for name, part in x.items()}) for i in range(5)])
    close(alone, logp, 1e-9 * (1 + float(logp.abs().max())), "the density of a row does not depend on the others")


def same(one, other) -> bool:
    """Returns whether two samples, tensors or dicts of tensors, are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return torch.equal(one, other)


def _check_shapes(flow, context) -> None:
    event = flow.event_shape
    generator = torch.Generator().manual_seed(2)
    for shape in ((), (1,), (0,), (2, 3)):
        x = flow.sample(shape, context, generator=generator)
        demand(x.shape == (*shape, *event), f"sample({shape}) has shape {(*shape, *event)}, not {tuple(x.shape)}")
        demand(not x.requires_grad, "sample builds no graph")
        if flow.likelihood != "none":
            with torch.no_grad():
                logp = flow.log_prob(x, context, generator=generator)
            demand(logp.shape == shape, f"log_prob of {tuple(x.shape)} has shape {shape}, not {tuple(logp.shape)}")
            y, logp = flow.sample_and_log_prob(shape, context, generator=generator)
            demand(y.shape == x.shape and logp.shape == shape, "sample_and_log_prob has the shapes of its parts")
    seeds = [flow.sample((4,), context, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    demand(torch.equal(*seeds), "a generator reproduces samples")
    if context is not None:
        x = flow.sample((2,), _repeat(context, 5))
        demand(x.shape == (2, 5, *event), "a batch of contexts follows the sample shape")
    distribution = flow(context)
    demand(isinstance(distribution, torch.distributions.Distribution), "flow(context) is a torch Distribution")
    demand(distribution.event_shape == event and distribution.batch_shape == (), "the distribution's shapes")
    if flow.likelihood != "none":
        with torch.no_grad():
            none = distribution.log_prob(torch.zeros(0, *event, dtype=flow.dtype))
        demand(none.shape == (0,), "the log-density of an empty batch is empty")
        if context is not None:
            none = flow(_repeat(context, 0)).log_prob(torch.zeros(0, *event, dtype=flow.dtype))
            demand(none.shape == (0,), "a distribution with no contexts has an empty batch")
    wide = distribution.expand((3,))
    demand(
        wide.batch_shape == (3,) and wide.sample((2,)).shape == (2, 3, *event),
        "expand returns the batch shape of its argument",
    )
    for call, wrong in ((flow.sample, "missing"), (flow.sample, "misspelt")):
        try:
            extra = (
                {"context": None if context is not None else torch.zeros(1)} if wrong == "missing" else {"sovler": 1}
            )
            call((2,), **({"context": context} | extra))
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"a {wrong} context or option must raise an error")


def _check_bijection(flow, context, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x = flow.sample((6,), context, generator=generator)
    with torch.no_grad():
        z, ladj = flow.encode(x, context, generator=generator)
        back, inverse = flow.decode(z, context, generator=generator)
    scale = 1 + float(x.abs().max())
    close(back, x, tolerance * scale, "decode inverts encode")
    exact = flow.likelihood == "exact"
    if exact:
        close(ladj, -inverse, 10 * tolerance, "the two log-determinants are opposite")
        for name, point, value in (("encode", x, ladj), ("decode", z, inverse)):
            function = lambda row, name=name: getattr(flow, name)(row[None], context)[0].flatten()
            for i in range(2):
                jacobian = torch.autograd.functional.jacobian(function, point[i]).reshape(-1, point[i].numel())
                ends = (point[i], z[i]) if name == "encode" else (point[i], x[i])
                close(
                    value[i],
                    _log_determinant(flow, name, jacobian, *ends),
                    100 * tolerance,
                    f"{name}'s log-determinant against autograd",
                )
        y, logp = flow.rsample_and_log_prob((5,), context, generator=generator)
        close(flow.log_prob(y, context), logp, 10 * tolerance, "log_prob agrees with rsample_and_log_prob")
    with torch.no_grad():
        alone = torch.cat([flow.encode(row[None], context, generator=torch.Generator().manual_seed(5))[0] for row in x])
    close(alone, z, tolerance * scale, "the latent of a sample does not depend on the others")
    _check_latents(flow, context)


def _log_determinant(flow, name: str, jacobian: torch.Tensor, start: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
    """Computes the log-determinant of a Jacobian; on a manifold, of that between the tangent spaces at its ends."""
    manifold, change = flow.manifold, 0.0
    if manifold is not None:
        # Data that pass a transform are in a chart of their own, without a frame.
        in_chart = len(flow.transform.maps) > 0
        if not (in_chart and name == "encode"):
            jacobian = jacobian @ manifold.frame(start).flatten(1).T
            change = change - manifold.log_volume_element(start)
        if not (in_chart and name == "decode"):
            jacobian = manifold.frame(stop).flatten(1) @ jacobian
            change = change + manifold.log_volume_element(stop)
    return torch.linalg.slogdet(jacobian).logabsdet + change


def _check_latents(flow, context) -> None:
    """Checks that encoded samples follow the base: a Kolmogorov-Smirnov test of each of up to four coordinates."""
    from scipy.stats import ks_2samp

    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        z = rows(flow.encode(flow.sample((300,), context, generator=generator), context, generator=generator)[0])
    base = rows(flow.base.sample((3000,), generator=generator))
    for i in range(min(4, z.shape[1])):
        # For equal distributions the p-value is below 1e-6 once in a million seeds; the seed is fixed.
        demand(ks_2samp(z[:, i], base[:, i]).pvalue > 1e-6, f"coordinate {i} of encoded samples follows the base")


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
        # Parameters of "no condition" are not used here; a gradient must reach all others.
        missing = [key for key, each in zip(parameters, gradients) if each is None and "null" not in key]
        demand(not missing, f"no gradient of {name} reaches {missing[:3]}")
        demand(all(each is None or each.isfinite().all() for each in gradients), f"{name} has finite gradients")


def _check_integral(flow, context) -> None:
    x = rows(flow.sample((4000,), context, generator=torch.Generator().manual_seed(7)))
    # Eleven standard deviations of a normal: enough for the tails of a Student-t with five degrees of freedom.
    middle, half = x.median(0).values, 16 * (x - x.median(0).values).abs().median(0).values + 1e-3
    count = 2001 if x.shape[1] == 1 else 121
    axes = [torch.linspace(float(m - h), float(m + h), count, dtype=x.dtype) for m, h in zip(middle, half)]
    grid = torch.cartesian_prod(*axes).reshape(-1, *flow.event_shape)
    with torch.no_grad():
        density = torch.cat([flow.log_prob(part, context).exp() for part in grid.split(20_000)])
    integral = float(density.sum() * math.prod(float(axis[1] - axis[0]) for axis in axes))
    demand(abs(integral - 1) < 2e-3, f"the density integrates to {integral:.5f}, not 1")


def _check_integral_over_manifold(flow, context) -> None:
    """Integrates over the manifold by points of the base, which must cover it."""
    z = flow.base.sample((2000,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        x, ladj = flow.postprocess(z, _repeat(context, len(z)))
        ratio = (flow.log_prob(x, context) + ladj - flow.base.log_prob(z)).exp()
    error = float(ratio.std()) / len(z) ** 0.5
    # For a density that integrates to one this fails once in two million seeds; the seed is fixed.
    demand(
        abs(float(ratio.mean()) - 1) < 5 * error + 1e-6, f"the density integrates to {float(ratio.mean()):.4f}, not 1"
    )


def _check_saving(flow, context) -> None:
    draw = lambda each: each.sample((3,), context, generator=torch.Generator().manual_seed(8))
    before = draw(flow)
    demand(same(draw(copy.deepcopy(flow)), before), "a deep copy is the same flow")
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(flow, f"{folder}/model"))
    demand(type(loaded) is type(flow), "a loaded flow has its class")
    states = flow.state_dict(), loaded.state_dict()
    demand(all(torch.equal(states[0][name], states[1][name]) for name in states[0]), "a loaded flow has its weights")
    demand(same(draw(loaded), before), "a loaded flow draws the same samples")
    demand(loaded.trained_by == flow.trained_by, "a loaded flow has the same record of training")
