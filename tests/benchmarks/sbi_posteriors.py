"""Posteriors from simulations: flows of cflow and of sbi against the reference posteriors of the sbi benchmark.

    peers/bin/python tests/benchmarks/sbi_posteriors.py --data FOLDER        # five minutes of training at most per cell

FOLDER holds ``two_moons/files/num_observation_1/...`` and so on, as the benchmark keeps them. All methods learn from
the same simulations on one thread, for the same processor time at most, and draw as many samples for each observation;
two classifiers try to tell them from the reference (C2ST: 0.5 is right, 1 the worst): the network of the benchmark's
protocol, and a random forest, which much of what is published was judged by. ``nsf`` and ``matching`` are as in
``recipes/posterior.py``; ``nsf in sbi`` and ``matching in sbi`` are our flows in sbi's own trainer, through
``cflow.integrations.sbi``: its loop, stopping rule and rejection of draws outside the prior, with another network. Its
own methods are its defaults; they stop when held-out simulations no longer improve, which may be long before the time
is over. It may be stopped and run again: finished cells are read from ``--out``.
"""

import argparse
import functools
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import cells

JUDGES = ("network", "forest")
TASKS = ("two-moons", "slcp")
METHODS = ("nsf", "matching", "nsf in sbi", "matching in sbi", "sbi nsf", "sbi maf", "sbi fmpe")


def recipe():
    """Gives the recipe's module: its tasks, and how it makes flows."""
    if "posterior_recipe" not in sys.modules:
        path = Path(__file__).parents[2] / "recipes" / "posterior.py"
        sys.path.append(str(path.parent))  # of the module that the recipes share
        spec = importlib.util.spec_from_file_location("posterior_recipe", path)
        sys.modules["posterior_recipe"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["posterior_recipe"]


def fit(method, theta, x, options, task, seconds):
    """Trains as the recipe does, or for as many steps as there is time: (draw, report)."""
    from cflow import bijections, training

    scale = bijections.Standardise.fit(x)
    context = scale.encode(x)[0]
    options.flow = method

    def run(steps):
        flow, objective, solver = recipe().build(options, theta, x.shape[1], recipe().box(task))
        begun = time.process_time()
        training.fit(
            flow,
            objective,
            (theta, context),
            steps=steps,
            batch_size=options.batch_size,
            lr=options.lr,
            clip=10.0,
            schedule=training.Cosine(warmup=100),
        )
        return flow.eval(), solver, time.process_time() - begun

    run(5)  # whatever is loaded when first used
    usual = 6000 if method == "matching" else task.steps  # there is no stopping rule
    steps = min(usual, int(50 * seconds / run(50)[2]))
    flow, solver, spent = run(steps)
    draw = lambda observed, count: flow.sample((count,), scale.encode(observed[None])[0][0], **solver)
    return draw, {"steps": steps, "seconds": spent}


def train(method, theta, x, task, seconds):
    """Trains by sbi, for as many epochs as there is time: (draw, report)."""
    from sbi import inference
    from sbi.utils import BoxUniform

    import cflow
    from cflow import bases, discrete, fields, objectives, paths
    from cflow.integrations.sbi import density_estimator

    prior = BoxUniform(-task.bound * theta.new_ones(theta.shape[1]), task.bound * theta.new_ones(theta.shape[1]))
    quiet = {"show_progress_bars": False}

    def matching(features, context):
        field = fields.MLP(features, hidden=(128, 128, 128), context=context)
        return cflow.ContinuousFlow(field, bases.Normal(features), path=paths.Linear(), context_shape=context)

    def trainer():
        match method:
            case "nsf in sbi":
                build = density_estimator(discrete.nsf, hidden=(64, 64))
                return inference.NPE(prior, build, **quiet)
            case "matching in sbi":
                matched = density_estimator(matching, objective=objectives.FlowMatching())
                return inference.NPE(prior, matched, **quiet)
            case "sbi fmpe":
                return inference.FMPE(prior, **quiet)
        return inference.NPE(prior, method.removeprefix("sbi "), **quiet)

    def run(epochs):
        made = trainer().append_simulations(theta, x)
        begun = time.process_time()
        made.train(max_num_epochs=epochs)
        return made, time.process_time() - begun

    run(1)  # whatever is loaded when first used
    trial, spent = run(2)
    rate = len(trial.summary["validation_loss"]) / spent
    made, spent = run(max(1, int(rate * seconds) - 1))  # one epoch more than the number given is trained
    posterior = made.build_posterior()
    draw = lambda observed, count: posterior.sample((count,), x=observed[None], **quiet)
    return draw, {"epochs": len(made.summary["validation_loss"]), "seconds": spent}


def cell(name, method, *, folder, simulations, seconds, observations, samples, seed):
    """Trains one method on one task and compares its draws with every observation's reference."""
    import torch
    from sklearn.ensemble import RandomForestClassifier

    import cflow

    task = recipe().TASKS[name]
    options = recipe().Options(task=name, reference=Path(folder), samples=samples, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    observed = recipe().targets(options, task, generator)
    theta = recipe().prior(task, simulations, generator)
    x = task.simulate(theta, generator)
    torch.manual_seed(seed)
    if method in ("nsf", "matching"):
        draw, report = fit(method, theta, x, options, task, seconds)
    else:
        draw, report = train(method, theta, x, task, seconds)
    begun = time.process_time()
    drawn = [draw(observed[k - 1][0], samples) for k in observations]
    report["sampling"] = time.process_time() - begun
    for judge, classifier in zip(JUDGES, (None, RandomForestClassifier())):
        compare = functools.partial(cflow.metrics.classifier_two_sample, classifier=classifier, seed=seed)
        report[judge] = [float(compare(found, observed[k - 1][2])) for k, found in zip(observations, drawn)]
    return report


def show(out):
    """Prints the cells that are there."""
    for name in TASKS:
        judges = "".join(f"{'C2ST by ' + judge:>19}{'worst':>8}" for judge in JUDGES)
        print(f"\n{name:16s}{judges}{'training, s':>14}{'':>14}{'sampling, s':>14}")
        for method in METHODS:
            found = cells.read(out, name, method)
            if found is None:
                continue
            judged = ""
            for values in (found[judge] for judge in JUDGES):
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                judged += f"{statistics.mean(values):>11.3f} ± {spread:.3f}{max(values):>8.3f}"
            length = f"{found['steps']} steps" if "steps" in found else f"{found['epochs']} epochs"
            print(f"{method:16s}{judged}{found['seconds']:>14.0f}{length:>14}{found['sampling']:>14.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the benchmark's tasks")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=300.0, help="processor time of each training")
    parser.add_argument("--observations", nargs="+", type=int, choices=range(1, 11), default=list(range(1, 11)))
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/sbi-posteriors"))
    parser.add_argument("--table", action="store_true", help="print what is there, compute nothing")
    options = parser.parse_args()
    if not options.table:
        jobs = [(name, method) for name in options.tasks for method in options.methods]
        keys = ("simulations", "seconds", "observations", "samples", "seed")
        settings = {"folder": options.data, **{key: getattr(options, key) for key in keys}}
        cells.run(cell, jobs, options.out, settings, options.processes)
    show(options.out)
