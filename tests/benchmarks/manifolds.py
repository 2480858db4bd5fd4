"""Manifolds: accuracy of rotations, and paths and sampling on the sphere next to flow_matching.

    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/manifolds.py [rotations] [paths] [sampling]

Without a name all three run, in less than two minutes on an idle core. Rounds alternate between the libraries; times
are medians, and spreads are quartiles of the ratio of paired rounds.
"""

import math
import statistics
import sys
import time

import torch
from scipy.spatial.transform import Rotation

from cflow import ContinuousFlow, manifolds, paths, solvers

ANGLES = (0.0, 1e-8, 1e-6, 1e-3, 1.0, 3.0, math.pi - 1e-3, math.pi - 1e-6, math.pi)


def by_trace(r):
    """The textbook logarithm: the angle by the cosine of the trace, the axis by the sine."""
    angle = ((r.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1).acos()[:, None]
    return manifolds.SO3.vee(r) * angle / angle.sin()


def rotations():
    group, count = manifolds.SO3(), 2000
    print("Largest distance of exp(log R) from R, in radians, over 2000 axes")
    print(f"{'angle':>14s} {'ours 32':>9s} {'trace 32':>9s} {'ours 64':>9s} {'trace 64':>9s} {'scipy 64':>9s}")
    for angle in ANGLES:
        row = []
        for dtype in (torch.float32, torch.float64):
            generator = torch.Generator().manual_seed(0)
            axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=torch.float64), dim=1)
            # A rotation as a user has it: a matrix that is rounded to the dtype.
            r = torch.from_numpy(Rotation.from_rotvec((angle * axis).numpy()).as_matrix()).to(dtype)
            eye = torch.eye(3, dtype=dtype)
            found = [group.to_body(eye, group.log(eye, r)), by_trace(r)]
            if dtype is torch.float64:
                found.append(torch.from_numpy(Rotation.from_matrix(r.numpy()).as_rotvec()))
            exact = r.double()
            for w in found:
                back = torch.from_numpy(Rotation.from_rotvec(w.double().nan_to_num(0.0).numpy()).as_matrix())
                gap = group.dist(back, exact).max().item()
                row.append("nan" if bool(w.isnan().any()) else f"{gap:.1e}")
        shown = f"pi - {math.pi - angle:.0e}" if 3.1 < angle < math.pi else "pi" if angle == math.pi else f"{angle:g}"
        print(f"{shown:>14s} " + " ".join(f"{each:>9s}" for each in row))


def clock(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def report(name, ours, theirs):
    ratios = sorted(b / a for a, b in zip(ours, theirs))
    low, middle, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
    left, right = statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3
    print(f"{name:44s} {left:9.3f} ms {right:9.3f} ms   ratio {middle:.2f} ({low:.2f} to {high:.2f})", flush=True)


def sample_paths(rounds=40):
    from flow_matching.path import GeodesicProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from flow_matching.utils.manifolds import Sphere

    sphere = manifolds.Sphere(2)
    ours, theirs = paths.Geodesic().on(sphere), GeodesicProbPath(CondOTScheduler(), Sphere())
    for batch in (256, 8192):
        x0, x1 = sphere.uniform((2, batch), generator=torch.Generator().manual_seed(0))
        t = torch.rand(batch, generator=torch.Generator().manual_seed(1))
        one = lambda: ours.sample(x0, x1, t)
        other = lambda: theirs.sample(t=t, x_0=x0, x_1=x1)
        gap = (one().xt - other().x_t).abs().nan_to_num(0.0).max().item()
        with torch.no_grad():
            pairs = [(clock(one), clock(other)) for _ in range(rounds + 3)][3:]
        report(f"points and velocities, batch {batch}, gap {gap:.0e}", *zip(*pairs))


class Timed(torch.nn.Module):
    """A network that measures the time spent in it; it reads time and point in either order."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.SiLU(), torch.nn.Linear(64, 3))
        self.inside, self.calls = 0.0, 0

    def evaluate(self, t, x):
        begun = time.perf_counter()
        v = self.layers(torch.cat((x, t.expand(len(x)).unsqueeze(1)), 1))
        self.inside += time.perf_counter() - begun
        self.calls += 1
        return v

    def forward(self, t, x, context=None):
        return self.evaluate(t, x)


def outside(network, call):
    network.inside = 0.0
    return clock(call) - network.inside


def sampling(steps=100, rounds=15):
    from flow_matching.solver import RiemannianODESolver
    from flow_matching.utils import ModelWrapper
    from flow_matching.utils.manifolds import Sphere

    torch.manual_seed(0)
    network, sphere = Timed(), manifolds.Sphere(2)

    class Theirs(ModelWrapper):
        def forward(self, x, t, **extras):
            return self.model.evaluate(t, x)

    theirs = RiemannianODESolver(Sphere(), Theirs(network))
    flow = ContinuousFlow(network, manifolds.Uniform(sphere), path=paths.Geodesic())
    field = lambda t, x: sphere.to_tangent(x, network.evaluate(t, x))
    for batch in (64, 1024, 8192):
        x0 = sphere.uniform((batch,), generator=torch.Generator().manual_seed(0))
        other = lambda: theirs.sample(x0, step_size=1 / steps, method="euler")
        for method in (solvers.GeodesicEuler, solvers.ProjectedEuler):
            solver = method(steps)
            whole = lambda: flow.sample((batch,), solver=solver)
            bare = lambda: solver.solve(field, x0, 0.0, 1.0, manifold=sphere)
            for name, call in (("flow.sample", whole), ("solver alone", bare)):
                with torch.no_grad():
                    pairs = [(outside(network, call), outside(network, other)) for _ in range(rounds + 2)][2:]
                report(f"outside the network, {name}, {method.__name__}, {batch}", *zip(*pairs))
        if batch == 64:
            with torch.no_grad():
                gap = (bare().y - other()).abs().max().item()
            print(f"largest difference of the ends: {gap:.1e}")


def main():
    torch.set_num_threads(1)
    parts = {"rotations": rotations, "paths": sample_paths, "sampling": sampling}
    for name in sys.argv[1:] or parts:
        print(f"\n{name}: torch {torch.__version__}")
        parts[name]()


if __name__ == "__main__":
    main()
