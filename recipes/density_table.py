"""The tables of ``density.py``: read from a file, checked, and split into rows to train, to stop by and to report.

This module is not a recipe. ``options`` are those of ``density.py``.
"""

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from common import plain

from cflow import bijections, data
from cflow.cli import counted
from cflow.density import copied_rows, dequantise, lattice_steps, tails

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
class Listed:
    """Rows as they are in the file, for the list of anomalies."""

    x: torch.Tensor  # [M, D]
    context: torch.Tensor | None
    parts: list[str]  # what each row was used for
    places: dict[str, list]  # where each row is: its number, its line, its name
    names: list[str]  # of the columns of x, then of the context

    def column(self, name: str) -> np.ndarray:
        """Returns the values of a column."""
        values = self.x if self.context is None else torch.cat([self.x, self.context], 1)
        return values[:, self.names.index(name)].numpy()


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
    notes: list[str] = field(default_factory=list)  # on what was dropped, and what looks odd
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)  # dequantised columns: a value, and their step
    standardised: bool = True
    source: Path | str = ""  # the file, or a word for data that come with scikit-learn
    again: str = ""  # options with which other commands find the columns by number


def read(options) -> Table:
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
        notes += [f"column {each} has no name, as an index has none, and is omitted" for each in left]
        notes += [f"skipped {counted(table.passed, 'line')} without a row (empty, or a remark)"] if table.passed else []
    columns = names[: len(names) - len(condition)]
    if options.missing and (coded_rows := np.isin(values, options.missing).any(1)).any():
        codes = " ".join(plain(each) for each in options.missing)
        if not options.drop_missing:
            raise ValueError(
                f"--missing {codes}: {counted(int(coded_rows.sum()), 'row')} of {len(values)} have such a value; pass "
                f"--drop-missing to omit them."
            )
        values = values[~coded_rows]
        places = {key: [each for each, out in zip(found, coded_rows) if not out] for key, found in places.items()}
        notes.append(f"dropped {counted(int(coded_rows.sum()), 'row')} with a code of a missing value ({codes})")
    if len(values) < max(50, 2 * len(columns)):
        raise ValueError(
            f"the table has {counted(len(values), 'row')}; a density of {counted(len(columns), 'column')} takes "
            f"{max(50, 2 * len(columns))} or more."
        )
    x, context = values[:, : len(columns)], values[:, len(columns) :]
    constant = [name for name, column in zip((*columns, *condition), values.T) if np.ptp(column) == 0]
    if constant:
        raise ValueError(f"the columns {', '.join(constant)} are constant, so they have no density; omit them.")
    if stuck := [name for name, column in zip(names, values.T) if column.std() <= 1e-12 * abs(column.mean())]:
        raise ValueError(
            f"column {', '.join(stuck)}: the values differ by less than a trillionth of their size, as those of long "
            f"identifiers do; choose others by --columns, or list the rows by it: --id {stuck[0]}."
        )
    notes += coded(names, values)
    if copies := copied_rows(values):
        notes.append(
            f"{copies} of {len(values)} rows repeat others in all columns; delete copies, since a held-out copy of a "
            f"training row has too high a density"
        )
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
            f"--test-fraction {options.test_fraction}: of {len(x)} rows some are to report and some to train; pass 0.2."
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
        Listed(*given, [used[row] for row in range(len(x))], places, names),
        notes,
        spread,
        source=options.data or "breast-cancer",
        again=again,
    )


def coded(names: list[str], values: np.ndarray) -> list[str]:
    """Finds codes of missing values, such as -999: one value in several rows, far from all others."""
    found = []
    for name, column in zip(names, values.T):
        for end in (np.min, np.max):
            others = column[column != end(column)]
            count = len(column) - len(others)
            if count >= 3 and len(np.unique(others)) >= 10 and np.abs(others - end(column)).min() > np.ptp(others):
                found.append(
                    f"column {name}: {plain(float(end(column)), 6)} in {count} rows, far from all others; if it means "
                    f"missing, pass --missing {plain(float(end(column)), 6)} --drop-missing"
                )
    return found


def units_of(x: torch.Tensor, names: list[str], listed: Listed, robust: bool = False) -> bijections.Bijection:
    """Fits the units of the columns, and warns of the values that decide the scale of one, and where they are."""
    if robust:
        return bijections.Compose(bijections.Standardise.fit(x, robust=True), *tails(x.shape[1]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        units = bijections.Standardise.fit(x)
    odd = []
    for i, name in enumerate(names if caught else ()):
        with warnings.catch_warnings(record=True) as alone:
            warnings.simplefilter("always")
            bijections.Standardise.fit(x[:, i : i + 1])
        odd += [f"{name} {far_values(x[:, i].numpy(), listed.column(name), listed.places)}"] if alone else []
    if odd:
        warnings.warn(
            f"values far from all others ruin the fit: {'; '.join(odd)}; correct or delete them (for a heavy tail: "
            f"take the logarithm, or --robust)",
            stacklevel=1,
        )
    return units


def far_values(seen: np.ndarray, own: np.ndarray, places: dict[str, list]) -> str:
    """Lists the values that are farthest from those ``seen``, and where they are among all values of the column."""
    low, middle, high = np.quantile(seen, [0.16, 0.5, 0.84])
    distance = np.abs(own - middle)
    far = own[distance > min(10 * (high - low) or np.inf, 0.5 * distance.max())]
    values, counts = np.unique(far, return_counts=True)
    values = values[np.lexsort((-np.abs(values - middle), -counts))]
    unit = "line" if "line" in places else "row"
    found = []
    for value in values[:3]:
        rows = np.flatnonzero(own == value)
        where = f"{unit} {places[unit][rows[0]]}" if len(rows) == 1 else f"{len(rows)} rows: a code for missing values?"
        found.append(f"{plain(float(value), 6)} ({where})")
    return ", ".join(found) + (f" and {len(values) - 3} more" if len(values) > 3 else "")


def read_nuclei(options):
    """Reads scikit-learn's measures of cell nuclei: ``(values, names, those of the condition, names of rows)``."""
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer()
    # Eight of the ten mean measures: fractal dimension and symmetry are almost independent of the others.
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


def check_columns(columns: list, condition: list, options) -> None:
    """Raises where a column is chosen twice, or none is left."""
    if not columns or len({*columns, *condition}) < len(columns) + len(condition):
        given = {"--columns": options.columns, "--condition": options.condition}
        asked = " ".join(word for option, names in given.items() if names for word in (option, *names))
        raise ValueError(f"{asked}: model one column or more, given others or none, each named once.")


def check_names(file: data.TableFile, options) -> None:
    """Raises where two columns have one name, since other commands find columns by name."""
    twice = sorted({name for name in file.names or () if file.names.count(name) > 1})
    if twice:
        where = [number for number, name in zip(file.columns, file.names) if name == twice[0]]
        raise ValueError(
            f"{options.data}: the columns {' and '.join(map(str, where))} are both called {twice[0]!r}; rename one in "
            f"the file, or choose by number (from 0) with --columns."
        )


def read_reference(options) -> Table:
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
    listed = Listed(x["test"], None, ["test"] * len(test), {"row": rows.tolist()}, columns)  # of the shuffled table
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
