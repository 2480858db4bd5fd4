"""What few steps are worth in the plane: reflow, distillation, and the methods that learn whole steps.

    OMP_NUM_THREADS=1 python tests/benchmarks/few_steps.py --picture few_steps.png   # every cell; interrupt at will
    python tests/benchmarks/few_steps.py --problems moons-scurve --methods 2-rectified mean-flow --seeds 0 1
    python tests/benchmarks/few_steps.py --table                                     # only print what is there

Every cell (method, problem, seed) leaves one JSON file in ``--out``, and beside it the flow and the pairs that later
cells learn from; a cell that is there is not computed again. A method brings the ones that it starts from along.

Flows from data to data: 8 gaussians (radius 5, variance 0.1) to moons, and moons to S-curve (noise 0.05 of both), drawn
by ``cflow.data.toys``; both ends of a test are new draws. One network for all, an MLP of three layers of 128:

- ``1-rectified``: flow matching with independent pairs, ``--steps`` steps; all others start from its weights.
- ``2-rectified``, ``3-rectified``: each learns from the pairs of the one before (RK4, 25 steps), as long again, with
  times that prefer both ends.
- ``distilled-1``, ``distilled-4``: to one and to four evaluations, from the pairs of the 2-rectified flow, as long
  again. Other numbers of evaluations have no meaning for them, nor has their straightness.
- ``consistency``, ``shortcut``, ``mean-flow``, ``lagrangian``: from the 1-rectified flow, as long again. They have
  then taken as many steps as the 2-rectified flow, for which pairs had to be drawn besides.

Not the defaults: half of a batch takes steps (``share=0.5``). MeanFlow goes without its adaptive weight (``power=0``),
which in two dimensions leads away from the mean of the draws, and at a fifth of ``--lr``: its derivative along single
draws is noisy, and a higher rate ends far off. Consistency flow matching (one segment) weighs an error of the end as
one of the velocity; what it learns points from every place to the end of the curved path through it, so that a second
step, which starts beside that path, leads elsewhere: more evaluations than one make it worse.

Columns: W2 (exact, ``--samples`` points of each) to true points after 1, 2, 4, 8 and 100 evaluations, by ``Euler``, or
by ``FlowMap`` where the field has two times; ``floor`` compares two true samples. Straightness (0 for straight lines at
constant speed) and transport cost E|x1 - x0|^2 are those of 100 Euler steps (of the distilled flows, the cost of their
own few), with standard errors over the base samples. ``steps`` counts all training steps from the first on; ``fit`` is
the processor time of the method's own. Of several seeds, W2 is shown with its deviation.

Below the table: whether 2-rectified after one evaluation comes within 1.3 times the W2 of 1-rectified after a hundred,
and whether the transport cost grew from one round to the next by more than two standard errors of the difference, both
rounds from the same base samples.

Sources: Liu, Gong and Liu, Flow Straight and Fast, 2022, arXiv:2209.03003 (reflow, distillation); Yang et al.,
2024, arXiv:2407.02398; Frans et al., 2024, arXiv:2410.12557; Geng et al., 2025, arXiv:2505.13447; Boffi et al., 2025,
arXiv:2505.18825.
"""

import argparse
import functools
import math
import time
from pathlib import Path

from cells import over_seeds, read, run, shown

# What a method starts from.
METHODS = {
    "1-rectified": None,
    "2-rectified": "1-rectified",
    "3-rectified": "2-rectified",
    "distilled-1": "2-rectified",
    "distilled-4": "2-rectified",
    "consistency": "1-rectified",
    "shortcut": "1-rectified",
    "mean-flow": "1-rectified",
    "lagrangian": "1-rectified",
}
PROBLEMS = ("8g-moons", "moons-scurve")
EVALUATIONS = (1, 2, 4, 8, 100)
ROWS = 100_000  # to train on


def draw(name, count, seed):
    import torch

    from cflow.data import toys

    generator = torch.Generator().manual_seed(seed)
    if name == "8g":
        return toys.eight_gaussians(count, generator=generator)
    return {"moons": toys.moons, "scurve": toys.s_curve}[name](count, noise=0.05, generator=generator)


def source(name, seed):
    """Builds the base: the eight gaussians themselves, or points of the moons."""
    import torch

    from cflow import bases

    if name == "8g":
        angle = torch.arange(8) * (math.pi / 4)
        return bases.Mixture(5 * torch.stack([angle.cos(), angle.sin()], 1), math.sqrt(0.1))
    return bases.Empirical(draw(name, ROWS, 1000 + seed))


def beside(out, kind, method, problem, seed):
    """Names the folder of a flow or of its pairs."""
    return out / f"{kind}_{method}_{problem}_{seed}"


def objective(method):
    from cflow import objectives, times

    match method:
        case "1-rectified":
            return objectives.FlowMatching()
        case "2-rectified" | "3-rectified":
            return objectives.Reflow(times=times.Ends())
        case "consistency":
            return objectives.ConsistencyFlowMatching(weight=velocities)
        case "shortcut":
            return objectives.Shortcut(share=0.5)
        case "mean-flow":
            return objectives.MeanFlow(share=0.5, power=0.0)
        case "lagrangian":
            return objectives.LagrangianSelfDistillation(share=0.5)


def velocities(path, t):
    """Weighs errors of the end, (1 - t) v, as those of the velocity."""
    return (1 - t).clamp(min=1e-2) ** -2


def train(out, method, problem, seed, settings):
    """Trains one flow, from the one that it starts from, and gives also how long that took."""
    import torch

    import cflow
    from cflow import fields, paths, training

    lr = settings["lr"] * (0.2 if method == "mean-flow" else 1.0)
    options = {"batch_size": settings["batch_size"], "lr": lr, "seed": seed, "log_every": 1000}
    start, target = problem.split("-")
    before = METHODS[method]
    if before is not None:
        flow = cflow.load(beside(out, "flow", before, problem, seed))
        pairs = training.Pairs(beside(out, "pairs", before, problem, seed))
    steps, began = settings["steps"], time.process_time()
    if method.endswith("-rectified") and before is not None:
        flow = training.reflow(flow, pairs, objective=objective(method), steps=steps, **options)
    elif method.startswith("distilled"):
        flow = training.distill(flow, pairs, int(method[-1]), steps=steps, **options)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if before is None:
                field = fields.MLP(2, hidden=(128, 128, 128))
                flow = cflow.ContinuousFlow(field, source(start, seed), path=paths.Linear())
            elif method != "consistency":
                flow = cflow.ContinuousFlow(fields.two_times(flow.field), flow.base, path=flow.path)
        training.fit(flow, objective(method), draw(target, ROWS, 2000 + seed), steps=steps, **options)
    return flow.eval(), time.process_time() - began


def cell(out, method, problem, seed, **settings):
    """Trains one flow, keeps it for others, measures it and keeps points for the picture."""
    import torch

    import cflow
    from cflow import metrics, solvers, training

    flow, seconds = train(out, method, problem, seed, settings)
    if method in METHODS.values():
        cflow.save(flow, beside(out, "flow", method, problem, seed))
        training.generate_pairs(
            flow, settings["pairs"], beside(out, "pairs", method, problem, seed), solver=solvers.RK4(steps=25),
            seed=3000 + seed, batch_size=4096,
        )  # fmt: skip
    start, target = problem.split("-")
    x0, x1 = draw(start, settings["samples"], 4000 + seed), draw(target, settings["samples"], 5000 + seed)
    distilled = method.startswith("distilled")
    result = {"seconds": seconds, "w2": {}, "points": {}}
    for count in [int(method[-1])] if distilled else EVALUATIONS:
        solver = (solvers.FlowMap if flow.field.two_times else solvers.Euler)(steps=count)
        with torch.no_grad():
            x = flow.transport(x0, 0.0, 1.0, solver=solver).require_success().y
        result["w2"][count] = metrics.wasserstein2(x, x1)
        result["points"][count] = some(x)
    if not distilled:
        states = follow(flow, x0)
        x = states[-1]
        straightness = metrics.straightness(states, torch.linspace(0, 1, len(states)))
        result["straightness"] = straightness.value, straightness.standard_error
    cost = metrics.transport_cost(x0, x)
    result["cost"] = cost.value, cost.standard_error
    if method in ("2-rectified", "3-rectified"):
        old = follow(cflow.load(beside(out, "flow", METHODS[method], problem, seed)), x0)[-1]
        change = ((x - x0).square().sum(1) - (old - x0).square().sum(1)).double()
        result["change"] = float(change.mean()), float(change.std()) / len(change) ** 0.5
    return result


def follow(flow, x0):
    """Gives the states of the flow's ODE at 101 times."""
    from cflow import solvers

    return flow.trajectory(x0, times=101, solver=solvers.Euler(steps=100))


def some(x):
    """Gives points for the picture."""
    return [[round(float(value), 3) for value in row] for row in x[:1500]]


def compute(out, method, problem, seed, **settings):
    if method != "floor":
        return cell(out, method, problem, seed, **settings)
    from cflow import metrics

    x, y = (draw(problem.split("-")[1], settings["samples"], each + seed) for each in (5000, 6000))
    return {"w2": metrics.wasserstein2(x, y), "points": some(x)}


def chain(method):
    """Gives a method and those before it, the first one last."""
    before = METHODS[method]
    return [method] if before is None else [method, *chain(before)]


def spread(values, digits=3):
    """Shows a mean, with the deviation over several seeds."""
    pair = over_seeds(values)
    return shown(pair, digits) if pair is None or len(values) > 1 else f"{pair[0]:.{digits}f}"


def estimate(pairs, digits=3):
    """Shows the mean of estimates with its standard error."""
    if not pairs or None in pairs:
        return "-"
    error = math.sqrt(sum(error**2 for _, error in pairs)) / len(pairs)
    return shown((sum(value for value, _ in pairs) / len(pairs), error), digits)


def table(out, problem, methods, seeds):
    heads = "".join(f"{count:>14d}" for count in EVALUATIONS)
    print(f"\n{problem + ', W2 after':22s}{heads}{'straightness':>16s}{'cost':>16s}{'steps':>9s}{'fit, s':>12s}")
    for method in methods:
        got = [each for each in (read(out, method, problem, seed) for seed in seeds) if each]
        if not got:
            continue
        w2 = [spread([each["w2"][str(c)] for each in got if str(c) in each["w2"]]) for c in EVALUATIONS]
        straightness = estimate([each.get("straightness") for each in got])
        cost = estimate([each["cost"] for each in got])
        steps = got[0]["settings"]["steps"] * len(chain(method))
        seconds = spread([each["seconds"] for each in got], 0)
        line = "".join(f"{each:>14s}" for each in w2)
        print(f"{method:22s}{line}{straightness:>16s}{cost:>16s}{steps:>9d}{seconds:>12s}")
    floor = spread([each["w2"] for each in (read(out, "floor", problem, seed) for seed in seeds) if each])
    print(f"{'two true samples':22s}{floor:>14s}")


def statements(out, problem, seed):
    """Prints what reflow promises, and whether it holds."""
    first, second, third = (read(out, f"{number}-rectified", problem, seed) for number in (1, 2, 3))
    if first and second:
        ours, limit = second["w2"]["1"], 1.3 * first["w2"]["100"]
        print(
            f"{problem}, seed {seed}: W2 of 2-rectified after 1 evaluation, {ours:.3f}, is within 1.3 times that of "
            f"1-rectified after 100, {limit:.3f}: {verdict(ours <= limit)}"
        )
    for number, got in ((2, second), (3, third)):
        if got:
            change, error = got["change"]
            print(
                f"{problem}, seed {seed}: the cost does not grow from round {number - 1} to {number}, change "
                f"{change:.4f}±{error:.4f}: {verdict(change <= 2 * error)}"
            )


def verdict(true):
    return "holds" if true else "does not hold"


def picture(out, problems, methods, seed, file):
    """Draws samples over true points, methods by evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(p, m, got) for p in problems for m in methods if (got := read(out, m, p, seed))]
    if not rows:
        return
    width, height = 2.2 * len(EVALUATIONS), 2.0 * len(rows)
    figure, axes = plt.subplots(len(rows), len(EVALUATIONS), figsize=(width, height), squeeze=False)
    for line, (problem, method, got) in zip(axes, rows):
        true = list(zip(*read(out, "floor", problem, seed)["points"]))
        for axis, count in zip(line, map(str, EVALUATIONS)):
            axis.set(xticks=[], yticks=[])
            if count not in got["points"]:
                axis.set_frame_on(False)
                continue
            axis.scatter(*true, s=2, color="0.8", linewidths=0)
            axis.scatter(*zip(*got["points"][count]), s=2, linewidths=0)
            limits = ((-5, 6.5), (-5, 4)) if problem == "8g-moons" else ((-3.5, 3.5), (-5, 5))
            axis.set(xlim=limits[0], ylim=limits[1])
            axis.set_title(f"{count}: W2 {got['w2'][count]:.2f}", fontsize=9)
        line[0].set_ylabel(f"{method}\n{problem}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
    print(f"\npicture (seed {seed}): {file}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/few_steps"))
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=8000, help="of each method, after those of its start")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=5000, help="points that W2 is computed between")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--processes", type=int, default=1, help="cells at a time, each on one core")
    parser.add_argument("--picture", type=Path, help="samples of the first seed over true points")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    wanted = {each for method in options.methods for each in chain(method)}
    methods = [method for method in METHODS if method in wanted]
    if not options.table:
        settings = {name: getattr(options, name) for name in ("steps", "pairs", "samples", "batch_size", "lr")}
        for length in (1, 2, 3):  # what others start from comes before them
            ready = ["floor"] * (length == 1) + [method for method in methods if len(chain(method)) == length]
            jobs = [(m, problem, seed) for seed in options.seeds for problem in options.problems for m in ready]
            run(functools.partial(compute, options.out), jobs, options.out, settings, options.processes)
    for problem in options.problems:
        table(options.out, problem, methods, options.seeds)
    print()
    for problem in options.problems:
        for seed in options.seeds:
            statements(options.out, problem, seed)
    if options.picture is not None:
        picture(options.out, options.problems, methods, options.seeds[0], options.picture)


if __name__ == "__main__":
    main()
