"""Shared parts of spline families: bins from raw numbers, the search for a bin, and the map outside the box."""

from __future__ import annotations

import torch
from torch import Tensor

from cflow.discrete.univariate.family import Univariate, soft_clamp

__all__ = ["Spline"]

TAILS = ("linear", "affine", "circular", "box")
FRAME = {"linear": 0, "affine": 4, "circular": 1, "box": 0}
# The largest logarithm of a learned box's scale.
WIDEST = 3.0


class Spline(Univariate):
    r"""Maps the box [-bound, bound] onto itself by a monotone function that is simple in each of ``bins`` bins.

    A subclass computes bins and slopes from rows of raw numbers (:meth:`_bins`, :meth:`_slopes`), and maps numbers
    within a bin in both directions. This class finds the bin, and maps numbers outside the box according to ``tails``:

    - ``"linear"``: the identity outside, and a slope of one at both edges.
    - ``"box"``: free slopes at the edges, with which the function continues as straight lines. For densities on the
      box: numbers outside stay outside, where a uniform base has no density.
    - ``"affine"``: as ``"box"``, with a box that is learned for every entry, separately for data and latents:
      :math:`z = b + e^{t} f\bigl((x - a) e^{-s}\bigr)`, with log-scales softly limited to 3.
    - ``"circular"``: a map of the circle, with equal slopes at both edges and a shift of the phase. Numbers outside
      are wrapped as angles; results are in [-bound, bound). Networks receive sine and cosine of such a column.

    Args:
        bins: number of bins, 2 or more.
        bound: half the length of the box.
        tails: one of the four above, or of ``allowed``.
        minimum_bin: smallest length of a bin, as a fraction of the box.
        allowed: the tails of the subclass.

    All shapes are static and the host reads no values. Numbers outside are clamped before the arithmetic of the
    spline, so that the gradient of the unused branch does not make the other NaN. Inside, bins are the first dimension,
    ``[bins, ...]``: sums over a short last dimension are slow on CPUs.
    """

    def __init__(self, bins: int, bound: float, tails: str, minimum_bin: float, allowed: tuple[str, ...] = TAILS):
        super().__init__()
        name = type(self).__name__
        if tails not in allowed:
            raise ValueError(f"{name}(tails={tails!r}): unknown tails; pass one of {allowed}.")
        if bins < 2:
            raise ValueError(f"{name}(bins={bins}): a spline has two bins or more; pass 8.")
        if not 0 < bound < float("inf"):
            raise ValueError(f"{name}(bound={bound}): the bound must be positive and finite; pass 5.0.")
        if not 0 < minimum_bin * bins < 1:
            raise ValueError(
                f"{name}(bins={bins}, minimum_bin={minimum_bin}): the bins do not fit; pass a positive number less "
                f"than {1 / bins:g}, such as 1e-3."
            )
        self.bins, self.bound, self.tails, self.minimum_bin = bins, float(bound), tails, minimum_bin
        self.period = 2 * self.bound if tails == "circular" else None

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(x, raw, 0)

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, raw, 1)

    def _map(self, value: Tensor, raw: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Maps from data (side 0) or from latents (side 1)."""
        rows = raw.to(value.dtype).movedim(-1, 0).contiguous().split(self._parts)
        if self.tails == "circular":
            value = self._wrap(value - rows[-1][0] if side else value)
            result, ladj = self._through(value, rows, side)
            return self._wrap(result if side else result + rows[-1][0]), ladj
        if self.tails == "affine":
            place, scale = rows[-1].split(2)
            scale = soft_clamp(scale, WIDEST)
            other = 1 - side
            result, ladj = self._through((value - place[side]) * (-scale[side]).exp(), rows, side)
            return torch.addcmul(place[other], result, scale[other].exp()), ladj + (scale[other] - scale[side])
        return self._through(value, rows, side)

    def _through(self, value: Tensor, rows: tuple[Tensor, ...], side: int) -> tuple[Tensor, Tensor]:
        inside = value.clamp(-self.bound, self.bound)
        table = self._bins(rows)
        index, low, size = self._locate(table, inside, side)
        slopes = self._slopes(rows, table, index)
        result, ladj = (self._down if side else self._up)(inside - low[side], low[1 - side], size, slopes)
        # Edges count as outside: there the function is known exactly, without the rounding of the last knot.
        outside = value.abs() >= self.bound
        if self.tails == "linear":
            return torch.where(outside, value, result), ladj.masked_fill(outside, 0.0)
        slope = torch.where(value > 0, slopes[1], slopes[0])
        if side:
            slope = slope.reciprocal()
        edge = inside.detach()  # on the edge itself, clamping would pass a second gradient
        straight = torch.addcmul(edge, slope, value - edge)
        return torch.where(outside, straight, result), torch.where(outside, slope.log(), ladj)

    def _locate(self, table: Tensor, inside: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the bin: its index ``[1, ...]``, and its start and length for data and latents, ``[2, ...]``.

        Lengths are gathered, since differences of knots would cancel. The start of a bin is a masked sum: its gradient
        is one product, while that of a cumulative sum takes three passes.
        """
        ends = table[side].detach().cumsum(0)
        ends[-1].fill_(float("inf"))
        passed = (ends <= inside.detach() + self.bound).to(table.dtype)
        index = passed.sum(0, keepdim=True).long()
        low = (table * passed).sum(1) - self.bound
        size = pick(table, index, 1).squeeze(1)
        return index, low, size

    def _shares(self, row: Tensor) -> Tensor:
        """Computes lengths that fill the box from raw numbers ``[..., bins, *batch]``; bins are axis 1."""
        return affine(
            row.softmax(1), 2 * self.bound * (1 - self.minimum_bin * self.bins), 2 * self.bound * self.minimum_bin
        )

    def _wrap(self, value: Tensor) -> Tensor:
        value = torch.remainder(value + self.bound, 2 * self.bound) - self.bound
        return torch.where(value >= self.bound, value - 2 * self.bound, value)  # a remainder may round up

    def _bins(self, rows: tuple[Tensor, ...]) -> Tensor:
        """Returns widths and heights ``[2, bins, ...]``."""
        raise TypeError(f"{type(self).__qualname__} does not define _bins.")

    def _slopes(self, rows: tuple[Tensor, ...], table: Tensor, index: Tensor) -> Tensor:
        """Returns the slopes ``[2, ...]`` at both ends of the bin."""
        raise TypeError(f"{type(self).__qualname__} does not define _slopes.")

    def _up(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a step from the left end of the bin to a latent; ``low`` is the latent of that end."""
        raise TypeError(f"{type(self).__qualname__} does not define _up.")

    def _down(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a step from the lower end of the bin to data; ``low`` is the data point of that end."""
        raise TypeError(f"{type(self).__qualname__} does not define _down.")

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound:g}, tails={self.tails!r}"


def affine(value: Tensor, factor: float, shift: float) -> Tensor:
    """Computes ``factor * value + shift`` in one operation."""
    return torch.rsub(value, shift, alpha=-factor)


def within(share: Tensor) -> Tensor:
    """Clamps numbers to [0, 1] that only rounding can move outside, with a gradient of one.

    The gradient of a clamp would be zero on one side of every knot, and equal bins have a knot at x = 0.
    """
    return share - (share.detach() - share.detach().clamp(0, 1))


def pick(table: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gathers along the axis of bins; ``index`` has length one there, ``table`` may have axes before it."""
    return table.gather(dim, index.expand(*table.shape[:dim], *index.shape))


def check_slope(family: Spline, slope: float) -> None:
    """Raises if the smallest slope is not between zero and one, where slopes start."""
    if not 0 < slope < 1:
        raise ValueError(f"{type(family).__name__}(minimum_slope={slope}): it must be between 0 and 1; pass 1e-3.")
