"""Bridge matching: one network learns velocity and score of a stochastic interpolant."""

from __future__ import annotations

from typing import Any

from cflow.objectives.matching.flow_matching import FlowMatching
from cflow.paths import Path
from cflow.registry import register

__all__ = ["BridgeMatching"]


@register("objectives.BridgeMatching")
class BridgeMatching(FlowMatching):
    r"""Regresses a network on a path that adds noise: between any two distributions, under any coupling.

    .. math:: \mathbb E_{t, (x_0, x_1) \sim \pi, z} \; \bigl\{ \| f^{1}_\theta(t, x_t) - u_t \|^2 +
              \| \gamma_t f^{2}_\theta(t, x_t) + z \|^2 \bigr\} / 2D,
              \qquad u_t = \dot\alpha_t x_1 + \dot\sigma_t x_0

    for a path that predicts the score; see :class:`cflow.paths.Interpolant` for other predictions. The minimisers
    determine the velocity and the score of the path's marginals, and so an ODE and SDEs with any diffusion that have
    these marginals. On ``paths.BrownianBridge(sigma)`` with pairs from optimal transport this is [SF]2M.

    Args:
        coupling: the coupling of base and data samples. Default: None, independent. For a Schroedinger bridge use
            ``couplings.Sinkhorn(epsilon=2 * sigma**2, relative=False)``, or ``couplings.OptimalTransport()``.
        times: the distribution of the training times. Default: None, ``times.Uniform()``.
        weight: a function ``(path, t) -> [B]``. Default: None, no weight.
        condition_dropout: the share of items whose context is replaced by the field's "no condition".
        antithetic: whether to average the loss over the noise and its negative. This removes the first order of the
            noise from the gradient, at twice the cost. It is useful if the velocity alone is predicted, whose target
            contains :math:`\dot\gamma_t z`.

    Cost: one function evaluation, on twice the batch with ``antithetic``; :meth:`prepare` computes the coupling.

    Raises:
        ValueError: for a flow without a path, or on a path without noise (which :class:`FlowMatching` trains).

    Source: Tong et al., Simulation-free Schrödinger Bridges via Score and Flow Matching, 2023, arXiv:2307.03672;
    Albergo, Boffi and Vanden-Eijnden, Stochastic Interpolants, 2023, arXiv:2303.08797, sections 2 and 6 (antithetic).

    Example:
        >>> import cflow, torch
        >>> from cflow import bases, fields, paths
        >>> source = torch.rand(100, 2)
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, outputs=2), bases.Empirical(source), path=paths.BrownianBridge())
        >>> BridgeMatching()(flow, torch.randn(16, 2)).shape
        torch.Size([16])
    """

    def _path(self, flow: Any) -> Path:
        path = super()._path(flow)
        if not path.adds_noise:
            raise ValueError(f"BridgeMatching: {path!r} adds no noise; use objectives.FlowMatching.")
        if path.predict == "logits":
            raise ValueError(f"BridgeMatching: {path!r} predicts logits; use objectives.FlowMatching.")
        return path
