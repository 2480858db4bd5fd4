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
    """Computes the effective number of samples among those of an item, the mean over items."""

    least = 2
    exact = True
    metric_names = ("effective_samples",)

    def shares(self, log_weights: Tensor) -> Tensor:
        """Normalises the weights of each item, ``[B, K]``, and logs their effective number."""
        shares = torch.softmax(log_weights.detach(), 1)
        self.log(effective_samples=(1 / shares.square().sum(1)).mean())
        return shares

    def pass_on(self, x: Tensor, factor: Tensor, shares: Tensor) -> None:
        """Multiplies the gradient that comes back to the samples ``x [N, *event]`` by ``factor [B, K]``.

        A sample of weight zero has no say, whatever the target's gradient is there.
        """
        if x.requires_grad:
            factor, counts = (expand_like(each.flatten(), x) for each in (factor, shares > 0))
            x.register_hook(lambda slope: torch.where(counts, slope * factor, 0.0))


@register("objectives.AlphaDivergence")
class AlphaDivergence(_Weighted):
    r"""Minimises the negative variational Rényi bound of K samples, by its doubly reparameterised gradient.

    .. math:: L = - \frac{1}{1 - \alpha} \, \mathbb E_{x_{1:K} \sim q} \log \frac1K \sum_k w_k^{1 - \alpha},
              \qquad w_k = \frac{\tilde p(x_k)}{q_\theta(x_k)}

    For :math:`K \to \infty` this is :math:`D_\alpha(q \,\|\, p) - \log Z` with Rényi's divergence. For K samples it is
    what is written above, biased towards :class:`ReverseKL` (which it is for K = 1): for ``0 <= alpha < 1`` still never
    below minus the log-evidence on average. ``alpha = 0`` is the importance-weighted bound (IWAE); towards 1 it becomes
    the reverse divergence, and the smaller alpha, the more the target's mass is covered.

    The gradient is unbiased for the loss of K samples. With :math:`v_k \propto w_k^{1 - \alpha}`, which sum to one,

    .. math:: \nabla_\theta L = - \mathbb E \sum_k \big( \alpha v_k + (1 - \alpha) v_k^2 \big) \,
              \frac{\partial \log w_k}{\partial x_k} \frac{\partial x_k}{\partial \theta},

    which vanishes sample by sample where q equals the target. Parameters of the target itself get the gradient
    :math:`- \sum_k v_k \nabla \log \tilde p`.

    The history holds ``effective_samples``, of the K of an item by the weights :math:`v`: near 1 the gradient is noise.
    The flow is asked in evaluation mode, as for :class:`PathDerivative`. See :class:`Variational` for the target and
    how to train without data.

    Args:
        alpha: the order; any finite number but 1.
        samples: K, two or more.

    Shapes: returns ``[B]``. Cost: that of :class:`PathDerivative` with ``B * K`` samples.

    Raises:
        ValueError: for ``alpha = 1``; for a flow whose density is not exact; and as :class:`Variational`.

    Source: Li and Turner, Rényi Divergence Variational Inference, 2016, arXiv:1602.02311 (the bound); Tucker et al.,
    Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018, arXiv:1810.04152, whose identity
    :math:`\mathbb E\, v_k \nabla_\theta \log q(x_k) = \mathbb E\, \frac{\partial v_k}{\partial x_k} \frac{\partial
    x_k}{\partial \theta}` gives the gradient for every alpha.

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
                f"{type(self).__name__}(alpha={alpha}): the order is a finite number other than 1; at 1 it is the "
                f"reverse divergence, so pass 0.5, say, or take PathDerivative(log_joint)."
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
        # The value itself gives every log w_k the factor v_k; what reaches x gets the rest of it.
        self.pass_on(x, self.alpha + order * shares, shares)
        return (math.log(self.samples) - powers.logsumexp(1)) / order


@register("objectives.DoublyReparameterised")
class DoublyReparameterised(AlphaDivergence):
    r"""Minimises the negative importance-weighted bound of K samples (IWAE), by the doubly reparameterised gradient.

    .. math:: L = - \mathbb E_{x_{1:K} \sim q} \log \frac1K \sum_k \frac{\tilde p(x_k)}{q_\theta(x_k)}, \qquad
              \nabla_\theta L = - \mathbb E \sum_k v_k^2 \, \frac{\partial \log w_k}{\partial x_k} \frac{\partial
              x_k}{\partial \theta}

    with weights :math:`v` that sum to one. It tends to minus the log-evidence as K grows, whatever q is, and the signal
    of the plain reparameterised gradient drowns in noise meanwhile; that of this one does not. This is
    :class:`AlphaDivergence` with ``alpha = 0``, which says the rest.

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
    r"""Minimises the forward Kullback-Leibler divergence by self-normalised importance weights.

    .. math:: L = \mathrm{KL}(p \,\|\, q_\theta) \approx \sum_k v_k \log (K v_k), \qquad
              \nabla_\theta L \approx - \sum_k v_k \nabla_\theta \log q_\theta(x_k), \qquad
              v_k \propto \frac{\tilde p(x_k)}{q_\theta(x_k)}, \quad x_{1:K} \sim q_\theta

    with weights that sum to one over the K samples of an item. It covers the target's mass rather than miss any. The
    samples are held fixed, so the target needs no gradient: a simulator's or a black box's will do.

    **Value and gradient are biased**, by :math:`O(1/K)`: the value lies between 0 and log K, however far the target is,
    and mass that no sample meets has no say. Take as many samples as memory holds, and a flow that begins wide enough;
    watch ``effective_samples`` in the history.

    With ``path=True`` the gradient has the same expectation but vanishes sample by sample where q equals the target:

    .. math:: - \sum_k (v_k - v_k^2) \, \frac{\partial \log w_k}{\partial x_k} \frac{\partial x_k}{\partial \theta}

    The flow is asked in evaluation mode, as for :class:`PathDerivative`. See :class:`Variational` for the target and
    how to train without data.

    Args:
        samples: K, two or more.
        path: whether the gradient goes through the samples; the target is then differentiated.

    Shapes: returns ``[B]``. Cost: ``B * K`` samples by ``decode`` without a graph, and their density by ``encode`` with
    one; with ``path``, that of :class:`PathDerivative`.

    Raises:
        ValueError: for a target with parameters that require a gradient (they minimise another divergence: train them
            with :class:`DoublyReparameterised`); for a flow whose density is not exact; and as :class:`Variational`.

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
                "ForwardKL: log_joint has parameters that require a gradient, and no model is learned by the forward "
                "divergence of its own posterior; freeze them, or train both by DoublyReparameterised(log_joint)."
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
        # A sample of weight zero has no logarithm.
        pull = -torch.where(shares > 0, shares * pull, 0.0).sum(1)
        return value + (pull - pull.detach())
