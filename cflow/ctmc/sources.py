"""Sources: the distributions of tokens at ``t = 0``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.arguments import check_integer, check_tokens
from cflow.bases import Base
from cflow.ctmc.categorical import invert, uniforms
from cflow.draws import Source as Draws
from cflow.registry import register

__all__ = ["Given", "Marginal", "Mask", "MaskAndUniform", "Source", "Uniform"]


class Source(Base):
    r"""Draws tokens at ``t = 0``: the base class of sources, which are bases with integer draws.

    Tokens of the data are ``0, ..., K - 1`` (``vocabulary``). A source may use one more state, K, the mask. A subclass
    writes :meth:`probs`, the distribution :math:`p_0` of a token.

    Args:
        event_shape: the shape of one event, an int or a tuple.
        vocabulary: the number K of tokens of the data.
        states: the number of states of a token: K, or K + 1 with a mask.

    Shapes: ``sample`` returns ``[*shape, *event]``, int64. Cost: one uniform number per token.

    Raises:
        ValueError: if a size is not a positive integer.
    """

    mask: int | None = None
    """The state that hides a token, if the source has one: ``vocabulary``."""

    moves = False
    """Whether the distribution depends on the time; :meth:`d_probs` is then its derivative."""

    absorbing = False
    """Whether every token that is not of the data is hidden, so that a visible token is known to be of the data."""

    def __init__(self, event_shape: int | Sequence[int], vocabulary: int, states: int):
        check_integer(type(self).__name__, "vocabulary", vocabulary, 2, "pass the number of tokens, 2 or more.")
        super().__init__(event_shape)
        self.vocabulary, self.states = vocabulary, states

    def probs(self, t: Tensor | None = None) -> Tensor:
        """Returns the probabilities of the states in float64: ``[states]``, or ``[*event, states]`` by position.

        A source that moves has a row for each time: ``[B, *1, states]`` for ``t [B, *1]``.
        """
        raise self._no_probs()

    def d_probs(self, t: Tensor) -> Tensor:
        """Returns the derivative of :meth:`probs` at times ``t``, for a source that moves."""
        raise self._no_probs()

    def _no_probs(self) -> TypeError:
        return TypeError(f"{type(self).__name__} has no probabilities of tokens; use a source such as ctmc.Uniform.")

    def probs_of(self, x: Tensor, t: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        """Returns the probabilities of tokens ``x [B, *event]`` at ``t``, entry by entry.

        A ``table`` replaces :meth:`probs`.
        """
        table = self.probs(t) if table is None else table
        if table.dim() == 1:
            return table[x]
        return table.expand(*x.shape, table.shape[-1]).gather(-1, x.unsqueeze(-1)).squeeze(-1)

    def draw(self, u: Tensor, t: Tensor | None = None) -> Tensor:
        """Returns the states at which the cumulative probabilities at ``t`` pass ``u [B, *event]``, in [0, 1)."""
        table = self.probs(t)
        if table.dim() == 1:
            return invert(table, u)
        return invert(table.expand(*u.shape, table.shape[-1]), u)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        u = uniforms((*shape, *self.event_shape), generator, self.device)
        return self._start(u.reshape(-1, *self.event_shape)).reshape(u.shape)

    def _start(self, u: Tensor) -> Tensor:
        """Returns the draws at ``t = 0`` for uniform numbers ``[B, *event]``."""
        return self.draw(u)

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Computes the log-probability ``[*batch]`` of states ``x [*batch, *event]``, in nats.

        Args:
            x: states ``[*batch, *event]``.
            context: not read; None.
            mask: not read; None.
        """
        self._refuse("log_prob", context, mask)
        rank = len(self.event_shape)
        if x.dim() < rank or x.shape[x.dim() - rank :] != self.event_shape:
            raise ValueError(
                f"{type(self).__name__}.log_prob(x of shape {list(x.shape)}): events have shape "
                f"{list(self.event_shape)}; pass a tensor [*batch, *event]."
            )
        x = check_tokens(f"{type(self).__name__}.log_prob", x, self.states)
        batch = x.shape[: x.dim() - rank]
        start = self._log_start(x.reshape(-1, *self.event_shape))
        return self._sum_event(start.reshape(*batch, *self.event_shape)).to(self.dtype)

    def _log_start(self, x: Tensor) -> Tensor:
        return self.probs_of(x).log().expand(x.shape)

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.log_prob(x)


@register("ctmc.Mask")
class Mask(Source):
    """Hides every token: all positions have the mask state, whose number is ``vocabulary``.

    Args:
        event_shape: the shape of one event, such as the length of a sequence.
        vocabulary: the number of tokens of the data.

    Source: Austin et al., Structured Denoising Diffusion Models in Discrete State-Spaces, 2021, arXiv:2107.03006.

    Example:
        >>> source = Mask(3, vocabulary=27)
        >>> source.sample((2,)), source.states
        (tensor([[27, 27, 27],
                [27, 27, 27]]), 28)
    """

    absorbing = True

    def __init__(self, event_shape: int | Sequence[int], vocabulary: int):
        super().__init__(event_shape, vocabulary, vocabulary + 1)
        self.mask = vocabulary

    def probs(self, t: Tensor | None = None) -> Tensor:
        table = torch.zeros(self.states, dtype=torch.float64, device=self.device)
        table[-1] = 1
        return table

    def probs_of(self, x: Tensor, t: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        return (x == self.mask).double()

    def draw(self, u: Tensor, t: Tensor | None = None) -> Tensor:
        return torch.full(u.shape, self.mask, device=u.device)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        return torch.full((*shape, *self.event_shape), self.mask, device=self.device)


@register("ctmc.Uniform")
class Uniform(Source):
    """Draws all tokens with the same probability.

    Args:
        event_shape: the shape of one event, such as the length of a sequence.
        vocabulary: the number of tokens of the data.

    Source: Austin et al., Structured Denoising Diffusion Models in Discrete State-Spaces, 2021, arXiv:2107.03006.

    Example:
        >>> Uniform(2, 27).log_prob(torch.tensor([0, 26])).exp() * 27**2
        tensor(1.0000)
    """

    def __init__(self, event_shape: int | Sequence[int], vocabulary: int):
        super().__init__(event_shape, vocabulary, vocabulary)

    def probs(self, t: Tensor | None = None) -> Tensor:
        return torch.full((self.states,), 1 / self.states, dtype=torch.float64, device=self.device)

    def probs_of(self, x: Tensor, t: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        return torch.full((1,) * x.dim(), 1 / self.states, dtype=torch.float64, device=x.device)

    def draw(self, u: Tensor, t: Tensor | None = None) -> Tensor:
        return (u * self.states).long().clamp(max=self.states - 1)


@register("ctmc.Marginal")
class Marginal(Source):
    """Draws every token from a given distribution, such as its frequencies in the data.

    Args:
        event_shape: the shape of one event, such as the length of a sequence.
        frequencies: probabilities, or counts, of the tokens: ``[K]``, or ``[*event, K]`` by position. They are
            normalised.

    Raises:
        ValueError: if an entry is negative or not finite, a distribution is empty, or the shape does not fit.

    Source: Qin et al., DeFoG: Discrete Flow Matching for Graph Generation, 2024, arXiv:2410.04263.

    Example:
        >>> Marginal(2, torch.tensor([3.0, 1.0])).log_prob(torch.tensor([0, 1])).exp()
        tensor(0.1875)
    """

    def __init__(self, event_shape: int | Sequence[int], frequencies: Tensor):
        if not isinstance(frequencies, Tensor) or frequencies.dim() == 0:
            raise ValueError(
                f"Marginal(frequencies={frequencies!r:.60}): pass a tensor [K], or [*event, K] by position."
            )
        super().__init__(event_shape, frequencies.shape[-1], frequencies.shape[-1])
        table = frequencies.detach().clone()
        table = table.to(
            torch.promote_types(table.dtype, torch.float32) if table.is_floating_point() else torch.float64
        )
        if table.shape[:-1] not in (torch.Size(), self.event_shape):
            raise ValueError(
                f"Marginal(frequencies of shape {list(table.shape)}): the shape is [K], or [*event, K] with event "
                f"{list(self.event_shape)}; change it."
            )
        fine = bool((table.isfinite() & (table >= 0)).all()) and bool((table.sum(-1) > 0).all())
        if not fine:
            raise ValueError(
                "Marginal(frequencies=...): an entry is negative or not finite, or all are zero; pass counts or "
                "probabilities."
            )
        self.register_buffer("frequencies", table / table.sum(-1, keepdim=True))

    @classmethod
    def fit(cls, tokens: Tensor, vocabulary: int, *, by_position: bool = False, pseudocount: float = 1.0) -> Marginal:
        """Counts the tokens of data.

        Args:
            tokens: data ``[N, *event]``, integers.
            vocabulary: the number K of tokens.
            by_position: whether every position has its own distribution.
            pseudocount: what is added to every count. With more than 0, no token is impossible, which rates and
                bounds need at positions where the data never have a token.

        Raises:
            ValueError: if a token is not in the vocabulary, there are no data, or ``pseudocount`` is negative.
        """
        if tokens.dim() < 2 or not len(tokens):
            raise ValueError(
                f"Marginal.fit(tokens of shape {list(tokens.shape)}): pass data [N, *event], N at least 1."
            )
        if not 0 <= pseudocount < math.inf:
            raise ValueError(f"Marginal.fit(pseudocount={pseudocount}): pass a number of 0 or more, such as 1.0.")
        tokens = check_tokens("Marginal.fit", tokens, vocabulary).cpu()
        event = tokens.shape[1:]
        if by_position:
            where = torch.arange(event.numel()).reshape(event) * vocabulary
            counts = torch.bincount((tokens + where).flatten(), minlength=event.numel() * vocabulary)
            counts = counts.reshape(*event, vocabulary)
        else:
            counts = torch.bincount(tokens.flatten(), minlength=vocabulary)
        return cls(event, counts.double() + pseudocount)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts as modules do, but keeps the probabilities in float32 at least."""
        before = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype in (torch.bfloat16, torch.float16):
            self.frequencies = before.to(self.frequencies.device)
        return self

    def probs(self, t: Tensor | None = None) -> Tensor:
        table = self.frequencies.double()
        return table / table.sum(-1, keepdim=True)


@register("ctmc.MaskAndUniform")
class MaskAndUniform(Source):
    r"""Hides tokens, and between the ends replaces some by uniform ones, so that a network learns to correct errors.

    .. math:: p_t(x \mid x_1) = \kappa_t \delta_{x_1} + (1 - \kappa_t) \pi_t, \qquad
              \pi_t = (1 - b_t) \, \delta_{\text{mask}} + b_t \, \text{uniform}, \qquad b_t = 4 u \, t (1 - t)

    The mix moves with the time and is the mask at both ends. Bounds and samplers use ``ctmc.TimeReversal``, the default
    rate.

    Args:
        event_shape: the shape of one event.
        vocabulary: the number of tokens of the data.
        share: the largest share u of uniform tokens among those that are not of the data, at ``t = 1/2``; in (0, 1).

    Raises:
        ValueError: if ``share`` is not in (0, 1). A flow raises one too if the noising process of its schedule would
            need negative rates.

    Source: von Rütte et al., Generalized Interpolating Discrete Diffusion, 2025, arXiv:2503.04482 (there the mix is
    another function of time).

    Example:
        >>> MaskAndUniform(1, 2, share=0.2).probs(torch.tensor([[0.5]], dtype=torch.float64))
        tensor([[[0.1000, 0.1000, 0.8000]]], dtype=torch.float64)
    """

    moves = True

    def __init__(self, event_shape: int | Sequence[int], vocabulary: int, share: float = 0.2):
        if not 0 < share < 1:
            raise ValueError(f"MaskAndUniform(share={share}): the share is in (0, 1); pass 0.2.")
        super().__init__(event_shape, vocabulary, vocabulary + 1)
        self.share, self.mask = share, vocabulary

    def _mixed(self, b: Tensor, mask: Tensor) -> Tensor:
        """Returns ``b`` divided among the tokens, and ``mask`` for the mask state."""
        return torch.cat(
            ((b / self.vocabulary).unsqueeze(-1).expand(*b.shape, self.vocabulary), mask.unsqueeze(-1)), -1
        )

    def _uniform(self, t: Tensor | None) -> Tensor:
        """Computes the share ``b`` of uniform tokens."""
        t = torch.zeros((), dtype=torch.float64, device=self.device) if t is None else t
        return 4 * self.share * t * (1 - t)

    def probs(self, t: Tensor | None = None) -> Tensor:
        b = self._uniform(t)
        return self._mixed(b, 1 - b)

    def probs_of(self, x: Tensor, t: Tensor | None = None, table: Tensor | None = None) -> Tensor:
        if table is not None:
            return super().probs_of(x, t, table)
        b = self._uniform(t)
        return torch.where(x == self.mask, 1 - b, b / self.vocabulary)

    def draw(self, u: Tensor, t: Tensor | None = None) -> Tensor:
        b = self._uniform(t)
        token = (u / b * self.vocabulary).clamp(0, self.vocabulary - 1).long()
        return torch.where(u < b, token, self.mask)

    def d_probs(self, t: Tensor) -> Tensor:
        slope = 4 * self.share * (1 - 2 * t)
        return self._mixed(slope, -slope)


@register("ctmc.Given")
class Given(Source):
    """Draws rows of given tokens, with replacement: the source of flows from data to data.

    It has no probabilities, so the flow has no bound (``flow.likelihood`` is ``"none"``), and it samples by
    ``ctmc.MinimalJump`` alone. Train pairs of rows with ``couplings.Paired()``.

    Args:
        tokens: rows ``[N, *event]``, integers.
        vocabulary: the number of tokens of the data.

    Raises:
        ValueError: if there are no rows, or a token is not in the vocabulary.

    Example:
        >>> Given(torch.tensor([[0, 1]]), 3).sample((2,))
        tensor([[0, 1],
                [0, 1]])
    """

    has_density = False

    def __init__(self, tokens: Tensor, vocabulary: int):
        if not isinstance(tokens, Tensor) or tokens.dim() < 2 or not len(tokens):
            raise ValueError("Given(tokens=...): draws are rows of given tokens; pass a tensor [N, *event].")
        super().__init__(tuple(tokens.shape[1:]), vocabulary, vocabulary)
        self.register_buffer("tokens", check_tokens("Given", tokens.detach(), vocabulary).clone())

    def _sample(self, shape: tuple[int, ...], generator: Draws) -> Tensor:
        return self.tokens[torch.randint(len(self.tokens), shape, generator=generator, device=self.device)]

    def log_prob(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """Raises a TypeError: given rows ``x`` have no probabilities; ``context`` and ``mask`` are not read."""
        raise self._no_probs()
