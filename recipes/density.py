"""Densities of tables: train a flow, hold it against simple models, find the rows that do not fit, check calibration.

    python recipes/density.py                                    # cell nuclei, 8 measures of 569, about a minute
    python recipes/density.py --data stars.csv --columns mass age metallicity --flow maf
    python recipes/density.py --data stars.csv --condition mass age          # p(all other columns | mass, age)
    python recipes/density.py --data stars.csv --columns mass age --id star --drop-missing
    python recipes/density.py --reference power --folder DIR --steps 100000  # the protocol of the MAF paper
    cflow score runs/density-breast-cancer new.csv --output scores.csv       # then, for rows that are new

A table is split into rows to train, to stop by, and to report. Leaves ``model/`` (a flow of the data as given),
``corner.png`` (data and samples, the least likely rows crossed), ``calibration.png``, ``training.png``,
``anomalies.csv`` (every row with its own values and the score that ``cflow score`` gives it, least likely first) and
``metrics.json`` in one folder.

``--reference power`` reads ``power.npy`` ([N, 6]: active power, voltage, three meters, minute; unshuffled, no noise),
``--reference bsds300`` reads ``bsds300.npz`` (train, val, test, each [N, 63]).
"""

import csv
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from common import MAIN, claim, counted, end_run, plain, run_folder, say, say_resumed
from scipy.stats import kstest
from sklearn.mixture import GaussianMixture
from tqdm.auto import tqdm

import cflow
from cflow import bijections, data, plot, training
from cflow.cli import run_recipe
from cflow.density import FLOWS, Comparison, dequantise, lattice_steps, make_flow, objective_of

NO_LAYERS, NO_NETWORK, SPLINES = ("ffjord", "flow-matching"), ("planar", "radial", "sylvester"), ("nsf", "nsf-ar")
# Test log-likelihoods in nats with two standard errors, of Papamakarios et al., arXiv:1705.07057, table 1 (Gaussian to
# MAF), Grathwohl et al., arXiv:1810.01367, table 2 (FFJORD), and Durkan et al., arXiv:1906.04032, table 1 (RQ-NSF).
PUBLISHED = {
    "power": {
        "Gaussian": "-7.74 ± 0.02", "MADE": "-3.08 ± 0.03", "RealNVP (10)": "0.17 ± 0.01", "MAF (10)": "0.24 ± 0.01",
        "FFJORD": "0.46 ± 0.01", "RQ-NSF (C)": "0.64 ± 0.01", "RQ-NSF (AR)": "0.66 ± 0.01",
    },
    "bsds300": {
        "Gaussian": "96.67 ± 0.25", "MADE": "148.85 ± 0.28", "RealNVP (10)": "153.28 ± 1.78",
        "MAF (10)": "154.93 ± 0.28", "FFJORD": "157.40 ± 0.19", "RQ-NSF (C)": "157.54 ± 0.28",
        "RQ-NSF (AR)": "157.31 ± 0.28",
    },
}  # fmt: skip


@dataclass
class Options:
    """Estimates the density of the rows of a table."""

    data: Path | None = None
    """A .csv, .tsv, .npy or .npz table; measures of cell nuclei (scikit-learn's breast cancer data) unless given."""
    columns: tuple[str, ...] = ()
    """Names (or numbers, from 0) of the columns to model; all but the condition unless given. Others are not read."""
    condition: tuple[str, ...] = ()
    """Names (or numbers) of the columns to condition on; none unless given."""
    id: str | None = None
    """Name (or number) of the column that names the rows, in words or numbers; it is listed and not modelled."""
    drop_missing: bool = False
    """Leave out the rows that miss a value in a column that is read."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether a text file begins with names; auto sees it from the first line."""
    key: str | None = None
    """Name of the array in a .npz file that holds several."""
    reference: Literal["power", "bsds300"] | None = None
    """Instead, a data set and protocol of the MAF paper, read from --folder."""
    folder: Path | None = None
    """Where the files of --reference are."""
    flow: Literal[*FLOWS] = "nsf-ar"
    """The flow."""
    layers: int | None = None
    """Its layers; 2 unless given, and 5 with --reference."""
    hidden: tuple[int, ...] | None = None
    """Hidden layers of its networks; one of 16 unless given, and 128 128 with --reference. Large tables want more."""
    bins: int | None = None
    """Bins of the splines of nsf and nsf-ar; 5 unless given, and 8 with --reference."""
    steps: int | None = None
    """Training steps at most; 1500 unless given, and 20,000 with --reference."""
    batch_size: int | None = None
    """Rows per step, on each process; 128 unless given, and 512 with --reference."""
    lr: float | None = None
    """Peak learning rate; 2e-3 unless given, and 5e-4 with --reference."""
    weight_decay: float = 0.0
    """Decay of the networks' weights."""
    patience: int = 10
    """Training stops after so many looks at the validation rows, a fortieth of the steps apart, without improvement."""
    test_fraction: float = 0.2
    """Part of the rows to report on; another tenth of the others is to stop by."""
    dequantise: bool = True
    """Spread columns of whole numbers, or few different values, over their steps by noise: they have no density."""
    num: int = 5000
    """Samples for the pictures and the calibration."""
    out: Path | None = None
    """Where everything is written; runs/density-<data> unless given."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


@dataclass
class Listed:
    """Rows as they were given: what is listed of them."""

    x: torch.Tensor  # [M, D]
    context: torch.Tensor | None
    parts: list[str]  # what each row was used for
    places: dict[str, list]  # how it is found again: its number, its line, its name


@dataclass
class Table:
    """Rows to train, to stop by and to report: data ``[N, D]`` and conditions ``[N, C]``, in float64."""

    name: str
    x: dict[str, torch.Tensor]
    context: dict[str, torch.Tensor] | None
    columns: list[str]
    condition: list[str]
    rows: np.ndarray  # numbers of the rows to report
    listed: Listed | None = None
    notes: list[str] = field(default_factory=list)  # of what the file held and is not here
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)  # dequantised columns: a value, and their step
    standardised: bool = True
    source: Path | str = ""  # the file, or a word for data that come with scikit-learn
    again: str = ""  # what commands that read this file need to find its columns by number


def read(options: Options) -> Table:
    """Reads and splits the table."""
    if options.reference is not None:
        return read_reference(options)
    notes, again = [], ""
    if options.data is None:
        values, names, condition, places = read_nuclei(options)
    else:
        header = {"auto": None, "yes": True, "no": False}[options.header]
        file = data.TableFile(options.data, key=options.key, header=header, label=options.id)
        chosen, given = ([file.find(each) for each in each] for each in (options.columns, options.condition))
        chosen = chosen or [each for each in file.columns if each not in given]
        check_columns(chosen, given, options)
        check_names(file.choose([*chosen, *given]), options)
        if any(file.names.count(name) > 1 for name in file.choose([*chosen, *given]).names or ()):
            numbered = (("columns", chosen), ("condition", given))
            again = "".join(f" --{option} {' '.join(map(str, each))}" for option, each in numbered if each)
        table = file.choose([*chosen, *given]).read(drop_missing=options.drop_missing)
        values = table.values.numpy()
        names = list(table.names or map(str, (*chosen, *given)))
        condition = names[len(chosen) :]
        places = {"row": table.rows.tolist()}
        if table.unit == "line":
            places["line"] = table.places.tolist()
        if table.labels is not None:
            places[options.id] = table.labels
        notes += [f"dropped {counted(table.dropped, 'row')} with missing values"] if table.dropped else []
        left = [] if options.columns else [each for each in file.unnamed if each not in given]
        notes += [f"column {each} has no name, as an index has none, and is left out" for each in left]
        notes += (
            [f"passed over {counted(table.passed, 'line')} without a row (empty, or a remark)"] if table.passed else []
        )
    columns = names[: len(names) - len(condition)]
    if len(values) < max(50, 2 * len(columns)):
        raise ValueError(
            f"the table has {counted(len(values), 'row')}; a density of {counted(len(columns), 'column')} takes "
            f"{max(50, 2 * len(columns))} or more."
        )
    x, context = values[:, : len(columns)], values[:, len(columns) :]
    constant = [name for name, column in zip((*columns, *condition), values.T) if np.ptp(column) == 0]
    if constant:
        raise ValueError(f"the columns {', '.join(constant)} are constant, and have no density; omit them.")
    if stuck := [name for name, column in zip(names, values.T) if column.std() <= 1e-12 * abs(column.mean())]:
        raise ValueError(
            f"column {', '.join(stuck)}: the values differ by less than a trillionth of their size, as those of long "
            f"identifiers do; choose others by --columns, or name the rows by it: --id {stuck[0]}."
        )
    notes += coded(names, values)
    spread = {}
    if options.dequantise:
        steps = lattice_steps(x)
        spread = {name: (float(x[:, i].min()), float(steps[i])) for i, name in enumerate(columns) if steps[i]}
        x = dequantise(x, steps=steps, random_state=options.seed)

    order = np.random.default_rng(options.seed).permutation(len(x))
    tested = round(options.test_fraction * len(x))
    stopped = (len(x) - tested) // 10
    if not 0 < tested < len(x) or not stopped:
        raise ValueError(
            f"--test-fraction {options.test_fraction}: of {len(x)} rows some are to report and some to train."
        )
    parts = dict(zip(("test", "validation", "train"), np.split(order, [tested, tested + stopped])))
    cut = lambda table: {part: torch.from_numpy(table[rows]) for part, rows in parts.items()}
    used = {row: part for part, rows in parts.items() for row in rows.tolist()}
    given = torch.from_numpy(values[:, : len(columns)]), torch.from_numpy(context) if condition else None
    return Table(
        "breast-cancer" if options.data is None else options.data.stem,
        cut(x),
        cut(context) if condition else None,
        columns,
        condition,
        parts["test"],
        Listed(*given, [used[row] for row in range(len(x))], places),
        notes,
        spread,
        source=options.data or "breast-cancer",
        again=again,
    )


def coded(names: list[str], values: np.ndarray) -> list[str]:
    """Finds numbers that may stand for missing values, such as -999: one value in several rows, far from all others."""
    found = []
    for name, column in zip(names, values.T):
        for end in (np.min, np.max):
            others = column[column != end(column)]
            count = len(column) - len(others)
            if count >= 3 and len(np.unique(others)) >= 10 and np.abs(others - end(column)).min() > np.ptp(others):
                found.append(
                    f"column {name}: {plain(float(end(column)), 6)} in {count} rows, far from all others; if it means "
                    f"missing, make these cells empty and pass --drop-missing"
                )
    return found


def units_of(x: torch.Tensor, names: list[str]) -> bijections.Standardise:
    """Fits the units of columns, and warns of those whose scale a few rows decide, by their names."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        units = bijections.Standardise.fit(x)
    odd = []
    for i, name in enumerate(names if caught else ()):
        with warnings.catch_warnings(record=True) as alone:
            warnings.simplefilter("always")
            bijections.Standardise.fit(x[:, i : i + 1])
        odd += [name] if alone else []
    if odd:
        warnings.warn(
            f"column {', '.join(odd)}: a few rows lie so far from the others that they decide its scale, which ruins "
            f"the fit; look for them among the least and the greatest values, and correct or delete them",
            stacklevel=1,
        )
    return units


def read_nuclei(options: Options):
    """Reads scikit-learn's measures of cell nuclei: ``(values, names, those of the condition, names of rows)``."""
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer()
    # Of the ten mean measures: the fractal dimension and the symmetry say little of the others.
    names = [str(each).removeprefix("mean ") for each in loaded.feature_names[:8]]
    for name in (*options.columns, *options.condition):
        if name not in names:
            raise ValueError(f"there is no column {name!r}; the columns are {', '.join(names)}.")
    condition = list(options.condition)
    columns = list(options.columns) or [name for name in names if name not in condition]
    check_columns(columns, condition, options)
    values = loaded.data[:, [names.index(name) for name in (*columns, *condition)]]
    labels = [str(loaded.target_names[each]) for each in loaded.target]
    return values, [*columns, *condition], condition, {"row": list(range(len(values))), "label": labels}


def check_columns(columns: list, condition: list, options: Options) -> None:
    """Raises where a column is chosen twice, or none is left."""
    if not columns or len({*columns, *condition}) < len(columns) + len(condition):
        given = {"--columns": options.columns, "--condition": options.condition}
        asked = " ".join(word for option, names in given.items() if names for word in (option, *names))
        raise ValueError(f"{asked}: model one column or more, given other ones or none, each named once.")


def check_names(file: data.TableFile, options: Options) -> None:
    """Raises where two columns have one name, by which the commands that read the run would find neither."""
    twice = sorted({name for name in file.names or () if file.names.count(name) > 1})
    if twice:
        where = [number for number, name in zip(file.columns, file.names) if name == twice[0]]
        raise ValueError(
            f"{options.data}: the columns {' and '.join(map(str, where))} are both called {twice[0]!r}, and results "
            f"are found by name; rename one in the file, or name by --columns (numbers from 0) which to model."
        )


def read_reference(options: Options) -> Table:
    """Reads POWER or BSDS300 as Papamakarios et al. (arXiv:1705.07057, appendix D) prepared them."""
    if options.data is not None or options.columns or options.condition or options.folder is None:
        raise ValueError(f"--reference {options.reference} goes with --folder, and without --data and its columns.")
    if options.reference == "power":
        values = data.read_table(options.folder / "power.npy").values.numpy()
        rng = np.random.RandomState(42)
        rng.shuffle(values)
        voltage, active = 0.01 * rng.rand(len(values), 1), 0.001 * rng.rand(len(values), 1)
        values += np.concatenate([active, voltage, rng.rand(len(values), 3), np.zeros((len(values), 1))], 1)
        tested = len(values) // 10
        stopped = (len(values) - tested) // 10
        train, validation, test = np.split(values, [len(values) - tested - stopped, len(values) - tested])
        columns = ["active power", "voltage", "meter 1", "meter 2", "meter 3", "minute"]
    else:
        file = options.folder / "bsds300.npz"
        train, validation, test = (data.read_array(file, key).double().numpy() for key in ("train", "val", "test"))
        columns = [f"pixel {i}" for i in range(train.shape[1])]
    x = {"train": train, "validation": validation, "test": test}
    x = {part: torch.from_numpy(np.ascontiguousarray(each)) for part, each in x.items()}
    first = len(train) + len(validation)
    rows = np.arange(first, first + len(test))
    listed = Listed(x["test"], None, ["test"] * len(test), {"row": rows.tolist()})  # of the shuffled table
    return Table(
        options.reference,
        x,
        None,
        columns,
        [],
        rows,
        listed,
        standardised=options.reference == "power",
        source=options.folder,
    )


def train(table: Table, options: Options, out: Path):
    """Trains a flow in standardised units; gives the best one, of the data as given, and the run."""
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
    units = units_of(seen(table.x), table.columns) if table.standardised else None
    context_units = units_of(seen(table.context), table.condition) if table.context is not None else None
    torch.manual_seed(options.seed)  # the network's initial weights
    flow = make_flow(options.flow, len(table.columns), len(table.condition), settings, "density.py")
    objective = objective_of(flow)

    def inside(part: str):
        x = table.x[part] if units is None else units.encode(table.x[part])[0]
        rest = () if context_units is None else (context_units.encode(table.context[part])[0].float(),)
        return (x.float(), *rest)

    validation = tuple(each[:20_000] for each in inside("validation"))
    if objective.draws:  # a loss of random times wants more draws than rows
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
        ema=None,  # the weights that are looked at are those that are kept
        validation=unpaired(validation),
        validate_every=every,
        patience=options.patience,
        checkpoint_every=max(1, steps // 10),
        seed=options.seed,
        out=out,
        save_model=False,  # it is trained in standardised units, which are put around it below
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
    """Scores the held-out rows by a Gaussian, and by the mixture of Gaussians that BIC chooses."""
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

    ``pit`` is the part of samples below a row's value, column by column, and ``tail`` the part of samples that are less
    likely than the row: both are uniform for the true density, and a small tail is an odd row. Under a condition every
    row has samples of its own, and there are no log-densities for all.
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
    return drawn[0], (ranks + 0.5) / (len(drawn) + 1), tails(likely, scores), None


def given(flow, context: torch.Tensor, generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws 256 samples under every condition, ``[256, N, D]``, with their log-densities."""
    parts = [flow.sample_and_log_prob((256,), each, generator=generator) for each in context.split(50)]
    return tuple(torch.cat(each, 1) for each in zip(*parts))


def tails(likely: torch.Tensor, scores: np.ndarray) -> torch.Tensor:
    """Computes the part of samples less likely than each row, from log-densities ``[S]`` (sorted) or ``[S, N]``."""
    scores = torch.from_numpy(scores)
    below = torch.searchsorted(likely, scores) if likely.dim() == 1 else (likely < scores).sum(0)
    return (below + 0.5) / (len(likely) + 1)


def write_anomalies(flow, table: Table, likely: torch.Tensor | None, file: Path, generator) -> list[list[str]]:
    """Writes the rows as they were given, least likely first; gives the first ten lines, headed."""
    listed = table.listed
    scores = score(flow, listed.x, listed.context, generator)
    order = np.argsort(np.where(np.isnan(scores), -np.inf, scores), kind="stable")
    if likely is not None:
        tail = [f"{each:.4g}" for each in tails(likely, scores)]
    else:  # samples for every row by itself: for those that are looked at
        tail, odd = [""] * len(scores), order[:1000].copy()
        with torch.no_grad():
            own = given(flow, listed.context[odd], generator)[1]
        for row, each in zip(odd, tails(own, scores[odd])):
            tail[row] = f"{each:.4g}"
    values = listed.x if listed.context is None else torch.cat([listed.x, listed.context], 1)
    heads = [*listed.places, "part", "log_prob", "tail", *table.columns, *table.condition]
    found = lambda i: [str(each[i]) for each in listed.places.values()]
    line = lambda i, shown: [*found(i), listed.parts[i], f"{scores[i]:.6g}", tail[i], *map(shown, values[i].tolist())]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(heads)
        writer.writerows(line(i, plain) for i in order)
    return [heads, *(line(i, lambda value: plain(value, 6)) for i in order[:10])]


def main(options: Options) -> None:
    began = time.perf_counter()
    if options.num < 2:
        raise ValueError(f"--num {options.num}: pictures and calibration take 2 samples at least, better thousands.")
    table = read(options)
    out = run_folder(options.out, f"density-{table.name}", table.source, options.resume)
    sizes = ", ".join(
        f"{len(each)} to {what}"
        for what, each in zip(
            ("train", "stop by", "report"), (table.x[part] for part in ("train", "validation", "test"))
        )
    )
    given = f" given {', '.join(table.condition)}" if table.condition else ""
    say(f"{table.name}: {counted(len(table.columns), 'column')}{given}, rows: {sizes}")
    for note in table.notes:
        say(note)
    if table.spread:
        columns = ", ".join(table.spread)
        say(f"spread over their steps, as they are whole numbers or hold few different values: {columns}")
        if options.data is not None:
            say("  (an identifier or a date is no measurement: leave it out by --columns, or name it by --id)")
    flow, run, best_step = train(table, options, out)
    if not MAIN:
        return
    plot.training(run, out / "training.png")

    generator = torch.Generator().manual_seed(options.seed + 1)
    test, context = table.x["test"], None if table.context is None else table.context["test"]
    scores = score(flow, test, context, generator)
    report = {
        "columns": table.columns,
        "condition": table.condition,
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
        say(f"{len(scores)} held-out rows, nats of the data as given, ± one standard error:\n{comparison}")
    else:
        shift = float(flow.transform[0].scale.log().sum()) if table.standardised else 0.0
        report["log_prob_of_the_protocol"] = report["log_prob_held_out"] + shift
        report["published"] = PUBLISHED[options.reference]
        units = "standardised" if table.standardised else "as given"
        error = 2 * report["log_prob_standard_error"]
        rows = {
            f"{options.flow}, here": f"{report['log_prob_of_the_protocol']:.2f} ± {error:.2f}",
            **PUBLISHED[options.reference],
        }
        say(f"{len(scores)} test rows, nats of the data {units}, ± two standard errors; the others as published:")
        say("\n".join(f"  {name:16s} {value:>16s}" for name, value in rows.items()))

    few = slice(0, 5000)  # enough for pictures and tests of calibration
    table.x["test"], table.rows, scores = test[few], table.rows[few], scores[few]
    if context is not None:
        table.context["test"] = context[few]
    samples, pit, tail, likely = calibrate(flow, table, scores, options, generator)
    names, shown = [*table.columns, *table.condition], min(8, len(table.columns) + len(table.condition))
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
    say(
        f"calibration, p-values of Kolmogorov-Smirnov tests on {len(scores)} rows: regions of the density "
        f"{p['density']:.3g}, least of {counted(len(table.columns), 'column')} {p[worst]:.3g} ({worst})"
    )
    generator.manual_seed(options.seed + 2)
    lines = write_anomalies(flow, table, likely, out / "anomalies.csv", generator)
    say(
        f"the least likely of {len(table.listed.parts)} rows (tail: the part of the flow's own samples that are less "
        f"likely; rows to train by are likelier than they would be if they were new):"
    )
    kept = [line[: len(table.listed.places) + 9] for line in lines]
    widths = [max(len(line[i]) for line in kept) for i in range(len(kept[0]))]
    say("\n".join("  " + "  ".join(f"{cell:>{width}s}" for cell, width in zip(line, widths)) for line in kept))

    end_run(
        out,
        report,
        began,
        ["corner.png", "calibration.png", "training.png", "anomalies.csv"],
        f"scores of new rows: cflow score {out} new.csv{table.again} --output scores.csv",
    )


if __name__ == "__main__":
    run_recipe(main, Options, "density.py", {"label": "id"})
