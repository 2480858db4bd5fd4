"""Kills what writes files, at random moments, goes on, and compares the end with that of a run that nobody killed.

Operations: ``training.fit``, ``training.generate_pairs``, ``cflow reflow``, ``cflow score`` and ``cflow.save`` over an
older save. After each SIGKILL what lies on the disk must be nothing, an earlier state or the whole result, and say
which; after the last one the same call ends with the same bytes, and leaves nothing else behind.

Each process that is killed is forked from this one, which has imported torch once. Run by hand:

    OMP_NUM_THREADS=1 python tests/benchmarks/kills.py [--kills 200] [--seed 0]
"""

import argparse
import contextlib
import csv
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

import cflow
import cflow.cli
from cflow import bases, discrete, fields, objectives, paths, solvers, training
from cflow.storage import read_tensors

SHARES = {"fit": 0.3, "generate_pairs": 0.25, "reflow": 0.1, "score": 0.1, "save": 0.25}


def small(seed, width=16):
    torch.manual_seed(seed)
    field = fields.MLP(2, hidden=(width,))
    for each in field.parameters():
        torch.nn.init.normal_(each, std=0.3)
    return cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear(), solver=solvers.Heun(steps=3))


def data(rows=300):
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0)) + 3


def tensors(file):
    """What a file holds, to compare: bytes of tensors, and the note."""
    found, note = read_tensors(file)
    return {name: (value.dtype, value.flatten().view(torch.uint8).tolist()) for name, value in found.items()}, note


def names(folder):
    """All files below a folder, but for those whose names hold a time."""
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if "events.out" not in each.name)


class Fit:
    """Trains. At any time the folder holds no flow yet, or the flow of a whole checkpoint."""

    def run(self, place):
        training.fit(
            small(1), objectives.FlowMatching(), data(), steps=60, batch_size=32, out=place / "run", resume=True,
            checkpoint_every=5, log_every=4, validation=data(40), validate_every=12, prefetch=2,
        )  # fmt: skip

    def look(self, place):
        with contextlib.suppress(FileNotFoundError):
            cflow.load(place / "run")

    def result(self, place):
        with (place / "run" / "history.csv").open() as file:
            rows = [{name: each for name, each in row.items() if name != "seconds"} for row in csv.DictReader(file)]
        checkpoint = tensors(place / "run" / "checkpoints" / "step-000060" / "flow.safetensors")
        return tensors(place / "run" / "model" / "flow.safetensors"), checkpoint, rows, names(place)


class Pairs:
    """Writes pairs; a set that is not finished says so."""

    def run(self, place):
        training.generate_pairs(small(2), 600, place / "pairs", shard=20, batch_size=20, progress=False)

    def look(self, place):
        try:
            training.Pairs(place / "pairs")
        except FileNotFoundError:
            return
        except ValueError as error:
            if "are missing" not in str(error):
                raise

    def result(self, place):
        files = {each.name: tensors(each) for each in sorted((place / "pairs").glob("*.safetensors"))}
        return files, training.Pairs(place / "pairs").note, names(place)


class Reflow:
    """``cflow reflow``: pairs, a round, a distillation and a table."""

    def __init__(self, shared):
        self.flow = cflow.save(small(3), shared / "flow")

    def run(self, place):
        sizes = "--pairs 64 --steps 12 --solver-steps 2 --batch-size 32 --samples 32 --evaluations 1 2 --distill 1"
        cflow.cli.main(["reflow", str(self.flow), "--output", str(place / "out"), *sizes.split()])

    def look(self, place):
        for each in ("round-1", "distilled-1"):
            with contextlib.suppress(FileNotFoundError):
                cflow.load(place / "out" / each)

    def result(self, place):
        models = [tensors(place / "out" / each / "model" / "flow.safetensors") for each in ("round-1", "distilled-1")]
        return models, (place / "out" / "metrics.json").read_text(), names(place)


class Score:
    """``cflow score``: the file of scores is there whole, or not at all."""

    def __init__(self, shared):
        torch.manual_seed(4)
        self.flow = cflow.save(discrete.nsf(2, layers=1, hidden=(8,)), shared / "nsf")
        self.table = shared / "table.csv"
        self.table.write_text("a,b\n" + "".join(f"{a:.6f},{b:.6f}\n" for a, b in data(6000).tolist()))
        self.lines = 6001

    def run(self, place):
        cflow.cli.main(["score", str(self.flow), str(self.table), "-o", str(place / "scores.csv"), "--batch", "500"])

    def look(self, place):
        file = place / "scores.csv"
        if file.exists() and len(file.read_text().splitlines()) != self.lines:
            raise ValueError(f"{file} is there and not whole")

    def result(self, place):
        return (place / "scores.csv").read_text(), names(place)


class Save:
    """Saves one of two flows after the other to the same folder; it always holds one of them, whole."""

    def __init__(self):
        self.flows = [small(5, 300), small(6, 300)]

    def run(self, place):
        for number in range(40):
            cflow.save(self.flows[number % 2], place / "model")
            (place / "saved").touch()

    def look(self, place):
        try:
            found = cflow.load(place / "model").state_dict()
        except FileNotFoundError:
            if (place / "saved").exists():
                raise
            return
        same = [all(torch.equal(found[name], each) for name, each in flow.state_dict().items()) for flow in self.flows]
        if not any(same):
            raise ValueError("the loaded flow is neither of the two")

    def result(self, place):
        return tensors(place / "model" / "flow.safetensors"), names(place)


def forked(task, after=None):
    """Runs a task in a forked process, killed ``after`` so many seconds; says whether it was, and how long it took."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                task()
            status = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    while after is None or time.monotonic() - begun < after:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise RuntimeError(f"a process that was not killed failed with status {status}")
            return False, time.monotonic() - begun
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True, time.monotonic() - begun


def told(task):
    """Gives what a task returns in a forked process (this one starts no threads), by a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "told")
        forked(lambda: file.write_text(repr(task())))
        return file.read_text()


def trial(operation, folder, kills, draws):
    """Kills an operation so many times, and counts the kills, those that came in time, and what went wrong."""
    reference = folder / "whole"
    reference.mkdir(parents=True)
    _, taken = forked(lambda: operation.run(reference))
    expected = told(lambda: operation.result(reference))
    count = dict.fromkeys(("kills", "rounds", "refused", "differ"), 0)
    while count["kills"] < kills:
        place = folder / f"round-{count['rounds']}"
        place.mkdir()
        count["rounds"] += 1
        try:
            for _ in range(draws.randint(1, min(4, kills - count["kills"]))):
                count["kills"] += forked(lambda: operation.run(place), draws.uniform(0, taken))[0]
                forked(lambda: operation.look(place))
            forked(lambda: operation.run(place))
        except RuntimeError as error:
            count["refused"] += 1
            print(f"{place}: {error}")
            continue
        if told(lambda: operation.result(place)) != expected:
            count["differ"] += 1
            print(f"{place}: the result is not that of the run without a kill")
            continue
        shutil.rmtree(place)
    return count, taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SHARES, help="one operation alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draws, folder = random.Random(options.seed), Path(tempfile.mkdtemp())
    operations = {
        "fit": Fit(), "generate_pairs": Pairs(), "reflow": Reflow(folder), "score": Score(folder), "save": Save(),
    }  # fmt: skip
    print(f"{'':16}{'seconds':>9}{'kills':>8}{'rounds':>8}{'refused':>9}{'differ':>8}")
    total = dict.fromkeys(("kills", "rounds", "refused", "differ"), 0)
    for name, operation in operations.items():
        if options.only in (None, name):
            kills = options.kills if options.only else round(options.kills * SHARES[name])
            count, taken = trial(operation, folder / name, kills, draws)
            print(
                f"{name:16}{taken:9.2f}" + "".join(f"{each:{8 + (key == 'refused')}d}" for key, each in count.items())
            )
            total = {key: total[key] + each for key, each in count.items()}
    print(f"{'all':16}{'':9}" + "".join(f"{each:{8 + (key == 'refused')}d}" for key, each in total.items()))
    if total["refused"] or total["differ"]:
        raise SystemExit(f"what is left is in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
