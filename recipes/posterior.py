"""Posteriors without a likelihood: learn to infer parameters from simulations, and check what was learned.

    python recipes/posterior.py                                # two moons, a spline flow, about a minute
    python recipes/posterior.py --flow matching                # the same by flow matching
    python recipes/posterior.py --task slcp --reference DIR    # against the reference posteriors of the sbi benchmark

Parameters are drawn from a uniform prior and put through a simulator; a flow learns their law given what came out
(neural posterior estimation), on the whole line behind a logit, so that no draw leaves the prior's box. Then, over data
sets of all kinds: do the truths rank among the draws as they should (simulation-based calibration), and do regions of
90 % hold 90 % of them? And for ten observations: can a classifier tell the draws from the true posterior's (C2ST,
by the network and protocol of the sbi benchmark, sbibm)? Two moons has a likelihood in closed form, and with it exact
draws; for either task, --reference names the folder of the benchmark's tasks
(``two_moons/files/num_observation_1/...``).

Leaves ``model/``, ``corner-*.png``, ``calibration.png``, ``training.png`` and ``metrics.json`` in one folder.
"""

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed

import cflow
from cflow import bases, bijections, discrete, fields, metrics, objectives, paths, plot, solvers, training
from cflow.cli import run_recipe

OBSERVATIONS = range(1, 11)


@dataclass
class Options:
    """Learns a posterior from simulations, and checks it."""

    task: Literal["two-moons", "slcp"] = "two-moons"
    """The simulator: two parameters and two numbers out, or five and eight."""
    simulations: int = 10_000
    """Simulations to learn from; a twentieth of them are held out."""
    flow: Literal["nsf", "maf", "matching"] = "nsf"
    """Spline couplings, affine autoregressive layers, or a continuous flow by flow matching."""
    reference: Path | None = None
    """The folder of the benchmark's tasks, for observations and posteriors; exact draws unless given (two moons)."""
    samples: int = 2000
    """Draws from each of the ten posteriors that are compared with as many of the reference."""
    sets: int = 500
    """Simulated data sets that calibration is measured on."""
    draws: int = 99
    """Draws from the posterior of each of them."""
    steps: int | None = None
    """Training steps; 6000 by flow matching unless given, and 3000 (SLCP: 1500) by likelihood, where more learn the
    simulations by heart: see validation in training.png."""
    batch_size: int = 256
    """Simulations per step, on each process."""
    hidden: tuple[int, ...] = ()
    """Hidden layers of the networks; 128 128 128 of the continuous flow unless given, 64 64 of every other layer."""
    lr: float = 2e-3
    """Peak learning rate."""
    out: Path | None = None
    """Where everything is written; runs/posterior-<task>-<flow> unless given."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


# The tasks, after Lueckmann et al., Benchmarking Simulation-Based Inference, 2021, arXiv:2101.04653, appendix T


class TwoMoons:
    """T.8: a noisy half circle whose place depends on the sum's size and the difference: two crescents to infer."""

    folder, names, bound, steps = "two_moons", ("theta 1", "theta 2"), 1.0, 3000

    @staticmethod
    def crescent(count, generator):
        angle = math.pi * (torch.rand(count, generator=generator) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(count, generator=generator)
        return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)

    def simulate(self, theta, generator):
        total, difference = theta.sum(1), theta[:, 1] - theta[:, 0]
        return self.crescent(len(theta), generator) + torch.stack([-total.abs(), difference], 1) / math.sqrt(2)

    def posterior(self, x, count, generator):
        """Draws exactly: x is noise plus a shift of the turned parameters, so the noise says what these were.

        |sum| and difference over the root of two are the noise less x and x less the noise, without a Jacobian; the
        sum's sign is free, and what falls outside the prior is drawn anew.
        """
        found, total = [], 0
        while total < count:
            noise = self.crescent(4 * count, generator)
            size, turned = noise[:, 0] - x[0], x[1] - noise[:, 1]
            turned_sum = torch.where(torch.rand(len(size), generator=generator) < 0.5, size, -size)
            theta = torch.stack([turned_sum - turned, turned_sum + turned], 1) / math.sqrt(2)
            found.append(theta[(size >= 0) & (theta.abs() <= self.bound).all(1)])
            total += len(found[-1])
        return torch.cat(found)[:count]


class SLCP:
    """T.3, simple likelihood, complex posterior: four points of a normal in the plane whose mean and covariance are
    functions of five parameters, two of which lose their sign: four modes."""

    folder, names, bound, steps = "slcp", tuple(f"theta {i}" for i in range(1, 6)), 3.0, 1500
    posterior = None  # no exact draws

    def simulate(self, theta, generator):
        first, second = theta[:, 2].square(), theta[:, 3].square()
        correlation = theta[:, 4].tanh()
        z = torch.randn(len(theta), 4, 2, generator=generator)
        across = first[:, None] * z[..., 0]
        up = second[:, None] * (correlation[:, None] * z[..., 0] + (1 - correlation**2).sqrt()[:, None] * z[..., 1])
        return (theta[:, None, :2] + torch.stack([across, up], 2)).flatten(1)


TASKS = {"two-moons": TwoMoons(), "slcp": SLCP()}


def prior(task, count, generator):
    return task.bound * (2 * torch.rand(count, len(task.names), generator=generator) - 1)


def build(options: Options, task, theta: torch.Tensor, width: int):
    """Makes the flow, the objective that trains it, and the solver that is good enough for thousands of densities."""
    features = len(task.names)
    # The prior's box becomes the whole line; from the bounds a little is left, where a logit would be infinite.
    line = (
        bijections.Standardise(features, loc=-task.bound, scale=2 * task.bound),
        bijections.Logit(features, alpha=1e-6),
    )
    u = line[1].encode(line[0].encode(theta)[0])[0]
    torch.manual_seed(options.seed)  # the network's initial weights
    if options.flow == "matching":
        field = fields.MLP(features, hidden=options.hidden or (128, 128, 128), context=width)
        flow = cflow.ContinuousFlow(field, bases.Normal(features), path=paths.Linear(), context_shape=width)
        objective, solver = objectives.FlowMatching(), {"solver": solvers.RK4(steps=20)}
    else:
        flow = discrete.PRESETS[options.flow](features, context=width, hidden=options.hidden or (64, 64))
        objective, solver = objectives.MaximumLikelihood(), {}
    return flow.with_transform(*line, bijections.Standardise.fit(u)), objective, solver


def targets(options: Options, task, generator):
    """Gives ten observations with the truth and draws from their posterior, where there are any: (x, theta, draws)."""
    if options.reference is None:
        theta = prior(task, len(OBSERVATIONS), generator)
        x = task.simulate(theta, generator)
        if task.posterior is None:
            return [(each, truth, None) for each, truth in zip(x, theta)]
        draws = [task.posterior(each, options.samples, generator) for each in x]
        return list(zip(x, theta, draws))
    found = []
    for k in OBSERVATIONS:
        folder = options.reference / task.folder / "files" / f"num_observation_{k}"
        draws = read(folder / "reference_posterior_samples.csv.bz2")
        draws = draws[torch.randperm(len(draws), generator=generator)[: options.samples]]
        found.append((read(folder / "observation.csv"), read(folder / "true_parameters.csv"), draws))
    return found


def read(file: Path) -> torch.Tensor:
    """Reads a table of numbers under a line of names, packed or not."""
    try:
        return torch.tensor(np.loadtxt(file, delimiter=",", skiprows=1), dtype=torch.float32)
    except FileNotFoundError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: no table of the benchmark ({error}); get the tasks of sbibm again.") from error


def calibrated(posterior, task, options: Options, solver: dict, generator):
    """Checks the posterior over data sets of all kinds: (calibration, coverage)."""
    theta = prior(task, options.sets, generator)
    x = task.simulate(theta, generator)
    parts = [
        posterior.sample_and_log_prob((options.draws,), part, generator=generator, **solver) for part in x.split(50)
    ]
    draws, logp = (torch.cat(each, 1) for each in zip(*parts))
    with torch.no_grad():
        truth = posterior.log_prob(theta, x, **solver)
    ranked = metrics.simulation_based_calibration(draws, theta, generator=generator)
    return ranked, metrics.expected_coverage(logp, truth, generator=generator), float(truth.mean())


def main(options: Options) -> None:
    began = time.perf_counter()
    task = TASKS[options.task]
    out = run_folder(options.out, f"posterior-{options.task}-{options.flow}", options.task, options.resume)
    generator = torch.Generator().manual_seed(options.seed)
    observed = targets(options, task, generator)  # first, so that a missing folder is reported before training

    theta = prior(task, options.simulations, generator)
    x = task.simulate(theta, generator)
    scale = bijections.Standardise.fit(x)
    context = scale.encode(x)[0]
    flow, objective, solver = build(options, task, theta, x.shape[1])
    held = max(1, options.simulations // 20)
    steps = options.steps or (6000 if options.flow == "matching" else task.steps)
    say(f"{options.task}: {options.simulations} simulations, {options.flow}, {steps} steps; writing to {out}/")
    claim(out, options.task)
    run = training.fit(
        flow,
        objective,
        (theta[held:], context[held:]),
        validation=(theta[:held], context[:held]),
        validate_every=max(1, steps // 20),
        steps=steps,
        batch_size=min(options.batch_size, options.simulations - held),
        lr=options.lr,
        clip=10.0,  # gradients of narrow posteriors are large
        schedule=training.Cosine(warmup=100),
        checkpoint_every=max(1, steps // 4),
        seed=options.seed,
        out=out,
        save_model=False,  # it reads standardised data; what does that is put around it below
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    if not MAIN:
        return
    posterior = cflow.StandardisedContext(flow.cpu().eval(), scale)  # takes data as the simulator gives them
    cflow.save(posterior, out / "model")
    plot.training(run, out / "training.png")

    ranked, coverage, logp = calibrated(posterior, task, options, solver, generator)
    label = f"{options.flow}, highest density"
    plot.calibration(ranked.pit, out / "calibration.png", coverage={label: coverage.credibility}, names=task.names)
    report = {
        "columns": list(task.names),
        "condition": [f"x {i + 1}" for i in range(x.shape[1])],
        "steps": run.steps,
        "training_seconds": run.seconds,
        "validation": run.final_validation,
        "log_prob_of_truth": logp,
        "sbc_p_values": ranked.ks.tolist(),
        "sbc_dispersion": ranked.dispersion.tolist(),
        "coverage": dict(zip((f"{level:.2f}" for level in coverage.levels.tolist()), coverage.coverage.tolist())),
        "coverage_excess": coverage.excess,
    }
    pictures, accuracies, outside = ["calibration.png", "training.png"], [], []
    for k, (data_set, truth, reference) in zip(OBSERVATIONS, observed):
        draws = posterior.sample((options.samples,), data_set, generator=generator, **solver)
        outside.append(float((draws.abs() > task.bound).any(1).float().mean()))
        if reference is not None:
            accuracies.append(float(metrics.classifier_two_sample(draws, reference, seed=options.seed)))
            say(f"observation {k}: C2ST {accuracies[-1]:.3f}")
        if k <= 3:
            pictures.append(f"corner-{k}.png")
            labels = (options.flow, "reference")
            plot.corner(
                draws,
                out / pictures[-1],
                reference=reference,
                names=task.names,
                labels=labels,
                marks=truth[None],
                mark_label="truth",
            )
    if options.flow == "matching":
        report["sampler"] = {"solver": "rk4", "steps": solver["solver"].steps}
    report["share_outside_prior"] = max(outside)
    if accuracies:
        report["c2st"], report["c2st_classifier"] = accuracies, "two hidden layers of 10 D units (sbibm)"
        report["c2st_mean"], report["c2st_deviation"] = statistics.mean(accuracies), statistics.stdev(accuracies)

    for name, p, width in zip(task.names, report["sbc_p_values"], report["sbc_dispersion"]):
        say(f"  {name}: ranks uniform with p = {p:.3g}; dispersion {width:.3f} (1 is right, above: too narrow)")
    shown = ", ".join(f"{report['coverage'][level]:.3f} at {level}" for level in ("0.50", "0.90", "0.95"))
    say(f"  coverage {shown} (± {float(coverage.standard_error.max()):.3f} at most)")
    if accuracies:
        means = f"{report['c2st_mean']:.3f} ± {report['c2st_deviation']:.3f}"
        say(
            f"  C2ST against the posterior: {means} over {len(accuracies)} observations (sbibm's network; 0.5 is right)"
        )
    else:
        say("  no C2ST: this posterior has no exact draws; name the benchmark's tasks with --reference")
    say(f"  draws outside the prior: {report['share_outside_prior']:.2%} at most")
    end_run(out, report, began, pictures)


if __name__ == "__main__":
    run_recipe(main, Options, "posterior.py")
