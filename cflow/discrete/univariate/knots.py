"""What spline families share: bins from raw numbers, the search for a bin, and what happens outside the box."""

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
    r"""Maps a box of numbers onto itself by a monotone function that is simple in each of ``bins`` bins.

    A subclass turns rows of raw numbers into bins and slopes (:meth:`_bins`, :meth:`_slopes`), and maps what lies in a
    bin up and down. This class finds the bin and takes care of what lies outside:

    - ``"linear"``: the identity outside, and a slope of one at both edges.
    - ``"box"``: free slopes at the edges, with which the function goes on in straight lines. For densities on the
      box itself: what lies outside stays outside, where a uniform base gives it no density.
    - ``"affine"``: the same, with a box that is learned for every entry, on the side of the data and on that of the
      latents: :math:`z = b + e^{t} f\bigl((x - a) e^{-s}\bigr)`, log-scales softly clamped to 3.
    - ``"circular"``: a map of the circle, with equal slopes where it closes and a shift of the phase. Numbers outside
      are taken to be angles and wrapped; results lie in [-bound, bound). Networks that know such a column see its sine
      and cosine.

    Everything has a static shape, nothing is read by the host, and numbers outside are clamped before the arithmetic
    of the spline, so that no gradient of the branch not taken can spoil the other's. Bins come first inside, ``[bins,
    ...]``: sums over a short last dimension are the slowest thing a CPU can be asked for.
    """

    def __init__(self, bins: int, bound: float, tails: str, minimum_bin: float, allowed: tuple[str, ...] = TAILS):
        super().__init__()
        name = type(self).__name__
        if tails not in allowed:
            raise ValueError(f"{name}(tails={tails!r}): not a way to go on outside the box; pass one of {allowed}.")
        if bins < 2:
            raise ValueError(f"{name}(bins={bins}): a spline has two bins or more; pass 8.")
        if not 0 < bound < float("inf"):
            raise ValueError(f"{name}(bound={bound}): the box [-bound, bound] is finite and not empty; pass 5.0.")
        if not 0 < minimum_bin * bins < 1:
            raise ValueError(
                f"{name}(bins={bins}, minimum_bin={minimum_bin}): the smallest bin is a positive fraction of the box, "
                f"and all together fill less than the box; pass less than {1 / bins:g}, such as 1e-3."
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
        # Edges count as outside: there the function is known exactly, whatever rounding does to the last knot.
        outside = value.abs() >= self.bound
        if self.tails == "linear":
            return torch.where(outside, value, result), ladj.masked_fill(outside, 0.0)
        slope = torch.where(value > 0, slopes[1], slopes[0])
        if side:
            slope = slope.reciprocal()
        edge = inside.detach()  # on the edge itself, clamping would pass a gradient of its own
        straight = torch.addcmul(edge, slope, value - edge)
        return torch.where(outside, straight, result), torch.where(outside, slope.log(), ladj)

    def _locate(self, table: Tensor, inside: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the bin: its number ``[1, ...]``, and on both sides where it begins and how long it is, ``[2, ...]``.

        Lengths are gathered rather than taken as differences of knots, which would cancel. A bin's beginning is a
        masked sum, whose gradient is one product where that of a cumulative sum is three passes.
        """
        ends = table[side].detach().cumsum(0)
        ends[-1].fill_(float("inf"))
        passed = (ends <= inside.detach() + self.bound).to(table.dtype)
        index = passed.sum(0, keepdim=True).long()
        low = (table * passed).sum(1) - self.bound
        size = pick(table, index, 1).squeeze(1)
        return index, low, size

    def _shares(self, row: Tensor) -> Tensor:
        """Turns raw numbers ``[..., bins, *batch]`` into lengths that fill the box; bins are axis 1."""
        return affine(
            row.softmax(1), 2 * self.bound * (1 - self.minimum_bin * self.bins), 2 * self.bound * self.minimum_bin
        )

    def _wrap(self, value: Tensor) -> Tensor:
        value = torch.remainder(value + self.bound, 2 * self.bound) - self.bound
        return torch.where(value >= self.bound, value - 2 * self.bound, value)  # a remainder may round up

    def _bins(self, rows: tuple[Tensor, ...]) -> Tensor:
        """Gives widths and heights ``[2, bins, ...]``."""
        raise TypeError(f"{type(self).__qualname__} does not define _bins.")

    def _slopes(self, rows: tuple[Tensor, ...], table: Tensor, index: Tensor) -> Tensor:
        """Gives the slopes ``[2, ...]`` at both ends of the bin."""
        raise TypeError(f"{type(self).__qualname__} does not define _slopes.")

    def _up(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a step from the bin's left end to a latent, which begins at ``low``."""
        raise TypeError(f"{type(self).__qualname__} does not define _up.")

    def _down(self, step: Tensor, low: Tensor, size: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a step from the bin's lower end to data, which begin at ``low``."""
        raise TypeError(f"{type(self).__qualname__} does not define _down.")

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound:g}, tails={self.tails!r}"


def affine(value: Tensor, factor: float, shift: float) -> Tensor:
    """Gives ``factor * value + shift`` in one operation."""
    return torch.rsub(value, shift, alpha=-factor)


def within(share: Tensor) -> Tensor:
    """Clamps to [0, 1] what rounding alone can carry outside, with the gradient that it has inside.

    A clamp's own gradient would be zero on one side of every knot, and equal bins put a knot on x = 0.
    """
    return share - (share.detach() - share.detach().clamp(0, 1))


def pick(table: Tensor, index: Tensor, dim: int) -> Tensor:
    """Gathers along the axis of bins, of which ``index`` has one entry and ``table`` any number before it."""
    return table.gather(dim, index.expand(*table.shape[:dim], *index.shape))


def check_slope(family: Spline, slope: float) -> None:
    """Raises where a minimum of slopes is not below the one they start at."""
    if not 0 < slope < 1:
        raise ValueError(
            f"{type(family).__name__}(minimum_slope={slope}): slopes are positive and start at one; pass a number "
            f"between 0 and 1, such as 1e-3."
        )
