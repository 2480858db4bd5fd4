"""``cflow score``: the log-density that a trained flow gives to the rows of a file."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from cflow.cli.commands import app
from cflow.cli.runs import device_of, folder_of, needs_solver, report_of, solver_of, spare
from cflow.data.faults import Fault, counted
from cflow.data.tables import Chunk, TableFile
from cflow.io import load
from cflow.storage import written

SHOWN = 20  # bad rows named one by one


@app.command
def score(
    run: tyro.conf.Positional[Path],
    table: tyro.conf.Positional[Path],
    /,
    columns: tuple[str, ...] = (),
    condition: tuple[str, ...] = (),
    label: Annotated[str | None, tyro.conf.arg(name="id", metavar="NAME")] = None,
    header: Literal["auto", "yes", "no"] = "auto",
    key: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    batch: int = 4096,
    device: str = "cpu",
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("scores.csv"),
) -> None:
    """Compute the log-density of every row of a table, in nats.

    The table is read, scored and written in portions, so it may be larger than memory. A row that cannot be scored
    (text, NaN, too few fields) is named, and has an empty score in the output. Lines that are no rows (empty ones, and
    remarks) are counted.

    Args:
        run: A run's folder, or a folder that cflow.save wrote.
        table: A .csv or .tsv file with or without a line of names, or a .npy or .npz array.
        columns: Names (or numbers from 0) of the columns of data, with spaces between and in the order of training;
            what the run noted, or all columns but those of the condition, unless given.
        condition: Names (or numbers) of the columns that the flow is conditioned on; what the run noted, or the last
            ones, unless given.
        label: Name (or number) of the column that names the rows; it is written beside their scores.
        header: Whether a text file begins with names; auto sees it from the first line.
        key: Name of the array in a .npz file that holds several.
        solver: Dopri5, rk4 and so on, for a continuous flow; the flow's own unless given.
        steps: Steps of a fixed-grid solver.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        seed: Seed of the draws, where the likelihood is an estimate or a bound.
        batch: Rows carried at once.
        device: Where to compute, such as cuda.
        output: A .csv file with a line per row of the table: its number, from 0, its line in a text file, its name by
            --id, and its score.
    """
    if output.suffix.lower() != ".csv":
        raise ValueError(f"--output {output}: scores are written as text; choose a name that ends in .csv.")
    if batch < 1 or seed < 0:
        raise ValueError(f"--batch {batch} --seed {seed}: a batch has 1 row or more, and a seed is 0 or more.")
    spare(table, output, "table")
    folder = folder_of(run)
    place = device_of(device)
    flow = load(folder, device=place).eval()
    if isinstance(flow.event_shape, dict) or flow.likelihood == "none":
        raise ValueError(
            f"score {run}: this {type(flow).__name__} has no density (its likelihood is 'none'), so its rows have no "
            f"score; draw from it by `cflow sample` and compare samples."
        )
    asked = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given:
        needs_solver(flow, given[0])
    options = solver_of(folder, solver, steps=steps, rtol=rtol, atol=atol)
    named = {"auto": None, "yes": True, "no": False}[header]
    file = TableFile(table, header=named, key=key, label=label)
    file = file.choose(_columns(flow, run, file, columns, condition))
    generator = torch.Generator(place).manual_seed(seed)

    total = Summary()
    with _written(output) as lines:
        lines = csv.writer(lines, lineterminator="\n")
        lines.writerow(["row", *(["line"] if file.unit == "line" else []), *([label] if label else []), "log_prob"])
        for chunk in file.chunks(batch):
            scores = _scores(flow, chunk, generator, options)
            for position, value in enumerate(scores.tolist()):
                place = [chunk.places[position]] if file.unit == "line" else []
                named = [] if chunk.labels is None else [chunk.labels[position]]
                shown = "" if math.isnan(value) else f"{value:.9g}"  # -inf is a score, the lowest
                lines.writerow([total.rows + position, *place, *named, shown])
            total.add(scores, chunk, file)
            print(f"\r{total.rows} rows", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        total.tell_rest()
        if total.rows == total.bad:
            raise ValueError(
                f"score {table}: none of its {total.rows} rows could be scored; compare its columns with the flow's "
                f"{math.prod(flow.event_shape)}."
            )
    kind = "" if flow.likelihood == "exact" else f" ({flow.likelihood})"
    passed = f", {counted(total.passed, 'line')} without a row" if total.passed else ""
    rows, bad = counted(total.rows, "row"), counted(total.bad, "bad row")
    print(f"{output}: {rows}, mean log-density {total.said()} nats{kind}, {bad}{passed}")


class Summary:
    """What is said in the end, from sums alone."""

    def __init__(self) -> None:
        self.rows = self.bad = self.passed = 0
        self.faults: dict[str, tuple[int, str, Fault]] = {}  # by kind: how often, where first, what
        self.mean = self.squares = 0.0

    def add(self, scores: Tensor, chunk: Chunk, file: TableFile) -> None:
        """Takes a chunk into the sums, and names its bad rows."""
        for position, what in sorted(chunk.bad.items()):
            if self.bad < SHOWN:
                print(f"\r{file.path}: {file.unit} {chunk.places[position]}: {what}", file=sys.stderr)
            self.bad += 1
            count, place, first = self.faults.get(what.kind, (0, f"{file.unit} {chunk.places[position]}", what))
            self.faults[what.kind] = count + 1, place, first
        self.passed += chunk.passed
        self.rows += len(scores)
        good = scores[[position not in chunk.bad for position in range(len(scores))]].double()
        if len(good):  # means and squared deviations of two sets become those of both (Chan, Golub and LeVeque, 1979)
            before, after = self.rows - self.bad - len(good), self.rows - self.bad
            change = float(good.mean()) - self.mean
            self.squares += float((good - good.mean()).square().sum()) + change**2 * before * len(good) / after
            self.mean += change * len(good) / after

    def said(self) -> str:
        """Gives mean and standard error."""
        count = self.rows - self.bad
        return f"{self.mean:.6g}" + (f" ± {math.sqrt(self.squares / (count - 1) / count):.2g}" if count > 1 else "")

    def tell_rest(self) -> None:
        """Says how many bad rows were not named, and what to do about each kind."""
        if self.bad > SHOWN:
            print(f"and {counted(self.bad - SHOWN, 'more bad row')}", file=sys.stderr)
        for kind, (count, place, fault) in self.faults.items():
            print(f"{kind}: {fault.advice(count, self.rows, place)}", file=sys.stderr)


def _columns(flow, run: Path, file: TableFile, columns: tuple[str, ...], condition: tuple[str, ...]) -> list[int]:
    """Chooses the columns of a file: those of the data, then those of the context."""
    data = math.prod(flow.event_shape)
    context = 0 if flow.context_shape is None else math.prod(flow.context_shape)
    if condition and flow.context_shape is None:
        raise ValueError(
            f"--condition {' '.join(condition)}: this flow was trained without a condition; omit it, and choose the "
            f"columns of data by --columns."
        )
    noted = {} if file.names is None else report_of(run)

    def chosen(option: str, given: tuple[str, ...]) -> list[int] | None:
        names = given or noted.get(option)
        if names is None or (not given and not set(names) <= set(file.names)):
            return None
        return [file.find(each) for each in names]

    own, given = chosen("columns", columns), chosen("condition", condition) if context else []
    if given is None:  # the last ones that are no data
        given = [each for each in file.columns if own is None or each not in own][-context:]
    if own is None:
        own = [each for each in file.columns if each not in given]
    named = lambda numbers: ", ".join(
        str(i if file.names is None else file.names[file.columns.index(i)]) for i in numbers
    )
    missing = [name for name in (*noted.get("columns", []), *noted.get("condition", [])) if name not in file.names]
    if missing and not columns and not condition:
        print(
            f"{file.path}: the run's {', '.join(missing[:8])} are not among the names there; columns are taken in "
            f"order: {named([*own, *given][:12])}",
            file=sys.stderr,
        )
    for option, numbers, count in (("columns", own, data), ("condition", given, context)):
        if len(numbers) != count:
            there = named(numbers[:12]) or "none"
            raise ValueError(
                f"score {file.path}: the flow wants {counted(count, 'column')} for --{option}, and these are "
                f"{len(numbers)} ({there}); choose {count} of {named(file.columns[:12])} by --{option}."
            )
    return [*own, *given]


def _scores(flow, chunk: Chunk, generator: torch.Generator, options: dict) -> Tensor:
    """Scores the sound rows of a chunk, ``[n]``; what has no score is noted among its bad rows."""
    sound = [position for position in range(len(chunk.values)) if position not in chunk.bad]
    scores = torch.full((len(chunk.values),), torch.nan, dtype=torch.float64)
    values = chunk.values[sound].to(flow.device)
    size, x, context = math.prod(flow.event_shape), values, None
    if flow.context_shape is not None:
        x, context = values[:, :size], values[:, size:].reshape(-1, *flow.context_shape)
        context = context.long() if flow.classes else context
    x = x.reshape(-1, *flow.event_shape)
    if sound:
        for position, value in zip(sound, _log_prob(flow, x, context, generator, options).tolist()):
            scores[position] = value
            if not math.isfinite(value):
                chunk.bad[position] = Fault(
                    f"its log-density is {value} (nan: the solver failed)", "no log-density", "look at these rows"
                )
    return scores


@torch.no_grad()
def _log_prob(flow, x: Tensor, context: Tensor | None, generator: torch.Generator, options: dict) -> Tensor:
    """Evaluates log-densities; where the solution of one row fails, it is found by halves and gets NaN."""
    try:
        return flow.log_prob(x, context, generator=generator, **options).double().cpu()
    except FloatingPointError:
        if len(x) == 1:
            return torch.full((1,), torch.nan, dtype=torch.float64)
        halves = zip(x.tensor_split(2), (None, None) if context is None else context.tensor_split(2))
        return torch.cat([_log_prob(flow, part, given, generator, options) for part, given in halves])


@contextlib.contextmanager
def _written(output: Path) -> Iterator:
    """Opens a file that appears under its name when it is complete."""
    with written(output) as part, part.open("w", encoding="utf-8") as lines:
        yield lines
