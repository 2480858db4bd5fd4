"""Two-dimensional toy distributions, with their log-densities where these are known.

Every sampler returns ``n`` independent draws, ``[n, 2]``, and takes ``generator``, ``device`` and ``dtype`` as torch's
samplers do. The noise is Gaussian. Its standard deviation is in units of the samples before ``scale``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.draws import check_generator

__all__ = [
    "LOG_PROBS",
    "NAMES",
    "checkerboard",
    "checkerboard_log_prob",
    "eight_gaussians",
    "eight_gaussians_log_prob",
    "log_prob",
    "moons",
    "moons_log_prob",
    "pinwheel",
    "s_curve",
    "s_curve_log_prob",
    "sample",
    "spirals",
    "spirals_log_prob",
]

S_CURVE_END = 1.5 * math.pi
SPIRAL_END = 3 * math.pi


def eight_gaussians(
    n: int, *, radius: float = 5.0, noise: float = math.sqrt(0.1), generator=None, device=None, dtype=None
) -> Tensor:
    r"""Draws from eight equal normals on a circle.

    .. math:: \tfrac18 \sum_{k=0}^{7} \mathcal N\bigl(r (\cos \tfrac{k\pi}{4}, \sin \tfrac{k\pi}{4}), \sigma^2 I\bigr)

    The defaults, radius 5 and variance 0.1, are those of the text of the flow matching papers. The code of their tables
    passes the square root of 0.1 as a *covariance*, so their figures belong to ``noise=0.1**0.25``.

    Args:
        n: number of draws.
        radius: radius of the circle.
        noise: standard deviation of each normal.
        generator: source of random numbers. Default: torch's.
        device: device of the draws. Default: torch's.
        dtype: dtype of the draws. Default: torch's.

    Shapes: ``[n, 2]``. Cost: one integer and two normal draws per sample.

    Raises:
        ValueError: if ``n`` is negative, ``radius`` is not positive, or ``noise`` is negative.

    Source: Tong et al., Simulation-free Schrödinger Bridges via Score and Flow Matching, 2023, arXiv:2307.03672,
    appendix F.

    Example:
        >>> eight_gaussians(4, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([4, 2])
    """
    _check("eight_gaussians", n, generator, noise, radius=radius)
    angle = torch.randint(8, (n,), generator=generator, device=device).to(_dtype(dtype)) * (math.pi / 4)
    centres = radius * torch.stack([angle.cos(), angle.sin()], -1)
    return centres + noise * _normal(n, generator, device, dtype)


def eight_gaussians_log_prob(x: Tensor, *, radius: float = 5.0, noise: float = math.sqrt(0.1)) -> Tensor:
    """Computes the exact log-density of :func:`eight_gaussians`.

    Args:
        x: points ``[*batch, 2]``.

    The other arguments are those of :func:`eight_gaussians`. Shapes: returns ``[*batch]``.

    Raises:
        ValueError: if ``x`` does not end in dimension 2, or ``noise`` is not positive.
    """
    _check("eight_gaussians_log_prob", 0, None, noise, radius=radius)
    angle = torch.arange(8, device=x.device, dtype=x.dtype) * (math.pi / 4)
    return _mixture_log_prob(
        x, radius * torch.stack([angle.cos(), angle.sin()], -1), angle.new_full((8,), 0.125), noise
    )


def moons(
    n: int, *, noise: float = 0.1, scale: float = 3.0, shift: float = -1.0, generator=None, device=None, dtype=None
):
    r"""Draws from two interleaving half circles with Gaussian noise.

    .. math:: x = \text{scale} \cdot (m(u) + \sigma \epsilon) + \text{shift}

    where ``m(u)`` is uniform on the upper half of the unit circle or on its mirror image, shifted by (1, 1/2). With
    ``scale=1, shift=0`` this is scikit-learn's ``make_moons``. The default scale and shift are those of the flow
    matching papers. (Their tables use uniform instead of Gaussian noise, so figures are comparable but not equal.)

    Args:
        noise: standard deviation of the noise, before scaling.
        scale: factor by which the points are multiplied.
        shift: number that is added to both coordinates.

    The other arguments are those of :func:`eight_gaussians`.

    Shapes: ``[n, 2]``. Cost: two uniform and two normal draws per sample.

    Raises:
        ValueError: if ``n`` or ``noise`` is negative, or ``scale`` is not positive.

    Source: Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport,
    2023, arXiv:2302.00482.
    """
    _check("moons", n, generator, noise, scale=scale)
    points = _moons_curve(*_uniform(n, generator, device, dtype))
    return (points + noise * _normal(n, generator, device, dtype)) * scale + shift


def moons_log_prob(x: Tensor, *, noise: float = 0.1, scale: float = 3.0, shift: float = -1.0) -> Tensor:
    """Computes the log-density of :func:`moons`, by quadrature along the two arcs, up to rounding error.

    Args:
        x: points ``[*batch, 2]``.

    The other arguments are those of :func:`moons`. Shapes: returns ``[*batch]``. Cost: at least 512 normal densities
    per point, and as much memory.

    Raises:
        ValueError: if ``x`` does not end in dimension 2, or ``noise`` or ``scale`` is not positive.
    """
    _check("moons_log_prob", 0, None, noise, scale=scale)
    u, weight = _nodes(math.pi, noise, x)
    points = torch.cat([_moons_curve(u, torch.zeros_like(u)), _moons_curve(u, torch.ones_like(u))])
    return _mixture_log_prob((x - shift) / scale, points, weight.repeat(2) / 2, noise) - 2 * math.log(scale)


def s_curve(n: int, *, noise: float = 0.1, scale: float = 2.0, generator=None, device=None, dtype=None) -> Tensor:
    r"""Draws from an S: the side view of scikit-learn's ``make_s_curve`` with Gaussian noise.

    .. math:: x = \text{scale} \cdot \bigl((\sin t,\; \operatorname{sign}(t) (\cos t - 1)) + \sigma \epsilon\bigr),
        \qquad t \sim \mathcal U(-\tfrac{3\pi}{2}, \tfrac{3\pi}{2})

    With the default scale the spread is about twice that of a standard normal.

    Args:
        noise: standard deviation of the noise, before scaling.
        scale: factor by which the points are multiplied.

    The other arguments are those of :func:`eight_gaussians`.

    Shapes: ``[n, 2]``. Cost: one uniform and two normal draws per sample.

    Raises:
        ValueError: if ``n`` or ``noise`` is negative, or ``scale`` is not positive.

    Source: Shi et al., Diffusion Schrödinger Bridge Matching, 2023, arXiv:2303.16852 (the shape; scales differ).
    """
    _check("s_curve", n, generator, noise, scale=scale)
    u, _ = _uniform(n, generator, device, dtype)
    return (_s_curve(u) + noise * _normal(n, generator, device, dtype)) * scale


def s_curve_log_prob(x: Tensor, *, noise: float = 0.1, scale: float = 2.0) -> Tensor:
    """Computes the log-density of :func:`s_curve`, by quadrature along the curve, up to rounding error.

    Args:
        x: points ``[*batch, 2]``.

    The other arguments are those of :func:`s_curve`. Shapes: returns ``[*batch]``. Cost: at least 512 normal densities
    per point, and as much memory.

    Raises:
        ValueError: if ``x`` does not end in dimension 2, or ``noise`` or ``scale`` is not positive.
    """
    _check("s_curve_log_prob", 0, None, noise, scale=scale)
    # Each half is smooth. The sign changes at t = 0, so no quadrature rule may cross this point.
    u, weight = _nodes(S_CURVE_END, noise, x)
    points = torch.cat([_s_curve(u / 2), _s_curve(0.5 + u / 2)])
    return _mixture_log_prob(x / scale, points, weight.repeat(2) / 2, noise) - 2 * math.log(scale)


def checkerboard(n: int, *, cells: int = 4, scale: float = 2.0, generator=None, device=None, dtype=None) -> Tensor:
    r"""Draws uniformly from the black cells of a checkerboard around the origin.

    A cell is black if the sum of its column and row, counted from the lower left corner, is even. By default the board
    is [-4, 4] squared and 8 of 16 cells are black, as in the FFJORD paper.

    Args:
        cells: number of cells along a side, an even number.
        scale: side of a cell.

    The other arguments are those of :func:`eight_gaussians`.

    Shapes: ``[n, 2]``. Cost: two integers and two uniform draws per sample.

    Raises:
        ValueError: if ``n`` is negative, ``cells`` is not a positive even number, or ``scale`` is not positive.

    Source: Grathwohl et al., FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, 2018,
    arXiv:1810.01367.
    """
    _check("checkerboard", n, generator, 0.0, scale=scale)
    _check_cells("checkerboard", cells)
    column = torch.randint(cells, (n,), generator=generator, device=device)
    row = 2 * torch.randint(cells // 2, (n,), generator=generator, device=device) + column % 2
    corner = torch.stack([column, row], -1).to(_dtype(dtype)) - cells // 2
    inside = torch.rand(n, 2, generator=generator, device=device, dtype=_dtype(dtype))
    return (corner + inside) * scale


def checkerboard_log_prob(x: Tensor, *, cells: int = 4, scale: float = 2.0) -> Tensor:
    """Computes the exact log-density of :func:`checkerboard`: a constant on black cells, otherwise minus infinity.

    Args:
        x: points ``[*batch, 2]``.

    The other arguments are those of :func:`checkerboard`. Shapes: returns ``[*batch]``.

    Raises:
        ValueError: if ``x`` does not end in dimension 2, ``cells`` is not a positive even number, or ``scale`` is not
            positive.

    Example:
        >>> checkerboard_log_prob(torch.tensor([[1.0, 1.0], [-1.0, 1.0]])).exp() * 32
        tensor([1., 0.])
    """
    _check("checkerboard_log_prob", 0, None, 0.0, scale=scale)
    _check_cells("checkerboard_log_prob", cells)
    _check_plane("checkerboard_log_prob", x)
    place = torch.floor(x / scale) + cells // 2
    black = ((place >= 0) & (place < cells)).all(-1) & (place.sum(-1) % 2 == 0)
    return torch.where(black, -math.log(cells * cells / 2 * scale * scale), -math.inf).to(x.dtype)


def pinwheel(
    n: int,
    *,
    arms: int = 5,
    radial_noise: float = 0.3,
    tangential_noise: float = 0.1,
    rate: float = 0.25,
    scale: float = 2.0,
    generator=None,
    device=None,
    dtype=None,
) -> Tensor:
    r"""Draws from the curved arms of a pinwheel.

    .. math:: x = \text{scale} \cdot R\bigl(\tfrac{2\pi k}{K} + \text{rate} \cdot e^{a}\bigr) (a, b),
        \qquad a \sim \mathcal N(1, \sigma_r^2),\; b \sim \mathcal N(0, \sigma_t^2)

    where ``R`` is the rotation by an angle, and ``k`` is uniform over the ``K`` arms. The density has no closed form,
    since the rotation maps several points (a, b) to one point.

    Args:
        arms: number of arms.
        radial_noise: standard deviation along an arm, before scaling.
        tangential_noise: standard deviation across an arm, before scaling.
        rate: how fast an arm turns.
        scale: factor by which the points are multiplied.

    The other arguments are those of :func:`eight_gaussians`.

    Shapes: ``[n, 2]``. Cost: one integer and two normal draws per sample.

    Raises:
        ValueError: if ``n`` or a noise is negative, ``arms`` is below one, or ``scale`` is not positive.

    Source: Johnson et al., Composing Graphical Models with Neural Networks for Structured Representations and Fast
    Inference, 2016, arXiv:1603.06277; the constants are FFJORD's (arXiv:1810.01367).
    """
    _check("pinwheel", n, generator, min(radial_noise, tangential_noise), scale=scale, arms=arms)
    normal = _normal(n, generator, device, dtype)
    a, b = 1 + radial_noise * normal[:, 0], tangential_noise * normal[:, 1]
    arm = torch.randint(arms, (n,), generator=generator, device=device).to(a.dtype)
    angle = arm * (2 * math.pi / arms) + rate * a.exp()
    return scale * torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)


def spirals(n: int, *, noise: float = 0.3, scale: float = 1 / 3, generator=None, device=None, dtype=None) -> Tensor:
    r"""Draws from two interlocking spirals of one and a half turns with Gaussian noise.

    .. math:: x = \text{scale} \cdot \bigl(\pm\, t\, (-\cos t, \sin t) + \sigma \epsilon\bigr),
        \qquad t = 3\pi \sqrt u,\; u \sim \mathcal U(0, 1)

    The square root distributes the samples almost evenly along the arms. By default the arms end at radius ``pi``, and
    the noise after scaling is 0.1.

    Args:
        noise: standard deviation of the noise, before scaling.
        scale: factor by which the points are multiplied.

    The other arguments are those of :func:`eight_gaussians`.

    Shapes: ``[n, 2]``. Cost: two uniform and two normal draws per sample.

    Raises:
        ValueError: if ``n`` or ``noise`` is negative, or ``scale`` is not positive.

    Source: Grathwohl et al., FFJORD, 2018, arXiv:1810.01367 (the shape; the noise here is purely Gaussian).
    """
    _check("spirals", n, generator, noise, scale=scale)
    u, side = _uniform(n, generator, device, dtype)
    sign = torch.where(side < 0.5, -1.0, 1.0).to(u.dtype)
    return (sign[:, None] * _spiral(u.sqrt()) + noise * _normal(n, generator, device, dtype)) * scale


def spirals_log_prob(x: Tensor, *, noise: float = 0.3, scale: float = 1 / 3) -> Tensor:
    """Computes the log-density of :func:`spirals`, by quadrature along the arms, up to rounding error.

    Args:
        x: points ``[*batch, 2]``.

    The other arguments are those of :func:`spirals`. Shapes: returns ``[*batch]``. Cost: at least 512 normal densities
    per point, and as much memory.

    Raises:
        ValueError: if ``x`` does not end in dimension 2, or ``noise`` or ``scale`` is not positive.
    """
    _check("spirals_log_prob", 0, None, noise, scale=scale)
    r, weight = _nodes(SPIRAL_END**2, noise, x)
    arm = _spiral(r)
    weight = weight * 2 * r / 2  # r = sqrt(u) has density 2 r; each arm has weight one half
    return _mixture_log_prob(x / scale, torch.cat([arm, -arm]), weight.repeat(2), noise) - 2 * math.log(scale)


NAMES = {
    "checkerboard": checkerboard,
    "eight_gaussians": eight_gaussians,
    "moons": moons,
    "pinwheel": pinwheel,
    "s_curve": s_curve,
    "spirals": spirals,
}
LOG_PROBS = {
    "checkerboard": checkerboard_log_prob,
    "eight_gaussians": eight_gaussians_log_prob,
    "moons": moons_log_prob,
    "s_curve": s_curve_log_prob,
    "spirals": spirals_log_prob,
}


def sample(name: str, n: int, *, generator=None, device=None, dtype=None, **options) -> Tensor:
    """Draws from the distribution with this name.

    Args:
        name: a key of ``toys.NAMES``, such as ``"moons"``.
        n: number of draws.
        generator: source of random numbers. Default: torch's.
        device: device of the draws. Default: torch's.
        dtype: dtype of the draws. Default: torch's.
        **options: keywords of its sampler, such as ``noise``.

    Raises:
        ValueError: if there is no such distribution; the message lists the names.

    Example:
        >>> sample("moons", 3, noise=0.1, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """
    if name not in NAMES:
        raise ValueError(f"toys.sample({name!r}): no such distribution; choose one of {', '.join(NAMES)}.")
    return NAMES[name](n, generator=generator, device=device, dtype=dtype, **options)


def log_prob(name: str, x: Tensor, **options) -> Tensor:
    """Computes the log-density of the distribution with this name.

    Args:
        name: a key of ``toys.LOG_PROBS``, such as ``"moons"``.
        x: points ``[*batch, 2]``.
        **options: keywords of its sampler, such as ``noise``.

    Raises:
        ValueError: if the distribution is unknown or its density is; the message lists the known ones.
    """
    if name not in LOG_PROBS:
        raise ValueError(f"toys.log_prob({name!r}): the density is not known; choose one of {', '.join(LOG_PROBS)}.")
    return LOG_PROBS[name](x, **options)


def _moons_curve(u: Tensor, side: Tensor) -> Tensor:
    """Maps ``u`` in [0, 1] to the upper moon (``side`` below one half) or the lower one."""
    angle = math.pi * u
    upper = torch.stack([angle.cos(), angle.sin()], -1)
    return torch.where(side[:, None] < 0.5, upper, upper.new_tensor([1.0, 0.5]) - upper)


def _s_curve(u: Tensor) -> Tensor:
    """Maps ``u`` in [0, 1] to the S."""
    t = S_CURVE_END * (2 * u - 1)
    return torch.stack([t.sin(), t.sign() * (t.cos() - 1)], -1)


def _spiral(r: Tensor) -> Tensor:
    """Maps ``r`` in [0, 1], a fraction of the radius, to one arm."""
    t = SPIRAL_END * r
    return torch.stack([-t * t.cos(), t * t.sin()], -1)


def _nodes(length: float, noise: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns quadrature nodes and weights on [0, 1] for a Gaussian of this width along a curve of this length.

    Each panel has 16 Gauss-Legendre nodes and is at most three standard deviations long. Only rounding errors remain.
    """
    import numpy as np

    if not noise > 0:
        raise ValueError(f"noise={noise}: without noise there is no density; pass a positive value.")
    panels = max(16, math.ceil(length / (3 * noise)))
    if panels > 1024:
        raise ValueError(
            f"noise={noise}: the density would need {16 * panels} quadrature nodes; pass at least {length / 3000:.2g}."
        )
    nodes, weights = (torch.as_tensor(part).to(like) for part in np.polynomial.legendre.leggauss(16))
    starts = torch.arange(panels, device=like.device, dtype=like.dtype)
    return ((starts[:, None] + (nodes + 1) / 2) / panels).flatten(), (weights / (2 * panels)).repeat(panels)


def _mixture_log_prob(x: Tensor, centres: Tensor, weights: Tensor, noise: float) -> Tensor:
    """Computes the log-density of a mixture of round normals; centres ``[K, 2]``, weights ``[K]``."""
    _check_plane("log_prob", x)
    if not noise > 0:
        raise ValueError(f"noise={noise}: without noise there is no density; pass a positive value.")
    squared = (x[..., None, :] - centres).square().sum(-1)
    return torch.logsumexp(weights.log() - squared / (2 * noise**2), -1) - math.log(2 * math.pi * noise**2)


def _uniform(n: int, generator, device, dtype) -> Tensor:
    """Draws two rows of ``n`` uniforms."""
    return torch.rand(2, n, generator=generator, device=device, dtype=_dtype(dtype))


def _normal(n: int, generator, device, dtype) -> Tensor:
    """Draws ``[n, 2]`` standard normals."""
    return torch.randn(n, 2, generator=generator, device=device, dtype=_dtype(dtype))


def _dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Returns the dtype, or torch's default for None."""
    return torch.get_default_dtype() if dtype is None else dtype


def _check(name: str, n: int, generator, noise: float, **positive: float) -> None:
    """Raises if a count or a noise is negative, or another argument is not positive."""
    check_generator(name, generator)
    if n < 0 or noise < 0:
        raise ValueError(f"{name}(n={n}, noise={noise}): neither may be negative; pass for instance n=1000.")
    for key, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name}({key}={value}): it must be positive; omit it for the default.")


def _check_cells(name: str, cells: int) -> None:
    """Raises if the number of cells is not even and positive."""
    if cells < 2 or cells % 2:
        raise ValueError(f"{name}(cells={cells}): this must be even and positive; pass 4.")


def _check_plane(name: str, x: Tensor) -> None:
    """Raises if points are not two-dimensional."""
    if x.ndim == 0 or x.shape[-1] != 2:
        raise ValueError(f"{name}(x of shape {list(x.shape)}): points have 2 coordinates; pass [*batch, 2].")
