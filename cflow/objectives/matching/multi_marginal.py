"""Flow matching through several snapshots of one population."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import one_hot

from cflow import registry
from cflow.couplings import OptimalTransport
from cflow.objectives.objective import Objective, check_objects
from cflow.shapes import expand_like, mean_rows, on_tensors
from cflow.times import Stratified

__all__ = ["MultiMarginal", "MultiMarginalBatch"]


@dataclass
class MultiMarginalBatch:
    """Points between the snapshots, with their times and target velocities.

    Attributes:
        xt: the points ``[B, *event]``.
        t: the times ``[B]``.
        target: the velocities at these points ``[B, *event]``.
        context: the conditions ``[B, *context_shape]``, or None.
    """

    xt: Tensor
    t: Tensor
    target: Tensor
    context: Tensor | None = None


@registry.register("objectives.MultiMarginal")
class MultiMarginal(Objective):
    r"""Regresses the field on curves through one sample of every snapshot, so that one flow connects all snapshots.

    .. math:: \mathbb E_{t, (x_0, \dots, x_{K-1}) \sim \pi} \; w(t) \, \| v_\theta(t, x_t, c) - \dot x_t \|^2 / D,
        \qquad x_{\tau_k} = x_k, \quad (x_k, x_{k+1}) \sim \pi_{k, k+1}

    Snapshot k was measured at time :math:`\tau_k`. The samples of an item may be unrelated: ``coupling`` pairs the rows
    of every two neighbouring snapshots in a batch. The curves are

    - ``"linear"``: straight lines between neighbours, with the velocity
      :math:`(x_{k+1} - x_k) / (\tau_{k+1} - \tau_k)`; each item uses the pair of the segment that contains its time;
    - ``"spline"``: natural cubic splines through chains of pairs, with a continuous velocity. If the pairs are not
      optimal, splines overshoot.

    The minimiser transports the distribution of snapshot 0, so use that distribution as the flow's base
    (``bases.Empirical``). Then ``flow.transport(x, tau_k, tau_l)`` moves one snapshot to another. The flow has
    ``path=None``: its marginals do not follow a schedule between a base and a data sample. Scores, changes of schedule
    and closed-form steps are therefore not available.

    A context belongs to the item, and so to all its samples. A coupling that ignores it pairs across contexts; the
    context of the later sample is then used.

    Args:
        times: the times of the snapshots, :math:`0 = \tau_0 < \dots < \tau_{K-1} = 1`.
        coupling: the coupling between a snapshot and the next one. Default: None, ``OptimalTransport()``. ``Paired()``
            keeps the items: measured trajectories.
        law: the distribution of the training times. Default: None, ``times.Stratified()``.
        weight: a function of time, ``[B] -> [B]``, for instance smaller in short gaps, where velocities are large.
            Default: None, no weight.
        interpolation: ``"linear"`` or ``"spline"``.

    Shapes: items are ``[B, K, *event]``, as in :class:`cflow.data.Snapshots`; the loss is ``[B]``.
    Cost: K - 1 couplings of the batch, ahead of the step, and one function evaluation.

    Raises:
        ValueError: if the times do not increase from 0 to 1, the interpolation is unknown, items do not have K samples,
            the flow has a path, or a coupling for splines does not keep the rows of its second argument.
        TypeError: if an option is not an object, or the flow is not a continuous flow.

    Source: Tong et al., TrajectoryNet: A Dynamic Optimal Transport Network for Modeling Cellular Dynamics, 2020,
    arXiv:2002.04461 (the setting); Tong et al., Improving and Generalizing Flow-Based Generative Models with Minibatch
    Optimal Transport, 2023, arXiv:2302.00482 (straight segments); Rohbeck et al., Modeling Complex System Dynamics with
    Flow Matching Across Time and Conditions, ICLR 2025 (splines); Chewi et al., Fast and Smooth Interpolation on
    Wasserstein Space, 2020, arXiv:2010.12101 (splines through chains of optimal plans).

    Example:
        >>> import cflow
        >>> from cflow import bases, fields
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2))
        >>> objective = MultiMarginal((0.0, 0.3, 1.0))
        >>> objective.samples_per_item, objective(flow, torch.randn(16, 3, 2)).shape
        (3, torch.Size([16]))
    """

    curved = False

    def __init__(
        self,
        times: Sequence[float],
        coupling=None,
        law=None,
        weight: Callable[[Tensor], Tensor] | None = None,
        interpolation: Literal["linear", "spline"] = "linear",
    ):
        super().__init__()
        self.times = _checked_times(times)
        if interpolation not in ("linear", "spline"):
            raise ValueError(f"MultiMarginal(interpolation={interpolation!r}): unknown; pass 'linear' or 'spline'.")
        example = "couplings.OptimalTransport(), times.Uniform() or a function of time"
        check_objects("MultiMarginal", example, coupling=coupling, law=law, weight=weight)
        self.coupling = OptimalTransport() if coupling is None else coupling
        self.law = Stratified() if law is None else law
        self.weight, self.interpolation = weight, interpolation

    @property
    def samples_per_item(self) -> int:
        return len(self.times)

    def preprocess(self, flow: Any, x: Tensor, context: Tensor | None = None, generator=None) -> Tensor:
        """Applies the transforms of ``flow`` to every sample of ``x [B, K, *event]``.

        The arguments ``context`` and ``generator`` are passed to the transforms.
        """
        if x.dim() < 2 or x.shape[1] != self.samples_per_item:
            raise ValueError(
                f"MultiMarginal(x of shape {list(x.shape)}): {self.samples_per_item} times need as many samples per "
                f"item; pass a tensor [B, {self.samples_per_item}, *event]."
            )
        count = len(x)
        context = on_tensors(lambda each: each.repeat_interleave(self.samples_per_item, 0), context)
        u, _ = flow.preprocess(rearrange(x, "b k ... -> (b k) ..."), context, generator=generator)
        return rearrange(u, "(b k) ... -> b k ...", b=count, k=self.samples_per_item)

    def prepare(self, base: nn.Module, x: Tensor, context: Tensor | None = None, generator=None) -> MultiMarginalBatch:
        t = self.law(len(x), generator=generator, device=x.device, dtype=x.dtype)
        if self.interpolation == "spline":
            xt, target = self.spline(self.chains(x, context, generator), t)
            return MultiMarginalBatch(xt, t, target, context)
        segment, s, width = (expand_like(each, x[:, 0]) for each in self._place(t))
        start = stop = x[:, 0]
        chosen = context
        for k in range(self.samples_per_item - 1):
            pairs = self.coupling(x[:, k], x[:, k + 1], context, generator=generator)
            # If a coupling returns fewer pairs than rows, they are used repeatedly.
            rows = torch.arange(len(x), device=x.device) % len(pairs[1])
            here = (segment == k).flatten()
            pick = lambda new, old, rows=rows, here=here: torch.where(expand_like(here, old), new[rows], old)
            start, stop = pick(pairs[0], start), pick(pairs[1], stop)
            chosen = on_tensors(pick, pairs[2], chosen)
        return MultiMarginalBatch(start + s * (stop - start), t, (stop - start) / width, chosen)

    def loss(self, flow: Any, batch: MultiMarginalBatch) -> Tensor:
        if not hasattr(flow, "predict"):
            raise TypeError(f"MultiMarginal: a {type(flow).__name__} has no vector field; pass a ContinuousFlow.")
        path = getattr(flow, "path", None)
        if path is not None:
            raise ValueError(
                f"MultiMarginal: the flow has the path {type(path).__name__}(predict={path.predict!r}), and this "
                f"objective needs none; build it with path=None."
            )
        error = flow.predict(batch.t, batch.xt, batch.context) - batch.target
        loss = mean_rows(error.square())
        return loss if self.weight is None else loss * self.weight(batch.t)

    def chains(self, x: Tensor, context=None, generator=None) -> Tensor:
        """Couples the samples of a batch ``x [B, K, *event]`` to chains, of the same shape.

        The arguments ``context`` and ``generator`` are passed to the coupling.
        """
        # From the last to the first: couplings permute their first argument, so the present chain stays in place.
        chain = [x[:, -1]]
        for k in reversed(range(self.samples_per_item - 1)):
            start, stop, _ = self.coupling(x[:, k], chain[0], context, generator=generator)
            if stop is not chain[0] and not torch.equal(stop, chain[0]):
                raise ValueError(
                    f"MultiMarginal(coupling={self.coupling!r}): splines need pairs one to one; use "
                    f"couplings.OptimalTransport(), or interpolation='linear'."
                )
            chain.insert(0, start)
        return torch.stack(chain, 1)

    def spline(self, chain: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes points and velocities ``[B, *event]`` at times ``t [B]`` on splines through ``chain``.

        The chains are ``[B, K, *event]``.
        Both are sums over the chain, with weights ``[B, K]`` that depend on time alone.
        """
        segment, s, width = self._place(t)
        curvature = _natural_curvature(self.times).to(t.device, s.dtype)
        before, after = curvature[segment], curvature[segment + 1]
        start, stop = (one_hot(index, self.samples_per_item).to(s.dtype) for index in (segment, segment + 1))
        s, width = s[:, None], width[:, None]
        rest = 1 - s
        point = rest * start + s * stop + width.square() / 6 * ((rest**3 - rest) * before + (s**3 - s) * after)
        velocity = (stop - start) / width + width / 6 * ((3 * s**2 - 1) * after - (3 * rest**2 - 1) * before)
        # No matrix product: in reduced precision it would lose the differences between neighbours.
        shape = (*point.shape, *(1,) * (chain.dim() - 2))
        return tuple((weight.to(chain.dtype).reshape(shape) * chain).sum(1) for weight in (point, velocity))

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the segment of each time, the relative position in it (0 to 1), and its length: ``[B]`` each."""
        knots = torch.tensor(self.times, dtype=torch.float64).to(t.device, t.dtype)
        segment = torch.bucketize(t.detach(), knots[1:-1], right=True)
        width = knots[segment + 1] - knots[segment]
        return segment, (t - knots[segment]) / width, width


def _checked_times(times: Sequence[float]) -> tuple[float, ...]:
    times = tuple(float(each) for each in times)
    if len(times) < 2 or not all(a < b for a, b in itertools.pairwise(times)):
        raise ValueError(
            f"MultiMarginal(times={times}): at least two increasing times are needed; sort the snapshots, and merge "
            f"those of one time."
        )
    if times[0] != 0 or times[-1] != 1:
        raise ValueError(
            f"MultiMarginal(times={times}): the first time is 0 and the last 1; pass "
            f"data.Snapshots(...).normalised().times."
        )
    return times


def _natural_curvature(times: tuple[float, ...]) -> Tensor:
    """Computes the matrix ``[K, K]`` that maps a chain to the second derivatives of its natural spline."""
    count = len(times)
    left, right = torch.eye(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
    for k in range(1, count - 1):
        before, after = times[k] - times[k - 1], times[k + 1] - times[k]
        left[k, k - 1 : k + 2] = torch.tensor([before, 2 * (before + after), after], dtype=torch.float64)
        right[k, k - 1 : k + 2] = torch.tensor([6 / before, -6 / before - 6 / after, 6 / after], dtype=torch.float64)
    return torch.linalg.solve(left, right)
