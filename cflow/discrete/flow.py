"""The flow made of a bijection and a base distribution."""

from __future__ import annotations

from typing import NamedTuple

from torch import Size, Tensor

from cflow.bases import Base
from cflow.bijections import Map
from cflow.fields import ContextEmbedding
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["FlowCost", "NormalizingFlow"]


class FlowCost(NamedTuple):
    """Counts the passes through networks of each operation of a flow, one for each layer that has a network.

    A pass that is done piece by piece (an incremental inverse) counts once: its arithmetic is that of one pass.

    Attributes:
        log_prob: passes of ``log_prob``.
        sample: passes of ``sample``.
        sample_and_log_prob: passes of ``sample_and_log_prob``.
    """

    log_prob: int
    sample: int
    sample_and_log_prob: int


@register("discrete.NormalizingFlow")
class NormalizingFlow(BaseInvertibleFlow):
    r"""Maps a base distribution to the distribution of the data by a bijection.

    .. math:: \log p(x \mid c) = \log p_0(z) + \log|\det \partial z / \partial x|, \qquad z = \mathrm{encode}(x; c)

    The likelihood is exact, unless a map in the bijection has a random log-determinant (then it is an estimate) or is a
    surjection (a bound; such a flow has no ``decode`` and no ``rsample``). ``sample_and_log_prob`` takes one pass: no
    conditioner is evaluated twice.

    Args:
        bijection: such as ``discrete.Compose(*layers)``; ``discrete.nsf(6)`` and the other presets build whole flows.
        base: distribution of the latents; its events have the shape of the bijection's latents.
        embedding: network that maps a context to the vector that the bijection reads, such as
            ``fields.ContextEmbedding(16, classes=10)`` for class labels. It also has a vector for "no condition", which
            ``condition_dropout`` trains. Default: the bijection reads the context directly.
        event_shape: shape of one data point; only checked, not needed.
        transform: data transforms; see :meth:`with_transform`.

    Raises:
        TypeError: if ``bijection`` is not a ``bijections.Map``.
        ValueError: if the shapes of bijection, base, embedding and event do not fit.

    Example:
        >>> from cflow import bases, discrete
        >>> layers = [discrete.Coupling(discrete.Affine(), 4), discrete.Permute.reverse(4)]
        >>> flow = NormalizingFlow(discrete.Compose(*layers), bases.Normal(4))
        >>> flow.cost()
        FlowCost(log_prob=1, sample=1, sample_and_log_prob=1)
        >>> x, logp = flow.sample_and_log_prob((3,))
        >>> x.shape, logp.shape
        (torch.Size([3, 4]), torch.Size([3]))
    """

    def __init__(
        self, bijection: Map, base: Base, *, embedding: ContextEmbedding | None = None, event_shape=None, transform=()
    ):
        if not isinstance(bijection, Map):
            raise TypeError(
                f"NormalizingFlow({type(bijection).__qualname__}, ...): this is not a bijection; pass for example "
                f"discrete.Compose(*layers)."
            )
        if embedding is not None and bijection.context_shape != (embedding.width,):
            raise ValueError(
                f"NormalizingFlow(embedding of width {embedding.width}): the bijection reads contexts of shape "
                f"{bijection.context_shape}; build it with context={embedding.width}."
            )
        context_shape = bijection.context_shape if embedding is None else embedding.context_shape
        super().__init__(bijection.event_shape, context_shape, transform)
        if event_shape is not None and as_shape(event_shape) != self.event_shape:
            raise ValueError(
                f"NormalizingFlow(event_shape={event_shape}): the maps take events of shape "
                f"{list(self.event_shape)}; omit event_shape."
            )
        if base.event_shape != bijection.latent_shape:
            raise ValueError(
                f"NormalizingFlow(base with events of shape {list(base.event_shape)}): latents have shape "
                f"{list(bijection.latent_shape)}; pass for example bases.Normal({tuple(bijection.latent_shape)})."
            )
        self.bijection, self.base, self.embedding = bijection, base, embedding

    @property
    def classes(self) -> int:
        return 0 if self.embedding is None else self.embedding.classes

    def _null_context(self, context: Tensor) -> Tensor:
        if self.embedding is None:
            raise ValueError(
                'NormalizingFlow.null_context: the flow has no vector for "no condition"; build it with '
                "embedding=fields.ContextEmbedding(...)."
            )
        return self.embedding.null_context(context)

    def _read(self, context: Tensor | None) -> Tensor | None:
        """Returns the vector that the bijection reads for a context."""
        return context if self.embedding is None else self.embedding(context)

    @property
    def latent_shape(self) -> Size:
        return self.bijection.latent_shape

    def _maps(self) -> tuple[Map, ...]:
        return self.transform, self.bijection

    def cost(self) -> FlowCost:
        """Returns how many network passes ``log_prob``, ``sample`` and ``sample_and_log_prob`` take.

        Example:
            >>> from cflow import discrete
            >>> discrete.maf(3, layers=5).cost()
            FlowCost(log_prob=5, sample=5, sample_and_log_prob=5)
            >>> discrete.iaf(3, layers=5, inverse=discrete.Jacobi()).cost()
            FlowCost(log_prob=15, sample=5, sample_and_log_prob=5)
        """
        encode, decode = self.bijection.cost()
        return FlowCost(encode, decode, decode)

    def _encode(self, x: Tensor, context: Tensor | None, generator) -> tuple[Tensor, Tensor]:
        return self.bijection.encode(x, self._read(context), generator=generator)

    def _decode(self, z: Tensor, context: Tensor | None, generator, *, ladj: bool = True) -> tuple[Tensor, Tensor]:
        return self.bijection.decode(z, self._read(context), generator=generator)
