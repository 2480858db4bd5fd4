"""Sets of images as tensors: digits, MNIST, CIFAR-10 and folders of image files."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cflow.data.files import INFLATION, find, read_idx

__all__ = ["ImageData", "cifar10", "digits", "image_folder", "mnist"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What Pillow raises for broken files; Warning is for images that are too large.
BROKEN = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError,
    MemoryError, struct.error, zlib.error, Warning,
)  # fmt: skip
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
DEEP = "more than 8 bits per channel"


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Holds a set of images, split into training and test.

    Pixels stay integers. ``Dequantise(event_shape, levels)`` makes them continuous. ``Rescale(event_shape, 0, levels -
    1)`` maps them to [-1, 1].

    Args:
        train: training images, uint8 ``[N, C, H, W]`` with values 0 to ``levels - 1``.
        train_labels: their classes, int64 ``[N]``, indices into ``classes``.
        test: test images, uint8 ``[N, C, H, W]``.
        test_labels: their classes, int64 ``[N]``.
        classes: the names of the classes.
        levels: the number of different pixel values.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    levels: int = 256

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one image, ``[C, H, W]``."""
        return self.train.shape[1:]

    def __repr__(self) -> str:
        return (
            f"ImageData(train={list(self.train.shape)}, test={list(self.test.shape)}, levels={self.levels}, "
            f"classes={len(self.classes)})"
        )


def digits(test_fraction: float = 0.2, *, seed: int = 0) -> ImageData:
    """Reads the 1,797 handwritten digits of 8x8 pixels that are part of scikit-learn; there is no download.

    The fraction of every class is the same in training and test.

    Args:
        test_fraction: the fraction of images for testing.
        seed: seed of the split.

    Shapes: images ``[N, 1, 8, 8]`` with 17 levels (0 to 16).

    Raises:
        ValueError: if ``test_fraction`` is not in [0, 1).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.

    Example:
        >>> data = digits()
        >>> data
        ImageData(train=[1438, 1, 8, 8], test=[359, 1, 8, 8], levels=17, classes=10)
    """
    from sklearn.datasets import load_digits

    table = load_digits()
    images = rearrange(torch.as_tensor(table.images).to(torch.uint8), "n h w -> n 1 h w")
    labels = torch.as_tensor(table.target, dtype=torch.int64)
    train, test = stratified(labels, test_fraction, seed)
    classes = tuple(str(k) for k in range(10))
    return ImageData(images[train], labels[train], images[test], labels[test], classes, levels=17)


def mnist(root: str | os.PathLike, *, classes: Sequence[str] = tuple("0123456789")) -> ImageData:
    """Reads MNIST, or another data set with the same four files (Fashion-MNIST, KMNIST).

    The files have their usual names, with or without gzip, and are in ``root``, ``root/raw`` or ``root/MNIST/raw``.

    Args:
        root: the folder.
        classes: the names of the classes.

    Shapes: images ``[N, 1, H, W]`` with 256 levels (28x28 for MNIST).

    Raises:
        FileNotFoundError: if a file is missing; the message lists the folders and the names.
        ValueError: if a file is damaged, or images and labels do not belong together.

    Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998;
    Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017,
    arXiv:1708.07747.
    """
    root, classes = Path(root), tuple(classes)
    folders = [root, root / "raw", root / "MNIST" / "raw"]
    parts = []
    for split in ("train", "t10k"):
        paths = [
            find(folders, [f"{split}-{kind}", f"{split}-{kind}.gz", f"{split}-{dotted}", f"{split}-{dotted}.gz"])
            for kind, dotted in (("images-idx3-ubyte", "images.idx3-ubyte"), ("labels-idx1-ubyte", "labels.idx1-ubyte"))
        ]
        images, labels = (read_idx(path) for path in paths)
        if images.ndim != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"mnist({str(root)!r}): {paths[0].name} has {images.dtype} of shape {list(images.shape)}, not uint8 "
                f"images [N, H, W]; perhaps the files are swapped."
            )
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"mnist({str(root)!r}): {paths[0].name} has {len(images)} images, but {paths[1].name} has labels of "
                f"shape {list(labels.shape)}; get both from one source."
            )
        labels = checked_labels(labels, classes, paths[1])
        parts += [rearrange(images, "n h w -> n 1 h w"), labels]
    return ImageData(*parts, classes)


def cifar10(root: str | os.PathLike) -> ImageData:
    """Reads CIFAR-10 in its binary version.

    The files ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin`` are in ``root``,
    ``root/cifar-10-batches-bin`` or ``root/cifar10``.

    Args:
        root: the folder.

    Shapes: images ``[N, 3, 32, 32]`` with 256 levels.

    Raises:
        FileNotFoundError: if a file is missing; the message lists the folders and the names.
        ValueError: if the size of a file is not a multiple of 3,073 bytes, or a label is above 9.

    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    root = Path(root)
    folders = [root, root / "cifar-10-batches-bin", root / "cifar10"]

    def read(name: str) -> tuple[Tensor, Tensor]:
        path = find(folders, [name])
        raw = np.fromfile(path, dtype=np.uint8)
        if raw.size == 0 or raw.size % 3073:
            raise ValueError(
                f"cifar10({str(root)!r}): {path} has {raw.size} bytes, not a multiple of 3,073; get the binary version "
                f"again."
            )
        records = torch.from_numpy(raw.reshape(-1, 3073))
        labels = checked_labels(records[:, 0], CIFAR10_CLASSES, path)
        return rearrange(records[:, 1:], "n (c h w) -> n c h w", c=3, h=32).contiguous(), labels

    batches = [read(f"data_batch_{k}.bin") for k in range(1, 6)]
    train, train_labels = (torch.cat(part) for part in zip(*batches))
    return ImageData(train, train_labels, *read("test_batch.bin"), CIFAR10_CLASSES)


def image_folder(
    root: str | os.PathLike,
    size: int | tuple[int, int],
    *,
    channels: int = 3,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Reads a folder of png, jpg and webp files, crops each image around its centre and resizes it.

    The sub-folders of ``root`` that contain images, at any depth, are the classes, in alphabetical order. Without
    sub-folders there is one class, named after ``root``. The camera's orientation is applied. Transparency is dropped.

    Args:
        root: the folder.
        size: the side of the resized images in pixels, or ``(height, width)``.
        channels: 3 for colour or 1 for grey.
        test_fraction: the fraction of images for testing, the same in every class.
        seed: seed of the split.

    Shapes: images ``[N, channels, H, W]`` with 256 levels. Cost: one pass over the files; the resized images are kept
    in memory, one byte per channel of a pixel.

    Raises:
        FileNotFoundError: if ``root`` is not a folder or contains no image.
        ValueError: if images cannot be read or have more than 8 bits per channel (the message lists the files), if
            images are next to class folders, or if an argument is out of range.
    """
    root = Path(root)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1 or channels not in (1, 3):
        raise ValueError(
            f"image_folder(size={size}, channels={channels}): pass a size of at least 1, and 1 or 3 channels."
        )
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"image_folder({str(root)!r}): this is a file; pass a folder of images.")
    if not root.is_dir():
        raise FileNotFoundError(f"image_folder({str(root)!r}): no such folder; pass a folder of images.")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not paths:
        raise FileNotFoundError(
            f"image_folder({str(root)!r}): no {', '.join(sorted(PICTURES))} in it or its sub-folders; pass another "
            f"folder, or convert the images."
        )
    tops = [path.relative_to(root).parts[0] if path.parent != root else None for path in paths]
    if None in tops and len(set(tops)) > 1:
        raise ValueError(
            f"image_folder({str(root)!r}): {tops.count(None)} images are next to sub-folders of images, so they have "
            f"no class; move them into one."
        )
    classes = (root.resolve().name,) if None in tops else tuple(sorted(set(tops)))
    labels = torch.tensor([0 if top is None else classes.index(top) for top in tops])
    train, test = stratified(labels, test_fraction, seed)

    images = torch.empty(len(paths), channels, height, width, dtype=torch.uint8)
    unreadable, deep = [], 0
    for k, path in enumerate(paths):
        try:
            images[k] = _picture(path, height, width, channels)
        except BROKEN as error:
            unreadable.append(f"{path} ({error})")
            deep += str(error) == DEEP
    if unreadable:
        shown = "; ".join(unreadable[:10]) + ("; ..." if len(unreadable) > 10 else "")
        remedies = ["repair or remove them"] if deep < len(unreadable) else []
        # Pillow alone is not enough: it clips grey images of 16 bits when it converts them.
        remedies += ["reduce to 8 bits, with ImageMagick: magick IN.png -depth 8 OUT.png"] if deep else []
        raise ValueError(
            f"image_folder({str(root)!r}): {len(unreadable)} of {len(paths)} images cannot be read: {shown}. "
            f"Remedy: {', or '.join(remedies)}"
        )
    return ImageData(images[train], labels[train], images[test], labels[test], classes)


def stratified(labels: Tensor, test_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits indices into training and test, class by class, in the order of the data."""
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction}: this must be at least 0 and below 1; pass for instance 0.2.")
    # Each image gets a random rank in its class; the first round(fraction * count) of a class are its test set.
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    is_test = rank < torch.round(counts * test_fraction)[labels]
    return torch.nonzero(~is_test)[:, 0], torch.nonzero(is_test)[:, 0]


def checked_labels(labels: Tensor, classes: tuple[str, ...], path: Path) -> Tensor:
    """Converts labels to int64; raises if a label has no class."""
    labels = labels.to(torch.int64)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"{path}: labels from {int(labels.min())} to {int(labels.max())}, but there are {len(classes)} classes; "
            f"the file is damaged, or from another set."
        )
    return labels


def _picture(path: Path, height: int, width: int, channels: int) -> Tensor:
    """Reads one image, crops its centre to the aspect ratio and resizes it."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(path)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from None
    with opened:
        # Pillow opens a colour PNG of 16 bits per channel as one of 8, without a warning; so the header is read.
        if opened.mode.startswith(("I", "F")) or (opened.format == "PNG" and _bits(path) > 8):
            raise ValueError(DEEP)
        if opened.format in ("PNG", "JPEG") and opened.width * opened.height > 8 * INFLATION * path.stat().st_size:
            raise ValueError(f"{opened.width}x{opened.height} pixels do not fit into {path.stat().st_size} bytes")
        picture = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(fitted))
    return rearrange(pixels, "h w -> 1 h w" if channels == 1 else "h w c -> c h w")


def _bits(path: Path) -> int:
    """Reads the bits per channel from the header of a PNG file."""
    with path.open("rb") as file:
        return file.read(25)[24]
