"""Damaged files: thousands of changed copies of every format that is read; only a ``ValueError`` with the file's name.

    python tests/benchmarks/mutations.py                          # 2000 files, some seconds
    python tests/benchmarks/mutations.py --count 500 --seed 7

A copy loses, gains, repeats or changes some bytes, or has a size replaced by a huge one. It may be read (where no
checksum tells) or be refused by an error that names it. Nothing else: no other exception, no line of a table that is
neither a row, nor counted, and no other values than those that were saved where the format holds a checksum.
Prints counts by format, the largest memory that the process took, and every failure with the seed of its file.
"""

import argparse
import gzip
import io
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

SIZES = (0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1)
MARKS = (
    b'"',
    b",",
    b";",
    b"\t",
    b"\n",
    b"\r",
    b"#",
    b"\x00",
    b"\xff",
    b"-",
    b"1e999",
    b"nan",
    "\u0661".encode(),
    b"1_0",
)


@dataclass
class Subject:
    """A file to damage: its bytes, what reads it, and what must hold where it is read."""

    name: str  # of the file
    raw: bytes
    read: Callable[[Path], object]
    check: Callable[[Path, object], str | None] = lambda path, value: None  # what is wrong with what was read
    folder: bool = False  # whether the reader takes the folder that holds the file


@dataclass
class Result:
    counts: dict[str, Counter] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Changes a file in one to four places."""
    raw = bytearray(raw)
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(len(raw) + 1)), int(rng.integers(1, 1 + min(64, len(raw) + 1)))
        match rng.integers(8):
            case 0:  # some bits
                for place in rng.integers(len(raw), size=rng.integers(1, 9)) if raw else ():
                    raw[place] ^= 1 << rng.integers(8)
            case 1:
                raw[at : at + length] = rng.bytes(len(raw[at : at + length]))
            case 2:
                del raw[at : at + length]
            case 3:  # a piece from elsewhere
                start = int(rng.integers(len(raw) + 1))
                raw[at:at] = raw[start : start + length]
            case 4:
                raw[at:at] = MARKS[rng.integers(len(MARKS))] * int(rng.integers(1, 4))
            case 5:
                del raw[at:]
            case 6:  # sizes, in either order of bytes
                order = "<>"[rng.integers(2)]
                raw[at : at + 4] = struct.pack(f"{order}I", SIZES[rng.integers(len(SIZES))])
            case 7:
                raw += rng.bytes(length)
    return bytes(raw)


def attack(subjects: list[Subject], count: int, seed: int, folder: Path) -> Result:
    """Damages each subject ``count`` times, reads every copy, and collects what must not happen."""
    result = Result()
    for index, subject in enumerate(subjects):
        counts = result.counts.setdefault(subject.name, Counter())
        for number in range(count):
            place = folder / f"{index}-{number}"
            place.mkdir()
            file = place / subject.name
            file.write_bytes(mutate(subject.raw, np.random.default_rng([seed, index, number])))
            counts["files"] += 1
            wrong = None
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    value = subject.read(place if subject.folder else file)
            except ValueError as error:
                counts["refused"] += 1
                if subject.name not in str(error):
                    wrong = f"an error without the file's name: {error}"
            except Exception:  # whatever it is: anything but a ValueError is what this looks for
                wrong = traceback.format_exc(limit=-3)
            else:
                counts["read"] += 1
                wrong = subject.check(file, value)
            if wrong:
                counts["failures"] += 1
                result.failures.append(f"{subject.name}, seed {[seed, index, number]}: {wrong}")
            for each in place.rglob("*"):
                each.unlink()
            place.rmdir()
    return result


def tables() -> list[Subject]:
    """Tables in text, with and without names, quotes and remarks."""
    from cflow.data import TableFile

    rng = np.random.default_rng(0)

    def lines(mark: str, head: str) -> bytes:
        rows = [mark.join(f"{each:.6g}" for each in row) for row in rng.normal(size=(30, 4))]
        return "\n".join([head.replace(",", mark), *rows[:10], "# a remark", *rows[10:], ""]).encode()

    def read(path: Path):
        file = TableFile(path)
        return file, list(file.chunks(7))

    def count(path: Path, value) -> str | None:
        file, chunks = value
        with path.open(
            encoding="utf-16" if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        ) as text:
            there = sum(1 for _ in text)
        rows, passed = (sum(each) for each in zip(*((len(c.values), c.passed) for c in chunks))) if chunks else (0, 0)
        headed = file.names is not None
        places = [place for chunk in chunks for place in chunk.places]
        if chunks and rows + passed + headed != there:
            return f"{there} lines gave {rows} rows, {passed} that are none, and {int(headed)} of names"
        if places != sorted(set(places)):
            return "rows are out of their places"
        for chunk in chunks:
            sound = [position for position in range(len(chunk.values)) if position not in chunk.bad]
            if not bool(chunk.values[sound].isfinite().all()):
                return "a row without numbers is read as sound"
        return None

    text = {
        "a.csv": lines(",", "a,b,c,d"), "b.csv": lines(";", "1.5,2,3,4"), "c.tsv": lines("\t", '"a","b","c","d"'),
        "d.csv": ("\ufeff" + lines(",", "a,b,c,d").decode()).encode("utf-16"),
    }  # fmt: skip
    return [Subject(name, raw, read, count) for name, raw in text.items()]


def arrays() -> list[Subject]:
    """Arrays of numbers: .npy, .npz and idx."""
    from cflow.data import TableFile, read_array, read_idx, read_snapshots

    values = np.random.default_rng(0).normal(size=(12, 5))
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)

    def saved(save, *given, **named) -> bytes:
        file = io.BytesIO()
        save(file, *given, **named)
        return file.getvalue()

    def same(wanted) -> Callable[[Path, object], str | None]:
        wanted = torch.from_numpy(wanted)
        return lambda path, value: None if torch.equal(value, wanted) else "other values than were saved"

    table = lambda path: torch.cat([chunk.values for chunk in TableFile(path).chunks(5)])
    idx = struct.pack(">4B3I", 0, 0, 8, 3, *pixels.shape) + pixels.tobytes()
    times = {"pcs": values, "sample_labels": np.arange(12) % 3}
    return [
        Subject("a.npy", saved(np.save, values), read_array),
        Subject("b.npy", saved(np.save, values), table),
        Subject("a.npz", saved(np.savez, x=values), lambda path: read_array(path, "x"), same(values)),
        Subject("b.npz", saved(np.savez_compressed, x=values), lambda path: read_array(path, "x"), same(values)),
        Subject("c.npz", saved(np.savez_compressed, **times), read_snapshots),
        Subject("a-idx3-ubyte", idx, read_idx),
        Subject("b-idx3-ubyte.gz", gzip.compress(idx, mtime=0), read_idx, same(pixels)),
    ]


def pictures() -> list[Subject]:
    """Pictures in a folder."""
    from PIL import Image

    from cflow.data import image_folder

    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))

    def saved(kind: str) -> bytes:
        file = io.BytesIO()
        pixels.save(file, kind)
        return file.getvalue()

    read = lambda place: image_folder(place, (6, 9), test_fraction=0.0).train
    kinds = {"a.png": "PNG", "a.jpg": "JPEG", "a.webp": "WEBP"}
    return [Subject(name, saved(kind), read, folder=True) for name, kind in kinds.items()]


def readers() -> list[Subject]:
    """Everything that ``cflow.data`` reads."""
    return [*tables(), *arrays(), *pictures()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="files, over all formats")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    subjects = readers()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = attack(subjects, -(-options.count // len(subjects)), options.seed, Path(folder))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for failure in result.failures[:20]:
        print(failure)
    print(f"{'file':18s}{'files':>8s}{'read':>8s}{'refused':>9s}{'failures':>10s}")
    total = Counter()
    for name, counts in result.counts.items():
        total += counts
        print(f"{name:18s}{counts['files']:8d}{counts['read']:8d}{counts['refused']:9d}{counts['failures']:10d}")
    print(f"{'all':18s}{total['files']:8d}{total['read']:8d}{total['refused']:9d}{total['failures']:10d}")
    print(f"{time.perf_counter() - began:.0f} s; memory grew by {(after - before) / 1024:.0f} MiB at most")
    sys.exit(1 if result.failures else 0)


if __name__ == "__main__":
    main()
