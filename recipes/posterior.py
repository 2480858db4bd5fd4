"""Posteriors without a likelihood: learn to infer parameters from simulations, and check what was learned.

    python recipes/posterior.py                                # two moons, a spline flow, about a minute
    python recipes/posterior.py --flow matching                # the same by flow matching
    python recipes/posterior.py --data sims.npz --observation 0.31 -1.2 4.5     # your own simulator
    python recipes/posterior.py --data sims.npz --observation measured.csv --bounds 0 10 -1 1 --drop-missing
    python recipes/posterior.py --task slcp --reference DIR    # against the reference posteriors of the sbi benchmark

A flow learns the distribution of the parameters given the data (neural posterior estimation). Then two checks over data
sets of all kinds: are the true parameters ranked among the draws as they should be (simulation-based calibration), and
do regions of 90 % contain 90 % of them? A verdict sums up both. Your own observations are also compared with the
simulations, and a warning is printed for one that is unlike them.

**Your own simulations** are a .npz file with two arrays, ``theta`` [N, D] and ``x`` [N, E]: parameters drawn from the
prior, and what the simulator returned for each. ``names`` and ``x_names`` may have the names of the columns. The prior
is the distribution that the rows of ``theta`` were drawn from; nothing else needs to be said of it. If it is a box,
``--bounds`` keeps all draws inside. A tenth of the simulations is held out for the checks, and a twentieth for deciding
when to stop. sbi is not needed. Users of sbi find flows for it in ``cflow.integrations.sbi`` (``pip install
"cflow[sbi]"``).

**The built-in tasks** have a uniform prior. For ten observations a classifier tries to distinguish the draws from the
true posterior's (C2ST, by the network and protocol of the sbi benchmark, sbibm). Two moons has a likelihood in closed
form, and with it exact draws; for either task, --reference is the folder of the benchmark's tasks
(``two_moons/files/num_observation_1/...``).

Writes ``model/``, ``corner-*.png``, ``calibration.png``, ``training.png`` and ``metrics.json`` into one folder; for
your own simulations also ``samples.csv`` (draws for each observation) and ``observations.csv``.
"""

import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import posterior_checks as checks
import posterior_simulations as simulations
import torch
from common import MAIN, claim, end_run, plain, run_folder, say, say_resumed, write_table
from posterior_tasks import TASKS, box, prior, read

import cflow
from cflow import bases, bijections, discrete, fields, metrics, objectives, paths, plot, solvers, training
from cflow.cli import counted, run_recipe

OBSERVATIONS = range(1, 11)


@dataclass
class Options:
    """Learns a posterior from simulations, and checks it."""

    data: Path | None = None
    """A .npz file of your own simulations, with the arrays theta [N, D] and x [N, E]. Default: the task below."""
    observation: tuple[str, ...] = ()
    """What was observed: the numbers, or a .npy, .npz, .csv or .txt file. Default: three held-out simulations."""
    bounds: tuple[float, ...] = ()
    """Lowest and highest value of the prior, for each parameter or once for all. Default: no bounds."""
    drop_missing: bool = False
    """Omit simulations with NaN or infinity."""
    task: Literal["two-moons", "slcp"] = "two-moons"
    """A built-in simulator: two parameters and two numbers out, or five and eight."""
    simulations: int | None = None
    """Simulations of the built-in task to learn from, of which a twentieth is held out. Default: 10,000."""
    reference: Path | None = None
    """The folder of the benchmark's tasks, for observations and posteriors. Default: exact draws (two moons only)."""
    flow: Literal["nsf", "maf", "matching"] = "nsf"
    """Spline couplings, affine autoregressive layers, or a continuous flow by flow matching."""
    samples: int = 2000
    """Draws from the posterior of each observation."""
    sets: int = 500
    """Data sets that calibration is measured on; of your own simulations, at most a tenth."""
    draws: int = 99
    """Draws from the posterior of each of them."""
    steps: int | None = None
    """Training steps, at most with --data. Default: 6000 by flow matching, else 3000 (1500 for SLCP)."""
    batch_size: int = 256
    """Simulations per step, on each process."""
    hidden: tuple[int, ...] = ()
    """Hidden layers of the networks. Default: 128 128 128 by flow matching, else 64 64 (32 with --data)."""
    lr: float = 2e-3
    """Peak learning rate."""
    out: Path | None = None
    """Where everything is written. Default: runs/posterior-<data>-<flow>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


class Observed(NamedTuple):
    """One observation to infer parameters from, and what is known of them."""

    x: torch.Tensor  # [E]
    truth: torch.Tensor | None = None  # [D]
    reference: torch.Tensor | None = None  # draws from the true posterior, [S, D]


@dataclass
class Problem:
    """Simulations to learn from and to check by, and observations."""

    name: str
    source: Path | str
    names: tuple[str, ...]  # of the parameters
    x_names: tuple[str, ...]
    theta: torch.Tensor  # [N, D]
    x: torch.Tensor  # [N, E]
    held: int  # so many of the first rows are not trained on
    test: tuple[torch.Tensor, torch.Tensor]  # theta and x that calibration is measured on
    bounds: torch.Tensor | None  # [2, D], of the prior
    observed: list[Observed]
    steps: int
    patience: int | None = None
    own: simulations.Simulations | None = None
    examples: bool = False  # whether the observations are simulations, too
    notes: list[str] = field(default_factory=list)


# The built-in tasks, as a problem


def targets(options: Options, task, generator) -> list[Observed]:
    """Returns ten observations with the truth, and draws from their posterior where there are any."""
    if options.reference is None:
        theta = prior(task, len(OBSERVATIONS), generator)
        x = task.simulate(theta, generator)
        if task.posterior is None:
            return [Observed(each, truth) for each, truth in zip(x, theta)]
        draws = [task.posterior(each, options.samples, generator) for each in x]
        return [Observed(*each) for each in zip(x, theta, draws)]
    found = []
    for k in OBSERVATIONS:
        folder = options.reference / task.folder / "files" / f"num_observation_{k}"
        draws = read(folder / "reference_posterior_samples.csv.bz2")
        draws = draws[torch.randperm(len(draws), generator=generator)[: options.samples]]
        found.append(Observed(read(folder / "observation.csv"), read(folder / "true_parameters.csv"), draws))
    return found


def simulated(options: Options, generator) -> Problem:
    """Simulates a built-in task."""
    task = TASKS[options.task]
    observed = targets(options, task, generator)  # first, so that a missing folder is reported before training
    count = options.simulations or 10_000
    theta = prior(task, count, generator)
    x = task.simulate(theta, generator)
    held_out = prior(task, options.sets, generator)
    x_names = tuple(f"x {i + 1}" for i in range(x.shape[1]))
    steps = options.steps or (6000 if options.flow == "matching" else task.steps)
    return Problem(
        options.task, options.task, task.names, x_names, theta, x, max(1, count // 20),
        (held_out, task.simulate(held_out, generator)), box(task), observed, steps,
    )  # fmt: skip


# Your own simulations, as a problem


def given(options: Options) -> Problem:
    """Reads your own simulations and observations, and splits the former."""
    own = simulations.read(options.data, options.bounds, options.drop_missing, options.seed)
    tested, held = max(10, min(options.sets, len(own.theta) // 10)), max(10, len(own.theta) // 20)
    test, theta = own.theta[:tested], own.theta[tested:]
    test_x, x = own.x[:tested], own.x[tested:]
    if options.observation:
        observed = [Observed(each) for each in simulations.observations(options.observation, own)]
    else:
        observed = [Observed(each, truth) for each, truth in zip(test_x[:3], test[:3])]
    return Problem(
        options.data.stem, options.data, own.names, own.x_names, theta, x, held, (test, test_x), own.bounds, observed,
        options.steps or (6000 if options.flow == "matching" else 3000), patience=10, own=own,
        examples=not options.observation, notes=own.notes,
    )  # fmt: skip


def check(options: Options) -> None:
    """Raises for options that do not go together."""
    other = (
        ("task", "simulations", "reference") if options.data is not None else ("observation", "bounds", "drop_missing")
    )
    for name in other:
        if getattr(options, name) != getattr(Options(), name):
            with_data = "does not go with --data" if options.data is not None else "goes with --data alone"
            raise ValueError(f"--{name.replace('_', '-')}: this option {with_data}; omit it.")


# Learning, and what was learned


def build(options: Options, theta: torch.Tensor, width: int, bounds: torch.Tensor | None):
    """Builds the flow, the objective that trains it, and the solver that is good enough for thousands of densities."""
    features = theta.shape[1]
    torch.manual_seed(options.seed)  # the network's initial weights
    if options.flow == "matching":
        network = fields.MLP(features, hidden=options.hidden or (128, 128, 128), context=width)
        flow = cflow.ContinuousFlow(network, bases.Normal(features), path=paths.Linear(), context_shape=width)
        objective, solver = objectives.FlowMatching(), {"solver": solvers.RK4(steps=20)}
    else:
        # Thousands of simulations are learnt by heart by larger networks: their regions are then too narrow.
        usual = (64, 64) if options.data is None else (32,)
        flow = discrete.PRESETS[options.flow](features, context=width, hidden=options.hidden or usual)
        objective, solver = objectives.MaximumLikelihood(), {}
    if bounds is None:
        return flow.with_transform(bijections.Standardise.fit(theta)), objective, solver
    # The prior's box becomes the whole line; a little is kept from the bounds, where a logit would be infinite.
    line = (
        bijections.Standardise(features, loc=bounds[0], scale=bounds[1] - bounds[0]),
        bijections.Logit(features, alpha=1e-6),
    )
    u = line[1].encode(line[0].encode(theta)[0])[0]
    return flow.with_transform(*line, bijections.Standardise.fit(u)), objective, solver


def advice(options: Options, problem: Problem, run: training.Run) -> tuple[str, str]:
    """Returns how to simulate more, and how to train longer or larger, given what this run did."""
    if problem.own is None:
        more = f"simulate more: --simulations {4 * len(problem.theta)}"
    elif len(problem.test[0]) < checks.ENOUGH:
        more = f"simulate {10 * checks.ENOUGH} or more"
    else:
        more = "simulate 2 to 4 times as many"
    if run.stopped:  # it stopped early, so more steps change nothing
        width = 2 * max(options.hidden or (128 if options.flow == "matching" else 32,))
        return more, f"take larger networks (--hidden {width} {width})"
    return more, f"train longer (--steps {2 * problem.steps})"


def outside(draws: torch.Tensor, problem: Problem) -> float:
    """Computes the share of draws outside of the prior's bounds, or of the parameters that were simulated."""
    if problem.bounds is not None:
        low, high = problem.bounds
    else:
        low, high = problem.theta.min(0).values, problem.theta.max(0).values
    return float(((draws < low) | (draws > high)).any(1).float().mean())


def intervals(draws: torch.Tensor, problem: Problem) -> dict[str, list[float]]:
    """Computes the quantiles of 5, 50 and 95 % of each parameter."""
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=draws.dtype)
    return dict(zip(problem.names, draws.quantile(levels, 0).T.tolist()))


def write_samples(drawn: list[torch.Tensor], problem: Problem, out: Path) -> None:
    """Writes the draws of every observation, and the observations in the order that ``cflow sample`` reads."""
    own, rows = problem.own, []
    for k, draws in enumerate(drawn, 1):
        for name, (first, step) in own.spread.items():  # back onto the steps
            column = draws[:, own.names.index(name)]
            column.copy_(first + step * ((column - first) / step).round())
        rows += [[str(k), *map(plain, row, own.digits)] for row in draws.tolist()]
    write_table(out / "samples.csv", ["observation", *problem.names], rows)
    write_table(
        out / "observations.csv", list(problem.x_names), [map(plain, each.x.tolist()) for each in problem.observed]
    )


def draw_corner(draws: torch.Tensor, each: Observed, problem: Problem, options: Options, file: Path) -> None:
    """Draws a posterior next to the true one, or, for your own simulations, next to the prior."""
    shown, many = min(8, len(problem.names)), len(problem.names)
    reference, label = each.reference, "reference"
    if problem.own is not None:
        reference, label = problem.theta[:2000], "prior (simulated)"
    plot.corner(
        draws[:, :shown],
        file,
        reference=None if reference is None else reference[:, :shown],
        names=problem.names[:shown],
        labels=(options.flow if problem.own is None else "posterior", label),
        marks=None if each.truth is None else each.truth[None, :shown],
        mark_label="" if each.truth is None else "truth",
        title=f"the first {shown} of {many} parameters" if shown < many else "",
    )


def report_observations(drawn: list[torch.Tensor], problem: Problem) -> None:
    """Prints the posterior of the first observations."""
    what = "held-out simulation" if problem.examples else "observation"
    for k, draws in enumerate(drawn[:3], 1):
        say(f"  {what} {k}: median, and the interval that holds 90 % of the draws")
        for (name, levels), digits in zip(intervals(draws, problem).items(), problem.own.digits):
            low, middle, high = (f"{each:.{digits - 2}g}" for each in levels)
            say(f"    {name}: {middle}  ({low} to {high})")
    if len(drawn) > 3:
        say(f"  and {len(drawn) - 3} more: see intervals in metrics.json")


def next_commands(out: Path, problem: Problem) -> list[str]:
    if problem.own is None:
        context = ",".join(f"{each:.3g}" for each in problem.observed[0].x.tolist())
        return [f"more draws: cflow sample {out} --context={context} --num 1000 --output more.csv"]
    lines = [f"more draws: cflow sample {out} --context {out}/observations.csv --num 10000 --output more.csv"]
    if problem.examples:
        lines.append("with what you have observed: the same command with --observation and another --out")
    return lines


def main(options: Options) -> None:
    started = time.perf_counter()
    check(options)
    generator = torch.Generator().manual_seed(options.seed)
    problem = simulated(options, generator) if options.data is None else given(options)
    out = run_folder(options.out, f"posterior-{problem.name}-{options.flow}", problem.source, options.resume)
    for note in problem.notes:
        say(note)
    theta, held, steps = problem.theta, problem.held, problem.steps
    scale = simulations.units_of(problem.x)
    context = scale.encode(problem.x)[0]
    flow, objective, solver = build(options, theta, problem.x.shape[1], problem.bounds)
    flow = flow.to(theta.dtype)
    sizes = f"{counted(theta.shape[1], 'parameter')}, {counted(context.shape[1], 'number')} of data"
    most = " at most" if problem.patience else ""
    split = f"{counted(len(theta), 'simulation')} to learn from, {len(problem.test[0])} to check"
    say(f"{problem.name}: {split} ({sizes}); {options.flow}, {steps} steps{most}")
    say(f"writing to {out}/")
    validation = theta[:held], context[:held]
    if problem.patience and objective.draws:  # a loss of random times needs more draws than rows
        validation = tuple(each.repeat(math.ceil(2048 / held), 1) for each in validation)
    claim(out, problem.source)
    run = training.fit(
        flow,
        objective,
        (theta[held:], context[held:]),
        validation=validation,
        validate_every=max(1, steps // (40 if problem.patience else 20)),
        patience=problem.patience,
        steps=steps,
        batch_size=min(options.batch_size, len(theta) - held),
        lr=options.lr,
        clip=10.0,  # gradients of narrow posteriors are large
        schedule=training.Cosine(warmup=100),
        checkpoint_every=max(1, steps // 4),
        seed=options.seed,
        out=out,
        save_model=False,  # it reads standardised data; what standardises them is put around it below
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    if not MAIN:
        return
    kept = f"; the weights of step {run.best_step} are kept" if problem.patience else ""
    say(f"trained {run.steps} steps in {run.seconds:.0f} s{kept}")
    posterior = cflow.StandardisedContext(flow.cpu().eval(), scale)  # takes data as the simulator returns them
    cflow.save(posterior, out / "model")
    loss = "velocity, mean squared error" if options.flow == "matching" else "negative log-density, nats"
    plot.training(run, out / "training.png", title=f"loss: {loss}")

    tested = len(problem.test[0])
    say(f"checking calibration on {tested} data sets, {options.draws} draws each")
    checked = checks.calibrated(posterior, problem.test, options.draws, solver, generator)
    ranked, coverage, logp = checked
    prior_logp, prior_kind = checks.log_prior(theta, problem.test[0], problem.bounds)
    kind, size = checks.judge(checked, problem.names, prior_logp)
    judged = checks.verdict(kind, size, *advice(options, problem, run))
    label = f"{options.flow}, highest density"
    plot.calibration(ranked.pit, out / "calibration.png", coverage={label: coverage.credibility}, names=problem.names)
    report = {
        "columns": list(problem.names),
        "condition": list(problem.x_names),
        "steps": run.steps,
        "training_seconds": run.seconds,
        "validation": run.final_validation,
        "log_prob_of_truth": float(logp.mean()),
        "log_prob_of_prior": prior_logp,
        "verdict": judged,
        "sbc_p_values": ranked.ks.tolist(),
        "sbc_dispersion": ranked.dispersion.tolist(),
        "coverage": dict(zip((f"{level:.2f}" for level in coverage.levels.tolist()), coverage.coverage.tolist())),
        "coverage_excess": coverage.excess,
    }
    pictures, accuracies, shares, drawn = [], [], [], []
    for k, each in enumerate(problem.observed, 1):
        draws = posterior.sample((options.samples,), each.x, generator=generator, **solver)
        drawn.append(draws)
        shares.append(outside(draws, problem))
        if each.reference is not None:
            accuracies.append(float(metrics.classifier_two_sample(draws, each.reference, seed=options.seed)))
            say(f"observation {k}: C2ST {accuracies[-1]:.3f}")
        if k <= 3:
            pictures.append(f"corner-{k}.png")
            draw_corner(draws, each, problem, options, out / pictures[-1])
    if options.flow == "matching":
        report["sampler"] = {"solver": "rk4", "steps": solver["solver"].steps}
    report["share_outside_prior" if problem.bounds is not None else "share_outside_simulated"] = max(shares)
    if accuracies:
        report["c2st"], report["c2st_classifier"] = accuracies, "two hidden layers of 10 D units (sbibm)"
        report["c2st_mean"], report["c2st_deviation"] = statistics.mean(accuracies), statistics.stdev(accuracies)
    if problem.own is not None:
        report["dequantised"], report["notes"] = problem.own.spread, problem.notes
        report["intervals"] = [intervals(draws, problem) for draws in drawn]
        write_samples(drawn, problem, out)

    for name, p, width in zip(problem.names, report["sbc_p_values"], report["sbc_dispersion"]):
        say(f"  {name}: ranks uniform with p = {p:.3g}; dispersion {width:.3f} (1 is right, above: too narrow)")
    shown = ", ".join(f"{checks.coverage_at(level, coverage)[0]:.3f} at {level:.2f}" for level in checks.LEVELS)
    say(f"  coverage {shown} (± {float(coverage.standard_error.max()):.3f} at most)")
    error = float(logp.std()) / math.sqrt(tested)
    say(f"  mean log-density of the truth {logp.mean():.3f} ± {error:.3f} (prior, {prior_kind}: {prior_logp:.3f})")
    if tested < checks.ENOUGH:
        say(f"  {tested} held-out simulations are few: these checks show gross faults alone")
    say(f"  verdict: {judged}")
    if accuracies:
        means = f"{report['c2st_mean']:.3f} ± {report['c2st_deviation']:.3f}"
        count = len(accuracies)
        say(f"  C2ST against the posterior: {means} over {count} observations (sbibm's network; 0.5 is right)")
    elif problem.own is None:
        say("  no C2ST: this posterior has no exact draws; pass the benchmark's tasks by --reference")
    if problem.bounds is not None:
        say(f"  draws outside the prior: {max(shares):.2%} at most")
    else:
        say(
            f"  draws outside the range of the simulated parameters: {max(shares):.2%} at most (--bounds excludes them)"
        )
    files = [*pictures, "calibration.png", "training.png"]
    if problem.own is not None:
        report_observations(drawn, problem)
        if not problem.examples:
            observed = torch.stack([each.x for each in problem.observed])
            report["observation_p_values"] = simulations.p_values(observed, problem.own)
            for line in simulations.compared(observed, problem.own, report["observation_p_values"]):
                say(line)
        files = ["samples.csv", *files]
    end_run(out, report, started, files, *next_commands(out, problem))


if __name__ == "__main__":
    run_recipe(main, Options, "posterior.py")
