"""Flow matching through several snapshots of one population."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import one_hot

from .. import registry
from ..couplings import OptimalTransport
from ..shapes import rows
from ..times import Stratified
from .objective import Objective

__all__ = ["MultiMarginal", "MultiMarginalBatch"]


@dataclass
class MultiMarginalBatch:
    """Points between the snapshots, their times and the velocities to learn there."""

    xt: Tensor
    t: Tensor
    target: Tensor
    context: Tensor | None = None


@registry.register
class MultiMarginal(Objective):
    r"""Regresses the field on curves through one sample of every snapshot, so that one flow passes all of them.

    .. math:: \mathbb E_{t, (x_0, \dots, x_{K-1}) \sim \pi} \; w(t) \, \| v_\theta(t, x_t, c) - \dot x_t \|^2 / D,
        \qquad x_{\tau_k} = x_k, \quad (x_k, x_{k+1}) \sim \pi_{k, k+1}

    Snapshot k was taken at time :math:`\tau_k`. The members of an item need not belong together: ``coupling`` pairs the
    batch's rows of every two neighbouring snapshots, and the pairs are joined to chains. A curve is

    - ``"linear"``: straight from snapshot to snapshot; between two of them the target is
      :math:`(x_{k+1} - x_k) / (\tau_{k+1} - \tau_k)`;
    - ``"spline"``: the natural cubic spline through the chain, whose velocity is continuous. With pairs that are not
      optimal it swings out far; couple by optimal transport.

    The minimiser carries the law of snapshot 0, from which its marginals between 0 and 1 follow: give the flow that law
    as its base (``bases.Empirical``), and ``flow.transport(x, tau_k, tau_l)`` carries one snapshot to another. The flow
    has ``path=None``: its marginals follow no schedule of a base and a data sample, so nothing that reads one (scores,
    changes of schedule, closed-form steps) may be asked of it.

    Args:
        times: :math:`0 = \tau_0 < \dots < \tau_{K-1} = 1`.
        coupling: which row of a snapshot goes with which row of the next; ``OptimalTransport()`` where none is given.
            ``Paired()`` keeps items as they are: trajectories that were measured.
        law: the law of the training times; ``times.Stratified()`` where none is given.
        weight: a function of time, ``[B] -> [B]``, for instance to tone down short gaps, whose velocities are large.
        interpolation: ``"linear"`` or ``"spline"``.

    Shapes: items are ``[B, K, *event]`` (:class:`cflow.data.Snapshots` gives them), the loss ``[B]``.
    Cost: K - 1 couplings of the batch, ahead of the step, and one field call.

    A context belongs to the item, and the couplings do not see it: chains may then join members of items with different
    contexts, of which the last member's is used.

    Raises:
        ValueError: if the times do not increase from 0 to 1, the interpolation is unknown, items do not have K members,
            or the flow has a path.
        TypeError: if an option is no object, or the flow is no continuous flow.

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
        >>> objective.members, objective(flow, torch.randn(16, 3, 2)).shape
        (3, torch.Size([16]))
    """

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
            raise ValueError(
                f"MultiMarginal(interpolation={interpolation!r}): there is no such curve; pass 'linear' or 'spline'."
            )
        for name, value in (("coupling", coupling), ("law", law), ("weight", weight)):
            if value is not None and (isinstance(value, type) or not callable(value)):
                raise TypeError(
                    f"MultiMarginal({name}={value!r}): options are objects, such as couplings.OptimalTransport(), "
                    f"times.Uniform() or a function of time."
                )
        self.coupling = OptimalTransport() if coupling is None else coupling
        self.law = Stratified() if law is None else law
        self.weight, self.interpolation = weight, interpolation
        # Second derivatives at the snapshots are linear in the chain; for straight segments they are zero.
        self._curvature = _natural_curvature(self.times) if interpolation == "spline" else None

    @property
    def members(self) -> int:
        return len(self.times)

    def preprocess(self, flow: nn.Module, x: Tensor, generator=None) -> Tensor:
        """Carries every member to what the flow models, by the flow's transforms."""
        if x.dim() < 2 or x.shape[1] != self.members:
            raise ValueError(
                f"MultiMarginal(x of shape {list(x.shape)}): there are {self.members} times, so an item holds "
                f"{self.members} samples; pass a tensor [B, {self.members}, *event] such as data.Snapshots gives."
            )
        count = len(x)
        u, _ = flow.preprocess(rearrange(x, "b k ... -> (b k) ..."), generator=generator)
        return rearrange(u, "(b k) ... -> b k ...", b=count, k=self.members)

    def prepare(self, base: nn.Module, x: Tensor, context: Tensor | None = None, generator=None) -> MultiMarginalBatch:
        chain, context = self.chains(x, context, generator)
        t = self.law(len(chain), generator=generator, device=chain.device, dtype=chain.dtype)
        xt, target = self.curve(chain, t)
        return MultiMarginalBatch(xt, t, target, context)

    def loss(self, flow: nn.Module, batch: MultiMarginalBatch) -> Tensor:
        if not hasattr(flow, "predict"):
            raise TypeError(
                f"MultiMarginal: a {type(flow).__name__} has no vector field to train; pass a ContinuousFlow."
            )
        path = getattr(flow, "path", None)
        if path is not None:
            raise ValueError(
                f"MultiMarginal: the flow has the path {type(path).__name__}(predict={path.predict!r}), but the field "
                f"is to learn the velocity through {self.members} snapshots, which follows no path between base and "
                f"data; build the flow with path=None."
            )
        error = flow.predict(batch.t, batch.xt, batch.context) - batch.target
        loss = rows(error.square()).mean(1)
        return loss if self.weight is None else loss * self.weight(batch.t)

    def chains(self, x: Tensor, context=None, generator=None):
        """Re-pairs the members of a batch ``[B, K, *event]`` into chains of coupled samples: ``(chains, context)``."""
        snapshots = x.unbind(1)
        # From the last to the first, because a coupling keeps the rows of its second argument, with what belongs to
        # them: the part of the chain that is known already.
        last, carried = snapshots[-1], {"chain": x[:, -1:], "context": context}
        for each in reversed(snapshots[:-1]):
            last, _, carried = self.coupling(each, last, carried, generator=generator)
            carried = {**carried, "chain": torch.cat([last[:, None], carried["chain"]], 1)}
        return carried["chain"], carried["context"]

    def curve(self, chain: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Computes points and velocities ``[B, *event]`` on the curves through chains ``[B, K, *event]`` at ``t [B]``.

        Both are sums over the chain, with weights ``[B, K]`` that depend on time alone.
        """
        dtype = torch.promote_types(chain.dtype, torch.float32)
        knots = torch.tensor(self.times, dtype=torch.float64).to(chain.device, dtype)
        t = t.to(dtype)
        segment = torch.bucketize(t.contiguous(), knots[1:-1], right=True)
        width = (knots[segment + 1] - knots[segment])[:, None]
        s = (t - knots[segment])[:, None] / width
        start, stop = (one_hot(index, self.members).to(dtype) for index in (segment, segment + 1))
        point, velocity = (1 - s) * start + s * stop, (stop - start) / width
        if self._curvature is not None:
            curvature = self._curvature.to(chain.device, dtype)
            before, after = curvature[segment], curvature[segment + 1]
            rest = 1 - s
            point = point + width.square() / 6 * ((rest**3 - rest) * before + (s**3 - s) * after)
            velocity = velocity + width / 6 * ((3 * s**2 - 1) * after - (3 * rest**2 - 1) * before)
        # No matrix product: one in reduced precision would drown the differences between neighbours.
        shape = (*point.shape, *(1,) * (chain.dim() - 2))
        return tuple((w.to(chain.dtype).reshape(shape) * chain).sum(1) for w in (point, velocity))


def _checked_times(times: Sequence[float]) -> tuple[float, ...]:
    times = tuple(float(each) for each in times)
    if len(times) < 2 or not all(a < b for a, b in itertools.pairwise(times)):
        raise ValueError(
            f"MultiMarginal(times={times}): a flow goes through two snapshots or more, at times that increase; sort "
            f"the snapshots by time and merge those of one time."
        )
    if times[0] != 0 or times[-1] != 1:
        raise ValueError(
            f"MultiMarginal(times={times}): a flow lives on [0, 1], so the first snapshot is at 0 and the last at 1; "
            f"pass [(t - t[0]) / (t[-1] - t[0]) for each t], which are data.Snapshots(...).normalised().times."
        )
    return times


def _natural_curvature(times: tuple[float, ...]) -> Tensor:
    """Computes the matrix ``[K, K]`` from a chain to the second derivatives of its natural cubic spline."""
    count = len(times)
    left, right = torch.eye(count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.float64)
    for k in range(1, count - 1):
        before, after = times[k] - times[k - 1], times[k + 1] - times[k]
        left[k, k - 1 : k + 2] = torch.tensor([before, 2 * (before + after), after], dtype=torch.float64)
        right[k, k - 1 : k + 2] = torch.tensor([6 / before, -6 / before - 6 / after, 6 / after], dtype=torch.float64)
    return torch.linalg.solve(left, right)
