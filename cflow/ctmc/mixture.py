"""The path of token flows: every token is one of the source or one of the data."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cflow.arguments import check_tokens
from cflow.ctmc import losses
from cflow.ctmc.arguments import check_rate, check_schedule
from cflow.ctmc.categorical import uniforms
from cflow.ctmc.noising import dense_times, hide, replace
from cflow.ctmc.posterior import CERTAIN, Head, Posterior, Sharpen
from cflow.ctmc.rates import MinimalJump, Moment, Rate, TimeReversal
from cflow.ctmc.schedules import Linear, Schedule
from cflow.ctmc.sources import Source
from cflow.paths import Path, PathSample
from cflow.registry import configuration, register
from cflow.shapes import expand_like
from cflow.times import Stratified, Times

__all__ = ["Mixture"]

Loss = Literal["cross-entropy", "kl", "elbo", "score-entropy"]
LOSSES = ("cross-entropy", "kl", "elbo", "score-entropy")
HEADS = ("denoiser", "leave-one-out")


@register("ctmc.Mixture")
class Mixture(Path):
    r"""Replaces tokens of the source by those of the data, one after the other, each at its own random time.

    .. math:: p_t(x^i \mid x_0, x_1) = (1 - \kappa_t) \, \delta_{x_0^i} + \kappa_t \, \delta_{x_1^i}

    independently for every position. The network predicts the posterior of the data's tokens. From it follow the loss,
    the rates of jumps, the steps of samplers and the bound on the likelihood. :class:`cflow.ctmc.TokenFlow` binds a
    copy of the path to its source.

    | ``loss``            | what is minimised, in nats per token                                                |
    |---------------------|-------------------------------------------------------------------------------------|
    | ``"cross-entropy"`` | ``-log p(x_1)`` at all positions, also those with their own token                   |
    | ``"kl"``            | the generalised Kullback-Leibler divergence, the bound for ``MinimalJump``          |
    | ``"elbo"``          | the bound for ``rate``                                                              |
    | ``"score-entropy"`` | the denoising score entropy of SEDD; it equals the bound for ``TimeReversal``       |

    **Counts.** With a mask source a training time does not decide each token by itself. It decides how many are hidden,
    and which ones are random; the time then is one at which that many are hidden. For bounds the number is 1 to D with
    equal probability. The mean is the same, and the variance is finite (with independent decisions and the weight
    ``1 / (1 - t)`` it is not). For the cross-entropy the share of hidden tokens is that of the schedule at the time.
    Bounds of other sources draw the number of tokens of the source in the same way, 0 to D, and weight the terms of all
    tokens by the inverse density of the states and their time.

    **Cross-entropy or bound.** Both have the same optimum. The bound counts a hidden token the more, the fewer tokens
    are hidden, which is noisy. The cross-entropy counts all alike, and the network also learns to copy the tokens it
    sees. After five minutes it had 2.97 in place of 3.11 bits per character on one text, and as many on another
    (``tests/benchmarks/README.md``).

    **Heads.** ``head`` is what the network's logits mean: the denoiser p, which sees the noisy token of the same
    position, or the leave-one-out posterior l, which does not (:class:`cflow.ctmc.Posterior`). For a mask source they
    are equal at hidden tokens. Steps of ``TimeReversal``, scores and temperatures need l; losses and other rates need
    p. The path converts exactly. With a uniform source ``"leave-one-out"`` is easier to learn close to the data.

    Args:
        schedule: the probability that a token is that of the data. Default: None, :class:`cflow.ctmc.Linear`.
        rate: the rate of the bound, and of the samplers that take one. Default: None: the bound takes
            ``MinimalJump()`` for a mask source and for given data, and ``TimeReversal()`` for others, with which it is
            tight; samplers take ``MinimalJump()``, or ``TimeReversal()`` for a source that moves.
        loss: the loss, see the table.
        head: what the logits mean.
        carry_over: whether visible tokens of a mask source are known to be those of the data. Without it, the posterior
            there is the network's.

    Raises:
        ValueError: for an unknown loss or head.
        TypeError: if an option is not an object of its kind.

    Source: Gat et al., Discrete Flow Matching, 2024, arXiv:2407.15595; Campbell et al., Generative Flows on Discrete
    State-Spaces, 2024, arXiv:2402.04997; Sahoo et al., Simple and Effective Masked Diffusion Language Models, 2024,
    arXiv:2406.07524; Shi et al., 2024, arXiv:2406.04329.

    Example:
        >>> from cflow import ctmc
        >>> path = Mixture(ctmc.Cosine()).bind(ctmc.Mask(4, vocabulary=2))
        >>> x1 = torch.tensor([[0, 1, 1, 0]])
        >>> sample = path.sample(path.source.sample((1,)), x1, torch.tensor([0.0]))
        >>> sample.xt, sample.t < 0.9
        (tensor([[2, 2, 2, 2]]), tensor([True]))
    """

    adds_noise: ClassVar[bool] = True
    times: ClassVar[Times] = Stratified()
    stored_as: ClassVar[dict[str, str]] = {"loss": "minimised"}
    bound_source: Source | None = None
    paced = False  # whether logits are rates, not only probabilities

    def __init__(
        self,
        schedule: Schedule | None = None,
        *,
        rate: Rate | None = None,
        loss: Loss = "cross-entropy",
        head: Head = "denoiser",
        carry_over: bool = True,
    ):
        self.schedule = Linear() if schedule is None else schedule
        check_schedule("Mixture", schedule)
        check_rate("Mixture", rate)
        for name, value, known in (("loss", loss, LOSSES), ("head", head, HEADS)):
            if value not in known:
                raise ValueError(f"Mixture({name}={value!r}): not available; choose one of {', '.join(known)}.")
        self.rate, self.minimised, self.head, self.carry_over = rate, loss, head, carry_over

    @property
    def predict(self) -> str:
        """What the network predicts: ``head``."""
        return self.head

    def __eq__(self, other) -> bool:
        return type(self) is type(other) and configuration(self) == configuration(other)

    __hash__ = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in configuration(self).items() if value is not None)
        return f"Mixture({shown})"

    # The source

    def bind(self, source: Source) -> Mixture:
        """Returns a copy of the path for a ``source``, with which losses and steps can be computed.

        Raises:
            ValueError: if the rate does not exist for the source and the schedule, ``head`` needs probabilities that
                the source does not have, or visible tokens that are carried over, or the schedule's exponents do not
                have the event's shape.
        """
        path = copy.copy(self)
        path.bound_source = source
        if not source.has_density and (self.head != "denoiser" or path.default_rate.needs_probs):
            raise ValueError(
                f"{self!r} with {type(source).__name__}: this source has no probabilities; use head='denoiser' and "
                f"rate=ctmc.MinimalJump()."
            )
        if source.absorbing and self.head != "denoiser" and not self.carry_over:
            raise ValueError(
                f"Mixture(head={self.head!r}, carry_over=False) with {type(source).__name__}: this head says nothing "
                f"about visible tokens; use head='denoiser', or carry them over."
            )
        path.default_rate.check(source, self.schedule)
        ends = self.schedule.kappa(torch.tensor([0.0, 1.0]).double().reshape(2, *(1,) * len(source.event_shape)))
        if not bool((ends[0].abs() < 1e-6).all() and ((ends[1] - 1).abs() < 1e-6).all()):
            raise ValueError(
                f"{self!r:.80}: kappa goes from {float(ends[0].max()):.3g} at t = 0 to {float(ends[1].min()):.3g} at "
                f"t = 1; write a schedule from 0 (source) to 1 (data)."
            )
        if self.schedule.by_position:
            shape = self.schedule.kappa(torch.full((1,) * (1 + len(source.event_shape)), 0.5)).shape[1:]
            if shape != source.event_shape:
                raise ValueError(
                    f"{self!r}: the schedule has positions {list(shape)}, events have {list(source.event_shape)}; pass "
                    f"one exponent for each position."
                )
        return path

    @property
    def source(self) -> Source:
        """The source to which the path is bound."""
        if self.bound_source is None:
            raise ValueError(
                f"{self!r:.80}: this path has no source; use flow.path of a ctmc.TokenFlow, or path.bind(source)."
            )
        return self.bound_source

    @property
    def default_rate(self) -> Rate:
        """The rate of the bound: that of the path, or, where none was given, one with a tight bound."""
        if self.rate is not None:
            return self.rate
        source = self.source
        return MinimalJump() if source.absorbing or not source.has_density else TimeReversal()

    @property
    def sampling_rate(self) -> Rate:
        """The rate of samplers: that of the path, or, where none was given, the one with the fewest jumps.

        With a perfect network every rate has the same samples. With a real one, tokens that jump more often lose
        variety: with a uniform source, samples by ``TimeReversal`` had less entropy than those by ``MinimalJump``.
        """
        if self.rate is not None:
            return self.rate
        return TimeReversal() if self.source.moves else MinimalJump()

    @property
    def loss_rate(self) -> Rate:
        """The rate of which the bound is the loss, for losses that are bounds."""
        return {"kl": MinimalJump(), "score-entropy": TimeReversal()}.get(self.minimised) or self.default_rate

    @property
    def counts(self) -> bool:
        """Whether a training time decides how many tokens are hidden, not each token by itself."""
        if not self.source.absorbing or self.schedule.by_position:
            return False
        return self.minimised == "cross-entropy" or not self.loss_rate.reshuffles(self.source)

    @property
    def by_number(self) -> bool:
        """Whether a bound with terms at all tokens draws the number of tokens of the source first, then the time."""
        fixed = self.source.has_density and not self.source.moves and not self.schedule.by_position
        return fixed and self.minimised != "cross-entropy" and not self.counts

    def moment(self, x: Tensor, t: Tensor) -> Moment:
        """Computes schedule and source for states ``x [B, *event]`` at times ``t``, ``[]`` or ``[B]``, in float64."""
        t, source = self.spread(t, x), self.source
        schedule = self.schedule
        own = source.probs_of(x, t) if source.has_density else torch.ones_like(t)
        slope = source.probs_of(x, t, source.d_probs(t)) if source.moves else None
        return Moment(t, schedule.kappa(t), schedule.d_kappa(t), schedule.remaining(t), own, slope)

    @staticmethod
    def spread(t: Tensor, x: Tensor) -> Tensor:
        """Returns times ``t``, ``[]`` or ``[B]``, in float64, shaped to broadcast to ``x [B, *event]``."""
        t = t.to(device=x.device, dtype=torch.float64)
        return expand_like(t, x) if t.dim() else t.reshape((1,) * x.dim())

    # Training

    def draw(self, x1: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws one uniform number for every token of ``x1 [B, *event]``, with ``generator``."""
        return uniforms(x1.shape, generator, x1.device)

    def mirror(self, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns times and noise that hide about the complement of the tokens that ``t`` and ``noise`` hide.

        With a mask source each token is hidden in one of the two, and one token in both. For bounds of other sources
        each token is drawn from the source in exactly one of the two.
        """
        low, high = self.interval
        return low + high - t, 1 - noise

    def sample(self, x0, x1, t, *, mask=None, noise=None, generator=None) -> PathSample:
        """Returns noisy tokens between ``x0`` and ``x1 [B, *event]``; their times may differ from ``t``.

        Args:
            x0: draws of the source ``[B, *event]``.
            x1: tokens of the data ``[B, *event]``.
            t: the times ``[B]``: with a mask source, and for losses that are bounds, the quantile of the number of
                tokens of the data; for bounds of sources that move and of schedules by position, the quantile of
                times that are denser at the data, where the terms are large.
            mask: the positions that count; others stay as in ``x0``. Default: None, all of them.
            noise: the result of :meth:`draw`. Default: None, drawn here with ``generator``.
            generator: the source of the noise. Default: None, torch's default generator.

        Raises:
            ValueError: if shapes do not match, a token of ``x0`` is not a state, or the path has no source.
        """
        if x0.shape != x1.shape or t.shape not in ((), x1.shape[:1]):
            raise ValueError(
                f"Mixture.sample(x0 {list(x0.shape)}, x1 {list(x1.shape)}, t {list(t.shape)}): pass ends of one shape, "
                f"and one time for each row."
            )
        x0 = check_tokens("Mixture.sample: x0", x0, self.source.states, "pass pairs whose first half has these tokens")
        u = self.draw(x1, generator) if noise is None else noise
        counted = None if mask is None else mask.expand(x1.shape)
        level = t.double().expand(x1.shape[:1])
        if self.counts:
            hidden, time = hide(self, u, level, counted)
            xt = x1.masked_fill(hidden, self.source.mask)
        elif self.by_number:
            hidden, time = replace(self, u, level, counted)
            xt = torch.where(hidden, x0, x1)
        else:
            time = level if self.minimised == "cross-entropy" else dense_times(self, level)
            spread = self.spread(time, x1)
            kappa, left = self.schedule.kappa(spread), self.schedule.remaining(spread)
            noise = self.source.draw(((u - kappa) / left).clamp(0, 1 - 1e-16), spread) if self.source.moves else x0
            xt = torch.where(u < kappa, x1, noise)
        if counted is not None:
            xt = torch.where(counted, xt, x0)
        # The integrand of a bound diverges at t = 1, which float32 would round to.
        keeps = self.counts or self.minimised == "cross-entropy"
        return PathSample(xt, time.to(t.dtype) if keeps else time, x0, x1, x1, counted)

    def loss(self, prediction: Tensor, sample: PathSample) -> Tensor:
        """Computes the loss of the logits ``prediction`` per item of ``sample``, ``[B]``, in nats per token."""
        return losses.loss(self, prediction, sample)

    # From the prediction to what a sampler uses

    def evidence(self, x: Tensor, t: Tensor) -> Tensor:
        """Computes the logarithm of what tokens ``x`` at ``t`` say about the data's, ``[B, *event]``, in float64.

        See :class:`cflow.ctmc.Posterior`. At ``t = 1`` it is a large number, not infinity, except where a token is
        carried over.
        """
        source, t = self.source, self.spread(t, x)
        if not source.has_density:
            return torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        if source.absorbing:
            carried = torch.inf if self.carry_over else 0.0
            return torch.where(x == source.mask, 0.0, carried).double()
        kappa, left = self.schedule.kappa(t), self.schedule.remaining(t)
        evidence = torch.log1p(kappa / (left * source.probs_of(x, t))).nan_to_num(0.0).clamp(max=CERTAIN)
        return evidence if source.states == source.vocabulary else evidence.masked_fill(x >= source.vocabulary, 0.0)

    def posterior(self, prediction: Tensor, x: Tensor, t: Tensor, *, sharpen: Sharpen | None = None) -> Posterior:
        """Returns the posterior of the data's tokens, from the logits ``prediction`` at states ``x [B, *event]``.

        Args:
            prediction: the network's logits ``[B, *event, K]``.
            x: the states.
            t: the times, ``[]`` or ``[B]``.
            sharpen: a change of the distribution that is drawn from. Default: None.
        """
        carries = self.source.absorbing and self.carry_over
        return Posterior(prediction, x, self.evidence(x, t), self.head, sharpen, carries, self.paced)

    def rates(self, prediction: Tensor, x: Tensor, t: Tensor, *, rate: Rate | None = None) -> Tensor:
        """Computes the rates of jumps, ``[B, *event, states]`` per unit of time, zero at the present state.

        Args:
            prediction: the network's logits ``[B, *event, K]``.
            x: the states.
            t: the times, ``[]`` or ``[B]``.
            rate: the rate. Default: None, ``sampling_rate``.
        """
        rate = self.checked(rate, self.sampling_rate)
        p = self.posterior(prediction, x, t).log_probs("denoiser").exp()
        return rate.expected(self.moment(x, t), x, p, self.table(x, t))

    def checked(self, rate: Rate | None, default: Rate) -> Rate:
        """Returns ``rate``, or ``default`` for None; raises if it does not exist for the source."""
        if rate is None:
            return default
        check_rate("flow", rate)
        rate.check(self.source, self.schedule)
        if rate.needs_probs and not self.source.has_density:
            raise ValueError(
                f"{rate!r} with {type(self.source).__name__}: this source has no probabilities; use MinimalJump()."
            )
        return rate

    def table(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns the source's probabilities for ``x`` at ``t``, which broadcast to ``[B, *event, states]``.

        They are zeros for given data.
        """
        if not self.source.has_density:
            return torch.zeros(self.source.states, dtype=torch.float64, device=x.device)
        return self.source.probs(self.spread(t, x))

    def score(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        r"""Computes the ratios :math:`p_t(x^{i 	o j}) / p_t(x)`, ``[B, *event, states]``, the scores of SEDD.

        They are :math:`q(j) / q(x^i)` with :math:`q = \kappa_t l + (1 - \kappa_t) p_0`. The arguments are those of
        :meth:`rates`: ``prediction``, ``x`` and ``t``.
        """
        q = self.conditional(self.posterior(prediction, x, t), t)
        return q / q.gather(-1, x.unsqueeze(-1))

    def conditional(self, posterior: Posterior, t: Tensor) -> Tensor:
        """Computes the probabilities of a token at time ``t``, given the others then: ``[B, *event, states]``.

        They follow from the ``posterior`` at that time.
        """
        at, table = self.moment(posterior.x, t), self.table(posterior.x, t)
        loo = posterior.log_probs("leave-one-out").exp()
        full = F.pad(loo, (0, self.source.states - loo.shape[-1]))
        return at.kappa.unsqueeze(-1) * full + at.remaining.unsqueeze(-1) * table

    def step(
        self,
        prediction: Tensor,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
        generator=None,
        rate: Rate | None = None,
        sharpen: Sharpen | None = None,
    ) -> Tensor:
        """Draws states at time ``s``, given states ``x`` at ``t``; exact for a posterior that stays as it is.

        Args:
            prediction: the network's logits ``[B, *event, K]`` at ``(t, x)``.
            x: the states ``[B, *event]``.
            t: the present time, ``[]`` or ``[B]``.
            s: the time after the step, ``[]`` or ``[B]``.
            mask: the positions that move. Default: None, all of them.
            generator: the source of random numbers, or a list with one for each row.
            rate: the rate. Default: None, ``sampling_rate``.
            sharpen: a change of the distribution that tokens are drawn from, such as a temperature. Default: None.

        Cost: one uniform number per token; logits are read only where a token may change.

        Raises:
            ValueError: for a rate whose steps have no closed form.
        """
        rate = self.checked(rate, self.sampling_rate)
        if not hasattr(rate, "move"):
            raise ValueError(f"{rate!r}: its steps have no closed form; use ctmc.Euler(rate={rate!r}).")
        u = uniforms(x.shape, generator, x.device)
        if mask is not None:  # a token that does not move is not drawn
            u = u.masked_fill(~mask, 2.0)
        moved = rate.move(
            self, self.posterior(prediction, x, t, sharpen=sharpen), self.spread(t, x), self.spread(s, x), u
        )
        return moved if mask is None else torch.where(mask, moved, x)
