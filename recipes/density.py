"""Densities of tables: train a flow, compare it with simple models, find the rows that do not fit, check calibration.

    python recipes/density.py                                    # cell nuclei, 8 measures of 569, about a minute
    python recipes/density.py --data stars.csv --columns mass age metallicity --flow maf
    python recipes/density.py --data stars.csv --condition mass age          # p(all other columns | mass, age)
    python recipes/density.py --data stars.csv --columns mass age --id star --drop-missing
    python recipes/density.py --reference power --folder DIR --steps 100000  # the protocol of the MAF paper
    cflow score runs/density-breast-cancer new.csv --output scores.csv       # then, for new rows

The rows of the table are split into three parts: to train, to decide when to stop, and to report. Writes ``model/`` (a
flow of the data in their own units), ``corner.png`` (data and samples; the least likely rows are crossed),
``calibration.png``, ``training.png``, ``anomalies.csv`` (every row with its log-density, least likely first) and
``metrics.json`` into one folder; with ``--condition`` also ``intervals.csv`` (90% intervals of held-out rows).

``--reference power`` reads ``power.npy`` ([N, 6]: active power, voltage, three meters, minute; unshuffled, no noise),
``--reference bsds300`` reads ``bsds300.npz`` (train, val, test, each [N, 63]).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from common import MAIN, claim, end_run, plain, run_folder, say, say_resumed, write_table
from density_table import PUBLISHED, Table, read, units_of
from scipy.stats import kstest
from sklearn.mixture import GaussianMixture
from tqdm.auto import tqdm

import cflow
from cflow import plot, training
from cflow.cli import counted, run_recipe
from cflow.density import FLOWS, Comparison, make_flow, objective_of

NO_LAYERS, NO_NETWORK, SPLINES = ("ffjord", "flow-matching"), ("planar", "radial", "sylvester"), ("nsf", "nsf-ar")


@dataclass
class Options:
    """Estimates the density of the rows of a table."""

    data: Path | None = None
    """A .csv, .tsv, .npy or .npz table. Default: measures of cell nuclei (scikit-learn's breast cancer data)."""
    columns: tuple[str, ...] = ()
    """Names (or numbers, from 0) of the columns to model; others are not read. Default: all but the condition."""
    condition: tuple[str, ...] = ()
    """Names (or numbers) of the columns to condition on. Default: none."""
    id: str | None = None
    """Name (or number) of the column with the names of the rows, which is listed and not modelled. Default: none."""
    drop_missing: bool = False
    """Omit rows with a missing value in a column that is read."""
    missing: tuple[float, ...] = ()
    """Codes of a missing value, such as -999; stored in the run, so that cflow score knows them. Default: none."""
    robust: bool = False
    """Measure columns by median and quantiles, and compress values far from the others."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether a text file starts with a line of names; auto decides by the first line."""
    key: str | None = None
    """Name of the array in a .npz file with several."""
    reference: Literal["power", "bsds300"] | None = None
    """A data set and protocol of the MAF paper, read from --folder, in place of --data. Default: none."""
    folder: Path | None = None
    """The folder with the files of --reference."""
    flow: Literal[*FLOWS] = "nsf-ar"
    """The kind of flow."""
    layers: int | None = None
    """Layers of the flow. Default: 2, or 5 with --reference."""
    hidden: tuple[int, ...] | None = None
    """Hidden layers of its networks; large tables need more. Default: 16, or 128 128 with --reference."""
    bins: int | None = None
    """Bins of the splines of nsf and nsf-ar. Default: 5, or 8 with --reference."""
    steps: int | None = None
    """Most training steps. Default: 1500, or 20,000 with --reference."""
    batch_size: int | None = None
    """Rows per step, on each process. Default: 128, or 512 with --reference."""
    lr: float | None = None
    """Peak learning rate. Default: 2e-3, or 5e-4 with --reference."""
    weight_decay: float = 0.0
    """Decay of the networks' weights."""
    patience: int = 10
    """Training stops after so many validations, a fortieth of the steps apart, without improvement."""
    test_fraction: float = 0.2
    """Share of the rows to report on; a tenth of the others is used to decide when to stop."""
    dequantise: bool = True
    """Add noise to columns of whole numbers, or few different values, which have no density without."""
    num: int = 5000
    """Samples for the pictures and the calibration."""
    out: Path | None = None
    """Where everything is written. Default: runs/density-<data>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def train(table: Table, options: Options, out: Path):
    """Trains a flow in standardised units; returns the best one, in the units of the data, and the run."""
    big = options.reference is not None
    default = lambda value, usual, reference: (reference if big else usual) if value is None else value
    steps, batch_size = default(options.steps, 1500, 20_000), default(options.batch_size, 128, 512)
    settings = {}
    if options.flow not in NO_LAYERS:
        settings["layers"] = default(options.layers, 2, 5)
    if options.flow not in NO_NETWORK:
        settings["hidden"] = default(options.hidden, (16,), (128, 128))
    if options.flow in SPLINES:
        settings["bins"] = default(options.bins, 5, 8)
    for name in {"layers", "hidden", "bins"} - set(settings):
        if getattr(options, name) is not None:
            raise ValueError(f"--flow {options.flow} --{name}: this flow has none; omit the latter.")
    seen = lambda parts: torch.cat([parts["train"], parts["validation"]])
    units = units_of(seen(table.x), table.columns, table.listed, options.robust) if table.standardised else None
    context_units = None
    if table.context is not None:
        context_units = units_of(seen(table.context), table.condition, table.listed, options.robust)
    torch.manual_seed(options.seed)  # the network's initial weights
    flow = make_flow(options.flow, len(table.columns), len(table.condition), settings, "density.py")
    objective = objective_of(flow)

    def inside(part: str):
        x = table.x[part] if units is None else units.encode(table.x[part])[0]
        rest = () if context_units is None else (context_units.encode(table.context[part])[0].float(),)
        return (x.float(), *rest)

    validation = tuple(each[:20_000] for each in inside("validation"))
    if objective.draws:  # a loss of random times needs more draws than rows
        validation = tuple(each.repeat(math.ceil(2048 / len(each)), 1) for each in validation)
    count = sum(each.numel() for each in flow.parameters())
    say(f"{options.flow}: {count:,} parameters, {steps} steps at most; writing to {out}/")
    unpaired = lambda parts: parts if len(parts) == 2 else parts[0]
    every = max(1, steps // 40)
    claim(out, table.source)
    run = training.fit(
        flow,
        objective,
        unpaired(inside("train")),
        steps=steps,
        batch_size=min(batch_size, len(table.x["train"])),
        lr=default(options.lr, 2e-3, 5e-4),
        weight_decay=options.weight_decay,
        schedule=training.Cosine(warmup=min(100, steps // 10)),
        ema=None,  # the weights that are validated are those that are kept
        validation=unpaired(validation),
        validate_every=every,
        patience=options.patience,
        checkpoint_every=max(1, steps // 10),
        seed=options.seed,
        out=out,
        save_model=False,  # it is trained in standardised units; the transform is added below
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    say(f"trained {run.steps} steps in {run.seconds:.0f} s; the best weights are those of step {run.best_step}")
    if not MAIN:
        return flow, run, run.best_step
    flow = flow.double()
    if context_units is not None:
        flow = cflow.StandardisedContext(flow, context_units)
    if units is not None:
        flow = flow.with_transform(units)
    flow.eval()
    cflow.save(flow, out / "model")
    return flow, run, run.best_step


@torch.no_grad()
def score(flow, x: torch.Tensor, context: torch.Tensor | None, generator) -> np.ndarray:
    """Computes log-densities ``[N]``, some rows at a time."""
    parts = []
    for rows in tqdm(torch.arange(len(x)).split(4096), desc="scores", unit="part", disable=len(x) < 50_000):
        parts.append(flow.log_prob(x[rows], None if context is None else context[rows], generator=generator))
    return torch.cat(parts).numpy()


def mixtures(table: Table, options: Options) -> dict[str, np.ndarray]:
    """Computes log-densities of the held-out rows under a Gaussian, and under the Gaussian mixture that BIC chooses."""
    both = lambda part: table.x[part] if table.context is None else torch.cat([table.x[part], table.context[part]], 1)
    known = torch.cat([both("train"), both("validation")])
    loc, scale = known.mean(0), known.std(0)
    known, held = (((each - loc) / scale).numpy() for each in (known, both("test")))
    known = known[:20_000]
    fits = [
        GaussianMixture(k, n_init=3 if k > 1 else 1, random_state=options.seed).fit(known)
        for k in range(1, 9)
        if len(known) > 2 * k * known.shape[1]
    ]
    chosen = min(fits, key=lambda model: model.bic(known))
    features = len(table.columns)
    shift = float(scale[:features].log().sum())

    def scores(model: GaussianMixture) -> np.ndarray:
        joint = model.score_samples(held)
        if table.context is not None:  # p(x | c) = p(x, c) / p(c), and p(c) is a mixture, too
            marginal = GaussianMixture(model.n_components)
            marginal.weights_, marginal.means_ = model.weights_, model.means_[:, features:]
            covariances = model.covariances_[:, features:, features:]
            marginal.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
            joint = joint - marginal.score_samples(held[:, features:])
        return joint - shift

    return {"gaussian": scores(fits[0]), f"mixture of {chosen.n_components}": scores(chosen)}


@torch.no_grad()
def calibrate(flow, table: Table, scores: np.ndarray, options: Options, generator):
    """Ranks held-out rows among samples: ``(samples, pit [N, D], tail [N])``, and log-densities that tails are from.

    Samples are ``[S, D]``, or ``[S, N, D]`` under conditions.

    ``pit`` is the share of samples below a row's value, column by column; ``tail`` is the share of samples that are
    less likely than the row. Both are uniform for the true density, and a row with a small tail is unusual. Under a
    condition each row has its own samples, and there are no log-densities for all.
    """
    x = table.x["test"]
    if table.context is None:
        samples, likely = [], []
        for count in [1000] * (options.num // 1000) + [options.num % 1000] * (options.num % 1000 > 0):
            drawn, logp = flow.sample_and_log_prob((count,), generator=generator)
            samples.append(drawn)
            likely.append(logp)
        samples, likely = torch.cat(samples), torch.cat(likely).sort().values
        ranks = torch.stack([torch.searchsorted(s.sort().values, v.contiguous()) for s, v in zip(samples.T, x.T)], 1)
        return samples, (ranks + 0.5) / (len(samples) + 1), tails(likely, scores), likely
    drawn, likely = given(flow, table.context["test"], generator)
    ranks = (drawn < x).sum(0)
    return drawn, (ranks + 0.5) / (len(drawn) + 1), tails(likely, scores), None


def given(flow, context: torch.Tensor, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws 256 samples under every condition, ``[256, N, D]``, with their log-densities."""
    parts = [flow.sample_and_log_prob((256,), each, generator=generator) for each in context.split(50)]
    return tuple(torch.cat(each, 1) for each in zip(*parts))


def tails(likely: torch.Tensor, scores: np.ndarray) -> torch.Tensor:
    """Computes the share of samples less likely than each row, from log-densities ``[S]`` (sorted) or ``[S, N]``."""
    scores = torch.from_numpy(scores)
    below = torch.searchsorted(likely, scores) if likely.dim() == 1 else (likely < scores).sum(0)
    return (below + 0.5) / (len(likely) + 1)


def write_anomalies(flow, table: Table, likely: torch.Tensor | None, file: Path, generator) -> list[list[str]]:
    """Writes the rows as they are in the file, least likely first; returns a heading and the first ten lines."""
    listed = table.listed
    scores = score(flow, listed.x, listed.context, generator)
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    if likely is not None:
        tail = [f"{each:.4g}" for each in tails(likely, scores)]
    else:  # each row needs its own samples: only the least likely get them
        tail, odd = [""] * len(scores), order[:1000].copy()
        with torch.no_grad():
            own = given(flow, listed.context[odd], generator)[1]
        for row, each in zip(odd, tails(own, scores[odd])):
            tail[row] = f"{each:.4g}"
    values = listed.x if listed.context is None else torch.cat([listed.x, listed.context], 1)
    heads = [*listed.places, "part", "log_prob", "tail", *table.columns, *table.condition]
    found = lambda i: [str(each[i]) for each in listed.places.values()]
    line = lambda i, shown: [*found(i), listed.parts[i], f"{scores[i]:.6g}", tail[i], *map(shown, values[i].tolist())]
    write_table(file, heads, (line(i, plain) for i in order))
    return [heads, *(line(i, lambda value: plain(value, 6)) for i in order[:10])]


def intervals(drawn: torch.Tensor, pit: torch.Tensor, table: Table, file: Path) -> dict[str, float]:
    """Writes 90% intervals of held-out rows, from draws ``[S, N, D]``; returns the share inside, column by column."""
    quantiles = np.quantile(drawn.numpy(), [0.05, 0.5, 0.95], axis=0)  # [3, N, D]
    listed = table.listed
    heads = [f"{name}{each}" for name in table.columns for each in ("", " 5%", " 50%", " 95%")]

    def line(i: int, row: int) -> list[str]:
        value = zip(listed.x[row].tolist(), quantiles[:, i].T.tolist())
        cells = [cell for own, (low, middle, high) in value for cell in (plain(own), *map(short, (low, middle, high)))]
        return [*(str(each[row]) for each in listed.places.values()), *map(plain, listed.context[row].tolist()), *cells]

    short = lambda value: f"{value:.7g}"
    write_table(file, [*listed.places, *table.condition, *heads], (line(i, row) for i, row in enumerate(table.rows)))
    return dict(zip(table.columns, ((pit > 0.05) & (pit < 0.95)).double().mean(0).tolist()))


def main(options: Options) -> None:
    started = time.perf_counter()
    if options.num < 2:
        raise ValueError(f"--num {options.num}: pictures and calibration take 2 samples at least; choose thousands.")
    table = read(options)
    out = run_folder(options.out, f"density-{table.name}", table.source, options.resume)
    uses = {"train": "train", "validation": "decide when to stop", "test": "report"}
    sizes = ", ".join(f"{len(table.x[part])} to {use}" for part, use in uses.items())
    given = f" given {', '.join(table.condition)}" if table.condition else ""
    say(f"{table.name}: {counted(len(table.columns), 'column')}{given}, rows: {sizes}")
    for note in table.notes:
        say(note)
    if table.spread:
        columns = ", ".join(table.spread)
        say(f"noise is added to columns of whole numbers or few different values: {columns}")
        if options.data is not None:
            say("  (an identifier or a date is not a measurement: choose other --columns, or list it by --id)")
    flow, run, best_step = train(table, options, out)
    if not MAIN:
        return
    loss = "velocity, mean squared error" if options.flow == "flow-matching" else "negative log-density, nats"
    plot.training(run, out / "training.png", title=f"loss: {loss} (of standardised data)")

    generator = torch.Generator().manual_seed(options.seed + 1)
    test, context = table.x["test"], None if table.context is None else table.context["test"]
    scores = score(flow, test, context, generator)
    report = {
        "columns": table.columns,
        "condition": table.condition,
        "missing": options.missing,
        "dequantised": table.spread,
        "notes": table.notes,
        "steps": run.steps,
        "best_step": best_step,
        "training_seconds": run.seconds,
        "log_prob_held_out": float(scores.mean()),
        "log_prob_standard_error": float(scores.std(ddof=1) / math.sqrt(len(scores))),
    }
    if options.reference is None:
        models = {options.flow: scores, **mixtures(table, options)}
        comparison = Comparison(tuple(models), np.stack(list(models.values())), table.rows, list(models)[-1])
        report["models"] = {
            name: {
                "nats": comparison.means[name],
                "standard_error": comparison.errors[name],
                "over_reference": change,
                "over_reference_error": error,
            }
            for name, (change, error) in comparison.differences.items()
        }
        say(f"{len(scores)} held-out rows, nats per row in the units of the table, ± one standard error:\n{comparison}")
    else:
        shift = float(flow.transform[0].scale.log().sum()) if table.standardised else 0.0
        report["log_prob_of_the_protocol"] = report["log_prob_held_out"] + shift
        report["published"] = PUBLISHED[options.reference]
        units = "standardised" if table.standardised else "raw"
        error = 2 * report["log_prob_standard_error"]
        rows = {
            f"{options.flow}, here": f"{report['log_prob_of_the_protocol']:.2f} ± {error:.2f}",
            **PUBLISHED[options.reference],
        }
        say(f"{len(scores)} test rows, nats of {units} data, ± two standard errors; the others as published:")
        say("\n".join(f"  {name:16s} {value:>16s}" for name, value in rows.items()))

    few = slice(0, 5000)  # enough for pictures and tests of calibration
    table.x["test"], table.rows, scores = test[few], table.rows[few], scores[few]
    if context is not None:
        table.context["test"] = context[few]
    samples, pit, tail, likely = calibrate(flow, table, scores, options, generator)
    if context is not None:
        report["coverage_of_90"] = intervals(samples, pit, table, out / "intervals.csv")
        error = lambda share: math.sqrt(share * (1 - share) / len(scores))
        inside = (f"{share:.3g} ± {error(share):.2g} ({name})" for name, share in report["coverage_of_90"].items())
        say(f"90% intervals contain this share of the held-out rows: {', '.join(inside)}")
        samples = samples[0]
    given = [f"{name} (given)" for name in table.condition]  # the same in both pictures
    names, shown = [*table.columns, *given], min(8, len(table.columns) + len(table.condition))
    joined = lambda x: x if context is None else torch.cat([x, table.context["test"]], 1)
    reference, drawn = joined(table.x["test"])[:, :shown], joined(samples)[:, :shown]
    odd = torch.from_numpy(np.argsort(scores)[:5].copy())
    plot.corner(
        drawn,
        out / "corner.png",
        reference=reference,
        names=names[:shown],
        labels=(options.flow, "held-out data"),
        marks=reference[odd],
        mark_label=f"the {len(odd)} least likely",
        title=f"the first {shown} of {len(names)} columns" if shown < len(names) else "",
    )
    shown, many = min(8, len(table.columns)), len(table.columns)
    plot.calibration(
        pit[:, :shown],
        out / "calibration.png",
        coverage={options.flow: 1 - tail},
        names=table.columns[:shown],
        words=("row", "samples"),
        title=f"the first {shown} of {many} columns" if shown < many else "",
    )
    report["calibration"] = {
        **{name: float(kstest(pit[:, i].numpy(), "uniform").pvalue) for i, name in enumerate(table.columns)},
        "density": float(kstest(tail.numpy(), "uniform").pvalue),
    }
    p = report["calibration"]
    worst = min(table.columns, key=p.get)
    shown_p = lambda value: f"{value:.3g}" if value else "<1e-300"
    say(
        f"calibration, p-values of Kolmogorov-Smirnov tests on {len(scores)} rows: regions of the density "
        f"{shown_p(p['density'])}; smallest of the columns {shown_p(p[worst])} ({worst})"
    )
    generator.manual_seed(options.seed + 2)
    lines = write_anomalies(flow, table, likely, out / "anomalies.csv", generator)
    say(
        f"the least likely of {len(table.listed.parts)} rows (tail: share of the flow's samples with a lower "
        f"density; a little too high for training rows):"
    )
    kept = [line[: len(table.listed.places) + 9] for line in lines]
    widths = [max(len(line[i]) for line in kept) for i in range(len(kept[0]))]
    say("\n".join("  " + "  ".join(f"{cell:>{width}s}" for cell, width in zip(line, widths)) for line in kept))

    new = f"scores of new rows: cflow score {out} new.csv{table.again} --output scores.csv"
    files = ["corner.png", "calibration.png", "training.png", "anomalies.csv"] + ["intervals.csv"] * bool(
        table.condition
    )
    end_run(out, report, started, files, new)


if __name__ == "__main__":
    run_recipe(main, Options, "density.py", {"label": "id"})
