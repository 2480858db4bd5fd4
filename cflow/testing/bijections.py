"""Conformance of maps: bijections, surjections, and the univariate families on which many bijections are based."""

from __future__ import annotations

import copy
import pickle
import tempfile

import torch
from torch import Tensor, nn

from cflow.bijections import Bijection, Compose, Inverse, Reversible, Surjection
from cflow.discrete import Univariate
from cflow.io import load, save
from cflow.shapes import rows
from cflow.testing.checks import close, demand

__all__ = ["check_bijection", "check_surjection", "check_univariate"]

HARSH = (0.0, 1.0, 5.0, 10.0)


def check_univariate(
    family: Univariate, *, span: float = 5.0, tolerance: float = 1e-8, identity: bool = True, rounding: float = 64.0
) -> float:
    """Checks a univariate family at raw numbers of standard deviation 0, 1, 5 and 10.

    The suite checks shapes, monotonicity, both directions and their log-derivatives against autograd, first and second
    derivatives, round trips in float32, compilation, copies and saving.

    Args:
        family: the family; a copy is tested, in float64 and in float32. Its own parameters that are zero become random
            after the first check.
        span: half the width of the box in which the family acts; points are inside, on the edges and outside.
        tolerance: relative tolerance in float64.
        identity: whether raw numbers of zero mean the identity; otherwise the slope must be between 1/100 and 100.
        rounding: the largest error of a float32 round trip, in units of float32 rounding times the condition number.

    Returns:
        The largest error of a float32 round trip in these units. The condition number is the size of the numbers, times
        one plus the inverse of the slope.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.discrete import RationalQuadratic
        >>> check_univariate(RationalQuadratic(bins=4, bound=5.0)) < 64
        True
    """
    family = copy.deepcopy(family).double()
    generator = torch.Generator().manual_seed(0)
    edge = torch.tensor([-span, -0.0, 0.0, span, 0.5 * span, -3 * span, 3 * span], dtype=torch.float64)
    x = torch.cat([edge, span * torch.randn(250, generator=generator, dtype=torch.float64) / 2.5])
    draw = lambda scale: scale * torch.randn(len(x), family.size, generator=generator, dtype=torch.float64)
    z, ladj = family.encode(x, draw(0.0))
    if identity:
        close(z, x, tolerance * 3 * span, "raw numbers of zero mean the identity")
        close(ladj, torch.zeros_like(ladj), tolerance, "raw numbers of zero have slope one")
    demand(bool((ladj.abs() < 4.6).all()), "raw numbers of zero have a slope between 1/100 and 100")
    _leave_zero(family, generator)
    worst = 0.0
    for scale in HARSH:
        raw, what = draw(scale), f"at raw numbers of deviation {scale}"
        _check_slopes(family, x, raw, tolerance, what)
        _check_order(family, x.sort().values, raw[:1].expand_as(raw), what)
        worst = max(worst, _check_rounding(family, x.float(), raw.float(), span, rounding, what))
    _check_narrow(family, x, draw(1.0))
    _check_derivatives(family, x[-4:] / 2, draw(0.5)[:4])
    _check_calls(family, x, draw(1.0))
    _check_module(family, lambda each: each.encode(x, draw(0.0))[0])
    return worst


@torch.no_grad()
def _leave_zero(family, generator: torch.Generator) -> None:
    """Makes a family's own parameters random where they are zero: with zeros it is simpler than after training."""
    for each in family.parameters():
        if not each.any():
            each.copy_(torch.randn(each.shape, generator=generator, dtype=each.dtype) * each.shape[-1] ** -0.5)


def _check_slopes(family, x: Tensor, raw: Tensor, tolerance: float, what: str) -> None:
    z, ladj = family.encode(x, raw)
    demand(z.shape == x.shape == ladj.shape, f"encode returns a value and a log-derivative for every entry, {what}")
    back, inverse = family.decode(z.detach(), raw)
    _relative(back, x, tolerance * (1 + (-ladj.detach()).exp()), f"decode undoes encode, {what}")
    for name, function, point, value in (("encode", family.encode, x, ladj), ("decode", family.decode, z, inverse)):
        point = point.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(point, raw)[0].sum(), point)
        _relative(value, slope.log(), 10 * tolerance, f"{name}'s log-derivative against autograd, {what}")
    again = family.encode(back.detach(), raw)[1]
    _relative(inverse, -again, 10 * tolerance, f"the log-derivatives are opposite, {what}")


@torch.no_grad()
def _check_order(family, x: Tensor, raw: Tensor, what: str) -> None:
    z, _ = family.encode(x, raw)
    demand(bool((z.diff() >= 0).all()), f"the function never decreases, {what}")
    alone, _ = family.encode(x[3:4], raw[3:4])
    close(alone, z[3:4], 1e-12 * (1 + float(z[3].abs())), f"the result of an entry depends on no other, {what}")


def _check_rounding(family, x: Tensor, raw: Tensor, span: float, rounding: float, what: str) -> float:
    family, exact = copy.deepcopy(family).float(), family
    with torch.no_grad():
        z, ladj = family.encode(x, raw)
        back, inverse = family.decode(z, raw)
        for name, value in (("z", z), ("ladj", ladj), ("x", back), ("inverse ladj", inverse)):
            demand(value.dtype == torch.float32, f"float32 stays float32, {what}")
            demand(bool(value.isfinite().all()), f"{name} is finite in float32, {what}")
        slopes = [exact.encode(each.double(), raw.double())[1].exp() for each in (x, back)]
    size = torch.stack([x.abs(), z.abs(), torch.full_like(x, max(span, 1.0))]).amax(0).double()
    condition = size * (1 + 1 / torch.minimum(*slopes))
    worst = float(((back - x).abs() / condition).max()) / torch.finfo(torch.float32).eps
    demand(worst <= rounding, f"a float32 round trip is off by {worst:.1f} units, more than {rounding:g}, {what}")
    return worst


def _check_narrow(family, x: Tensor, raw: Tensor) -> None:
    single = copy.deepcopy(family).float()
    z, ladj = single.encode(x.float(), raw.bfloat16())
    demand(z.dtype == ladj.dtype == torch.float32, "with raw numbers in bfloat16 the result is float32")
    close(z, single.encode(x.float(), raw.bfloat16().float())[0], 1e-5, "bfloat16 raw numbers are not rounded further")
    z, ladj = family.encode(x[:0], raw[:0])
    demand(z.shape == ladj.shape == (0,), "the result of no entries is empty")


def _check_derivatives(family, x: Tensor, raw: Tensor) -> None:
    x, raw = x.clone().requires_grad_(), raw.clone().requires_grad_()
    z = family.encode(x, raw)[0].detach().requires_grad_()
    for name, function, point in (("encode", family.encode, x), ("decode", family.decode, z)):
        demand(torch.autograd.gradcheck(function, (point, raw), atol=1e-6), f"{name}'s gradients")
        demand(torch.autograd.gradgradcheck(function, (point, raw), atol=1e-5), f"{name}'s second derivatives")
    outside = (100 * x).detach().requires_grad_()
    for gradient in torch.autograd.grad(sum(each.sum() for each in family.encode(outside, raw)), (outside, raw)):
        demand(bool(gradient.isfinite().all()), "gradients far from the data are finite")


def _check_calls(family, x: Tensor, raw: Tensor) -> None:

    def density(x: Tensor, raw: Tensor) -> Tensor:
        z, ladj = family.encode(x, raw)
        return ladj - z.square() / 2

    point = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(density(point, raw).sum(), point)
    _relative(torch.func.vmap(torch.func.grad(density))(x, raw), wanted, 1e-8, "vmap(grad) computes the scores")
    torch._dynamo.reset()  # torch limits how often it compiles the same code
    for name in ("encode", "decode"):
        function = getattr(family, name)
        compiled = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)
        close(compiled(x, raw)[0], function(x, raw)[0], 1e-9 * (1 + float(x.abs().max())), f"{name} compiled")


def check_bijection(
    bijection: Bijection,
    context: Tensor | None = None,
    *,
    points: Tensor | None = None,
    tolerance: float = 1e-8,
    harsh: tuple[float, ...] = (1.0,),
    rounding: float = 64.0,
    gradients: bool = True,
) -> float:
    """Checks a bijection.

    The suite checks shapes and errors, both directions and their log-determinants against autograd's ``slogdet``,
    independence of rows, reproducible draws, the meaning of the likelihood, gradients to every parameter, round trips
    in float32, compilation (unless the map reads values), copies and saving.

    Args:
        bijection: the bijection; a copy is tested, in float64 and in float32. Parameters that are zero are made random,
            with each of the standard deviations in ``harsh`` at the output of their layer.
        context: one context ``[*context_shape]``, for a conditional bijection.
        points: data ``[B, *event_shape]`` in the domain. Default: normal draws with standard deviation 2.
        tolerance: relative tolerance in float64.
        harsh: the standard deviations of the random parameters.
        rounding: the largest error of a float32 round trip, in units of float32 rounding times the condition number.
        gradients: whether every parameter must receive a gradient in both directions.

    Returns:
        The largest error of a float32 round trip in these units. The condition number is the size of the data and of
        the latents, times one plus the norm of the decoder's Jacobian.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.bijections import Standardise
        >>> check_bijection(Standardise(2, loc=1.0, scale=3.0)) < 64
        True
    """
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    if points is None:
        points = 2 * torch.randn(6, *bijection.event_shape, generator=generator, dtype=torch.float64)
    given = None if context is None else context.double().expand(len(points), *context.shape)
    for scale in harsh:
        exact, what = _randomised(bijection, scale, generator), f"at deviation {scale}"
        _check_directions(exact, points.double(), given, tolerance, what)
        worst = max(worst, _check_precision(exact, points, given, rounding, what))
    exact = _randomised(bijection, harsh[0], generator)
    _check_batches(exact, points.double(), given)
    _check_promises(exact, points.double(), given)
    if gradients:
        _check_parameters(exact, points.double(), given)
    _check_outside(exact, points.double(), given)
    if not exact.reads_values:
        _check_compiled(exact, points.double(), given)
    _check_module(exact, lambda each: each.encode(points.double(), given)[0])
    inverse = pickle.loads(pickle.dumps(Inverse(exact)))
    close(inverse.decode(points.double(), given)[0], exact.encode(points.double(), given)[0], 0.0, "a pickled inverse")
    return worst


def check_surjection(
    surjection: Surjection, points: Tensor, context: Tensor | None = None, *, tolerance: float = 1e-8
) -> None:
    """Checks a surjection.

    The suite checks that ``decode`` inverts ``encode`` and that their contributions are opposite. It also checks
    reproducible draws, independence of rows, errors, the meaning of the likelihood, copies and saving.

    Args:
        surjection: the surjection; a copy is tested, in float64.
        points: data ``[B, *event_shape]``, at least two rows.
        context: one context ``[*context_shape]``, for a conditional surjection.
        tolerance: absolute tolerance of a round trip.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.bijections import Dequantise
        >>> check_surjection(Dequantise(2, 4), torch.tensor([[0.0, 1.0], [3.0, 2.0]]))
    """
    surjection = copy.deepcopy(surjection).double()
    context = None if context is None else context.double().expand(len(points), *context.shape)
    x = points.double()
    fresh = lambda seed=3: torch.Generator().manual_seed(seed)
    with torch.no_grad():
        z, contribution = surjection.encode(x, context, generator=fresh())
        back, inverse = surjection.decode(z, context, generator=fresh())
    demand(z.shape == (len(x), *surjection.latent_shape), "latents have the shape latent_shape")
    demand(contribution.shape == inverse.shape == (len(x),), "contributions are [B]")
    close(back, x, tolerance, "decode inverts encode")
    close(inverse, -contribution, tolerance * (1 + float(contribution.abs().max())), "contributions are opposite")
    demand(not torch.equal(surjection.encode(x, context, generator=fresh(4))[0], z), "latents depend on the generator")
    _check_promises(surjection, x, context)
    _check_batches(surjection, x, context)
    chain = Compose(surjection)
    demand(chain.likelihood == "bound" and not chain.has_rsample, "the likelihood of a chain with it is a bound")
    for kind in (Inverse, Reversible):
        for member in (surjection, chain):
            _refuses(lambda kind=kind, member=member: kind(member), f"a surjection in {kind.__name__}")
    _check_module(surjection, lambda each: each.encode(x, context, generator=fresh())[0])


def _check_promises(bijection, x: Tensor, context) -> None:
    """Checks the attributes of a map: whether it draws, and the meaning of the likelihood."""
    chain = Compose(bijection)
    for name in ("likelihood", "draws", "has_rsample", "measures", "takes_integers"):
        demand(getattr(chain, name) == getattr(bijection, name), f"a chain of one has its {name}")
    fresh = lambda: torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    with torch.no_grad():
        z = bijection.encode(x, context, generator=fresh())[0]
        for name, value in (("encode", x), ("decode", z)):
            method = getattr(bijection, name)
            first, again = (method(value, context, generator=fresh()) for _ in range(2))
            demand(all(torch.equal(a, b) for a, b in zip(first, again)), f"a generator reproduces {name}")
            demand(torch.equal(torch.get_rng_state(), before), f"{name} draws only from its generator")
            if not bijection.draws:
                plain = method(value, context)
                demand(all(torch.equal(a, b) for a, b in zip(first, plain)), f"{name} draws no random numbers")
    demand(torch.equal(torch.get_rng_state(), before), "a map with draws=False does not change the random state")
    demand(bijection.likelihood in ("exact", "estimate", "bound"), "a likelihood is exact, an estimate or a bound")
    demand(bijection.likelihood == "exact" or bijection.draws, "an estimate or a bound needs draws")


def _randomised(bijection: Bijection, scale: float, generator) -> Bijection:
    bijection = copy.deepcopy(bijection).double()
    with torch.no_grad():
        for parameter in bijection.parameters():
            if parameter.numel() and not parameter.any():
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.copy_(scale * noise / (parameter.shape[-1] ** 0.5 if parameter.dim() > 1 else 1.0))
    return bijection


def _check_directions(bijection, x: Tensor, context, tolerance: float, what: str) -> None:
    with torch.no_grad():
        z, ladj = bijection.encode(x, context)
        back, inverse = bijection.decode(z, context)
    demand(bijection.likelihood != "bound", "the likelihood of a bijection is not a bound; see check_surjection")
    demand(z.shape == (len(x), *bijection.latent_shape), f"latents have the shape latent_shape, {what}")
    demand(ladj.shape == inverse.shape == (len(x),), f"log-determinants are [B], {what}")
    for name, point, value, direction in (
        ("encode", x, ladj, bijection.encode),
        ("decode", z, inverse, bijection.decode),
    ):
        jacobians = _jacobians(direction, point, context)
        wanted = torch.linalg.slogdet(jacobians).logabsdet
        if bijection.likelihood == "exact":
            _relative(value, wanted, tolerance, f"{name}'s log-determinant, {what}")
        else:
            _check_estimate(direction, point, context, wanted, f"{name}'s estimated log-determinant, {what}")
        if name == "decode":
            norm = torch.linalg.matrix_norm(jacobians, 2).reshape(-1, *(1,) * (x.dim() - 1))
            _relative(back, x, tolerance * (1 + norm), f"decode inverts encode, {what}")
    again, _ = bijection.encode(back, context)
    _relative(again, z, tolerance * (1 + z.abs()), f"encode inverts decode, {what}")


def _check_estimate(direction, points: Tensor, context, wanted: Tensor, what: str, draws: int = 1000) -> None:
    """Compares the mean of many draws with the exact value; a correct map fails once in a million seeds per row."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        values = torch.stack([direction(points, context, generator=generator)[1] for _ in range(draws)])
    error = values.std(0) / draws**0.5
    demand(bool((error > 0).any()), f"{what} varies")
    demand(bool(((values.mean(0) - wanted).abs() <= 5 * error + 1e-9).all()), f"{what} is unbiased")


def _check_precision(bijection, x: Tensor, context, rounding: float, what: str) -> float:
    single = copy.deepcopy(bijection).float()
    narrow = None if context is None else context.float()
    with torch.no_grad():
        z, ladj = single.encode(x.float(), narrow)
        back, inverse = single.decode(z, narrow)
    for name, value in (("z", z), ("ladj", ladj), ("x", back), ("inverse ladj", inverse)):
        demand(value.dtype == torch.float32, f"float32 stays float32, {what}")
        demand(bool(value.isfinite().all()), f"{name} is finite in float32, {what}")
    norm = torch.linalg.matrix_norm(_jacobians(bijection.decode, z.double(), context), 2)
    size = torch.maximum(rows(x).abs().amax(1), rows(z).abs().amax(1)).clamp(min=1).double()
    error = rows(back - x.float()).abs().amax(1)
    worst = float((error / (size * (1 + norm))).max()) / torch.finfo(torch.float32).eps
    demand(worst <= rounding, f"a float32 round trip is off by {worst:.1f} units, more than {rounding:g}, {what}")
    return worst


def _check_batches(bijection, x: Tensor, context) -> None:
    with torch.no_grad():
        z, _ = bijection.encode(x, context)
        # The latent that a surjection draws depends on earlier draws; the data point of a latent does not.
        name, value, result = ("decode", z, x) if bijection.likelihood == "bound" else ("encode", x, z)
        for i in (0, len(x) - 1):
            given = None if context is None else context[i : i + 1]
            alone, _ = getattr(bijection, name)(value[i : i + 1], given)
            scale = 1 + float(result[i].abs().max())
            close(alone[0], result[i], 1e-9 * scale, "the result of a row does not depend on the others")
        for name in ("encode", "decode"):
            value = (x if name == "encode" else z)[:0]
            empty, ladj = getattr(bijection, name)(value, None if context is None else context[:0])
            demand(empty.shape[0] == 0 and ladj.shape == (0,), f"{name} of an empty batch is empty")
    wrong = torch.zeros(2, *(size + 1 for size in bijection.event_shape), dtype=x.dtype)
    if wrong.shape[1:] != bijection.event_shape:
        _refuses(lambda: bijection.encode(wrong, context), "an event of another shape")
    if bijection.context_shape is not None:
        _refuses(lambda: bijection.encode(x), "a missing context")


def _check_outside(bijection, x: Tensor, context) -> None:
    """Checks points outside the domain: an error, or a contribution of -inf that does not affect other rows."""
    z = bijection.encode(x, context)[0].detach()
    for name, value, ends in (("encode", x, bijection.domain), ("decode", z, bijection.image)):
        for end in ends or ():
            if abs(end) == float("inf"):
                continue
            bad = torch.cat((value[:1], value[1:2] * 0 + end + (1 if end == max(ends) else -1))).requires_grad_()
            given = None if context is None else context[:2]
            try:
                result, ladj = getattr(bijection, name)(bad, given)
                contribution = ladj.detach()
            except ValueError:
                demand(bijection.reads_values, "a map that raises for some values has reads_values=True")
                continue
            demand(bool(result.isfinite().all()), f"{name} of a point outside the domain is finite")
            demand(contribution[1] == -float("inf"), f"{name} of a point outside the domain contributes -inf")
            (gradient,) = torch.autograd.grad(result.sum() + ladj.sum(), bad)
            demand(bool(gradient.isfinite().all()) and not gradient[1].any(), "the gradient outside the domain is zero")


def _refuses(call, what: str) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{what} must raise a ValueError")


def _check_parameters(bijection, x: Tensor, context) -> None:
    parameters = {name: each for name, each in bijection.named_parameters() if each.requires_grad}
    if not parameters:
        return
    z = bijection.encode(x, context)[0].detach()
    for name, value in (("encode", x), ("decode", z)):
        point = value.clone().requires_grad_()
        y, ladj = getattr(bijection, name)(point, context)
        wanted = [point, *parameters.values()]
        gradients = torch.autograd.grad((y**3).sum() + ladj.sum(), wanted, allow_unused=True)
        missing = [key for key, each in zip(("x", *parameters), gradients) if each is None]
        demand(not missing, f"no gradient of {name} reaches {missing[:3]}")
        demand(all(bool(each.isfinite().all()) for each in gradients), f"{name} has finite gradients")


def _check_compiled(bijection, x: Tensor, context) -> None:
    torch._dynamo.reset()
    with torch.no_grad():
        for name in ("encode", "decode"):
            function = getattr(bijection, name)
            compiled = torch.compile(function, backend="eager", fullgraph=True, dynamic=False)
            value = x if name == "encode" else bijection.encode(x, context)[0]
            expected = function(value, context)[0]
            close(compiled(value, context)[0], expected, 1e-8 * (1 + float(expected.abs().max())), f"{name} compiled")


def _check_module(module: nn.Module, call) -> None:
    before = call(module)
    for name, copied in (
        ("a deep copy", copy.deepcopy(module)),
        ("a pickled copy", pickle.loads(pickle.dumps(module))),
    ):
        close(call(copied), before, 0.0, f"{name} computes the same")
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(module, f"{folder}/model"))
    demand(type(loaded) is type(module), "a loaded copy has the same class")
    close(call(loaded), before, 0.0, "a loaded copy computes the same")


def _jacobians(function, points: Tensor, context) -> Tensor:
    """Computes the Jacobian ``[B, D, D]`` of each row by autograd."""
    result = []
    for i, point in enumerate(points):
        given = None if context is None else context[i : i + 1]
        flat = lambda value, given=given: function(value[None], given)[0].flatten()
        result.append(torch.autograd.functional.jacobian(flat, point).reshape(-1, point.numel()))
    return torch.stack(result)


def _relative(left: Tensor, right: Tensor, tolerance: float | Tensor, message: str) -> None:
    demand(left.shape == right.shape, f"{message}: shapes {tuple(left.shape)} and {tuple(right.shape)} differ")
    left, right = left.detach(), right.detach()
    ratio = float(((left - right).abs() / (tolerance * (1 + right.abs()))).max())
    demand(ratio <= 1, f"{message}: off by {ratio:.3g} times the tolerance")
