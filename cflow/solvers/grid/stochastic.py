"""Stochastic solvers: SDEs with the marginals of a flow, from its velocity and score, on a fixed grid."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cflow.draws import draw_rows
from cflow.registry import register
from cflow.solvers.grid.fixed import FixedGrid, Outputs
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.state import split

__all__ = ["EulerMaruyama", "Fading", "StochasticGrid", "StochasticHeun"]


@register("solvers.Fading")
@dataclass(frozen=True)
class Fading:
    r"""Computes a diffusion that decreases to zero at the data.

    .. math:: g_t = s \, (1 - t)^p

    With ``power=0.5`` on the linear path this is :math:`g_t^2 \propto \sigma_t`, so the correction of the drift stays
    bounded where the score grows as :math:`1 / \sigma_t`.

    Args:
        scale: s, the diffusion at t = 0.
        power: p, the exponent of the decrease.

    Raises:
        ValueError: if the scale is negative or the power not positive.

    Source: Ma et al., SiT: Exploring Flow and Diffusion-based Generative Models with Scalable Interpolant Transformers,
    2024, arXiv:2401.08740, section 2.4.

    Example:
        >>> Fading(2.0)(0.75)
        1.0
    """

    scale: float = 1.0
    power: float = 0.5

    def __post_init__(self):
        if not (0 <= self.scale < math.inf and 0 < self.power < math.inf):
            raise ValueError(
                f"Fading(scale={self.scale}, power={self.power}): needs scale >= 0 and power > 0, both finite; pass "
                f"Fading(1.0, power=0.5)."
            )

    def __call__(self, t: float) -> float:
        """Returns the diffusion at time ``t``."""
        return self.scale * max(0.0, 1 - t) ** self.power


@dataclass(frozen=True, repr=False)
class StochasticGrid(FixedGrid):
    r"""Integrates an SDE that has the marginals of a flow, for any diffusion.

    .. math:: dx = \bigl[v_t(x) + \tfrac12 g_t^2 \, s_t(x)\bigr] dt + g_t \, dW

    This SDE has the same marginals for every :math:`g_t`; :math:`g = 0` is the ODE, and :math:`s_t = \nabla \log p_t`
    is the score. So the diffusion can be chosen when sampling: noise corrects errors of the network on the way, and
    needs more steps. Backward in time the correction has the opposite sign, so that the marginals are again the same.

    ``f(t, y, *args)`` returns the pair ``(v, s)``, each shaped like ``y``, from one evaluation of the network. The grid
    is that of :class:`FixedGrid`. A flow makes a last step that ends next to the data (or, backward, next to the base
    of a bridge) with the ODE, since all noise added there would stay in the samples. If the data are narrower than the
    noise of a step, about half of the noise of the step before remains: for data with standard deviation 0.02, a bridge
    with ``sigma = 1`` returns 0.14 in 20 steps and 0.07 in 100; a diffusion that decreases returns less.

    Args:
        steps, nfe, grid: as in :class:`FixedGrid`.
        gradient: only ``Backprop()``.
        diffusion: ``g``, a number or a function of time. Default: ``Fading(1.0)``. A Schroedinger bridge needs a number
            (its sigma). On affine paths, whose scores grow as ``1 / sigma_t``, a number needs steps shorter than
            ``(sigma_t / g)^2``; the default is stable.

    Raises:
        ValueError: if the diffusion is negative, infinite or NaN, quadratures are asked for, or ``gradient`` is another
            mode than ``Backprop()``.
        TypeError: if ``f`` does not return a pair.

    Source: Song et al., Score-Based Generative Modeling through Stochastic Differential Equations, 2020,
    arXiv:2011.13456; Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, section 2.

    Example:
        >>> EulerMaruyama(50, diffusion=lambda t: 1 - t).strength(0.75)
        0.25
    """

    diffusion: float | Callable[[float], float] = Fading()

    needs_score = True
    why_no_graph = "it draws noise from the generator of the call, which a graph cannot read"
    refused_gradients = dict.fromkeys(
        ("steps", "equation"),
        "the noise of a step is not kept, so it cannot be computed again; pass gradient=Backprop(), or use an ODE "
        "solver.",
    )

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        if isinstance(self.diffusion, type) or not (
            callable(self.diffusion) or (isinstance(self.diffusion, int | float) and 0 <= self.diffusion < math.inf)
        ):
            raise ValueError(
                f"{name}(diffusion={self.diffusion!r}): expected a finite number >= 0 or a function of time; pass 1.0 "
                f"or solvers.Fading(1.0)."
            )

    def strength(self, t: float) -> float:
        """Returns the diffusion at time ``t``."""
        value = float(self.diffusion(t) if callable(self.diffusion) else self.diffusion)
        if not 0 <= value < math.inf:
            raise ValueError(
                f"{type(self).__name__}(diffusion={self.diffusion!r}): it returned {value} at t = {t:.6g}; return a "
                f"finite number >= 0."
            )
        return value

    def _check(self, problem: Problem) -> None:
        if problem.tolerances:
            raise ValueError(
                f"{type(self).__name__}.solve(quadratures={sorted(problem.tolerances)}): integrals along a random path "
                f"are not those of the flow; use an ODE solver."
            )

    def _solve(self, problem: Problem) -> Solution:
        """Steps over the grid; gradients flow through every operation. Draws noise once per step."""
        f, y0, generator = problem.f, problem.like, problem.generator
        scores: list[list[Tensor]] = []

        def velocity(t, y, *rest):
            answer = f(t, y, *rest)
            if not isinstance(answer, tuple | list) or len(answer) != 2:
                raise TypeError(
                    f"{type(self).__name__}.solve: f returned a {type(answer).__name__}; return the pair (velocity, "
                    f"score), each shaped like the state."
                )
            score = split(answer[1], y0, "the score that f returned")
            for part, like in zip(score, split(y, y0)):
                if part.shape != like.shape:
                    raise ValueError(
                        f"{type(self).__name__}.solve: f returned a score of shape {list(part.shape)} for a state of "
                        f"shape {list(like.shape)}; return the shape of the state."
                    )
            scores.append(score)
            return answer[0]

        problem.f = velocity
        nodes = self.layout(problem)
        g = [self.strength(node) for node in nodes]
        times = torch.tensor(nodes, dtype=problem.dtype, device=problem.device)
        times = times.unsqueeze(1).expand(-1, problem.batch).unbind(0)
        sign = 1.0 if problem.t1 > problem.t0 else -1.0

        def drift(node: int, y: list[Tensor]) -> list[Tensor]:
            v, _ = problem(times[node], y)
            weight = 0.5 * sign * g[node] ** 2
            return [torch.add(a, s.to(a.dtype), alpha=weight) for a, s in zip(v, scores.pop())]

        def noise(y: list[Tensor], width: float) -> list[Tensor]:
            if width == 0:
                return y
            draw = lambda part: draw_rows(torch.randn, part.shape, generator, dtype=part.dtype, device=part.device)
            return [torch.add(part, draw(part), alpha=width) for part in y]

        y, outputs = problem.y0, Outputs(problem.at)
        outputs.keep(nodes[0], y)
        for node, (start, end) in enumerate(itertools.pairwise(nodes)):
            y = self._step(node, end - start, y, g, drift, noise)
            outputs.keep(end, y)
        return problem.finished(y, steps=len(nodes) - 1, outputs=outputs.kept)

    @abstractmethod
    def _step(self, node: int, h: float, y: list[Tensor], g: list[float], drift, noise) -> list[Tensor]:
        """Steps from node ``node`` to the next one, over ``h``."""


@register("solvers.EulerMaruyama")
@dataclass(frozen=True, repr=False)
class EulerMaruyama(StochasticGrid):
    r"""Integrates an SDE with the Euler-Maruyama method: weak order 1, one evaluation of ``f`` per step.

    .. math:: y^+ = y + h \, a(t, y) + g_t \sqrt{h} \, \xi, \qquad a = v + \tfrac12 g_t^2 s

    Example:
        >>> stationary = lambda t, y: (0 * y, -y)   # no velocity; the score of a standard normal
        >>> y0 = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
        >>> solution = EulerMaruyama(50).solve(stationary, y0, 0.0, 1.0, generator=torch.Generator().manual_seed(1))
        >>> round(solution.y.std().item(), 1), solution.stats.nfe
        (1.0, 50)
    """

    def _step(self, node, h, y, g, drift, noise):
        moved = [torch.add(part, slope, alpha=h) for part, slope in zip(y, drift(node, y))]
        return noise(moved, g[node] * math.sqrt(abs(h)))


@register("solvers.StochasticHeun")
@dataclass(frozen=True, repr=False)
class StochasticHeun(StochasticGrid):
    r"""Integrates an SDE with Heun's method for additive noise: weak order 2, two evaluations of ``f`` per step.

    .. math:: \tilde y = y + h \, a(t, y) + \Delta,
              \quad y^+ = y + \tfrac h2 \bigl(a(t, y) + a(t + h, \tilde y)\bigr) + \Delta, \quad
              \Delta = \sqrt{h (g_t^2 + g_{t+h}^2) / 2} \, \xi

    Both stages use the same noise. Adding it before the first stage, as samplers for diffusion models do, has order 1.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations, 1992, section 15.1.

    Example:
        >>> stationary = lambda t, y: (0 * y, -y)
        >>> StochasticHeun(10).solve(stationary, torch.zeros(3, 1), 0.0, 1.0).stats.nfe
        20
    """

    @classmethod
    def calls_per_step(cls) -> int:
        """Returns the evaluations of ``f`` per step."""
        return 2

    def _step(self, node, h, y, g, drift, noise):
        first = drift(node, y)
        width = math.sqrt(abs(h) * (g[node] ** 2 + g[node + 1] ** 2) / 2)
        shifted = noise(y, width)
        predicted = [torch.add(part, slope, alpha=h) for part, slope in zip(shifted, first)]
        second = drift(node + 1, predicted)
        return [torch.add(part, a + b, alpha=0.5 * h) for part, a, b in zip(shifted, first, second)]
