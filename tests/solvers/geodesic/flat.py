"""A solver on manifolds that solves in the Euclidean space of any state."""

from dataclasses import dataclass

from cflow.manifolds import Manifold


@dataclass(frozen=True)
class Flat(Manifold):
    event_shape: tuple
    dim: int

    def _exp(self, x, u):
        return x + u

    def _log(self, x, y):
        return y - x

    def _project(self, x):
        return x

    def _to_tangent(self, x, u):
        return u

    def _transport(self, x, y, u):
        return u

    def normal_velocity(self, x, y, v):
        return v

    def frame(self, x):
        raise NotImplementedError


class OnFlat:
    """Adds the manifold to every solve."""

    def __init__(self, solver):
        self.solver = solver

    def __getattr__(self, name):
        return getattr(self.solver, name)

    def solve(self, f, y0, *args, **options):
        shape = y0.shape[1:]
        return self.solver.solve(f, y0, *args, manifold=Flat(shape, max(1, shape.numel())), **options)
