"""Variational inference: a flow learns a density that is known up to a constant, from its own samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cflow.arguments import is_integer
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.modes import evaluating
from cflow.objectives.objective import Objective, check_objects
from cflow.registry import register
from cflow.shapes import on_tensors, sum_rows

__all__ = ["LatentBatch", "PathDerivative", "ReverseKL", "Variational"]


@dataclass
class LatentBatch:
    """Draws of the flow's base for every item, with the contexts of the items.

    Attributes:
        z: the draws ``[B, K, *latent]``.
        context: the conditions ``[B, *context_shape]``, or None.
    """

    z: Tensor
    context: Tensor | None = None


class Variational(Objective):
    r"""The base class of objectives for variational inference: it has the target, draws of the flow's base, and checks.

    The target is ``log_joint``, the logarithm of an unnormalised density of the unknowns ``x`` that the flow models:
    for a posterior, the log-likelihood plus the log-prior. It is a function or a module. It is called as
    ``log_joint(x)`` with ``x [N, *event]``, or for a conditional flow (amortised inference) as
    ``log_joint(x, context)`` with ``context [N, *context_shape]``, and returns ``[N]``. Parameters of a module are
    trained together with the flow.

    No data are needed: ``training.fit(flow, objective, steps=1000)`` draws ``batch_size`` items per step. For a
    conditional flow the contexts are the data, ``training.fit(flow, objective, contexts, steps=1000)``. A direct call
    takes the number of items, ``objective(flow, 64)``, or their contexts, ``objective(flow, context=contexts)``.

    The flow must map to the support of the target. If that is not the whole space, add a transform
    (``flow.with_transform(bijections.Logit(2))``). Outside the support ``log_joint`` is ``-inf``, and so is the bound.

    Args:
        log_joint: the target, up to a constant.
        samples: the number of draws per item.

    Raises:
        TypeError: for a target that cannot be called, a number of samples that is not an integer, or a flow that is not
            invertible.
        ValueError: for too few samples; for a target that returns another shape, or has no gradient if one is needed;
            for a flow whose density or samples the objective cannot use; for a trainable base, whose draws are made
            ahead of the step (use a layer ``discrete.Elementwise(discrete.Affine(), D)`` instead).
    """

    teaches = "density"
    samples_per_item = 0
    prepares_ahead = False  # preparation is one draw
    trains_transform = True

    least: ClassVar[int] = 1  # samples
    exact: ClassVar[bool] = False  # whether the flow's density must be exact, not an unbiased estimate

    def __init__(self, log_joint: Callable[..., Tensor], samples: int = 1):
        super().__init__()
        check_objects(type(self).__name__, "lambda x: -0.5 * x.square().sum(1)", log_joint=log_joint)
        if log_joint is None:
            raise TypeError(f"{type(self).__name__}(log_joint=None): there is no target; pass a function of x.")
        if not is_integer(samples):
            raise TypeError(f"{type(self).__name__}(samples={samples!r}): this is a whole number; pass 8.")
        if samples < self.least:
            raise ValueError(f"{type(self).__name__}(samples={samples}): an item needs at least {self.least}; pass 8.")
        self.log_joint, self.samples = log_joint, samples

    def prepare(self, base: nn.Module, x: Tensor, context: Tensor | None = None, generator=None) -> LatentBatch:
        if base is None or not callable(getattr(base, "sample", None)):
            raise TypeError(
                f"{type(self).__name__}: the flow has no base; use a discrete.NormalizingFlow or a ContinuousFlow."
            )
        if any(each.requires_grad for each in base.parameters()):
            raise ValueError(
                f"{type(self).__name__}: the flow's base ({type(base).__name__}) is trainable, and gets no gradient "
                f"here; freeze it, and add discrete.Elementwise(discrete.Affine(), features)."
            )
        return LatentBatch(base.sample((len(x), self.samples), generator=generator), context)

    def forward(
        self, flow: Any, x: int | Tensor | None = None, context: Tensor | None = None, *, generator=None
    ) -> Tensor:
        """Computes the loss of ``flow``, ``[B]``.

        The number of items is ``x``, or the number of rows of ``x`` or ``context``; draws use ``generator``.
        """
        counts = set() if x is None else {x if isinstance(x, int) else len(x)}
        counts |= {len(each) for each in tree_leaves(context) if each is not None}
        if len(counts) != 1:
            given = f"{sorted(counts)} items are given" if counts else "the number of items is not given"
            raise ValueError(
                f"{type(self).__name__}()(flow, ...): {given}; pass objective(flow, 64), or "
                f"objective(flow, context=contexts)."
            )
        return super().forward(flow, torch.empty(*counts, 0), context, generator=generator)

    def accept(self, flow: Any, batch: LatentBatch) -> tuple[Tensor, Tensor | None]:
        """Checks ``flow``, and returns the latents and contexts of ``batch`` for each sample: ``[B * K, ...]``."""
        name = type(self).__name__
        if not isinstance(flow, BaseInvertibleFlow):
            raise TypeError(
                f"{name}: a {type(flow).__qualname__} is not invertible; use a discrete.NormalizingFlow or a "
                f"ContinuousFlow."
            )
        kinds = ("exact",) if self.exact else ("exact", "estimate")
        if flow.likelihood not in kinds or not flow.has_rsample:
            what, instead = {
                "none": ("its base has no density", "use a base such as bases.Normal"),
                "estimate": ("weights need an exact density", "use divergence=Exact(), or PathDerivative"),
            }.get(flow.likelihood, ("its transforms round, or have only a bound of the density", "omit them"))
            raise ValueError(
                f"{name}: this {type(flow).__qualname__} has likelihood {flow.likelihood!r} and cannot be used, since "
                f"{what}; {instead}."
            )
        z = flow.cast(batch.z.flatten(0, 1))
        return z, on_tensors(lambda each: each.repeat_interleave(self.samples, 0), batch.context)

    def target(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Evaluates the target at ``x [N, *event]`` given ``context``, ``[N]``, and checks the result."""
        name = type(self).__name__
        value = self.log_joint(x) if context is None else self.log_joint(x, context)
        if not isinstance(value, Tensor) or value.shape != (len(x),):
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ValueError(
                f"{name}: log_joint returned {got} for x of shape {list(x.shape)}; return one number per row, "
                f"[{len(x)}] (sum over the event only)."
            )
        if torch.is_grad_enabled() and x.requires_grad and not value.requires_grad:
            raise ValueError(
                f"{name}: log_joint returned a value without a gradient in x; use torch operations only (no .detach() "
                f"or NumPy), or ForwardKL(log_joint)."
            )
        return value


@register("objectives.ReverseKL")
class ReverseKL(Variational):
    r"""Minimises the reverse Kullback-Leibler divergence: the negative evidence lower bound.

    .. math:: L = \mathbb E_{x \sim q_\theta(\cdot \mid c)} \big[ \log q_\theta(x \mid c) - \log \tilde p(x, c) \big]
                = \mathrm{KL}(q_\theta \,\|\, p) - \log Z

    with the gradient through the samples (reparameterised). Value and gradient are unbiased, also if the flow's density
    is an unbiased estimate (Hutchinson). The loss, in nats per item, is never below minus the log-evidence on average.
    It prefers to miss mass of the target rather than to cover regions without mass.

    See :class:`Variational` for the target and for training without data.

    Shapes: returns ``[B]``. Cost: one pass of ``decode`` with its log-determinant, and one gradient of the target. For
    a continuous flow the graph of every solver stage is kept, with that of the divergence; with
    ``Dopri5(gradient=solvers.Checkpointed())`` only one state per step. Use an adaptive solver: with coarse steps
    training finds fields whose log-determinant is wrong, with a loss below minus the log-evidence.

    Source: Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, arXiv:1505.05770.

    Example:
        >>> from cflow import discrete
        >>> flow = discrete.nsf(2, layers=2)
        >>> objective = ReverseKL(lambda x: -0.5 * (x - 1).square().sum(1))
        >>> objective(flow, 16).shape
        torch.Size([16])
    """

    def loss(self, flow: Any, batch: LatentBatch) -> Tensor:
        z, context = self.accept(flow, batch)
        x, ladj = flow.decode(z, context)
        log_q = flow.base.log_prob(z) - ladj
        return (log_q - self.target(x, context)).reshape(-1, self.samples).mean(1)


@register("objectives.PathDerivative")
class PathDerivative(Variational):
    r"""Minimises the reverse Kullback-Leibler divergence with the path gradient: sticking the landing.

    The value is that of :class:`ReverseKL`. Its gradient omits the change of the density at a fixed point with
    :math:`\theta`, whose expectation is zero:

    .. math:: \nabla_\theta L = \mathbb E_z \Big[ \frac{\partial}{\partial x} \big( \log q_\theta(x) - \log \tilde p(x)
              \big) \frac{\partial x_\theta(z)}{\partial \theta} \Big]

    This vanishes for every sample where q equals the target, so the gradient's variance goes to zero with the
    divergence, and training converges. It is also unbiased. Far from the target its variance is not always smaller than
    that of :class:`ReverseKL`.

    The flow is evaluated in evaluation mode (no dropout, no batch statistics), in which ``encode`` inverts ``decode``;
    for continuous flows up to the solver's tolerance. An estimated divergence adds variance.

    Shapes: returns ``[B]``. Cost: one pass of ``decode`` with its graph, without the log-determinant if the flow can
    omit it; one pass of ``encode`` and its gradient in ``x``, whose graph is freed before the backward pass; one
    gradient of the target. For a continuous flow, no derivative of the divergence in the parameters is needed.

    Source: Roeder, Wu and Duvenaud, Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
    Inference, 2017, arXiv:1703.09194; Vaitl et al., Gradients should stay on Path: Better Estimators of the Reverse-
    and Forward KL Divergence for Normalizing Flows, 2022, arXiv:2207.08219, and Path-Gradient Estimators for
    Continuous Normalizing Flows, 2022, arXiv:2206.09016.

    Example:
        >>> from cflow import discrete
        >>> normal = lambda x: -0.5 * x.square().sum(1)
        >>> flow = discrete.realnvp(2, layers=2)  # starts at the identity: a standard normal
        >>> PathDerivative(normal)(flow, 16).mean().backward()
        >>> max(float(each.grad.abs().max()) for each in flow.parameters()) < 1e-6
        True
    """

    def loss(self, flow: Any, batch: LatentBatch) -> Tensor:
        z, context = self.accept(flow, batch)
        with evaluating(flow):
            x = drawn(flow, z, context)
            log_q = along(flow, x, context)
        return (log_q - self.target(x, context)).reshape(-1, self.samples).mean(1)


def drawn(flow: BaseInvertibleFlow, z: Tensor, context: Tensor | None) -> Tensor:
    """Maps latents to the data space, ``[N, *event]``, without the log-determinant."""
    u, _ = flow._decode(z, context, None, ladj=False)
    return flow.postprocess(u, context)[0]


def along(flow: BaseInvertibleFlow, x: Tensor, context: Tensor | None) -> Tensor:
    """Computes ``log q(x)``, ``[N]``, with a gradient in ``x`` but not in the parameters of ``q``."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        with torch.no_grad():
            return flow.log_prob(x, context)
    point = x.detach().requires_grad_()
    log_q = flow.log_prob(point, context)
    (slope,) = torch.autograd.grad(log_q.sum(), point)
    # The difference is zero, and its gradient in x is the slope.
    return log_q.detach() + sum_rows((x - point.detach()) * slope)
