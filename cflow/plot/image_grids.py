"""Pictures of images: a grid of images, and their trajectories from noise."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor

from cflow.plot.figure import cells, finish, numbers

__all__ = ["image_trajectories", "images"]


def images(
    x: Tensor | Mapping[str, Tensor],
    path: str | os.PathLike | None = None,
    *,
    columns: int | Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
):
    """Draws images in a grid, small ones enlarged without blur.

    Args:
        x: ``[N, C, H, W]`` with C = 1 or 3 and values in [0, 1] (others are clipped); or a dict that maps names to
            images, one row each (all with the same number).
        path: the file to write; None writes no file.
        columns: number of columns, or their names, such as class labels. None: an almost square grid.
        titles: titles of the images, one each.
        rows: names of the rows.

    Returns the figure.

    Raises:
        ValueError: if ``x`` is not a batch of images or is empty, or the number of ``titles`` or ``rows`` is wrong.

    Example:
        >>> images({"first": torch.rand(3, 1, 8, 8), "second": torch.rand(3, 1, 8, 8)}, columns=["a", "b", "c"])
        <Figure size ...>
    """
    if isinstance(x, Mapping):
        counts = {name: len(each) for name, each in x.items()}
        if not counts or len(set(counts.values())) > 1 or rows is not None:
            raise ValueError(
                f"plot.images(dict of {counts}): each entry is a row; pass the same number of images in each, and omit "
                f"rows=."
            )
        rows, columns = list(x), next(iter(counts.values())) if columns is None else columns
        x = torch.cat(list(x.values()))
    heads = None if columns is None or isinstance(columns, int) else list(columns)
    columns = columns if heads is None else len(heads)
    pixels = _pixels("plot.images", x)
    count, height, width = pixels.shape[:3]
    if titles is not None and len(titles) != count:
        raise ValueError(f"plot.images({len(titles)} titles for {count} images): pass one title per image, or none.")
    columns = min(count, columns or math.ceil(math.sqrt(count * height / width)))
    if rows is not None and len(rows) != math.ceil(count / columns):
        lines = math.ceil(count / columns)
        raise ValueError(f"plot.images({len(rows)} names for {lines} rows): pass one name per row, or none.")
    cell = max(0.5, min(1.2, 12 / columns))
    figure, axes = cells(math.ceil(count / columns), columns, cell, cell * height / width, 0.24 if titles else 0.0)
    if heads is not None and (titles is not None or len(heads) > count):
        raise ValueError(f"plot.images(columns={heads}): pass no more names than images ({count}), and omit titles=.")
    for k in range(count):
        axis = axes(k // columns, k % columns)
        _show(axis, pixels[k])
        if titles is not None:
            axis.set_title(titles[k], fontsize=8, pad=3)
        if heads is not None and k < columns:
            axis.set_title(heads[k], fontsize=9, pad=3)
        if rows is not None and k % columns == 0:
            axis.text(-0.08, 0.5, rows[k // columns], transform=axis.transAxes, ha="right", va="center", fontsize=9)
    return finish(figure, path)


def image_trajectories(
    trajectory: Tensor,
    path: str | os.PathLike | None = None,
    *,
    times: Sequence[float] | Tensor | None = None,
    rows: Sequence[str] | None = None,
):
    """Draws the trajectories of images from noise: one row per sample, one column per time.

    Args:
        trajectory: ``[T, B, C, H, W]`` with values in [0, 1] (others are clipped).
        path: the file to write; None writes no file.
        times: the times ``[T]``, shown over the columns.
        rows: names of the samples.

    Returns the figure.

    Raises:
        ValueError: if the trajectory is not ``[T, B, C, H, W]``, or the number of ``times`` or ``rows`` is wrong.
    """
    if trajectory.ndim != 5:
        raise ValueError(
            f"plot.image_trajectories(trajectory of shape {list(trajectory.shape)}): expected [T, B, C, H, W]; for "
            f"points in the plane use plot.trajectories."
        )
    count, samples = trajectory.shape[:2]
    if rows is not None and len(rows) != samples:
        raise ValueError(f"plot.image_trajectories({len(rows)} names for {samples} rows): pass one name per sample.")
    if times is not None and len(times) != count:
        raise ValueError(f"plot.image_trajectories({len(times)} times for {count} columns): pass one time per column.")
    pixels = _pixels("plot.image_trajectories", rearrange(trajectory, "t b c h w -> (b t) c h w"))
    cell = max(0.45, min(1.0, 10 / count))
    figure, axes = cells(samples, count, cell, cell * pixels.shape[1] / pixels.shape[2])
    for k in range(samples * count):
        axis = axes(k // count, k % count)
        _show(axis, pixels[k])
        if times is not None and k < count:
            axis.set_title(f"t = {float(times[k]):.2g}" if k == 0 else f"{float(times[k]):.2g}", fontsize=8, pad=4)
        if rows is not None and k % count == 0:
            axis.text(-0.1, 0.5, rows[k // count], transform=axis.transAxes, ha="right", va="center", fontsize=9)
    return finish(figure, path)


def _pixels(name: str, x: Tensor):
    """Checks images and moves their channels to the last dimension."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"{name}({x.dtype} of shape {list(x.shape)}): images are floats in [0, 1] of shape [N, 1 or 3, H, W]; "
            f"divide integer levels by the largest."
        )
    return numbers(rearrange(x.detach().float().clamp(0, 1), "n c h w -> n h w c"))


def _show(axis, pixels) -> None:
    """Draws one image: small ones with sharp pixels, large ones smoothly."""
    interpolation = "nearest" if max(pixels.shape[:2]) <= 64 else "antialiased"
    axis.imshow(
        pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
        cmap="gray",
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation=interpolation,
    )
