"""Two-dimensional toys: train a flow on a known distribution, look at its samples, density and trajectories.

    python recipes/toys.py                                   # moons, optimal-transport flow matching, about a minute
    python recipes/toys.py --data checkerboard --coupling independent --path cosine --predict x1
    python recipes/toys.py --source eight-gaussians --bridge 0.5      # from data to data, sampled by an SDE
    python recipes/toys.py --flow nsf                        # a classical flow by its name, by maximum likelihood
    python recipes/toys.py --flow all --data pinwheel        # all classical flows, and one picture of their densities

Writes ``model/``, ``samples.png``, ``density.png`` (where there is a density), ``trajectories.png``, ``training.png``
and ``metrics.json`` into one folder.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed, write_report

import cflow
from cflow import (
    bases,
    bijections,
    couplings,
    data,
    discrete,
    fields,
    metrics,
    objectives,
    paths,
    plot,
    solvers,
    training,
)
from cflow.cli import run_recipe

Name = Literal["eight-gaussians", "moons", "s-curve", "checkerboard", "pinwheel", "spirals"]
COUPLINGS = {
    "independent": couplings.Independent(),
    "optimal-transport": couplings.OptimalTransport(),
    "sinkhorn": couplings.Sinkhorn(epsilon=0.05),
    "unbalanced": couplings.Unbalanced(tau=1.0, epsilon=0.05),
    "partial": couplings.Partial(mass=0.9),
}
PATHS = {
    "linear": paths.Linear,
    "polynomial": lambda predict: paths.Polynomial(2.0, predict),
    "cosine": paths.Cosine,
    "variance-preserving": paths.VariancePreserving,
}

NO_NETWORK = ("planar", "radial", "sylvester")


@dataclass
class Options:
    """Trains a flow matching model on points in the plane."""

    data: Name = "moons"
    """The distribution to learn."""
    flow: Literal["matching", "all", *discrete.PRESETS] = "matching"
    """Flow matching, a classical flow by its name, or all classical flows, one after the other."""
    source: Name | None = None
    """Another distribution to start from, which leaves no density. Default: a standard normal."""
    coupling: Literal["independent", "optimal-transport", "sinkhorn", "unbalanced", "partial"] = "optimal-transport"
    """How base and data samples are paired in a batch; unbalanced and partial ones may omit some data."""
    bridge: float = 0.0
    """Width of a Brownian bridge from base to data; 0 is the path below, without noise."""
    path: Literal["linear", "polynomial", "cosine", "variance-preserving"] = "linear"
    """The schedule between base and data."""
    predict: Literal["velocity", "x1", "noise", "score"] = "velocity"
    """What the network predicts."""
    count: int = 10_000
    """Training points."""
    steps: int | None = None
    """Training steps. Default: 4000, or 1000 for each flow with --flow all."""
    batch_size: int = 256
    """Points per step, on each process."""
    hidden: tuple[int, ...] = (64, 64, 64)
    """Hidden layers of the network."""
    lr: float = 2e-3
    """Peak learning rate."""
    solver_steps: int = 50
    """Steps for the samples: Heun's, or Euler-Maruyama's on a bridge."""
    out: Path | None = None
    """Where everything is written. Default: runs/toys-<data>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def main(options: Options) -> None:
    started = time.perf_counter()
    kind = "" if options.flow == "matching" else f"-{options.flow}"
    title = options.data if options.source is None else f"{options.source}-to-{options.data}"
    out = run_folder(options.out, f"toys-{title}{kind}", title, options.resume)
    name = options.data.replace("-", "_")
    generator = torch.Generator().manual_seed(options.seed)
    train, test = data.toys.sample(name, options.count + 5000, generator=generator).split([options.count, 5000])
    if options.flow != "matching":
        classical(options, out, name, train, test, generator, started)
        return
    steps = 4000 if options.steps is None else options.steps

    standardise = bijections.Standardise.fit(train, pooled=(-1,))
    base = bases.Normal(2)
    if options.source is not None:  # in model space, as the data are
        source = data.toys.sample(options.source.replace("-", "_"), options.count, generator=generator)
        base = bases.Empirical(standardise.encode(source)[0])
    torch.manual_seed(options.seed)  # the network's initial weights
    if options.bridge and (options.path, options.predict) != ("linear", "velocity"):
        raise ValueError(
            f"--bridge {options.bridge} with --path {options.path} --predict {options.predict}: a Brownian bridge is "
            f"linear and learns a velocity and a score; omit --path and --predict."
        )
    path = paths.BrownianBridge(options.bridge) if options.bridge else PATHS[options.path](options.predict)
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=options.hidden, outputs=path.outputs), base, path=path)
    flow = flow.with_transform(standardise)
    if options.bridge:
        objective = objectives.BridgeMatching(COUPLINGS[options.coupling])
    else:
        # The velocity near the data, and with it the density, amplifies errors of x1; the loss has the same weight.
        weight = objectives.VelocityWeight() if options.predict == "x1" else None
        objective = objectives.FlowMatching(COUPLINGS[options.coupling], weight=weight)
    begins = options.source or "a standard normal"
    say(f"{begins} to {options.data}: {len(train)} points, {options.coupling} coupling, {path}; writing to {out}/")
    claim(out, title)
    run = fit(options, flow, objective, train, steps, out)
    if not MAIN:
        return
    flow = flow.cpu().eval()
    plot.training(run, out / "training.png", title="loss: mean squared error")

    solver = solvers.Heun(steps=options.solver_steps)
    noisy = solvers.EulerMaruyama(options.solver_steps, diffusion=options.bridge) if options.bridge else solver
    samples = flow.sample((5000,), solver=noisy, generator=generator)
    plot.scatter(samples, out / "samples.png", reference=test)
    pictures = ["samples.png", "trajectories.png", "training.png"]
    if flow.likelihood != "none":
        span = float(test.abs().max()) * 1.15
        fast = solvers.RK4(steps=16)  # a picture needs three digits; the figures below use the flow's own solver
        plot.density(
            lambda x: flow.log_prob(x, solver=fast),
            out / "density.png",
            bounds=(-span, span),
            samples=test[:1000],
            resolution=160,
        )
        pictures.insert(1, "density.png")
    frames = flow.trajectory(flow.base.sample((300,), generator=generator), times=41, solver=solvers.Heun(steps=40))
    plot.trajectories(frames, out / "trajectories.png")

    z = flow.base.sample((5000,), generator=generator)
    solution = flow.transport(z, 0.0, 1.0, quadratures=("kinetic",), solver=solver)
    model = flow.preprocess(test)[0]
    report = {
        "wasserstein2": metrics.wasserstein2(samples[:2000], test[:2000]),
        "wasserstein2_floor": metrics.wasserstein2(train[:2000], test[:2000]),
        "normalised_path_energy": float(
            metrics.normalised_path_energy(solution.quadratures["kinetic"][:2000], z[:2000], model[:2000])
        ),
        "steps": run.steps,
        "training_seconds": run.seconds,
    }
    if flow.likelihood != "none":
        with torch.no_grad():
            logp = flow.log_prob(test[:1000])
        report["log_prob_held_out"] = float(logp.mean())
        report["log_prob_standard_error"] = float(logp.std() / len(logp) ** 0.5)
    if flow.likelihood != "none" and name in data.toys.LOG_PROBS:
        report["log_prob_true"] = float(data.toys.log_prob(name, test[:1000]).mean())
    noise = {"solver": "euler_maruyama", "diffusion": options.bridge} if options.bridge else {"solver": "heun"}
    for key, value in report.items():
        say(f"  {key:28s} {value:.4g}")
    report["sampler"] = noise | {"steps": options.solver_steps}
    end_run(out, report, started, pictures, more_samples(out))


def fit(options: Options, flow, objective, train: torch.Tensor, steps: int, out: Path):
    """Trains a flow of either kind, or continues its training."""
    run = training.fit(
        flow,
        objective,
        train,
        steps=steps,
        batch_size=options.batch_size,
        lr=options.lr,
        schedule=training.Cosine(warmup=100),
        checkpoint_every=max(1, steps // 4),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    return run


def classical(options: Options, out: Path, name: str, train, test, generator, started: float) -> None:
    """Trains one classical flow, or all, by maximum likelihood."""
    for option in ("source", "bridge", "path", "predict", "coupling", "solver_steps"):
        if getattr(options, option) != getattr(Options(), option):
            raise ValueError(
                f"--flow {options.flow} --{option.replace('_', '-')} {getattr(options, option)}: a classical flow is "
                f"trained by maximum likelihood from a standard normal; omit the latter."
            )
    if options.flow in NO_NETWORK and options.hidden != Options().hidden:
        raise ValueError(f"--flow {options.flow} --hidden: this flow has no network; omit the latter.")
    claim(out, options.data)
    if options.flow != "all":
        report = maximise(options, options.flow, out, name, train, test, generator)[1]
        if MAIN:
            for key, value in report.items():
                say(f"  {key:28s} {value:.4g}")
            end_run(out, report, started, ["density.png", "samples.png", "training.png"], more_samples(out))
        return
    flows, reports = {}, {}
    for each in discrete.PRESETS:
        flows[each], reports[each] = maximise(options, each, out / each, name, train, test, generator)
        if MAIN:
            write_report(out / each, reports[each])
    if not MAIN:
        return
    span = float(test.abs().max()) * 1.15
    grids = {each: plot.grid(flow, bounds=(-span, span), resolution=120) for each, flow in flows.items()}
    plot.densities(grids, out / "gallery.png", reference=test[:3000])
    say(f"{'':12s}{'parameters':>12}{'seconds':>9}{'held-out nats':>18}{'mass':>8}{'W2':>8}")
    for each, report in reports.items():
        report["mass_in_view"] = grids[each].mass
        nats = f"{report['log_prob_held_out']:.3f} ± {report['log_prob_standard_error']:.3f}"
        seconds, mass, distance = (report[key] for key in ("training_seconds", "mass_in_view", "wasserstein2"))
        say(f"{each:12s}{report['parameters']:>12,}{seconds:>9.0f}{nats:>18}{mass:>8.3f}{distance:>8.3f}")
    end_run(out, reports, started, ["gallery.png"], more_samples(out / "nsf"))


def more_samples(out: Path) -> str:
    return f"more samples: cflow sample {out} --num 1000 --output more.png"


def maximise(options: Options, preset: str, out: Path, name: str, train: torch.Tensor, test: torch.Tensor, generator):
    """Trains one classical flow, draws from it and measures it: ``(flow, report)``."""
    torch.manual_seed(options.seed)  # the network's initial weights
    network = {} if preset in NO_NETWORK else {"hidden": options.hidden}
    flow = discrete.PRESETS[preset](2, **network)
    flow = flow.with_transform(bijections.Standardise.fit(train, pooled=(-1,)))
    steps = options.steps if options.steps is not None else 1000 if options.flow == "all" else 4000
    say(f"{preset} on {options.data}: {len(train)} points, {steps} steps; writing to {out}/")
    run = fit(options, flow, objectives.MaximumLikelihood(), train, steps, out)
    if not MAIN:
        return flow, {}
    flow = flow.cpu().eval()
    samples = flow.sample((5000,), generator=generator)
    span = float(test.abs().max()) * 1.15
    plot.training(run, out / "training.png", title="loss: negative log-density, nats")
    plot.scatter(samples, out / "samples.png", reference=test)
    plot.density(flow.log_prob, out / "density.png", bounds=(-span, span), samples=test[:1000], resolution=160)
    with torch.no_grad():
        logp = flow.log_prob(test)
    report = {
        "wasserstein2": metrics.wasserstein2(samples[:2000], test[:2000]),
        "wasserstein2_floor": metrics.wasserstein2(train[:2000], test[:2000]),
        "parameters": sum(each.numel() for each in flow.parameters()),
        "steps": run.steps,
        "training_seconds": run.seconds,
        "log_prob_held_out": float(logp.mean()),
        "log_prob_standard_error": float(logp.std() / len(logp) ** 0.5),
    }
    if name in data.toys.LOG_PROBS:
        report["log_prob_true"] = float(data.toys.log_prob(name, test).mean())
    return flow, report


if __name__ == "__main__":
    run_recipe(main, Options, "toys.py")
