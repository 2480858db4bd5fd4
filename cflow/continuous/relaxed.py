"""Continuous flows over tokens: vectors inside, whole numbers outside, and a bound of the likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cflow import registry
from cflow.bijections import OneHot
from cflow.bijections.map import Likelihood
from cflow.continuous.flow import ContinuousFlow
from cflow.continuous.transport import transport
from cflow.draws import draw_rows
from cflow.paths import Linear, VelocityPath
from cflow.shapes import sum_rows

__all__ = ["RelaxedFlow"]


@registry.register("continuous.RelaxedFlow")
class RelaxedFlow(ContinuousFlow):
    r"""Transforms noise to tokens by a continuous flow over ``[*positions, vocabulary]``; its likelihood is a bound.

    .. math:: \log p(x_1) \ge \mathbb E_{z \sim q_\tau(\cdot \mid x_1)} \Bigl[ \sum_d \log \hat p(x_1^d \mid z)
              + \log p_\tau(z) - \log q_\tau(z \mid x_1) \Bigr]

    Tokens :math:`x_1` are drawn in two steps: z by the flow up to the time :math:`\tau`, then every token independently
    from the network's posterior :math:`\hat p`, the softmax of its logits. The bound is that of this model. Its second
    term is the density of the flow, which takes an ODE from :math:`\tau` to 0; its third is that of the path.
    ``log_prob`` draws one z, so it is random; ``log_prob_estimate`` averages.

    ``sample(temperature=1.0)`` draws from this model. The default, 0, takes the most probable token of every position
    instead: where z leaves tokens open, as after few steps of a solver, independent draws would not fit together.

    If the network is exact, every draw has the same value but for the correlation of the tokens given z, which the
    product omits: the variance is zero and the bound tight if z determines the tokens. Near 1 this holds, but there the
    ODE is hard to solve, and training rarely goes.

    Train it with ``objectives.FlowMatching()``; on one-hot tokens, with ``times=times.ArgmaxClock(vocabulary)``.

    Args:
        field: a network called as ``field(t, x, context)`` that returns logits like ``x``.
        base: the distribution at ``t = 0``, with events ``[*positions, vocabulary]``, such as
            ``bases.Normal((256, 27))``.
        path: a path that predicts ``"logits"``. Default: None, ``paths.Linear("logits")``.
        bound_time: the time :math:`\tau` at which the flow ends and tokens are drawn, inside the path's interval.
            Default: None, the time at which nearly all tokens are visible (``path.token_time``).
        transform: maps of the data; the last one is ``bijections.OneHot``. Default: only this one.

    The other arguments are those of :class:`cflow.ContinuousFlow`: ``solver``, ``divergence`` and ``context_shape``.

    Shapes: ``x [*batch, *positions]`` are whole numbers from 0 to ``vocabulary - 1`` of any integer dtype; samples are
    int64. Cost: a bound takes an ODE solve with the divergence and one more function evaluation. There is no closed
    form of the divergence (``divergence.Analytic``); ``divergence.Hutchinson()`` is cheap and keeps the bound valid.
    Guidance changes the ODE, and not the posterior of the bound.

    Raises:
        ValueError: if the path does not predict logits, ``bound_time`` is outside the path's interval, or the maps do
            not end in tokens of the base's shape.

    Source: the sampler and the loss are those of One-step Language Modeling via Continuous Denoising, 2026,
    arXiv:2602.16813, and Stark et al., Dirichlet Flow Matching with Applications to DNA Sequence Design, 2024,
    arXiv:2402.05841. The bound is that of a variational autoencoder with the flow as its prior.

    Example:
        >>> from cflow import bases, fields, paths, solvers
        >>> flow = RelaxedFlow(fields.MLP(3), bases.Normal(3))  # one position, three tokens
        >>> flow.sample((4,), solver=solvers.Heun(8)).shape, flow.log_prob(torch.tensor([0, 2])).shape
        (torch.Size([4]), torch.Size([2]))
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sample": (*ContinuousFlow.options["sample"], "temperature"),
        "log_prob": ContinuousFlow.options["log_prob"],
    }

    def __init__(
        self,
        field: nn.Module,
        base: nn.Module,
        *,
        path: VelocityPath | None = None,
        solver=None,
        divergence=None,
        context_shape=None,
        bound_time: float | None = None,
        transform: Sequence[nn.Module] = (),
    ):
        path = Linear("logits") if path is None else path
        if path.predict != "logits":
            raise ValueError(
                f"RelaxedFlow(path={path!r}): tokens need a network that predicts logits; pass paths.Linear('logits')."
            )
        if isinstance(transform, Sequence) and not transform:
            path.check_base(base)
            transform = (OneHot(base.event_shape[:-1], base.event_shape[-1]),)
        super().__init__(
            field, base, path=path, solver=solver, divergence=divergence, context_shape=context_shape,
            transform=transform,
        )  # fmt: skip
        if self.transform.likelihood != "none":
            raise ValueError(
                f"RelaxedFlow(transform={self.transform!r:.60}): the data must be tokens; let bijections.OneHot be the "
                f"last map, or omit transform."
            )
        self.bound_time = bound_time
        low, high = path.interval
        if not low < self.end_time <= high:
            raise ValueError(
                f"RelaxedFlow(bound_time={bound_time}): the logits are well conditioned in [{low:.3g}, {high:.6g}]; "
                f"pass a time inside, such as 0.8."
            )

    @property
    def end_time(self) -> float:
        """The time at which the flow ends and tokens are drawn: ``bound_time``, or that of the path."""
        return self.path.token_time(self.model_shape[-1]) if self.bound_time is None else self.bound_time

    @property
    def likelihood(self) -> Likelihood:
        return "none" if self._takes_steps or not getattr(self.base, "has_density", True) else "bound"

    def options_of(self, method: str) -> tuple[str, ...]:
        """Lists the keywords that ``method`` takes: ``temperature`` only where it samples."""
        known = super().options_of(method)
        return known if "sample" in method else tuple(name for name in known if name != "temperature")

    def _sample(self, count: int, context: Tensor | None, generator, *, temperature: float = 0.0, **options) -> Tensor:
        if not temperature >= 0:
            raise ValueError(f"flow.sample(temperature={temperature}): it is 0 or more; pass 0 or 1.")
        x0 = self.cast(self.base.sample((count,), generator=generator))
        solution = transport(self, x0, 0.0, self.end_time, context, generator, **options)
        z = self._solved(solution, "sample").y
        t = torch.full((count,), self.end_time, dtype=z.dtype, device=z.device)
        logits = self.predict(t, z, context).double()
        if temperature == 0:
            return torch.zeros_like(z).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        below = (logits / temperature).softmax(-1).cumsum(-1)
        uniform = draw_rows(torch.rand, z.shape[:-1], generator, dtype=torch.float64, device=z.device).unsqueeze(-1)
        tokens = torch.searchsorted(below, uniform * below[..., -1:], right=True).clamp(max=z.shape[-1] - 1)
        return torch.zeros_like(z).scatter(-1, tokens, 1.0)

    def _log_prob(self, u: Tensor, context: Tensor | None, generator, **options) -> Tensor:
        """Computes one draw of the bound for one-hot tokens ``u [B, *positions, vocabulary]``."""
        t = torch.full((len(u),), self.end_time, dtype=u.dtype, device=u.device)
        x0 = self.cast(self.base.sample((len(u),), generator=generator))
        sample = self.path.sample(x0, u, t, noise=self.path.draw(u, generator))
        posterior = self.predict(t, sample.xt, context).log_softmax(-1)
        solution = transport(self, sample.xt, self.end_time, 0.0, context, generator, ladj=True, **options)
        self._solved(solution, "log_prob")
        prior = self.base.log_prob(solution.y) + solution.quadratures["ladj"]
        # A token of probability zero times the zeros of the other tokens would be NaN.
        chosen = sum_rows(torch.where(u > 0.5, posterior, 0.0))
        return chosen + prior - self.path.log_given(sample, self.base)
