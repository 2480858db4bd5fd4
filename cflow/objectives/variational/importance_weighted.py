"""Variational inference with several weighted samples per item: IWAE, Rényi and forward divergences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cflow.modes import evaluating
from cflow.objectives.variational.reverse_kl import LatentBatch, Variational, along, drawn
from cflow.registry import register
from cflow.shapes import expand_like

__all__ = ["AlphaDivergence", "DoublyReparameterised", "ForwardKL"]


class _Weighted(Variational):
    """The base class of objectives with importance weights; logs the effective number of samples per item."""

    least = 2
    exact = True
    metric_names = ("effective_samples",)

    def shares(self, log_weights: Tensor) -> Tensor:
        """Normalises the weights of each item, ``[B, K]``, and logs the effective number of samples."""
        shares = torch.softmax(log_weights.detach(), 1)
        self.log(effective_samples=(1 / shares.square().sum(1)).mean())
        return shares

    def pass_on(self, x: Tensor, factor: Tensor, shares: Tensor) -> None:
        """Multiplies the gradient that reaches the samples ``x [N, *event]`` by ``factor [B, K]``.

        The gradient of a sample with weight zero is zero, even if the target's gradient is not finite there.
        """
        if x.requires_grad:
            factor, counts = (expand_like(each.flatten(), x) for each in (factor, shares > 0))
            x.register_hook(lambda slope: torch.where(counts, slope * factor, 0.0))


@register("objectives.AlphaDivergence")
class AlphaDivergence(_Weighted):
    r"""Minimises the negative variational Rényi bound of K samples, with its doubly reparameterised gradient.

    .. math:: L = - \frac{1}{1 - \alpha} \, \mathbb E_{x_{1:K} \sim q} \log \frac1K \sum_k w_k^{1 - \alpha},
              \qquad w_k = \frac{\tilde p(x_k)}{q_\theta(x_k)}

    For :math:`K \to \infty` this is :math:`D_\alpha(q \,\|\, p) - \log Z` with Rényi's divergence. For K samples it is
    the expression above, which is biased towards :class:`ReverseKL` (the case K = 1). For ``0 <= alpha < 1`` it is
    still never below minus the log-evidence on average. ``alpha = 0`` is the importance-weighted bound (IWAE); towards
    1 it becomes the reverse divergence. A smaller alpha covers more of the target's mass.

    The gradient is unbiased for the loss of K samples. With :math:`v_k \propto w_k^{1 - \alpha}`, which sum to one,

    .. math:: \nabla_\theta L = - \mathbb E \sum_k \big( \alpha v_k + (1 - \alpha) v_k^2 \big) \,
              \frac{\partial \log w_k}{\partial x_k} \frac{\partial x_k}{\partial \theta},

    which vanishes sample by sample where q equals the target. Parameters of the target itself get the gradient
    :math:`- \sum_k v_k \nabla \log \tilde p`.

    The history contains ``effective_samples``, the effective number of the K samples of an item under the weights
    :math:`v`: near 1 the gradient is noise. The flow is evaluated in evaluation mode, as for :class:`PathDerivative`.
    See :class:`Variational` for the target and for training without data.

    Args:
        alpha: the order; a finite number other than 1.
        samples: K, at least two.

    Shapes: returns ``[B]``. Cost: that of :class:`PathDerivative` with ``B * K`` samples.

    Raises:
        ValueError: for ``alpha = 1``; for a flow whose density is not exact; and as :class:`Variational`.

    Source: Li and Turner, Rényi Divergence Variational Inference, 2016, arXiv:1602.02311 (the bound); Tucker et al.,
    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018, arXiv:1810.04152, whose identity

    .. math:: \mathbb E\, v_k \nabla_\theta \log q(x_k) = \mathbb E\, \frac{\partial v_k}{\partial x_k} \frac{
              \partial x_k}{\partial \theta}

    yields the gradient for every alpha.

    Example:
        >>> from cflow import discrete
        >>> objective = AlphaDivergence(lambda x: -0.5 * (x - 1).square().sum(1), alpha=0.5, samples=4)
        >>> objective(discrete.nsf(2, layers=2), 16).shape
        torch.Size([16])
    """

    def __init__(self, log_joint: Callable[..., Tensor], alpha: float = 0.5, samples: int = 8):
        super().__init__(log_joint, samples)
        if not math.isfinite(alpha) or alpha == 1:
            raise ValueError(
                f"{type(self).__name__}(alpha={alpha}): the order is finite and not 1; pass 0.5, or use "
                f"PathDerivative(log_joint) for 1."
            )
        self.alpha = alpha

    def loss(self, flow: Any, batch: LatentBatch) -> Tensor:
        z, context = self.accept(flow, batch)
        order = 1 - self.alpha
        with evaluating(flow):
            x = drawn(flow, z, context)
            log_q = along(flow, x, context)
        powers = order * (self.target(x, context) - log_q).reshape(-1, self.samples)
        shares = self.shares(powers)
        # The gradient of the value contains the factor v_k; the hook on x multiplies by the other factor.
        self.pass_on(x, self.alpha + order * shares, shares)
        return (math.log(self.samples) - powers.logsumexp(1)) / order


@register("objectives.DoublyReparameterised")
class DoublyReparameterised(AlphaDivergence):
    r"""Minimises the negative importance-weighted bound of K samples (IWAE), with the doubly reparameterised gradient.

    .. math:: L = - \mathbb E_{x_{1:K} \sim q} \log \frac1K \sum_k \frac{\tilde p(x_k)}{q_\theta(x_k)}, \qquad
              \nabla_\theta L = - \mathbb E \sum_k v_k^2 \, \frac{\partial \log w_k}{\partial x_k} \frac{
              \partial x_k}{\partial \theta}

    with weights :math:`v` that sum to one. It approaches minus the log-evidence as K grows, for every q. The
    signal-to-noise ratio of the plain reparameterised gradient then vanishes; that of this gradient does not. This is
    :class:`AlphaDivergence` with ``alpha = 0``; see there for details.

    Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2015, arXiv:1509.00519; Tucker et al.,
    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018, arXiv:1810.04152.

    Example:
        >>> from cflow import discrete
        >>> objective = DoublyReparameterised(lambda x: -0.5 * (x - 1).square().sum(1), samples=4)
        >>> objective(discrete.nsf(2, layers=2), 16).shape
        torch.Size([16])
    """

    def __init__(self, log_joint: Callable[..., Tensor], samples: int = 8):
        super().__init__(log_joint, 0.0, samples)


@register("objectives.ForwardKL")
class ForwardKL(_Weighted):
    r"""Minimises the forward Kullback-Leibler divergence with self-normalised importance weights.

    .. math:: L = \mathrm{KL}(p \,\|\, q_\theta) \approx \sum_k v_k \log (K v_k), \qquad
              \nabla_\theta L \approx - \sum_k v_k \nabla_\theta \log q_\theta(x_k),
              \qquad v_k \propto \frac{\tilde p(x_k)}{q_\theta(x_k)}, \quad x_{1:K} \sim q_\theta

    with weights that sum to one over the K samples of an item. It prefers to cover all of the target's mass. The
    samples are fixed, so the target needs no gradient: a simulator or a black box can be used.

    **Value and gradient are biased**, by :math:`O(1/K)`: the value is between 0 and log K for every target, and mass
    that no sample reaches does not contribute. Use as many samples as memory permits, and a flow that is wide enough at
    first; check ``effective_samples`` in the history.

    With ``path=True`` the gradient has the same expectation, but vanishes for every sample where q equals the target:

    .. math:: - \sum_k (v_k - v_k^2) \, \frac{\partial \log w_k}{\partial x_k} \frac{\partial x_k}{\partial \theta}

    The flow is evaluated in evaluation mode, as for :class:`PathDerivative`. See :class:`Variational` for the target
    and for training without data.

    Args:
        samples: K, at least two.
        path: whether the gradient is taken through the samples, which needs a gradient of the target.

    Shapes: returns ``[B]``. Cost: ``B * K`` samples by ``decode`` without a graph, and their density by ``encode`` with
    a graph; with ``path``, that of :class:`PathDerivative`.

    Raises:
        ValueError: for a target with parameters that require a gradient (train them with
            :class:`DoublyReparameterised`); for a flow whose density is not exact; and as :class:`Variational`.

    Source: Bornschein and Bengio, Reweighted Wake-Sleep, 2014, arXiv:1406.2751 (the wake phase); Tucker et al., Doubly
    Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018, arXiv:1810.04152, section 5 (``path``).

    Example:
        >>> from cflow import discrete
        >>> objective = ForwardKL(lambda x: -0.5 * (x - 1).square().sum(1), samples=4)
        >>> objective(discrete.nsf(2, layers=2), 16).shape
        torch.Size([16])
    """

    def __init__(self, log_joint: Callable[..., Tensor], samples: int = 16, path: bool = False):
        super().__init__(log_joint, samples)
        self.path = path

    def loss(self, flow: Any, batch: LatentBatch) -> Tensor:
        z, context = self.accept(flow, batch)
        if any(each.requires_grad for each in self.parameters()):
            raise ValueError(
                "ForwardKL cannot train the parameters of log_joint; freeze them, or use "
                "DoublyReparameterised(log_joint)."
            )
        with evaluating(flow):
            with torch.set_grad_enabled(self.path and torch.is_grad_enabled()):
                x = drawn(flow, z, context)
                log_p = self.target(x, context)
            log_q = along(flow, x, context) if self.path else flow.log_prob(x, context)
        log_weights = (log_p - log_q).reshape(-1, self.samples)
        shares = self.shares(log_weights)
        value = math.log(self.samples) - torch.special.entr(shares).sum(1)
        pull = log_weights if self.path else log_q.reshape(-1, self.samples)
        if self.path:
            self.pass_on(x, 1 - shares, shares)
        # The logarithm of a weight of zero is not finite.
        pull = -torch.where(shares > 0, shares * pull, 0.0).sum(1)
        return value + (pull - pull.detach())
