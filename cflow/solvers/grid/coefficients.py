"""Coefficients of linear multistep methods on a fixed grid: computed once per solve, on the host, in float64."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy
import torch

__all__ = ["Frame", "LogSNR", "Noise", "Plain", "Row", "adams_weights", "multistep_rows"]

_APART = 0.25  # a slope closer than this fraction of the step shows rounding more than the trend
_POINTS, _MASSES = (values / 2 for values in numpy.polynomial.legendre.leggauss(32))
_POINTS = _POINTS + 0.5  # Gauss-Legendre on [0, 1]
_MASSES = _MASSES * _POINTS ** numpy.arange(4)[:, None]  # for integrands times a power

Weights = dict[int, float]


class Row(NamedTuple):
    r"""Combines the known values at node n: :math:`c\,x_n + e\,v_n + \sum_{j < n} w_j d_j`."""

    state: float
    velocity: float
    history: tuple[tuple[int, float], ...]


class Step(NamedTuple):
    """Holds the row that computes the next state, and the row that computes the output at the node (None: x_n)."""

    advance: Row
    shown: Row | None
    slope: tuple[float, float]
    """The weights of x_n and v_n in d_n."""


class Frame(ABC):
    r"""Defines the variable z and the slope d that a multistep method extrapolates with a polynomial.

    .. math:: x_e = \frac{s_e}{s_n} x_n + g\, d_n + \sum_j w_j (d_j - d_n), \qquad
              \sum_j w_j u_j^k = M_k = s_e \int_n^e u^k \, dm, \quad u = \frac{z - z_n}{z_e - z_n}

    The first two terms solve the equation for a constant slope. They are expressed by the state and the velocity,
    :math:`c\,x_n + e\,v_n`, which is finite also where s is zero and d does not determine v. The weights of the
    differences make the step exact for polynomials of z.
    """

    z: Sequence[float]
    """The variable at the nodes."""
    slopes: Sequence[tuple[float, float]]
    """The weights of x and v in d, at the nodes."""
    usable: Sequence[bool]
    """Whether d is defined by the velocity at a node."""
    scale: Sequence[float]
    """The factor s of a solution without slope."""

    @abstractmethod
    def gain(self, n: int, e: int) -> float:
        """Returns g, the weight of a constant slope."""

    @abstractmethod
    def first(self, n: int, e: int) -> tuple[float, float]:
        """Returns the weights of x_n and v_n in the step for a constant slope."""

    @abstractmethod
    def moments(self, n: int, e: int, count: int) -> list[float]:
        """Returns the moments of u for the powers 1 to ``count``."""

    def anchored(self, n: int) -> bool:
        """Returns whether a step from a node can be computed again when more slopes are known."""
        return self.usable[n] and self.scale[n] > 0 and math.isfinite(self.z[n])

    def behind(self, n: int, e: int, count: int, without: int | None) -> list[int]:
        """Chooses up to ``count`` nodes before n for a step to e, none too close to another."""
        length, last, chosen = abs(self.z[e] - self.z[n]), self.z[n], []
        if not math.isfinite(length):
            return chosen
        for j in range(n - 1, max(-1, n - 5 - 2 * count), -1):
            if len(chosen) == count:
                break
            fine = self.usable[j] and math.isfinite(self.z[j]) and j != without
            if fine and abs(self.z[j] - last) >= _APART * length:
                chosen.append(j)
                last = self.z[j]
        return chosen

    def weights(self, n: int, e: int, nodes: list[int]) -> Weights:
        """Solves for the weights of all slopes, in addition to the step for a constant slope."""
        if not nodes:
            return {}
        start, length = self.z[n], self.z[e] - self.z[n]
        u = [(self.z[j] - start) / length for j in nodes]
        solved = [weight / place for weight, place in zip(_vandermonde(u, self.moments(n, e, len(nodes))), u)]
        return {n: -sum(solved), **dict(zip(nodes, solved))}


class Plain(Frame):
    """Extrapolates the velocity in time: Adams-Bashforth."""

    def __init__(self, nodes: Sequence[float]):
        count = len(nodes)
        self.z, self.slopes, self.usable, self.scale = nodes, [(0.0, 1.0)] * count, [True] * count, [1.0] * count

    def gain(self, n, e):
        return self.z[e] - self.z[n]

    def first(self, n, e):
        return 1.0, self.z[e] - self.z[n]

    def moments(self, n, e, count):
        return [(self.z[e] - self.z[n]) / (power + 1) for power in range(1, count + 1)]


class _OnPath(Frame):
    """Reads a schedule at the nodes; with a constant slope the expected data and base sample are constant."""

    def __init__(self, nodes: Sequence[float], path):
        self.nodes, self.path = nodes, path
        t = torch.tensor(nodes, dtype=torch.float64)
        read = lambda name: getattr(path, name)(t).detach().cpu().numpy().tolist()
        self.alpha, self.sigma, self.d_alpha, self.d_sigma = map(read, ("alpha", "sigma", "d_alpha", "d_sigma"))
        values = zip(self.alpha, self.sigma, self.d_alpha, self.d_sigma)
        self.determinant = [alpha * d_sigma - sigma * d_alpha for alpha, sigma, d_alpha, d_sigma in values]
        # Where the path does not move, as at the start of a polynomial one, the velocity does not determine d.
        margin = getattr(path, "margin", 1e-3)
        self.usable = [math.isfinite(value) and abs(value) >= margin for value in self.determinant]

    def first(self, n, e):
        if not self.usable[n]:
            return 1.0, self.nodes[e] - self.nodes[n]
        rise, fall = self.alpha[e] - self.alpha[n], self.sigma[e] - self.sigma[n]
        state = 1 + (rise * self.d_sigma[n] - fall * self.d_alpha[n]) / self.determinant[n]
        return state, (fall * self.alpha[n] - rise * self.sigma[n]) / self.determinant[n]

    def _slopes(self, state: Sequence[float], velocity: Sequence[float]) -> list[tuple[float, float]]:
        rows = zip(self.usable, state, velocity, self.determinant)
        return [(a / each, b / each) if fine else (0.0, 0.0) for fine, a, b, each in rows]


class LogSNR(_OnPath):
    r"""Extrapolates the expected data in :math:`\lambda = \log(\alpha / \sigma)`; the rest is solved exactly.

    If only the first moment is needed, half of a function replaces it: ``halves="bh2"`` is :math:`e^h - 1` and
    ``"bh1"`` is h in the notation of UniPC, both with the order of the exact moment.
    """

    def __init__(self, nodes, path, halves: str = "bh2"):
        super().__init__(nodes, path)
        self.halves, self.scale = halves, self.sigma
        self.z = [_log(alpha) - _log(sigma) for alpha, sigma in zip(self.alpha, self.sigma)]
        self.slopes = self._slopes(self.d_sigma, [-sigma for sigma in self.sigma])

    def gain(self, n, e):
        return self.alpha[e] - self.sigma[e] * self.alpha[n] / self.sigma[n]

    def moments(self, n, e, count):
        h = self.z[e] - self.z[n]
        if count == 1:
            return [0.5 * (self.gain(n, e) if self.halves == "bh2" else self.alpha[e] * h)]
        # By parts, with e^(-h (1 - u)) = e^(lambda - lambda_e): no division by a small h.
        integrals = (_MASSES[:count] @ numpy.exp(h * (_POINTS - 1))).tolist()
        return [self.alpha[e] * (1 - k * integral) for k, integral in enumerate(integrals, 1)]


class Noise(_OnPath):
    r"""Extrapolates the expected base sample in time, with the measure :math:`d(\sigma/\alpha)`.

    The integrals are computed by parts, which leaves :math:`\sigma/\alpha` itself. They are finite also for a step that
    ends at :math:`\alpha = 0`.
    """

    def __init__(self, nodes, path):
        super().__init__(nodes, path)
        self.z, self.scale = nodes, self.alpha
        self.slopes = self._slopes([-slope for slope in self.d_alpha], self.alpha)
        starts, ends = numpy.array(nodes[:-1]), numpy.array(nodes[1:])
        self._within = self._ratio(starts[:, None] + (ends - starts)[:, None] * _POINTS)

    def _ratio(self, times) -> numpy.ndarray:
        t = torch.from_numpy(times)
        return (self.path.sigma(t) / self.path.alpha(t)).detach().cpu().numpy()

    def gain(self, n, e):
        return self.sigma[e] - self.alpha[e] * self.sigma[n] / self.alpha[n]

    def moments(self, n, e, count):
        # A step that is computed again from an earlier node spans several intervals of the grid.
        within = self._within[n] if e == n + 1 else self._ratio(self.z[n] + (self.z[e] - self.z[n]) * _POINTS)
        integrals = (_MASSES[:count] @ within).tolist()
        return [self.sigma[e] - self.alpha[e] * k * integral for k, integral in enumerate(integrals, 1)]


def _vandermonde(u: list[float], moments: list[float]) -> list[float]:
    r"""Solves :math:`\sum_j w_j u_j^k = m_k`, k from 0 (Björck and Pereyra, 1970): cheaper than one array."""
    w, count = list(moments), len(u)
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            w[i] -= u[k] * w[i - 1]
    for k in range(count - 2, -1, -1):
        for i in range(k + 1, count):
            w[i] /= u[i] - u[i - k - 1]
        for i in range(k, count - 1):
            w[i] -= w[i + 1]
    return w


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def multistep_rows(frame: Frame, order: int, *, corrected: bool = False) -> list[Step]:
    """Computes the rows of all steps: ``order`` slopes in each step, and one more in its correction if ``corrected``.

    A correction computes the last step again with the slope at its end, as a part of the next step; the field is
    evaluated at the uncorrected states. Without ``corrected`` it is used only at the start. The slope at node 1 comes
    from a step of order 1. So order 3 computes that step again. Order 4 omits that slope from node 3 on, where it
    computes all steps so far again. This keeps the order without another function evaluation.
    """
    count, reached = len(frame.z) - 1, order + corrected
    steps: list[Step] = []
    last: Weights = {}  # of the step to node n
    total: Weights = {}  # of all steps to node n, if it may be needed
    for n in range(count):
        without = 1 if reached >= 4 and n >= 3 else None
        change: Weights = {}
        if reached >= 4 and n == 3 and frame.anchored(0) and _spread(frame):
            again = frame.weights(0, 3, [3, 2])
            again[0] += frame.gain(0, 3)
            change = _difference(again, total)
        elif n and frame.anchored(n - 1) and (corrected or (n == 1 and order >= 3)) and frame.usable[n]:
            skipped = without if n > 3 else None
            points = [n, *frame.behind(n - 1, n, order - 1, skipped)] if corrected else [n]
            change = _difference(frame.weights(n - 1, n, points), last)
        points = frame.behind(n, n + 1, order - 1, without) if frame.usable[n] else []
        last = frame.weights(n, n + 1, points)
        ratio = frame.scale[n + 1] / frame.scale[n] if frame.anchored(n) else 0.0
        weights = dict(last)
        for j, value in change.items():
            weights[j] = weights.get(j, 0.0) + ratio * value
        if n < 3 and frame.anchored(0):
            total = {j: ratio * (total.get(j, 0.0) + change.get(j, 0.0)) + last.get(j, 0.0) for j in range(n + 1)}
            total[n] += frame.gain(n, n + 1) if frame.anchored(n) else 0.0
        shown = _row(frame, n, (1.0, 0.0), change) if change else None
        steps.append(Step(_row(frame, n, frame.first(n, n + 1), weights), shown, frame.slopes[n]))
    return steps


def _spread(frame: Frame) -> bool:
    """Returns whether a parabola through nodes 0, 2 and 3 does not magnify the rounding of their slopes."""
    apart = min(abs(frame.z[2] - frame.z[0]), abs(frame.z[3] - frame.z[2]))
    return all(frame.usable[1:4]) and apart >= 0.5 * _APART * abs(frame.z[3] - frame.z[0])


def _row(frame: Frame, n: int, first: tuple[float, float], weights: Weights) -> Row:
    """Expresses the slope of node n by the state and the velocity there."""
    own, (state, velocity) = weights.get(n, 0.0), frame.slopes[n]
    history = tuple((j, value) for j, value in weights.items() if j != n and value)
    return Row(first[0] + own * state, first[1] + own * velocity, history)


def _difference(new: Weights, old: Weights) -> Weights:
    return {j: new.get(j, 0.0) - old.get(j, 0.0) for j in new.keys() | old.keys()}


def adams_weights(nodes: Sequence[float], order: int) -> list[float]:
    """Computes the weights of all nodes but the last in an integral; exact for polynomials of degree below ``order``.

    Each interval is integrated with the polynomial through the ``order`` nearest values (Adams-Moulton); after the last
    value it is extrapolated (Adams-Bashforth).
    """
    frame, totals = Plain(nodes), [0.0] * (len(nodes) - 1)
    for n in range(len(totals)):
        length, middle = abs(nodes[n + 1] - nodes[n]), 0.5 * (nodes[n] + nodes[n + 1])
        around = range(max(0, n - 2 * order), min(len(totals), n + 2 * order + 1))
        chosen = [n]
        for j in sorted(around, key=lambda j: abs(nodes[j] - middle)):
            if len(chosen) < order and all(abs(nodes[j] - nodes[i]) >= _APART * length for i in chosen):
                chosen.append(j)
        totals[n] += frame.gain(n, n + 1)
        for j, weight in frame.weights(n, n + 1, chosen[1:]).items():
            totals[j] += weight
    return totals
