"""Pictures of images: a grid of them, and their way from noise."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from einops import rearrange
from torch import Tensor

from cflow.plot.figure import cells, numbers, save

__all__ = ["image_trajectories", "images"]


def images(
    x: Tensor,
    path: str | os.PathLike,
    *,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
) -> Path:
    """Draws images in a grid, small ones enlarged without blur.

    Shapes: ``x [N, C, H, W]`` with C = 1 or 3 and values in [0, 1] (beyond it they are clipped); ``titles`` one per
    image, ``rows`` the names of the rows. ``columns=None`` makes the grid about square.

    Raises:
        ValueError: if ``x`` is not a batch of images or is empty, or there is not one of ``titles`` per image,
            one of ``rows`` per row.
    """
    pixels = _pixels("plot.images", x)
    count, height, width = pixels.shape[:3]
    if titles is not None and len(titles) != count:
        raise ValueError(
            f"plot.images({len(titles)} titles for {count} images): pass one title per image, or leave them out."
        )
    columns = min(count, columns or math.ceil(math.sqrt(count * height / width)))
    if rows is not None and len(rows) != math.ceil(count / columns):
        lines = math.ceil(count / columns)
        raise ValueError(f"plot.images({len(rows)} names for {lines} rows): pass one name per row, or leave them out.")
    cell = max(0.5, min(1.2, 12 / columns))
    figure, axes = cells(math.ceil(count / columns), columns, cell, cell * height / width, 0.24 if titles else 0.0)
    for k in range(count):
        axis = axes(k // columns, k % columns)
        _show(axis, pixels[k])
        if titles is not None:
            axis.set_title(titles[k], fontsize=8, pad=3)
        if rows is not None and k % columns == 0:
            axis.text(-0.08, 0.5, rows[k // columns], transform=axis.transAxes, ha="right", va="center", fontsize=9)
    return save(figure, path)


def image_trajectories(
    trajectory: Tensor, path: str | os.PathLike, *, times: Sequence[float] | Tensor | None = None
) -> Path:
    """Draws images on their way from noise: one row per sample, one column per time.

    Shapes: ``trajectory [T, B, C, H, W]`` with values in [0, 1] (beyond it they are clipped), ``times [T]``.

    Raises:
        ValueError: if the trajectory is not ``[T, B, C, H, W]``, or ``times`` are not one per column.
    """
    if trajectory.ndim != 5:
        raise ValueError(
            f"plot.image_trajectories(trajectory of shape {list(trajectory.shape)}): images at several times are "
            f"needed, [T, B, C, H, W]; for points in the plane use plot.trajectories."
        )
    count, rows = trajectory.shape[:2]
    if times is not None and len(times) != count:
        raise ValueError(f"plot.image_trajectories({len(times)} times for {count} columns): pass one time per column.")
    pixels = _pixels("plot.image_trajectories", rearrange(trajectory, "t b c h w -> (b t) c h w"))
    cell = max(0.45, min(1.0, 10 / count))
    figure, axes = cells(rows, count, cell, cell * pixels.shape[1] / pixels.shape[2])
    for k in range(rows * count):
        axis = axes(k // count, k % count)
        _show(axis, pixels[k])
        if times is not None and k < count:
            axis.set_title(f"t = {float(times[k]):.2g}" if k == 0 else f"{float(times[k]):.2g}", fontsize=8, pad=4)
    return save(figure, path)


def _pixels(name: str, x: Tensor):
    """Checks images and lays their channels last."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"{name}({x.dtype} of shape {list(x.shape)}): images are floats in [0, 1] of shape [N, 1 or 3, H, W]; "
            f"divide integer levels by the largest, and pass at least one image."
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
