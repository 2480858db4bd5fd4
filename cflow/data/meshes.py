"""Reading triangle meshes from files of the formats OBJ and OFF."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cflow.data.files import find

__all__ = ["read_mesh"]


def read_mesh(path: str | os.PathLike) -> tuple[Tensor, Tensor]:
    """Reads the points and triangles of a ``.obj`` or ``.off`` file: ``(vertices [V, 3], faces [F, 3])``.

    A face with more than three corners is cut into triangles at its first corner, which is right for convex faces.
    Normals, textures, colours, lines and groups are skipped.

    Args:
        path: the file.

    Shapes: the points have torch's default dtype, the corners are rows of the points, int64.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, a line that is not valid, or a corner that no point has.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "triangle.obj")
        >>> _ = file.write_text("v 0 0 0\\nv 1 0 0\\nv 0 1 0\\nf 1 2 3\\n")
        >>> read_mesh(file)[1]
        tensor([[0, 1, 2]])
    """
    path = find([Path(path).parent], [Path(path).name])
    readers = {".obj": _read_obj, ".off": _read_off}
    if path.suffix.lower() not in readers:
        raise ValueError(f"read_mesh({str(path)!r}): the name ends in {path.suffix!r}; pass a .obj or .off file.")
    vertices, faces = [], []
    number = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, kind, values in readers[path.suffix.lower()](lines):  # noqa: B007 (named in the error)
            if kind == "v":
                x, y, z = map(float, values[:3])
                vertices.append((x, y, z))
                continue
            corners = [int(each) for each in values]
            if len(corners) < 3:
                raise ValueError
            faces += [(corners[0], one, two) for one, two in itertools.pairwise(corners[1:])]
    except ValueError as error:
        raise ValueError(
            f"read_mesh({str(path)!r}): line {number or getattr(error, 'line', 1)} is not valid; get the file again."
        ) from None
    if not faces:
        raise ValueError(f"read_mesh({str(path)!r}): the file has no faces; pass a mesh of triangles.")
    points, corners = torch.tensor(vertices), torch.tensor(faces)
    if int(corners.min()) < 0 or int(corners.max()) >= len(points):
        raise ValueError(
            f"read_mesh({str(path)!r}): a face has corner {int(corners.max())}, and there are {len(points)} points "
            f"(counted from 0); get the file again."
        )
    return points, corners


def _read_obj(lines: list[str]) -> Iterator[tuple[int, str, list]]:
    """Yields points and faces; corners count from 1, or backwards from the last point if they are negative."""
    count = 0
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words[:1] == ["v"]:
            count += 1
            yield number, "v", words[1:]
        elif words[:1] == ["f"]:
            each = (word.split("/")[0] for word in words[1:])
            yield number, "f", [int(word) - 1 if int(word) > 0 else int(word) + count for word in each]


def _read_off(lines: list[str]) -> Iterator[tuple[int, str, list]]:
    """Yields points and faces after the line of counts."""
    rows = [(number, line.split("#")[0].split()) for number, line in enumerate(lines, 1)]
    rows = [(number, words) for number, words in rows if words]
    if not rows or rows[0][1][0] != "OFF":
        raise ValueError
    rows[0] = (rows[0][0], rows[0][1][1:])
    rows = [row for row in rows if row[1]]
    if not rows or len(rows[0][1]) < 2:
        raise ValueError
    points, faces = int(rows[0][1][0]), int(rows[0][1][1])
    if len(rows) < 1 + points + faces:
        raise ValueError
    for number, words in rows[1 : 1 + points]:
        yield number, "v", words
    for number, words in rows[1 + points : 1 + points + faces]:
        yield number, "f", words[1 : 1 + int(words[0])]
