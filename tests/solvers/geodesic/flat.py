"""A solver on manifolds that solves in the Euclidean space of any state."""

from cflow.manifolds import Euclidean


class OnFlat:
    """Adds the manifold to every solve."""

    def __init__(self, solver):
        self.solver = solver

    def __getattr__(self, name):
        return getattr(self.solver, name)

    def solve(self, f, y0, *args, **options):
        return self.solver.solve(f, y0, *args, manifold=Euclidean(y0.shape[1:]), **options)
