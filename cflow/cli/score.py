"""``cflow score``: computes the log-density of the rows of a file under a trained flow."""

from __future__ import annotations

import contextlib
import csv
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from cflow.cli.bad_rows import mark_missing, mark_no_tokens
from cflow.cli.commands import command
from cflow.cli.outputs import alphabet_of, vocabulary_of
from cflow.cli.runs import device_of, folder_of, report_of, spare, unused
from cflow.cli.samplers import needs_solver, solver_of
from cflow.cli.summary import Summary
from cflow.cli.texts import TextFile
from cflow.data.faults import Fault, counted
from cflow.data.tables import ENDINGS, Chunk, TableFile
from cflow.io import load
from cflow.storage import written


@command
def score(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    table: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
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
    draws: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    device: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Compute the log-density of every row of a table, or of a text, in nats.

    The table is processed in chunks, so it may be larger than memory. Rows without a score (text, NaN, a code of a
    missing value that the run has stored, too few fields) are listed, and their score in the output is empty. Empty
    lines and comments are counted. For a flow over tokens, the rows are whole numbers and the score is a lower bound
    on the log-probability.

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
        table: A .csv or .tsv file with or without a line of names, or a .npy or .npz array; for a flow with an
            alphabet also a .txt text. Each line of a text is a row, and may be shorter if the flow learned lines; if
            the alphabet has the line break, the rows are the texts between lines of dashes, as `cflow sample` writes
            them, or the text is cut into rows of the flow's length, and an incomplete last row is not scored.
        columns: Names (or numbers from 0) of the data columns, separated by spaces, in the order of training. Default:
            the names in the run; all columns except the condition if the run or the table has no names.
        condition: Names (or numbers) of the columns of the condition. Default: the names in the run; the last columns
            if the run or the table has no names.
        label: Name (or number) of a column with labels of the rows, which are written next to the scores.
        header: Whether a text file starts with names (auto decides from the first line).
        key: Name of the array in a .npz file, if it has several.
        solver: Dopri5, rk4 and so on, for a continuous flow. Default: the solver of the flow.
        steps: Steps of a fixed-grid solver.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        draws: Evaluations that are averaged in each row, for a likelihood that is an estimate or a bound. Default: 8
            for a flow over tokens, otherwise 1.
        seed: Seed of random numbers, for a likelihood that is an estimate or a bound.
        batch: Rows per batch. Default: 4096, or 64 for a flow over tokens.
        device: Device such as cpu or cuda.
        output: A .csv file with the number of each row from 0, its line in a text file, its label, and its log-density.
            Default: scores.csv, if there is no such file.
    """
    output = unused(Path("scores.csv")) if output is None else output
    if output.suffix.lower() != ".csv":
        raise ValueError(f"--output {output}: this ending is not supported; choose .csv.")
    for name, value, least in (("batch", batch, 1), ("draws", draws, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise ValueError(f"--{name} {value}: this must be at least {least}; change it.")
    spare(table, output, "table")
    folder = folder_of(run)
    place = device_of(device)
    flow = load(folder, device=place).eval()
    if isinstance(flow.event_shape, dict) or flow.likelihood == "none":
        raise ValueError(
            f"score {run}: this {type(flow).__name__} has no density; draw samples with `cflow sample` and compare "
            f"these."
        )
    asked = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given:
        needs_solver(flow, given[0])
    options = solver_of(folder, solver, steps=steps, rtol=rtol, atol=atol)
    vocabulary, rest = vocabulary_of(flow), 0
    draws = (8 if vocabulary else 1) if draws is None else draws
    if table.suffix.lower() == ".txt":
        asked = {"columns": columns, "condition": condition, "id": label, "key": key}
        given = [f"--{name}" for name, value in asked.items() if value]
        if given:
            raise ValueError(f"{given[0]}: a text has no columns; omit the option, or pass a table.")
        file = TextFile(flow, table)
        rest = file.unused
    else:
        if vocabulary and table.suffix.lower() not in ENDINGS:
            raise ValueError(f"{table}: this ending is not supported; choose .txt (a text), {', '.join(ENDINGS)}.")
        file = TableFile(table, header={"auto": None, "yes": True, "no": False}[header], key=key, label=label)
        file = file.choose(_columns(flow, run, file, columns, condition))
    generator = torch.Generator(place).manual_seed(seed)
    codes = torch.tensor(report_of(run).get("missing", []), dtype=torch.float64)

    total = Summary(math.prod(flow.event_shape), getattr(alphabet_of(flow), "end_token", None))
    with _written(output) as lines:
        lines = csv.writer(lines, lineterminator="\n")
        lines.writerow(["row", *(["line"] if file.unit == "line" else []), *([label] if label else []), "log_prob"])
        for chunk in file.chunks(batch or (64 if vocabulary else 4096)):
            mark_missing(chunk, codes, file)
            mark_no_tokens(chunk, vocabulary, math.prod(flow.event_shape), file)
            scores = _scores(flow, chunk, generator, options, draws)
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
                f"score {table}: none of the {total.rows} rows has a score; check the columns, of which the flow needs "
                f"{math.prod(flow.event_shape)}."
            )
    kind = "" if flow.likelihood == "exact" else f" ({flow.likelihood})"
    what = "log-density"
    if vocabulary:
        what = "log-probability"
        kind = f" ({flow.likelihood}, {counted(draws, 'draw')} per row), {total.bits():.4g} bits per token"
    passed = f", {counted(total.passed, 'line')} without a row" if total.passed else ""
    passed += f", {counted(rest, 'token')} after the last row" if rest else ""
    rows, bad = counted(total.rows, "row"), counted(total.bad, "bad row")
    print(f"{output}: {rows}, mean {what} {total.said()} nats{kind}, {bad}{passed}")


def _columns(flow, run: Path, file: TableFile, columns: tuple[str, ...], condition: tuple[str, ...]) -> list[int]:
    """Returns the columns of a file: those of the data, then those of the condition."""
    data = math.prod(flow.event_shape)
    context = 0 if flow.context_shape is None else math.prod(flow.context_shape)
    if condition and flow.context_shape is None:
        raise ValueError(
            f"--condition {' '.join(condition)}: this flow was trained without a condition; omit the option."
        )
    noted = {} if file.names is None else report_of(run)

    def chosen(option: str, given: tuple[str, ...]) -> list[int] | None:
        names = given or noted.get(option)
        if names is None:
            return None
        missing = [] if given else [name for name in names if name not in file.names]
        if missing:
            what = "column" if len(missing) == 1 else "columns"
            raise ValueError(
                f"score {file.path}: no {what} {_some(missing)} as in the run (the file has "
                f"{_some(file.names)}); if others have the same quantities, pass them in the order of training with "
                f"--{option}."
            )
        return [file.find(each) for each in names]

    own, given = chosen("columns", columns), chosen("condition", condition) if context else []
    if given is None:  # the last columns that are not data
        given = [each for each in file.columns if own is None or each not in own][-context:]
    if own is None:
        own = [each for each in file.columns if each not in given]
    named = lambda numbers: ", ".join(
        str(i if file.names is None else file.names[file.columns.index(i)]) for i in numbers
    )
    for option, numbers, count in (("columns", own, data), ("condition", given, context)):
        if len(numbers) != count:
            there = named(numbers[:12]) or "none"
            raise ValueError(
                f"score {file.path}: the flow needs {counted(count, 'column')} for --{option}, not {len(numbers)} "
                f"({there}); choose {count} of {named(file.columns[:12])} with --{option}."
            )
    return [*own, *given]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _scores(flow, chunk: Chunk, generator: torch.Generator, options: dict, draws: int) -> Tensor:
    """Scores the good rows of a chunk, ``[n]``; rows without a score are added to its bad rows."""
    sound = [position for position in range(len(chunk.values)) if position not in chunk.bad]
    scores = torch.full((len(chunk.values),), torch.nan, dtype=torch.float64)
    values = chunk.values[sound].to(flow.device)
    size, x, context = math.prod(flow.event_shape), values, None
    if flow.context_shape is not None:
        x, context = values[:, :size], values[:, size:].reshape(-1, *flow.context_shape)
        context = context.long() if flow.classes else context
    x = x.reshape(-1, *flow.event_shape)
    x = x.long() if vocabulary_of(flow) else x
    options = {**options, "draws": draws} if draws > 1 else options
    if sound:
        for position, value in zip(sound, _log_prob(flow, x, context, generator, options).tolist()):
            scores[position] = value
            if not math.isfinite(value):
                chunk.bad[position] = Fault(
                    f"its log-density is {value} (nan: the solver failed)", "no log-density", "check these rows"
                )
    return scores


@torch.no_grad()
def _log_prob(flow, x: Tensor, context: Tensor | None, generator: torch.Generator, options: dict) -> Tensor:
    """Computes log-densities; a row whose solution fails is found by bisection and gets NaN."""
    try:
        if "draws" in options:
            return flow.log_prob_estimate(x, context, generator=generator, **options)[0].double().cpu()
        return flow.log_prob(x, context, generator=generator, **options).double().cpu()
    except FloatingPointError:
        if len(x) == 1:
            return torch.full((1,), torch.nan, dtype=torch.float64)
        halves = zip(x.tensor_split(2), (None, None) if context is None else context.tensor_split(2))
        return torch.cat([_log_prob(flow, part, given, generator, options) for part, given in halves])


@contextlib.contextmanager
def _written(output: Path) -> Iterator:
    """Opens a file that gets its name when it is complete."""
    with written(output) as part, part.open("w", encoding="utf-8") as lines:
        yield lines
