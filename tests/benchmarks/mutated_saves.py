"""Changes saved flows, pairs and checkpoints at random, and reads them.

Damage (bits, cuts, insertions, files that change places) must end in a ``ValueError``, or load what was saved, bit for
bit. Hostile files (other values in the description, other tensors, with the checksum that belongs to them) must end in
a ``ValueError``, or in a flow, without much time or memory. Run by hand:

    OMP_NUM_THREADS=1 python tests/benchmarks/mutated_saves.py [--mutations 2000] [--seed 0]
"""

import argparse
import contextlib
import copy
import json
import random
import resource
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import torch

import cflow
from cflow import bases, bijections, discrete, fields, objectives, paths, solvers, training
from cflow.storage import read_json, read_tensors, write_json, write_tensors
from cflow.training.checkpoints import Checkpoints

WILD = (
    0,
    -1,
    1,
    7,
    2**31,
    10**9,
    10**18,
    10**40,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    True,
    None,
    "",
    "cflow",
    "$class",
)


class Save:
    """A saved flow."""

    def __init__(self, flow, place):
        self.folder = cflow.save(flow, place)

    def read(self):
        return {name: each.clone() for name, each in cflow.load(self.folder).state_dict().items()}


class Pairs:
    """Pairs of noise and sample, in shards."""

    def __init__(self, flow, place):
        self.folder = training.generate_pairs(flow, 40, place, shard=16, solver=solvers.Heun(steps=2)).folder

    def read(self):
        pairs = training.Pairs(self.folder)
        return {"x": pairs.x}


class Checkpoint:
    """The checkpoint of a run: what a resumption checks before it reads, and what ``cflow.load`` gives."""

    def __init__(self, flow, place):
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        training.fit(flow, objectives.FlowMatching(), x, steps=4, batch_size=16, out=place)
        self.run, self.folder = place, place / "checkpoints" / "step-000004"

    def read(self):
        note = Checkpoints(self.run, None, 2).read_note(4)
        return {**cflow.load(self.folder).state_dict(), "note": torch.tensor([*json.dumps(note).encode()])}


def subjects(folder):
    """Makes what is changed."""
    torch.manual_seed(0)
    velocity = lambda: cflow.ContinuousFlow(fields.MLP(2, hidden=(16,)), bases.Normal(2), path=paths.Linear())
    labelled = cflow.ContinuousFlow(
        fields.UNet(1, 8, width=8, blocks=1, classes=4), bases.Normal((1, 8, 8)), path=paths.Cosine("x1"),
        context_shape=(), solver=solvers.Dopri5(rtol=1e-4),
    )  # fmt: skip
    images = labelled.with_transform(bijections.Dequantise((1, 8, 8), 17), bijections.Rescale((1, 8, 8)))
    return {
        "spline flow": Save(discrete.nsf(3, layers=2, hidden=(8,)), folder / "nsf"),
        "masked flow": Save(discrete.maf(4, layers=2, hidden=(8,)), folder / "maf"),
        "velocity": Save(velocity(), folder / "velocity"),
        "images": Save(images, folder / "images"),
        "pairs": Pairs(velocity(), folder / "pairs"),
        "checkpoint": Checkpoint(velocity(), folder / "run"),
    }


def damage(file, draws, others):
    """Changes the bytes of a file, or puts one of ``others`` in its place."""
    content = bytearray(file.read_bytes())
    place, length = draws.randrange(len(content) or 1), draws.choice((1, 2, 8, 64, 1000))
    kinds = ["bit", "bit", "bit", "byte", "cut", "remove", "insert", "zero", "more", "empty"]
    kind = draws.choice(kinds + ["other"] * bool(others))
    if kind == "bit":
        content[place] ^= 1 << draws.randrange(8)
    elif kind == "byte":
        content[place] = draws.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "remove":
        del content[place : place + length]
    elif kind == "insert":
        content[place:place] = draws.randbytes(length)
    elif kind == "zero":
        content[place : place + length] = bytes(len(content[place : place + length]))
    elif kind == "more":
        content += draws.randbytes(length)
    elif kind == "empty":
        content.clear()
    else:
        content[:] = draws.choice(others).read_bytes()
    file.write_bytes(content)


def leaves(node, way=()):
    """Lists the ways to all values of a JSON tree."""
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [way, *(each for key, part in parts for each in leaves(part, (*way, key)))]


def forge(file, draws):
    """Changes what a file describes, or its tensors, and gives it the checksum that belongs to that."""
    alone = file.suffix == ".json"
    tensors, note = ({}, read_json(file)) if alone else read_tensors(file)
    note = copy.deepcopy(note)
    if alone or draws.random() < 0.75:
        *way, last = draws.choice(leaves(note)[1:])
        node = note
        for key in way:
            node = node[key]
        kind = draws.choice(("value", "value", "value", "remove", "repeat", "rename"))
        if kind == "value":
            node[last] = draws.choice((*WILD, [], {}, [10**9] * 2, {"$tuple": [10**9, 10**9]}, {"$size": [10**10]}))
        elif kind == "remove":
            del node[last]
        elif kind == "repeat":
            node[last] = [node[last]] * draws.choice((2, 1000))
        elif isinstance(node, dict):
            node[draws.choice(("x", "$class", "$tensor", "features"))] = node.pop(last)
    else:
        name = draws.choice(sorted(tensors))
        value = tensors[name]
        change = draws.choice(("drop", "shape", "kind", "nan", "rename"))
        if change == "drop":
            del tensors[name]
        elif change == "shape":
            tensors[name] = value.new_zeros((*value.shape, 3))
        elif change == "kind":
            tensors[name] = value.to(draws.choice((torch.int64, torch.complex64, torch.bool, torch.float16)))
        elif change == "nan":
            tensors[name] = torch.full_like(value, float("nan")) if value.is_floating_point() else value
        else:
            tensors[f"{name}x"] = tensors.pop(name)
    if alone:
        write_json(file, note)
    else:
        write_tensors(file, tensors, note)


def tried(subject, change, whole, must_be_equal):
    """Changes a subject, reads it, and gives what happened; the subject is whole again afterwards."""
    files = {file: file.read_bytes() for file in subject.folder.iterdir() if file.is_file() and file.stat().st_size}
    change(sorted(files))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            found = subject.read()
    except ValueError:
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:150]
    finally:
        for file, content in files.items():
            file.write_bytes(content)
    same = found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    return "loaded the same" if same else "loaded something else" if must_be_equal else "loaded a flow"


def mutate(count, seed, folder):
    """Tries so many mutations; gives the counts by subject and kind, what should not be, and the longest time."""
    draws, counts, wrong, longest = random.Random(seed), {}, [], 0.0
    made = subjects(folder)
    others = [each for each in sorted(folder.rglob("*")) if each.is_file() and each.stat().st_size]
    kept = [shutil.copy(each, folder / f"other-{number}") for number, each in enumerate(others)]
    wholes = {name: subject.read() for name, subject in made.items()}
    for number in range(count):
        name = draws.choice(sorted(made))
        subject, hostile = made[name], draws.random() < 0.4
        if hostile:
            known = (".safetensors", ".json") if name == "pairs" else (".safetensors",)
            change = lambda files: forge(draws.choice([file for file in files if file.suffix in known]), draws)
        else:
            # A whole save in the place of another is that other one; where files belong together it is damage.
            change = lambda files: damage(draws.choice(files), draws, kept if len(files) > 1 else [])
        begun = time.perf_counter()
        outcome = tried(subject, change, wholes[name], must_be_equal=not hostile)
        longest = max(longest, time.perf_counter() - begun)
        kind = f"{name}, {'hostile' if hostile else 'damaged'}"
        counts.setdefault(kind, {})
        counts[kind][outcome] = counts[kind].get(outcome, 0) + 1
        if outcome not in ("refused", "loaded the same", "loaded a flow"):
            wrong.append(f"{number}: {kind}: {outcome}")
    return counts, wrong, longest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong, longest = mutate(options.mutations, options.seed, Path(folder))
    for kind in sorted(counts):
        print(f"{kind:24}" + ", ".join(f"{each} {outcome}" for outcome, each in sorted(counts[kind].items())))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"longest {longest:.1f} s, memory grown by {grown:.0f} MB at most, {len(wrong)} of {options.mutations} wrong")
    if wrong:
        raise SystemExit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
