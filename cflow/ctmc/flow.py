"""A token flow: a denoiser, a source of tokens, and a jump process between them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from cflow.arguments import check_tokens
from cflow.bijections.map import Likelihood
from cflow.ctmc.bound import draw_bound, levels
from cflow.ctmc.denoiser import Denoiser, check_call, scales_rates
from cflow.ctmc.mixture import HEADS, Mixture
from cflow.ctmc.samplers import Analytic, Process
from cflow.ctmc.sources import Source
from cflow.fields import as_field
from cflow.flow import BaseFlow
from cflow.registry import register
from cflow.shapes import Value, as_shape, batch_of, flatten, mask_of, shown, unflatten

__all__ = ["TokenFlow"]


@register("ctmc.TokenFlow")
class TokenFlow(BaseFlow):
    r"""Turns tokens of a source into tokens of the data by a continuous-time Markov chain.

    .. math:: \Pr(x^i_{t + dt} = j \mid x_t) = \mathbb E_{x_1 \sim p_\theta(\cdot \mid x_t)}
              \big[ R_t(x^i_t, j \mid x_1^i) \big] dt, \qquad j \ne x^i_t

    The denoiser predicts the tokens of the data from noisy ones. Train it by :class:`cflow.objectives.FlowMatching`.
    The log-likelihood is a lower bound, of which ``log_prob`` computes one random draw; it is tight for a perfect
    denoiser and a tight rate (the default).

    Shapes: tokens ``x [*batch, *event]``, int64; ``context [*batch, *context_shape]``; log-likelihoods ``[*batch]`` in
    nats. Cost: one evaluation of the denoiser per draw of the bound; that of a sampler is the sampler's.

    Every method that samples accepts ``sampler``, ``guidance`` and ``start``: states at ``t = 0`` in place of draws of
    the source, ``[*model]`` or one for each sample (a text to be corrected, with ``ctmc.Given``). Methods that compute
    a likelihood accept ``rate``, ``antithetic`` (two evaluations per draw, with mirrored noise, so less variance) and
    ``guidance``.

    If the context has the part ``mask``, only marked positions count: in training, in the likelihood, and in samples,
    which have token 0 elsewhere.

    Args:
        denoiser: a network called as ``denoiser(t, x, context)``, with states ``x [B, *event]``; it returns logits
            ``[B, *event, K]``.
        source: the distribution of tokens at ``t = 0``.
        path: the path. Default: None, ``ctmc.Mixture()``.
        sampler: the default sampler. Default: None, ``ctmc.Analytic(64)``.
        context_shape: the shape of one context; ``()`` for a class label. Default: None, the shape that the denoiser
            declares.
        alphabet: what tokens stand for (``data.Characters`` and so on), with ``encode``, ``decode`` and ``size``.
            Default: None.
        transform: maps of the data, integers to integers, such as ``bijections.Permute``.

    Raises:
        TypeError: if denoiser, source or path has the wrong type, or the denoiser is called in another way.
        ValueError: if shapes or vocabularies differ.

    Source: Campbell et al., Generative Flows on Discrete State-Spaces, 2024, arXiv:2402.04997; Gat et al., Discrete
    Flow Matching, 2024, arXiv:2407.15595.

    Example:
        >>> from cflow import ctmc, fields
        >>> source = ctmc.Mask(16, vocabulary=4)
        >>> network = fields.TokenDiT(16, source.states, 4, width=16, depth=1, heads=2)
        >>> flow = TokenFlow(network, source)
        >>> x = flow.sample((3,), sampler=ctmc.Analytic(steps=4))
        >>> x.shape, bool((x < 4).all()), flow.log_prob(x).shape
        (torch.Size([3, 16]), True, torch.Size([3]))
    """

    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "sample": ("sampler", "guidance", "start"),
        "log_prob": ("rate", "antithetic", "guidance"),
    }

    def __init__(
        self,
        denoiser: nn.Module,
        source: Source,
        *,
        path: Mixture | None = None,
        sampler: Any = None,
        context_shape=None,
        alphabet: Any = None,
        transform: Sequence[nn.Module] = (),
    ):
        if not hasattr(source, "vocabulary") or not callable(getattr(source, "sample", None)):
            raise TypeError(
                f"TokenFlow(source={type(source).__name__}): not a source of tokens; pass one such as ctmc.Mask(256, "
                f"vocabulary=27)."
            )
        if not isinstance(denoiser, nn.Module):
            raise TypeError(
                f"TokenFlow(denoiser={type(denoiser).__name__}): not a network; pass a module called as "
                f"denoiser(t, x, context)."
            )
        check_call(denoiser)
        if context_shape is None:
            said = as_field(denoiser).context_shape
            context_shape = None if said is ... else said
        super().__init__(source.event_shape, context_shape, transform)
        path = Mixture() if path is None else path
        if not callable(getattr(path, "bind", None)):
            raise TypeError(f"TokenFlow(path={path!r:.60}): not a path of tokens; pass ctmc.Mixture().")
        self.denoiser, self.source, self.path, self.alphabet = denoiser, source, path.bind(source), alphabet
        self.sampler = Analytic() if sampler is None else sampler
        self._check_parts()

    def _check_parts(self) -> None:
        field, source = as_field(self.denoiser), self.source
        if field.event_shape is not ... and field.event_shape != self.model_shape:
            raise ValueError(
                f"TokenFlow: the denoiser has events {tuple(field.event_shape)} and the source "
                f"{tuple(self.model_shape)}; give both the same shape."
            )
        if field.context_shape not in (..., self.context_shape):
            raise ValueError(
                f"TokenFlow(context_shape={shown(self.context_shape)}): the denoiser has another one; pass "
                f"context_shape={shown(field.context_shape)}."
            )
        for name in ("vocabulary", "states"):
            size = getattr(self.denoiser, name, getattr(source, name))
            if size != getattr(source, name):
                raise ValueError(
                    f"TokenFlow: the denoiser has {name}={size} and the source {getattr(source, name)}; give both the "
                    f"same."
                )
        if self.alphabet is not None and not hasattr(self.alphabet, "size"):
            raise TypeError(
                f"TokenFlow(alphabet={self.alphabet!r:.60}): not an alphabet; pass one such as data.Characters('ACGT')."
            )
        if self.alphabet is not None and self.alphabet.size != source.vocabulary:
            raise ValueError(
                f"TokenFlow(alphabet={self.alphabet!r:.60}): it has {self.alphabet.size} tokens and the source "
                f"{source.vocabulary}; give both the same."
            )

    @property
    def base(self) -> Source:
        """The source, which is the base of the flow."""
        return self.source

    @property
    def likelihood(self) -> Likelihood:
        return "bound" if self.source.has_density and self._independent else "none"

    @property
    def _independent(self) -> bool:
        return all(entry.independent for entry in self.trained_by) or self.source.absorbing

    @property
    def support(self) -> constraints.Constraint:
        """The tokens of the data: integers from 0 to K - 1."""
        if len(self.transform):
            return super().support
        return constraints.independent(
            constraints.integer_interval(0, self.source.vocabulary - 1), len(self.event_shape)
        )

    @property
    def interval(self) -> tuple[float, float]:
        """The times at which the denoiser may be evaluated."""
        low, high = as_field(self.denoiser).interval
        return max(low, self.path.interval[0]), min(high, self.path.interval[1])

    @property
    def classes(self) -> int:
        return as_field(self.denoiser).classes

    def _null_context(self, context: Value) -> Value:
        return as_field(self.denoiser).null_context(context)

    def preprocess(self, x: Value, context: Value | None = None, *, generator=None):
        """Applies the transforms, and returns tokens as int64: ``(u [B, *model], contribution [B])``.

        Args:
            x: tokens ``[B, *event]``: integers of any dtype, or whole floating numbers.
            context: contexts ``[B, *context_shape]``, or None.
            generator: source of random numbers, for transforms that draw.

        Raises:
            ValueError: for a token outside the vocabulary; its value, row and position are named. Data on a device are
                not read.
        """
        if len(self.transform):  # maps take floating numbers; the tokens of a vocabulary are exact in them
            x = x.to(self.dtype)
        u, contribution = super().preprocess(x, context, generator=generator)
        if isinstance(contribution, Tensor):  # probabilities of tokens do not change with their names
            contribution = contribution.clamp(max=0).masked_fill(contribution.isfinite(), 0.0)
        return check_tokens(type(self).__name__, u, self.source.vocabulary), contribution

    def postprocess(self, u: Value, context: Value | None = None, *, generator=None):
        """Applies the inverse transforms to tokens ``u``; returns int64 ``x [B, *event]`` and a contribution of zero.

        Args:
            u: tokens ``[B, *model]``.
            context: contexts ``[B, *context_shape]``, or None.
            generator: not read, since maps of integers do not draw.
        """
        if not len(self.transform):
            return u, 0.0
        return super().postprocess(u.to(self.dtype), context, generator=generator)[0].round().long(), 0.0

    # The network

    def predict(
        self, t: Tensor, x: Tensor, context: Value | None = None, *, s=None, previous: Tensor | None = None
    ) -> Tensor:
        """Evaluates the denoiser on one batch dimension; returns logits, in float32 or better.

        ``previous`` are the logits of an earlier call, for a denoiser with self-conditioning.

        Shapes: ``t [B]``, states ``x [B, *model]``, ``context [B, *context_shape]``; returns ``[B, *model, K]``. A
        denoiser has one time, so ``s`` must be None.
        """
        if s is not None:
            raise TypeError("TokenFlow.predict(s=...): a denoiser reads one time; omit s.")
        extra = {} if previous is None else {"previous": previous}
        logits = self.denoiser(t.to(self.dtype).clamp(*self.interval), x, context, **extra)
        wanted = (*x.shape, self.source.vocabulary)
        if logits.shape != wanted:
            raise ValueError(
                f"the denoiser returned {tuple(logits.shape)} for x {tuple(x.shape)}; return logits {wanted}, one for "
                f"each token of the data."
            )
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def posterior(
        self, t: Tensor | float, x: Tensor, context: Value | None = None, *, guidance=None, head: str = "denoiser"
    ) -> Tensor:
        """Computes the probabilities of the data's tokens, given states ``x`` at time ``t`` (model space).

        Args:
            t: the times, ``[]`` or ``[*batch]``.
            x: the states ``[*batch, *model]``, mask states included.
            context: the conditions ``[*batch, *context_shape]``.
            guidance: the guidance, such as ``guidance.ClassifierFree(2.0)``. Default: None.
            head: ``"denoiser"``, or ``"leave-one-out"`` for the posterior that does not use the state of the same
                position (:class:`cflow.ctmc.Posterior`).

        Shapes: returns ``[*batch, *model, K]``, in the flow's dtype. Cost: one evaluation of the denoiser.
        """
        if head not in HEADS:
            raise ValueError(f"flow.posterior(head={head!r}): not available; choose one of {', '.join(HEADS)}.")
        x, context, batch = self._enter(x, context, "posterior", self.model_shape)
        x = check_tokens("TokenFlow.posterior", x, self.source.states)
        t = torch.as_tensor(t, dtype=self.dtype, device=x.device).expand(batch).reshape(-1)
        logits, path = self._network(context, guidance)(t, x), self._guided_path(guidance)
        return unflatten(path.posterior(logits, x, t).log_probs(head).exp().to(self.dtype), batch)

    def _network(self, context: Value | None, guidance=None) -> Callable[..., Tensor]:
        """Returns the denoiser as a function ``(t [B], x, **earlier) -> logits``, with its context and guidance."""
        field = self._guided(guidance)
        return lambda t, x, **earlier: field(t, x, context, **earlier)

    def _guided(self, guidance) -> Any:
        """Returns the denoiser as a field, under guidance."""
        if guidance is None:
            return Denoiser(self)
        if not callable(guidance):
            raise TypeError(f"flow: guidance={guidance!r} is not a guidance; pass guidance.ClassifierFree(2.0).")
        return guidance(Denoiser(self, True, scales_rates(guidance)))

    def _guided_path(self, guidance) -> Mixture:
        """Returns the path for the logits under guidance; these are rates where the guidance scales rates."""
        if not scales_rates(guidance):
            return self.path
        path = copy.copy(self.path)
        path.head, path.paced = "denoiser", True
        return path

    @property
    def self_conditioned(self) -> bool:
        """Whether the denoiser also takes the logits of an earlier call."""
        return as_field(self.denoiser).self_conditioned

    # The methods from which the base class derives the protocol

    def _log_prob(self, x, context, generator, *, rate=None, antithetic=False, guidance=None, level=None):
        if scales_rates(guidance):
            raise ValueError(
                f"flow.log_prob(guidance={guidance!r:.60}): it changes how fast tokens jump, which the bound does not "
                f"contain; use guidance.ClassifierFree."
            )
        level = levels(len(x), generator, x.device) if level is None else level
        network, counted = self._network(context, guidance), self._counted(context)
        value = draw_bound(self.path, network, x, rate, level, generator, antithetic, counted)
        return value.to(torch.promote_types(value.dtype, self.dtype))

    def log_prob_estimate(self, x, context=None, *, draws: int = 32, generator=None, **options):
        """Averages draws of the bound at stratified times: ``(value [*batch], standard_error [*batch])``, in nats.

        The standard error is that of independent draws, so it is rather too large.

        Args:
            x: tokens ``[*batch, *event]``.
            context: the conditions ``[*batch, *context_shape]``.
            draws: the number of draws, two or more; each is one evaluation of the denoiser.
            generator: source of random numbers, or a list with one for each row.
            **options: ``rate``, ``antithetic`` and ``guidance``.
        """
        self._check(options, "log_prob_estimate", generator)
        if draws < 2:
            raise ValueError(
                f"log_prob_estimate(draws={draws}): a standard error needs at least two draws; pass draws=32."
            )
        x, context, batch = self._enter(x, context, "log_prob_estimate")
        u, outer = self.preprocess(x, context, generator=generator)
        first = levels(len(u), generator, u.device)
        # The draws of a row are at equal distances, so one is in each of as many strata.
        each = torch.stack(
            [self._log_prob(u, context, generator, level=(first + k / draws) % 1, **options) for k in range(draws)]
        )
        if not each.numel():
            return each.sum(0).reshape(batch), each.sum(0).reshape(batch)
        return (each.mean(0) + outer).reshape(batch), (each.std(0) / math.sqrt(draws)).reshape(batch)

    def _sample(self, count, context, generator, *, sampler=None, guidance=None, start=None):
        if start is None:
            start = self.source.sample((count,), generator=generator)
        else:
            lead = batch_of(start, self.model_shape, "flow.sample: start").numel()
            if lead not in (1, count):
                raise ValueError(
                    f"flow.sample(start of shape {list(start.shape)}): pass one for all, or {count}, one per sample."
                )
            start = check_tokens("flow.sample: start", start.to(self.device), self.source.states)
            start = start.reshape(lead, *self.model_shape).expand(count, *self.model_shape)
        return self._simulate(start, None, context, generator, sampler, guidance)

    def _simulate(self, start, free, context, generator, sampler, guidance) -> Tensor:
        for _, state in self._states(start, free, context, generator, sampler, guidance):
            start = state
        counted = self._counted(context)
        return start if counted is None else start.masked_fill(~counted, 0)

    def _counted(self, context: Value | None) -> Tensor | None:
        """Returns the positions that count, ``[B, *model]``, from the part ``mask`` of the context; None for all."""
        mask = mask_of(None, context)
        if mask is None:
            return None
        shape = (len(mask), *self.model_shape)
        return mask.bool().reshape(*mask.shape, *(1,) * (len(shape) - mask.dim())).expand(shape)

    def _states(self, start, free, context, generator, sampler, guidance):
        sampler = self.sampler if sampler is None else sampler
        if isinstance(sampler, type) or not callable(getattr(sampler, "states", None)):
            raise TypeError(f"flow.sample(sampler={sampler!r:.60}): not a sampler; pass one such as ctmc.Analytic(64).")
        learned = self.path.head == "denoiser"
        if not (self._independent and self.source.has_density) and (sampler.needs_probs(self.path) or not learned):
            coupled = [entry.coupling for entry in self.trained_by if not entry.independent]
            why = f"trained with {coupled[-1]}" if coupled else f"from {type(self.source).__name__}"
            raise ValueError(
                f"flow.sample: this sampler needs probabilities of a source that is independent of the data, not a "
                f"flow {why}; "
                + ("pass ctmc.Analytic(rate=ctmc.MinimalJump())." if learned else "use head='denoiser'.")
            )
        path, field = self._guided_path(guidance), as_field(self._guided(guidance))
        if path.paced and (
            not sampler.scales or path.checked(sampler.rate, path.sampling_rate).reshuffles(self.source)
        ):
            raise ValueError(
                f"flow.sample(guidance={guidance!r:.60}): it changes rates of jumps to the data; pass "
                f"sampler=ctmc.Analytic(rate=ctmc.MinimalJump())."
            )
        network, counted = self._network(context, guidance), self._counted(context)
        if counted is not None:
            free = counted if free is None else free & counted
        process = Process(path, network, start, free, generator, field.reads_time, field.self_conditioned)
        return sampler.states(process)

    @torch.no_grad()
    def infill(
        self,
        x: Tensor,
        fixed: Tensor,
        shape=(),
        context: Value | None = None,
        *,
        generator=None,
        sampler=None,
        guidance=None,
    ) -> Tensor:
        """Draws the tokens that are not fixed, given those that are: ``[*shape, *batch, *event]``.

        Fixed tokens never move. With a mask source the result has the flow's conditional distribution, as far as the
        denoiser is right. With other sources the network sees clean tokens at fixed positions, where it was trained on
        noisy ones, which is an approximation.

        Args:
            x: tokens ``[*batch, *event]``; their values at positions that are not fixed are not read.
            fixed: the positions that are given, bool, broadcastable to ``x``.
            shape: as many completions of each row.
            context: the conditions ``[*batch, *context_shape]``.
            generator: source of random numbers, or a list with one for each result.
            sampler: the sampler. Default: None, that of the flow.
            guidance: the guidance. Default: None.

        Raises:
            TypeError: if ``fixed`` is not a bool tensor.
            ValueError: for a fixed token outside the vocabulary, shapes that do not fit, or a flow with transforms.
        """
        self._check({}, "infill", generator)
        if not isinstance(fixed, Tensor) or fixed.dtype != torch.bool:
            raise TypeError("flow.infill(fixed=...): pass a bool tensor, true where a token of x is given.")
        if len(self.transform):
            raise ValueError("flow.infill: this flow has transforms of its data; infill with the flow inside.")
        shape = as_shape(shape)
        batch_of(x, self.event_shape, "flow.infill: x")
        try:
            fixed = fixed.expand(torch.broadcast_shapes(fixed.shape, x.shape))
        except RuntimeError:
            raise ValueError(
                f"flow.infill(x {list(x.shape)}, fixed {list(fixed.shape)}): fixed does not broadcast to x; pass one "
                f"bool for each token."
            ) from None
        blank = torch.zeros((), dtype=x.dtype, device=x.device)
        x, inner, batch = self._enter(torch.where(fixed, x, blank), context, "infill")
        x = check_tokens("flow.infill", x, self.source.vocabulary)
        fixed = flatten(fixed.to(x.device), self.event_shape, batch)
        count = math.prod(shape)
        repeat = lambda each: each.repeat(count, *(1,) * (each.dim() - 1))
        x, fixed = repeat(x), repeat(fixed)
        if isinstance(inner, dict):
            inner = {name: repeat(part) for name, part in inner.items()}
        elif inner is not None:
            inner = repeat(inner)
        start = torch.where(fixed, x, self.source.sample((len(x),), generator=generator))
        result = self._simulate(start, ~fixed, inner, generator, sampler, guidance)
        return unflatten(result, torch.Size((*shape, *batch)))

    @torch.no_grad()
    def trajectory(
        self, shape=(), context: Value | None = None, *, generator=None, sampler=None, guidance=None
    ) -> tuple[Tensor, Tensor]:
        """Draws samples and returns the states on the way: ``(times [T], states [T, *shape, *context_batch, *model])``.

        A hidden token has the mask state, ``source.mask``. The arguments ``shape``, ``context``, ``generator``,
        ``sampler`` and ``guidance`` are those of :meth:`sample`. Where rows have different times, the times are
        averages.
        """
        self._check({}, "trajectory", generator)
        context, batch = self._count(shape, context, "trajectory")
        start = self.source.sample((math.prod(batch),), generator=generator)
        times, states = [torch.zeros((), device=start.device)], [start]
        for t, state in self._states(start, None, context, generator, sampler, guidance):
            times.append(t.float().mean())
            states.append(state)
        states = torch.stack(states)
        return torch.stack(times), states.reshape(len(states), *batch, *self.model_shape)
