"""Times eigenpairs, premetric paths and training on a mesh.

    OMP_NUM_THREADS=1 python tests/benchmarks/mesh_speed.py spot.obj

One run on the CPU, by wall clock and by CPU time of the process (on a busy machine the second is the cost). Points of
training are those of simulated paths, each of which has ``--points`` of them: a step has ``--batch`` points of
``batch / points`` pairs, and ``--pool`` steps are simulated together. Published for this model on the Stanford bunny,
with new paths of 300 steps for every batch of 128: 0.4 iterations per second (Chen and Lipman, 2023, arXiv:2302.03660).
"""

import argparse
import time

import torch

from cflow import ContinuousFlow, data, fields, manifolds, objectives, paths, training


class Clock:
    """Measures a block by wall clock and by CPU time."""

    def __enter__(self):
        self.started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]


def line(name, clock, count=1, unit="s"):
    scale = 1.0 if unit == "s" else 1e3
    print(f"{name:52s}{scale * clock.wall / count:10.3f}{scale * clock.cpu / count:10.3f} {unit}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mesh")
    for name, usual in {"eigenpairs": 200, "batch": 128, "points": 8, "pool": 64, "steps": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512] * 6)
    asked = parser.parse_args()
    torch.manual_seed(0)
    vertices, faces = data.read_mesh(asked.mesh)
    print(f"{asked.mesh}: {len(vertices)} vertices, {len(faces)} triangles; {torch.get_num_threads()} threads of torch")
    print(f"{'':52s}{'wall':>10}{'CPU':>10}")
    with Clock() as clock:
        mesh = manifolds.Mesh(vertices, faces, eigenpairs=asked.eigenpairs)
    line(f"mesh with {asked.eigenpairs} eigenpairs", clock)
    with Clock() as clock:
        mesh._derive()
    line("its tables alone, as when it is loaded", clock)
    x = mesh.draw(mesh.eigenfunctions[:, 9].clamp(min=0), (20_000,))
    for count in (128, 8192):
        near = x[:count] + 0.01 * torch.randn(count, 3)
        with Clock() as clock:
            for _ in range(20):
                mesh.project(near)
        line(f"closest points of {count}", clock, 20, "ms")
        u = mesh.to_tangent(x[:count], 0.05 * torch.randn(count, 3))
        with Clock() as clock:
            for _ in range(20):
                mesh.exp(x[:count], u)
        line(f"exp of {count}, lines of length 0.06", clock, 20, "ms")
    path = paths.Premetric().on(mesh)
    for count in (128, 1024):
        t = path.interval[1] * torch.rand(asked.points, count)
        with Clock() as clock:
            path.simulate(mesh.uniform((count,)), x[:count], t)
        line(f"{count} paths of {path.steps} steps, {asked.points} points of each", clock)
    flow = ContinuousFlow(fields.MLP(3, asked.hidden), manifolds.Uniform(mesh), path=paths.Premetric())
    ticks = []
    settings = {"steps": asked.steps + asked.pool, "lr": 1e-4, "progress": False, "pool": asked.pool}
    for points in (1, asked.points):
        ticks.clear()
        objective = objectives.FlowMatching(points_per_pair=points)
        tick = lambda step, flow, row: ticks.append((time.perf_counter(), time.process_time()))
        run = {"batch_size": asked.batch // points, "callbacks": [tick]} | settings
        training.fit(flow, objective, x, **run)
        # Without the first pool, which nothing overlaps; the CPU time of work ahead of the last step counts too.
        (wall, cpu), (end, used) = ticks[asked.pool - 1], ticks[-1]
        rate, cost = asked.steps / (end - wall), 1e3 * (used - cpu) / asked.steps
        print(f"training, {points} points of each path: {rate:.1f} iterations/s, {cost:.1f} ms of CPU each", flush=True)


if __name__ == "__main__":
    main()
