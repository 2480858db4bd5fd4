"""Conditional flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cflow.arguments import check_integer
from cflow.couplings import Independent
from cflow.objectives.objective import Objective, check_dropout, check_objects
from cflow.paths import Path, PathSample
from cflow.registry import register
from cflow.shapes import expand_as_leading, mask_of, on_tensors
from cflow.times import Times, Uniform

__all__ = ["FlowMatching", "MatchingBatch"]


@dataclass
class MatchingBatch:
    """Pairs with their times, drawn ahead of the step.

    Attributes:
        x0: the base samples ``[B, *event]``.
        x1: the data samples ``[B, *event]``.
        t: the times ``[B]``, in [0, 1]; the loss maps them to the path's interval.
        context: the conditions ``[B, *context_shape]``, or None.
        drop: the items that lose their condition, a bool tensor ``[B]``, or None.
        noise: the noise that the path has drawn, or None.
        sample: the points, on paths that are simulated ahead of the step; otherwise None.
        twice: whether the network first makes a prediction that it gets as its previous one (self-conditioning).
    """

    x0: Tensor
    x1: Tensor
    t: Tensor
    context: Tensor | None = None
    drop: Tensor | None = None
    noise: Any = None
    sample: PathSample | None = None
    twice: bool = False


@register("objectives.FlowMatching")
class FlowMatching(Objective):
    r"""Regresses the field on the path between paired base and data samples.

    .. math:: \mathbb E_{t, (x_0, x_1) \sim \pi} \; w(t) \,
              \| f_\theta(t, x_t, c) - \mathrm{target}(x_0, x_1, t) \|^2 / D

    The minimiser determines the marginal velocity of the path under the coupling :math:`\pi`, for every prediction type
    (``flow.path.predict``). With ``couplings.OptimalTransport()`` this is OT-CFM; with the linear path and
    ``couplings.Independent()`` it is the first round of rectified flow. The objective trains any flow with ``path``,
    ``interval`` and ``predict(t, x, context)``; the path computes the loss. If the flow's network takes earlier
    predictions (``TokenDiT(self_conditioning=True)``), half of the batches are trained with one.

    Args:
        coupling: the coupling of base and data samples. Default: None, independent.
        times: the distribution of the training times. Default: None, that of the path: ``times.Uniform()``, or
            ``times.Stratified()`` on paths of tokens.
        weight: a function ``(path, t) -> [B]``, such as ``objectives.MinSNR()``. Default: None, no weight.
        condition_dropout: the share of items whose context is replaced by the field's "no condition", which
            classifier-free guidance needs. One draw per item.
        antithetic: whether the loss of an item is the average over two points whose noise is mirrored. It has less
            noise, at twice the cost. With tokens, the two points hide complementary tokens. For paths that add noise.
        points_per_pair: the number of points of each path, at different times; the loss has a row for each. A coupling
            or a simulation of paths so costs less per point. The rows start with the first point of every path: with
            ``fit(pool=...)`` the points of a path come in different steps.

    Cost: one function evaluation; :meth:`prepare` computes the coupling, ahead of the step, and paths that are
    simulated (``paths.Premetric``) are simulated there.

    Raises:
        ValueError: for a flow without a path, or ``condition_dropout`` on an unconditional flow.

    Source: Lipman et al., 2022, arXiv:2210.02747; Tong et al., Improving and Generalizing Flow-Based Generative Models
    with Minibatch Optimal Transport, 2023, arXiv:2302.00482; Ho and Salimans, Classifier-Free Diffusion Guidance, 2022,
    arXiv:2207.12598.

    Example:
        >>> import cflow, torch
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
        >>> FlowMatching()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    masks = True  # whether the loss is restricted to the entries in a mask

    def __init__(
        self, coupling=None, times=None, weight=None, condition_dropout: float = 0.0, antithetic: bool = False,
        points_per_pair: int = 1,
    ):  # fmt: skip
        super().__init__()
        check_dropout(type(self).__name__, condition_dropout)
        advice = "points_per_pair is an integer of at least 1; pass 1."
        check_integer(type(self).__name__, "points_per_pair", points_per_pair, 1, advice)
        example = "couplings.OptimalTransport() or times.LogitNormal()"
        check_objects(type(self).__name__, example, coupling=coupling, times=times, weight=weight)
        self.coupling = Independent() if coupling is None else coupling
        self.times = times
        self.weight, self.condition_dropout, self.antithetic = weight, condition_dropout, antithetic
        self.points_per_pair = points_per_pair

    @property
    def samples_per_item(self) -> int | None:
        return None if self.coupling.draws_base else 2

    def prepare(self, base: nn.Module, x: Tensor, context: Tensor | None = None, generator=None) -> MatchingBatch:
        self._check_mask(mask_of(x, context))
        if self.samples_per_item:
            x0, x1 = self.coupling.split(x)
        else:
            x0, x1 = base.sample((x.shape[0],), generator=generator).to(x.dtype), x
        x0, x1, context = self.coupling(x0, x1, context, generator=generator)
        count, device = x1.shape[0], x1.device
        t = self._times(self.law, base, x1, generator)
        return MatchingBatch(x0, x1, t, context, self.draw_dropped(count, generator, device))

    @property
    def law(self) -> Times:
        """The distribution of the training times, unless the path has its own."""
        return Uniform() if self.times is None else self.times

    @staticmethod
    def _times(law: Times, base: nn.Module, x1: Tensor, generator) -> Tensor:
        """Draws times, which are floating numbers for all data."""
        dtype = x1.dtype if x1.is_floating_point() else base.dtype
        return law(x1.shape[0], generator=generator, device=x1.device, dtype=dtype)

    def make_batch(self, flow: Any, x, context=None, generator=None) -> MatchingBatch:
        batch, path = super().make_batch(flow, x, context, generator), self._path(flow)
        x0, x1, mask, several = batch.x0, batch.x1, self._mask(batch), self.points_per_pair
        if several > 1:
            repeated = lambda each: each.repeat(several, *[1] * (each.dim() - 1))
            batch.x0, batch.x1, batch.context = (on_tensors(repeated, each) for each in (x0, x1, batch.context))
            batch.t = self._times(self.law, flow.base, batch.x1, generator)
            batch.drop = self.draw_dropped(len(batch.t), generator, batch.t.device)
        if self.times is None and path.times != self.law:
            batch.t = self._times(path.times, flow.base, batch.x1, generator)
        if path.simulates:
            t = self._inside(flow, batch.t).unflatten(0, (several, -1))
            batch.sample = path.simulate(x0, x1, t, mask=mask)
        batch.noise = path.draw(batch.x1, generator)
        if getattr(flow, "self_conditioned", False):
            coin = torch.rand((), generator=generator, device=batch.x1.device)
            batch.twice = bool(coin < 0.5)
        return batch

    @staticmethod
    def _inside(flow: Any, t: Tensor) -> Tensor:
        """Maps times in [0, 1] to the interval of the flow."""
        low, high = flow.interval
        return low + (high - low) * t

    def loss(self, flow: Any, batch: MatchingBatch) -> Tensor:
        path, context = self._path(flow), self.dropped(flow, batch.context, batch.drop)
        count = len(batch.t)
        loss, t = self._match(flow, path, batch, self._inside(flow, batch.t), context)
        if self.weight is not None:
            weight = self.weight(path, t)
            if weight.shape != loss.shape:
                raise ValueError(
                    f"{type(self).__name__}(weight={self.weight!r}): it returned shape {list(weight.shape)} for "
                    f"{len(loss)} items; return one weight per item, shape [{len(loss)}]."
                )
            loss = loss * weight
        return loss.unflatten(0, (2, count)).mean(0) if self.antithetic else loss

    def _match(self, flow: Any, path: Path, batch: MatchingBatch, t: Tensor, context) -> tuple[Tensor, Tensor]:
        """Computes the errors of the network on the path, and the times of the points, both ``[B]``.

        With ``antithetic`` both are ``[2 B]``: the points of the batch, then those with mirrored noise.
        """
        x0, x1, noise, mask = batch.x0, batch.x1, batch.noise, self._mask(batch)
        if self.antithetic:
            other, mirrored = path.mirror(t, noise)
            twice = lambda each: torch.cat((each, each))
            x0, x1, mask, context = (on_tensors(twice, each) for each in (x0, x1, mask, context))
            t, noise = torch.cat((t, other)), torch.cat((noise, mirrored))
        sample = path.sample(x0, x1, t, mask=mask, noise=noise) if batch.sample is None else batch.sample
        earlier = {}
        if batch.twice:
            with torch.no_grad():
                earlier["previous"] = flow.predict(sample.t, sample.xt, context)
        return path.loss(flow.predict(sample.t, sample.xt, context, **earlier), sample), sample.t

    def _check_mask(self, mask: Tensor | None) -> None:
        """Raises if there is a mask and the loss or the coupling would use entries outside it."""
        if mask is None:
            return
        name = type(self).__name__
        if not self.masks:
            raise ValueError(
                f"{name}: this loss does not support the mask in data or context; use objectives.FlowMatching(), or "
                f"omit the part 'mask'."
            )
        if not self.coupling.independent and self.coupling.draws_base:
            raise ValueError(
                f"{name}(coupling={self.coupling!r}): this coupling does not support the mask in data or context; use "
                f"couplings.Independent()."
            )

    @staticmethod
    def _mask(batch: MatchingBatch) -> Tensor | None:
        """Returns the ``mask`` in data or context, shaped to broadcast to the event; None if there is none."""
        mask = mask_of(batch.x1, batch.context)
        return mask if mask is None or isinstance(batch.x1, dict) else expand_as_leading(mask, batch.x1)

    def _path(self, flow: Any) -> Path:
        """Returns the flow's path; raises if there is none on which this objective can train."""
        name, path = type(self).__name__, getattr(flow, "path", None)
        if path is None:
            raise ValueError(
                f"{name}: the flow has no path; build it with ContinuousFlow(..., path=paths.Linear()), and train it "
                f"before it is put into another flow such as StandardisedContext."
            )
        return path

    def _check_velocity(self, path: Path) -> None:
        """Raises unless the network predicts the velocity of a path that adds no noise."""
        name = type(self).__name__
        if path.adds_noise:
            raise ValueError(f"{name}: {path!r} adds noise; use objectives.BridgeMatching.")
        if path.predict != "velocity":
            raise ValueError(f"{name}: {path!r} does not predict the velocity; use paths.Linear().")
