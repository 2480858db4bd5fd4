"""Straight lines on a mesh: they go on across edges as if the two triangles lay in one plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["turns", "walk"]

LONGEST = 20_000  # triangles


def turns(corners: Tensor, slopes: Tensor, beyond: Tensor, entry: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Computes what happens to points that leave triangles: ``(face, entry, order, turn)`` for each edge, ``[3 F]``.

    Row ``3 f + i`` belongs to the edge of triangle ``f`` opposite to its corner ``i``. The weight of corner ``j`` of
    the new ``face`` is the old weight ``order[j]``, and ``turn [3, 3]`` maps rates of change of the weights. At the
    boundary the line continues along the edge: the part of its velocity across the edge is lost.

    Args:
        corners: the corners ``[F, 3, 3]``.
        slopes: the gradients of the weights ``[F, 3, 3]``.
        beyond: the triangle across each edge ``[F, 3]``, -1 at the boundary.
        entry: its corner opposite to the edge ``[F, 3]``.
    """
    inward = slopes / slopes.norm(dim=-1, keepdim=True)
    own, corner = torch.arange(len(corners)).unsqueeze(1).expand(-1, 3), torch.arange(3).expand(len(corners), -1)
    open_end = beyond < 0
    face, entry = torch.where(open_end, own, beyond), torch.where(open_end, corner, entry)
    # u - <u, inward> (inward + inward of the neighbour); at the boundary without the last.
    ahead = torch.where(open_end.unsqueeze(-1), 0.0, inward[face, entry])
    turned = torch.eye(3, dtype=corners.dtype) - (inward + ahead).unsqueeze(-1) * inward.unsqueeze(-2)
    sides = (corners - corners.mean(1, keepdim=True)).transpose(1, 2).unsqueeze(1)
    turn = slopes[face] @ turned @ sides
    place = torch.arange(3).expand(*face.shape, 3)
    order = torch.where(open_end.unsqueeze(-1), place, (corner.unsqueeze(-1) - place + entry.unsqueeze(-1)) % 3)
    return face.reshape(-1), entry.reshape(-1), order.reshape(-1, 3), turn.reshape(-1, 3, 3)


def walk(mesh, face: Tensor, weights: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Follows straight lines for a unit of time: ``(face [n], weights [n, 3])`` of the ends.

    Args:
        mesh: the mesh, with the tables of :func:`turns`.
        face: the triangles of the starts ``[n]``.
        weights: the weights of their corners ``[n, 3]``.
        rate: the rates of change of the weights ``[n, 3]``, which sum to zero.

    Raises:
        RuntimeError: for a line that crosses more than 20,000 triangles.
    """
    index, left, entry = torch.arange(len(face), device=face.device), torch.ones_like(weights[:, 0]), None
    corners, ends = torch.arange(3, device=face.device), []
    for _ in range(LONGEST):
        leaving = rate < 0 if entry is None else (rate < 0) & (corners != entry.unsqueeze(1))
        time = torch.where(leaving, weights / torch.where(leaving, -rate, 1.0), math.inf)
        time, corner = time.min(1)
        stays = ~(time < left)
        weights = (weights + torch.minimum(time, left).unsqueeze(1) * rate).clamp(min=0)
        ends.append((index[stays], face[stays], weights[stays]))
        onward = (~stays).nonzero().squeeze(1)
        if not len(onward):
            break
        side = 3 * face[onward] + corner[onward]
        index, left = index[onward], (left - time)[onward]
        weights = weights[onward].gather(1, mesh._order[side])
        rate = (mesh._turn[side].to(rate.dtype) @ rate[onward].unsqueeze(-1)).squeeze(-1)
        face, entry = mesh._face[side], mesh._entry[side]
    else:
        raise RuntimeError(f"{mesh!r}.exp: a line crosses over {LONGEST} triangles; pass shorter tangent vectors.")
    index, face, weights = (torch.cat(each) for each in zip(*ends))
    back = index.argsort()
    weights = weights[back]
    return face[back], weights / weights.sum(1, keepdim=True)
