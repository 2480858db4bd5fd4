"""Files of samples: the endings that a flow can be written to, and the writer of each."""

from __future__ import annotations

import csv
import math
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
from torch import Tensor

from cflow.cli.runs import unused

__all__ = [
    "OUTPUTS", "RULE", "Output", "alphabet_of", "choose", "has_line_break", "joined", "on_lattice", "show",
    "vocabulary_of", "write",
]  # fmt: skip

RULE = "-" * 40


@dataclass(frozen=True)
class Output:
    """Describes one kind of file.

    Args:
        refusal: returns why the samples of a flow cannot be written to such a file; empty if they can.
        write: writes samples: ``write(flow, x, file, labels, report)``.
    """

    refusal: Callable[..., str]
    write: Callable[..., None]


def alphabet_of(flow):
    """Returns the alphabet of a flow over tokens, which makes its samples text; None if there is none."""
    return getattr(flow, "alphabet", None)


def has_line_break(alphabet) -> bool:
    """Returns whether a text of this alphabet may have several lines."""
    try:
        return alphabet.decode(alphabet.encode("\n")) == "\n"
    except ValueError:
        return False


def vocabulary_of(flow) -> int:
    """Returns the number of tokens of a flow over tokens, from its source or its first map; 0 for other flows."""
    parts = (getattr(flow, "source", None), *flow.transform.maps[:1])
    return next((part.vocabulary for part in parts if hasattr(part, "vocabulary")), 0)


def choose(flow, output: Path | None) -> Path:
    """Returns the file of the samples, and raises if the flow cannot be written to it; called before the sampling."""
    fitting = [ending for ending, each in OUTPUTS.items() if not each.refusal(flow)]
    if output is None:
        ending = next(each for each in (".txt", ".png", ".csv") if each in fitting)
        return unused(Path("samples").with_suffix(ending))
    ending = output.suffix.lower()
    if ending not in fitting:
        why = OUTPUTS[ending].refusal(flow) if ending in OUTPUTS else "this ending is not supported"
        raise ValueError(f"--output {output}: {why}; choose {', '.join(fitting)}.")
    return output


def write(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    """Writes samples to a file whose ending :func:`choose` has accepted.

    Args:
        flow: the flow.
        x: the samples ``[N, *event]``, on the CPU.
        output: the file.
        labels: the class or the condition of each sample, if these differ; None otherwise.
        report: the metrics of the run, which have the names of the columns.
    """
    OUTPUTS[output.suffix.lower()].write(flow, x, output, labels, report)


def joined(texts: Sequence[str], heads: Sequence[str] | None = None, *, dashes: bool = False) -> str:
    """Joins texts: one per line, or with lines of dashes between them if some text has several lines.

    Args:
        texts: the texts.
        heads: a head for each text; a line of dashes with it is before the text. Default: None.
        dashes: whether there are always lines of dashes, for texts that may have several lines.

    Example:
        >>> joined(["the cat", "a dog"])
        'the cat\\na dog\\n'
        >>> joined(["one\\ntwo", "three"]).splitlines() == ["one", "two", "-" * 40, "three"]
        True
    """
    if heads is not None:
        return "".join(f"{RULE} {head}\n{text}\n" for head, text in zip(heads, texts))
    between = f"\n{RULE}\n" if dashes or any("\n" in each or "\r" in each for each in texts) else "\n"
    return between.join(texts) + "\n"


def show(flow, x: Tensor, labels: Tensor | None, report: dict) -> None:
    """Prints samples of a flow with an alphabet. Characters that would control a terminal are replaced by U+FFFD."""
    text = _read(flow, x, labels, report).replace("\r\n", "\n")
    control = lambda each: unicodedata.category(each) == "Cc" and each not in "\n\t"
    text = "".join("\ufffd" if control(each) else each for each in text)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="")


def has_picture(flow) -> bool:
    """Returns whether samples are points of the plane, a sphere or a torus, or images with one or three channels."""
    if flow.manifold is not None and flow.manifold.picture is not None:
        return True
    shape = flow.event_shape
    points = shape == (2,) and not vocabulary_of(flow)
    return not isinstance(shape, dict) and (points or (len(shape) == 3 and shape[0] in (1, 3)))


def on_lattice(x: Tensor, report: dict) -> Tensor:
    """Rounds columns to the discrete values that they had before the run dequantised them."""
    lattice = report.get("dequantised") or {}
    for name, (first, step) in lattice.items():
        column = x[:, report["columns"].index(name)]
        # Twelve digits, so 14.26 rather than 14.25999999999993; the first value may be larger or finer than the step.
        decimals = 11 - math.floor(math.log10(max(abs(first), step)))
        exact = first + step * ((column.double() - first) / step).round()
        column.copy_(exact.round(decimals=decimals))
    return x


def _write_picture(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    from cflow import plot

    if flow.manifold is not None and flow.manifold.picture is not None:
        # Drawn on the manifold, before transforms: these may be degrees, and others have other units.
        name, options = flow.manifold.picture
        getattr(plot, name)(flow.preprocess(x)[0], output, **options)
    elif len(flow.event_shape) == 3:
        levels = vocabulary_of(flow) or flow.transform.levels
        pixels = x.float() / (levels - 1) if levels else (x.float() + 1) / 2
        # A whole number of rounds of the classes per row: every column has one class, and the picture is nearly square.
        classes = len(labels.unique()) if labels is not None and flow.classes else 1
        columns = min(len(x), classes * max(1, round(len(x) ** 0.5 / classes)))
        plot.images(pixels.clamp(0, 1), output, columns=columns)
    else:
        plot.scatter(x, output)


def _write_npy(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    numpy.save(output, x.numpy())


def _write_npz(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    extra = {} if labels is None else {"labels" if flow.classes else "context": labels.numpy()}
    numpy.savez_compressed(output, samples=x.numpy(), **extra)


def _write_csv(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    columns, names = [x.flatten(1)], _names(x, report.get("columns"), "x")
    if labels is not None:
        columns.append(labels.reshape(len(x), -1))
        names += ["label"] if flow.classes else _names(labels, report.get("condition"), "c")
    with output.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(names)
        for row in zip(*(each.numpy() for each in columns)):
            writer.writerow([_plain(value) for part in row for value in part])


def _write_text(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    with output.open("w", newline="", encoding="utf-8", errors="replace") as file:
        # `cflow score` reads such a file, and has to see what belongs to one text.
        file.write(_read(flow, x, labels, report, dashes=has_line_break(alphabet_of(flow))))


def _read(flow, x: Tensor, labels: Tensor | None, report: dict, *, dashes: bool = False) -> str:
    """Converts samples to text, each with the name of its class, or its condition, if these differ."""
    texts = [alphabet_of(flow).shown(row) for row in x]
    if labels is None:
        return joined(texts, dashes=dashes)
    names = report.get("classes", [])
    if flow.classes and len(names) == flow.classes:
        return joined(texts, [names[label] for label in labels.tolist()])
    return joined(texts, [", ".join(map(_plain, row)) for row in labels.reshape(len(texts), -1).numpy()])


def _plain(value) -> str:
    return str(value).removesuffix(".0")


def _names(values: Tensor, noted: list[str] | None, letter: str) -> list[str]:
    """Returns names of columns: those of the run, or a letter with a number."""
    count = values.flatten(1).shape[1] if values.dim() > 1 else 1
    return list(noted) if noted and len(noted) == count else [f"{letter}{i}" for i in range(count)]


def _no_picture(flow) -> str:
    what = "tokens" if vocabulary_of(flow) else "samples"
    return "" if has_picture(flow) else f"{what} of shape {tuple(flow.event_shape)} have no picture"


def _no_text(flow) -> str:
    if alphabet_of(flow) is None:
        return "this flow has no alphabet, so its samples are not text"
    rows = len(flow.event_shape) == 1
    return "" if rows else f"samples of shape {tuple(flow.event_shape)} are not one text"


def _no_obstacle(flow) -> str:
    return ""


OUTPUTS = {
    ".png": Output(_no_picture, _write_picture),
    ".txt": Output(_no_text, _write_text),
    ".npy": Output(_no_obstacle, _write_npy),
    ".npz": Output(_no_obstacle, _write_npz),
    ".csv": Output(_no_obstacle, _write_csv),
}
