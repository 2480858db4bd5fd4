"""Surfaces given by triangles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Size, Tensor, nn

from cflow.arguments import check_integer
from cflow.manifolds.descent import descend, limited
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.mesh.closest import build_grid, closest
from cflow.manifolds.mesh.distances import Biharmonic
from cflow.manifolds.mesh.laplacian import eigenpairs as compute_eigenpairs
from cflow.manifolds.mesh.topology import check, neighbours
from cflow.manifolds.mesh.walk import turns, walk
from cflow.manifolds.numerics import norm
from cflow.registry import register

__all__ = ["Mesh"]


@register("manifolds.Mesh")
class Mesh(Manifold, nn.Module):
    r"""A surface of triangles in three dimensions, with or without boundary.

    Points are points of the triangles, and tangent vectors are parallel to the triangle of their point. :meth:`exp`
    follows a straight line, which goes on across an edge as if the two triangles lay in one plane; at a boundary it
    continues along the boundary. :meth:`project` returns the closest point, exactly for points near the surface.
    Between points there is a spectral distance, from the eigenfunctions of the cotangent Laplacian:

    .. math:: d(x, y)^2 = \sum_{k=1}^K w(\lambda_k) \, (\varphi_k(x) - \varphi_k(y))^2

    It is not the length of a geodesic: :meth:`dist` and :meth:`cost` return this distance, and :meth:`log` and
    :meth:`geodesic` are not available. Train flows on :class:`cflow.paths.Premetric`, which needs only the distance.

    The tables are saved with the flow. They stay in float32 or better.

    Args:
        vertices: the corners of the triangles ``[V, 3]``; those that no triangle uses are dropped.
        faces: for each triangle the rows of its corners in ``vertices``, ``[F, 3]``, all in the same sense of rotation.
        eigenpairs: the number K of eigenfunctions, which are computed here; or positive eigenvalues ``[K]`` and
            eigenfunctions at the vertices ``[V, K]``. Default: None, 200, or all of a smaller mesh.
        distance: the weights of the distance, such as ``manifolds.Diffusion(0.25)``. Default: None,
            ``manifolds.Biharmonic()``.

    Shapes: points ``[*batch, 3]``. Cost: 200 eigenpairs of 2,930 vertices take 8 s. A closest point compares some 30
    triangles; a line, one round of operations for each edge that it crosses.

    Raises:
        ValueError: if the tables do not describe one connected surface with consistently oriented triangles that all
            have an area; for a number of eigenpairs that the mesh does not have.

    Source: Chen and Lipman, Flow Matching on General Geometries, 2023, arXiv:2302.03660, section 3.2; Polthier and
    Schmies, Straightest Geodesics on Polyhedral Surfaces, 1998.

    Example:
        >>> square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
        >>> mesh = Mesh(square, torch.tensor([[0, 1, 2], [0, 2, 3]]), eigenpairs=2)
        >>> mesh.exp(torch.tensor([0.75, 0.25, 0.0]), torch.tensor([-0.5, 0.5, 0.0]))
        tensor([0.2500, 0.7500, 0.0000])
    """

    dim = 2
    fixed_buffers = True  # training steps do not change the tables, so they are not averaged

    def __init__(
        self,
        vertices: Tensor,
        faces: Tensor,
        eigenpairs: int | Sequence[Tensor] | None = None,
        distance=None,
    ):
        super().__init__()
        if vertices.dim() != 2 or vertices.shape[1] != 3 or faces.dim() != 2 or faces.shape[1] != 3 or not len(faces):
            raise ValueError(
                f"Mesh(vertices {list(vertices.shape)}, faces {list(faces.shape)}): pass points [V, 3] and the corners "
                f"of triangles [F, 3]."
            )
        self.distance = Biharmonic() if distance is None else distance
        vertices = vertices.detach()
        vertices = vertices.to(torch.promote_types(vertices.dtype, torch.float32))
        check(vertices.cpu().double().numpy(), faces.cpu().numpy())
        used, faces = faces.detach().long().unique(return_inverse=True)
        self.register_buffer("vertices", vertices[used].clone())
        self.register_buffer("faces", faces)
        if eigenpairs is None or isinstance(eigenpairs, int):
            eigenpairs = self._compute(eigenpairs)
        values, functions = eigenpairs
        if values.dim() != 1 or functions.shape != (len(self.vertices), len(values)):
            raise ValueError(
                f"Mesh(eigenpairs of shapes {list(values.shape)}, {list(functions.shape)}): pass eigenvalues [K] and "
                f"eigenfunctions [{len(self.vertices)}, K]."
            )
        self.register_buffer("eigenvalues", values.detach().to(vertices).clone())
        self.register_buffer("eigenfunctions", functions.detach().to(vertices).clone())
        self._derive()

    def _compute(self, count: int | None) -> tuple[Tensor, Tensor]:
        """Computes the eigenpairs."""
        most = len(self.vertices) - 1
        count = min(200, most) if count is None else count
        advice = f"this mesh has from 1 to {most} eigenfunctions that are not constant; pass 200, or {most} if fewer."
        check_integer("Mesh", "eigenpairs", count, 1, advice)
        if count > most:
            raise ValueError(f"Mesh(eigenpairs={count}): {advice}")
        pairs = compute_eigenpairs(self.vertices.cpu().double().numpy(), self.faces.cpu().numpy(), count)
        return torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1])

    def _derive(self) -> None:
        """Computes the tables that are not saved, in float64."""
        faces, like = self.faces.cpu(), self.vertices
        corners = like.cpu().double()[faces]
        sides = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        normal = torch.linalg.cross(*sides)
        twice_area = normal.norm(dim=1, keepdim=True)
        normal = normal / twice_area
        # The weight of a corner grows across the opposite edge.
        edges = corners.roll(-2, 1) - corners.roll(-1, 1)
        slopes = torch.linalg.cross(normal.unsqueeze(1).expand_as(edges), edges) / twice_area.unsqueeze(-1)
        first = sides[0] / sides[0].norm(dim=1, keepdim=True)
        beyond, entry = map(torch.from_numpy, neighbours(faces.numpy()))
        face, entry, order, turn = turns(corners, slopes, beyond, entry)
        grid = build_grid(corners)
        values, functions = self.eigenvalues.cpu().double(), self.eigenfunctions.cpu().double()
        tables = {
            "corners": corners, "normals": normal, "slopes": slopes, "turn": turn,
            "vertex_normals": _vertex_normals(faces, edges, normal, len(self.vertices)),
            "frames": torch.stack((first, torch.linalg.cross(normal, first)), 1),
            "embedded": functions * self.distance.weights(values).sqrt(),
            **{name: grid[name] for name in ("origin", "size", "centre", "distances")},
        }  # fmt: skip
        tables = {name: table.to(like.dtype) for name, table in tables.items()}
        tables |= {name: grid[name] for name in ("shape", "row", "start", "candidates")}
        tables |= {"face": face, "entry": entry, "order": order}
        area = twice_area.squeeze(1) / 2
        self._log_area = math.log(float(area.sum()))
        for name, table in tables.items():
            self.register_buffer(f"_{name}", table.to(like.device), persistent=False)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts as modules do, but keeps float32 at least; new dtypes get new tables."""
        before = {name: getattr(self, name) for name in ("vertices", "eigenvalues", "eigenfunctions")}
        super()._apply(fn, recurse)
        if self.vertices.dtype in (torch.bfloat16, torch.float16):
            for name, value in before.items():
                setattr(self, name, value.to(self.vertices.device))
            self._derive()
        elif self.vertices.dtype != before["vertices"].dtype:
            self._derive()
        return self

    @property
    def eigenpairs(self) -> tuple[Tensor, Tensor]:
        """The positive eigenvalues ``[K]`` and the eigenfunctions at the vertices ``[V, K]``."""
        return self.eigenvalues, self.eigenfunctions

    @property
    def event_shape(self) -> Size:
        return Size([3])

    @property
    def log_volume(self) -> float:
        """The logarithm of the area."""
        return self._log_area

    def __repr__(self) -> str:
        sizes = f"{len(self.vertices)} vertices, {len(self.faces)} faces, {len(self.eigenvalues)} eigenpairs"
        return f"Mesh({sizes}, {self.distance!r})"

    # Points of the ambient space and points of triangles

    def locate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the closest points of the triangles: ``(face [*batch], weights of its corners [*batch, 3])``.

        The weights have the gradients of the plane of the triangle.

        Args:
            x: points of the ambient space ``[*batch, 3]``.
        """
        face, weights = closest(self, x.detach().reshape(-1, 3))
        face, weights = face.reshape(x.shape[:-1]), weights.reshape(x.shape)
        return face, weights + self._rates(face, x - x.detach())

    def points(self, face: Tensor, weights: Tensor) -> Tensor:
        """Returns the points with these weights of the corners of triangles, ``[*batch, 3]``.

        Args:
            face: the triangles ``[*batch]``.
            weights: the weights of their corners ``[*batch, 3]``.
        """
        return (weights.unsqueeze(-1) * self._corners[face].to(weights.dtype)).sum(-2)

    def interpolate(self, values: Tensor, x: Tensor) -> Tensor:
        """Interpolates ``values [V, *any]`` at the vertices linearly in each triangle: ``[*batch, *any]``.

        Args:
            values: the values at the vertices.
            x: points ``[*batch, 3]``.
        """
        face, weights = self.locate(x)
        at_corners = values[self.faces[face]].to(x.dtype)
        return (weights.reshape(*weights.shape, *[1] * (values.dim() - 1)) * at_corners).sum(x.dim() - 1)

    def _rates(self, face: Tensor, u: Tensor) -> Tensor:
        """Computes the rates of change of the weights of the corners for velocities ``u``."""
        return (self._slopes[face].to(u.dtype) @ u.unsqueeze(-1)).squeeze(-1)

    # The contract

    def _exp(self, x, u):
        x, u = torch.broadcast_tensors(x, u)
        face, weights = self.locate(x)
        rate = self._rates(face, u)
        face, weights = walk(self, face.reshape(-1), weights.reshape(-1, 3), rate.reshape(-1, 3))
        return self.points(face, weights).reshape(x.shape)

    def _log(self, x, y):
        raise TypeError(
            f"{self!r}.log: shortest geodesics of a mesh are not available; use paths.Premetric(), which needs only "
            f"distances, and no bases or solvers that use log."
        )

    def _dist(self, x, y):
        return norm(self.embed(x) - self.embed(y))

    def embed(self, x: Tensor) -> Tensor:
        """Computes the vectors whose Euclidean distances are the spectral ones, ``[*batch, K]``.

        Args:
            x: points ``[*batch, 3]``.
        """
        return self.interpolate(self._embedded, x)

    def dist(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Computes the spectral distance, ``[*batch]``; it is not the length of a geodesic.

        Args:
            x: points ``[*batch, 3]``.
            y: points ``[*batch, 3]``.
            mask: the entries that count. Default: None, all.
        """
        return self._dist(x, y) if mask is None else torch.where(mask.any(-1), self._dist(x, y), 0.0)

    def cost(self, x0, x1):
        """Computes squared spectral distances between all pairs, ``[B0, B1]``.

        Args:
            x0: points ``[B0, 3]``.
            x1: points ``[B1, 3]``.
        """
        return torch.cdist(self.embed(x0), self.embed(x1)).square()

    def premetric(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the spectral distance and its gradient, a tangent vector: ``(d [*batch], gradient [*batch, 3])``.

        Args:
            x: points ``[*batch, 3]``.
            y: points ``[*batch, 3]``.
        """
        x, y = torch.broadcast_tensors(x, y)
        square, half = self._half_gradient(*self.locate(x), self.embed(y))
        zero = square <= 0
        d = torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())
        return d.squeeze(-1), half / torch.where(zero, 1.0, d)

    def _half_gradient(self, face: Tensor, weights: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the squared distances to embedded points, ``[*batch, 1]``, and half their gradients."""
        corners = self._embedded[self.faces[face]].to(weights.dtype)
        difference = (weights.unsqueeze(-2) @ corners).squeeze(-2) - goal
        half = self._slopes[face].to(weights.dtype).mT @ (corners @ difference.unsqueeze(-1))
        return difference.square().sum(-1, keepdim=True), half.squeeze(-1)

    def _descent(self, x0, x1, t, steps, limit):
        # The triangles are known from step to step, so no closest points are needed.
        goal = self.embed(x1)

        def fall(state, rows, left):
            square, half = self._half_gradient(*state, goal[rows])
            slope = half.square().sum(1, keepdim=True)
            u = -square / (left.unsqueeze(1) * torch.where(slope > 0, slope, 1.0)) * half
            return limited(u, norm(u), limit)

        move = lambda state, u, duration: walk(self, *state, self._rates(state[0], duration.unsqueeze(1) * u))
        state, ut = descend(self.locate(x0), fall, move, t, steps)
        return self.points(*state), ut

    def _project(self, x):
        return self.points(*self.locate(x))

    def holds(self, x: Tensor) -> Tensor:
        """Returns which points lie on the mesh up to a thousandth of the square root of its area, ``[*batch]``.

        Args:
            x: points of the ambient space ``[*batch, 3]``.
        """
        return self.deviation(x) <= 1e-3 * math.exp(self._log_area / 2)

    def to_tangent(self, x: Tensor, u: Tensor, *, mask: Tensor | None = None) -> Tensor:
        r"""Returns a tangent vector near ``u``: its part across the smooth normal at ``x``, then that in the triangle.

        .. math:: P_f (I - n n^\top) u, \qquad n = \sum_i b_i n_i \, / \, \Big|\sum_i b_i n_i\Big|

        with :math:`n_i` the normals at the corners. The projection onto the triangle alone jumps at edges: what flows
        into an edge would not flow out on the other side, and since the divergence inside the triangles does not have
        this part, densities would be wrong by the curvature of the surface. The smooth normal has its derivatives.

        Args:
            x: points ``[*batch, 3]`` of the mesh.
            u: vectors ``[*batch, 3]``.
            mask: the entries that count. Default: None, all.
        """
        return super().to_tangent(x, u, mask=mask)

    def _to_tangent(self, x, u):
        face, weights = self.locate(x)
        corners = self._vertex_normals[self.faces[face]].to(x.dtype)
        smooth, normal = (weights.unsqueeze(-1) * corners).sum(-2), self._normals[face].to(u.dtype)
        u = u - (smooth * u).sum(-1, keepdim=True) / smooth.square().sum(-1, keepdim=True) * smooth
        return u - (normal * u).sum(-1, keepdim=True) * normal

    def _transport(self, x, y, u):
        """Turns ``u`` by the smallest rotation between the two planes, equal to transport to third order in length."""
        n, m = (self._normals[self.locate(each.detach())[0]].to(u.dtype) for each in (x, y))
        cos = (n * m).sum(-1, keepdim=True)
        opposite = cos <= -1 + 1e-6  # a rotation by half a turn about any axis: u is reflected in the plane
        turned = u - (m * u).sum(-1, keepdim=True) / torch.where(opposite, 1.0, 1 + cos) * (n + m)
        return torch.where(opposite, u, turned)

    def frame(self, x: Tensor) -> Tensor:
        """Returns an orthonormal basis of the triangle of each point, ``[*batch, 2, 3]``.

        Args:
            x: points ``[*batch, 3]``.
        """
        return self._frames[self.locate(x.detach())[0]].to(x.dtype)

    def uniform(self, shape, *, generator=None, dtype=None, device=None):
        """Draws points uniformly by area.

        Args:
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        ones = self.vertices.new_ones(len(self.vertices))
        return self.draw(ones, shape, generator=generator, dtype=dtype, device=device)

    def draw(
        self,
        density: Tensor,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        r"""Draws points ``[*shape, 3]`` with a density that is linear in each triangle.

        With weights b of the corners, the density is proportional to :math:`\sum_i b_i p_i`: a triangle is drawn by its
        integral, a corner i in proportion to its value, and the weights with density :math:`\propto b_i`.

        Args:
            density: the values at the vertices ``[V]``, not negative; their scale does not matter.
            shape: the shape of the batch.
            generator: the source of random numbers. Default: None, torch's default generator.
            dtype: the dtype of the points. Default: None, torch's default dtype.
            device: the device of the points. Default: None, torch's default device.
        """
        dtype = torch.get_default_dtype() if dtype is None else dtype
        random = lambda *sizes: torch.rand(sizes, generator=generator, dtype=torch.float64, device=device)
        count = math.prod(shape)
        parts = self._integrals(density).reshape(-1)
        total = parts.cumsum(0)
        at, draws = random(count), random(count, 4)
        chosen = torch.searchsorted(total, at.to(total.device) * total[-1], right=True).clamp(max=len(total) - 1)
        # A Dirichlet distribution: weights in proportion to exponential variables, two of them for the chosen corner.
        exponential = -(1 - draws).log()
        extra = nn.functional.one_hot(chosen.to(draws.device) % 3, 3) * exponential[:, 3:]
        weights = exponential[:, :3] + extra
        weights = (weights / weights.sum(1, keepdim=True)).to(chosen.device)
        return self.points(chosen // 3, weights).to(dtype=dtype, device=at.device).reshape(*shape, 3)

    def log_density(self, density: Tensor, x: Tensor) -> Tensor:
        """Computes the logarithm of the density of :meth:`draw` with respect to area, ``[*batch]``.

        Args:
            density: the values at the vertices ``[V]``, not negative; their scale does not matter.
            x: points ``[*batch, 3]``.
        """
        return self.interpolate(density, x).log() - self._integrals(density).sum().log().to(x.dtype)

    def _integrals(self, density: Tensor) -> Tensor:
        """Computes the part of each corner in the integral over each triangle, ``[F, 3]``, in float64."""
        sides = self._corners.double()
        area = torch.linalg.cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0]).norm(dim=1, keepdim=True) / 2
        return area * density.double()[self.faces] / 3


def _vertex_normals(faces: Tensor, edges: Tensor, normals: Tensor, count: int) -> Tensor:
    """Computes unit normals at the vertices, ``[V, 3]``: means of those of the triangles, weighted by their angles."""
    # Edge i is opposite to corner i.
    one, two = edges.roll(-1, 1), -edges.roll(-2, 1)
    angle = torch.atan2(torch.linalg.cross(one, two).norm(dim=-1), (one * two).sum(-1))
    sums = normals.new_zeros(count, 3)
    sums.index_add_(0, faces.reshape(-1), (angle.unsqueeze(-1) * normals.unsqueeze(1)).reshape(-1, 3))
    return sums / sums.norm(dim=1, keepdim=True)
