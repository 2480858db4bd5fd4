import json
import os
import pickle
import platform
import re
import signal
import struct
import subprocess
import sys
import threading

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import cflow
from cflow import bases, fields, guidance, objectives, paths, solvers, training
from cflow.bijections import Standardise
from cflow.storage import read_tensors, write_json, write_tensors


def flow_with_everything():
    flow = cflow.ContinuousFlow(
        fields.MLP(2, hidden=(8, 8), classes=3),
        bases.Mixture(torch.tensor([[0.0, 1.0], [2.0, 3.0]])),
        path=paths.Cosine("x1"),
        solver=solvers.Heun(steps=5),
        context_shape=(),
    )
    torch.nn.init.normal_(flow.field.output.weight)
    return flow.with_transform(Standardise(2, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])))


def draws(flow):
    return flow.sample((5,), torch.tensor(1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_flow_comes_back_with_weights_options_and_dtype(tmp_path, dtype):
    flow = flow_with_everything().to(dtype).eval()
    again = cflow.load(cflow.save(flow, tmp_path / "deep" / "model"))
    assert torch.equal(draws(again), draws(flow))
    assert again.path == flow.path
    assert again.solver == flow.solver
    assert again.context_shape == ()
    assert {each.dtype for each in again.parameters()} == {dtype}
    assert [each.name for each in (tmp_path / "deep" / "model").iterdir()] == ["flow.safetensors"]


def test_saving_again_replaces_and_foreign_folders_are_left_alone(tmp_path):
    flow = flow_with_everything()
    cflow.save(flow, tmp_path / "m")
    with torch.no_grad():
        flow.field.output.bias.fill_(7)
    again = cflow.load(cflow.save(flow, tmp_path / "m"))
    assert (again.field.output.bias == 7).all()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="choose another path"):
        cflow.save(flow, tmp_path / "notes")
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


def test_a_flow_of_an_earlier_format_is_not_called_damaged(tmp_path):
    """The first one had the arguments in flow.json, beside tensors without a note."""
    save_file({"field.weight": torch.zeros(2)}, tmp_path / "flow.safetensors")
    (tmp_path / "flow.json").write_text('{"format": "cflow 1"}')
    with pytest.raises(ValueError, match=r"an earlier format \(flow.json\)"):
        cflow.load(tmp_path)
    with pytest.raises(FileExistsError, match=r"an earlier format .*; choose another path"):
        cflow.save(flow_with_everything(), tmp_path)


def test_a_part_of_what_was_saved_names_the_whole(tmp_path):
    folder = cflow.save(flow_with_everything(), tmp_path / "run" / "checkpoints" / "step-3")
    assert isinstance(cflow.load(tmp_path / "run"), cflow.ContinuousFlow)
    for part in (folder / "flow.safetensors", folder.parent):
        with pytest.raises(FileNotFoundError, match=rf"pass its folder, {re.escape(str(part.parent))}\.$"):
            cflow.load(part)


@pytest.mark.parametrize("flow", [{}, None, "model", [torch.nn.Linear(2, 2)], torch.nn.Linear])
def test_what_is_no_module_is_not_saved(tmp_path, flow):
    with pytest.raises(TypeError, match=r"^save\(.*: not a flow or module; pass the flow, then the path\.$"):
        cflow.save(flow, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_tied_weights_stay_tied(tmp_path):
    @cflow.register("tests.Tied")
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
            self.two.weight = self.one.weight

    module = Tied().double()
    again = cflow.load(cflow.save(module, tmp_path / "m"))
    assert again.one.weight is again.two.weight
    assert torch.equal(again.one.weight, module.one.weight)


def test_an_argument_tensor_that_the_state_holds_is_stored_once(tmp_path):
    cflow.save(flow_with_everything(), tmp_path / "m")
    stored = load_file(tmp_path / "m" / "flow.safetensors")
    assert sum(value.shape == (2, 2) and bool((value == torch.tensor([[0.0, 1], [2, 3]])).all())
               for value in stored.values()) == 1  # fmt: skip


@pytest.mark.parametrize("kind", [fields.MLP, fields.ConcatSquash])
def test_the_numbers_of_numpy_are_written_as_python_s_own(tmp_path, kind):
    count = numpy.int64
    field = kind(count(2), hidden=(count(8), count(4)), context=count(3))
    assert {type(each) for each in field.hidden} == {int}
    flow = cflow.ContinuousFlow(field, bases.Normal(count(2), scale=numpy.float32(0.5)))
    assert flow.base.sample(count(5)).shape == (5, 2)
    again = cflow.load(cflow.save(flow, tmp_path / "m"))
    assert (again.field.features, again.field.hidden, again.field.context) == (2, (8, 4), 3)
    assert bases.Normal((count(2), 3)).event_shape == (2, 3)
    assert cflow.registry.outline(kind(count(2))) == cflow.registry.outline(kind(2))


def test_what_cannot_be_saved_is_named(tmp_path):
    field = fields.Adapted(torch.nn.Linear(2, 2), lambda net, t, x, c: net(x), event_shape=2)
    with pytest.raises(ValueError, match=r"ContinuousFlow\.field"):
        cflow.save(cflow.ContinuousFlow(field, bases.Normal(2)), tmp_path / "m")
    with pytest.raises(ValueError, match="@cflow.register"):
        cflow.save(torch.nn.Linear(2, 2), tmp_path / "m")
    assert not (tmp_path / "m").exists()


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def tampered(path, change):
    """Writes a save anew with something changed, and the checksum that belongs to it: what an attacker would do."""
    tensors, note = read_tensors(path / "flow.safetensors")
    tensors, note = change(tensors, note)
    write_tensors(path / "flow.safetensors", tensors, note)


def test_hostile_and_damaged_files_execute_nothing(tmp_path):
    path = cflow.save(flow_with_everything(), tmp_path / "m")
    file = path / "flow.safetensors"
    good = file.read_bytes()

    def refuse(message, change=None):
        if change is not None:
            tampered(path, change)
        with pytest.raises(ValueError, match=message) as caught:
            cflow.load(path)
        assert "flow.safetensors" in str(caught.value)
        file.write_bytes(good)

    for bad in (pickle.dumps(Bomb()), good[: len(good) // 2], good[:100], good + b"more", b"", b"\xff" * 100):
        file.write_bytes(bad)
        refuse("damaged")
    for place in (len(good) - 7, good.index(b"ContinuousFlow") + 3, good.index(b"data_offsets") - 20):
        file.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        refuse("damaged")
    tree = lambda flow: lambda tensors, note: (tensors, note | {"flow": flow})
    refuse("does not have the format", lambda tensors, note: (tensors, note | {"format": "cflow 99"}))
    refuse("does not have the format", tree([]))
    for evil in ("os.system", "torch.load", "builtins.eval", "subprocess.Popen"):
        refuse("not a registered class", tree({"$class": evil, "arguments": {"command": "false"}}))
    refuse("not a flow", tree({"$class": "paths.Linear", "arguments": {}}))
    refuse("cannot be part of a saved flow", tree({"$evil": 1}))

    def nonsense(tensors, note):
        note["flow"]["arguments"]["nonsense"] = 1
        return tensors, note

    refuse("no constructor argument 'nonsense'", nonsense)
    name = "state.field.output.bias"
    refuse("missing: field.output.bias", lambda tensors, note: (dict(tensors.items() - {(name, tensors[name])}), note))
    refuse("of another shape or kind: field.output.bias", lambda each, note: (each | {name: torch.zeros(9)}, note))
    file.unlink()
    with pytest.raises(FileNotFoundError, match="no saved flow"):
        cflow.load(path)
    file.write_bytes(good)
    assert torch.equal(draws(cflow.load(path)), draws(flow := cflow.load(path)))
    assert isinstance(flow, cflow.ContinuousFlow)


def test_a_run_that_has_written_nothing_yet_is_told_from_one_that_ended(tmp_path):
    flow, said = flow_with_everything(), []

    def look(step, flow, row):
        with pytest.raises(FileNotFoundError) as caught:
            cflow.load(tmp_path)
        said.append(str(caught.value))
        raise KeyError

    data = flow.sample((64,), torch.tensor(1)), torch.ones(64, dtype=torch.long)
    with pytest.raises(KeyError):
        training.fit(flow, objectives.FlowMatching(), data, batch_size=64, steps=2, out=tmp_path, callbacks=[look])
    assert re.search(rf"process {os.getpid()} on .* has not saved a flow yet; wait for its first checkpoint", said[0])
    with pytest.raises(FileNotFoundError, match="the run has not saved a flow yet; continue it"):
        cflow.load(tmp_path)
    # A process that was killed leaves its note behind.
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    holder = {"pid": int(gone.stdout), "host": platform.node(), "begun": "", "command": ""}
    write_json(tmp_path / "running.json", holder)
    with pytest.raises(FileNotFoundError, match="the run has not saved a flow yet; continue it"):
        cflow.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", {"$tuple": [60_000, 60_000]}),
        ("hidden", {"$tuple": [10**18]}),
        ("hidden", {"$tuple": [8] * 5000}),
        ("features", 10**9),
        ("classes", 10**9),
    ],
)
def test_sizes_that_the_tensors_do_not_explain_take_no_memory(tmp_path, name, value):
    """Linear(60000, 60000) would take 14 GB and a minute; the process may take half a gigabyte more than it has."""
    path = cflow.save(flow_with_everything(), tmp_path / "m")

    def larger(tensors, note):
        note["flow"]["arguments"]["field"]["arguments"][name] = value
        return tensors, note

    tampered(path, larger)
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="flow.safetensors"):
        cflow.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def header(entries, length=None, data=b""):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        header({}, 2**63),
        header({}, 10**8),
        header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header({"x": {"dtype": "F32", "shape": [2**31, 2**31, 4], "data_offsets": [0, 0]}}),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": 3}, data=b"1234"),
        header({"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, data=b"1234"),
        header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, data=b"1234"),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, data=b"1234"),
        header({"__metadata__": {"cflow": "[" * 100_000}}),
        header({"__metadata__": {"cflow": "9" * 100_000}}),
        header(b"{" * 10_000),
        header({"x": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}}),
    ],
    ids=range(12),
)
def test_hostile_headers_are_refused(tmp_path, content):
    path = cflow.save(flow_with_everything(), tmp_path / "m")
    (path / "flow.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"flow.safetensors is damaged"):
        cflow.load(path)


def test_a_flow_is_loaded_in_evaluation_mode(tmp_path):
    flow = flow_with_everything()
    assert flow.training
    again = cflow.load(cflow.save(flow, tmp_path / "m"))
    assert not any(part.training for part in again.modules())
    assert flow.training


KILLER = """
import os, pathlib, signal, sys, torch, cflow, cflow.storage as storage
from cflow import discrete
moment, path = sys.argv[1:]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "begun": storage.seal = die
elif moment == "written": os.replace = die
elif moment == "in place": storage.sync_folder = die
torch.manual_seed(2)
cflow.save(discrete.nsf(2, layers=1, hidden=(8,)), path)
"""


@pytest.mark.parametrize("moment", ["begun", "written", "in place"])
def test_a_kill_while_saving_over_an_older_flow_leaves_one_of_them_whole(tmp_path, moment):
    from cflow import discrete

    def flow(seed):
        torch.manual_seed(seed)
        return discrete.nsf(2, layers=1, hidden=(8,))

    x = torch.randn(5, 2)
    with torch.random.fork_rng(devices=[]):
        old, new = flow(1), flow(2)
    path = cflow.save(old, tmp_path / "m")
    done = subprocess.run([sys.executable, "-c", KILLER, moment, str(path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected = new if moment == "in place" else old
    assert torch.equal(cflow.load(path).log_prob(x), expected.log_prob(x))
    assert list(tmp_path.iterdir()) == [path]
    cflow.save(new, path)
    assert torch.equal(cflow.load(path).log_prob(x), new.log_prob(x))
    assert [each.name for each in path.iterdir()] == ["flow.safetensors"]  # what was begun is cleared away


def test_two_writers_and_a_reader_see_whole_flows_alone(tmp_path):
    @cflow.register("tests.Numbers")
    class Numbers(torch.nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number
            self.values = torch.nn.Parameter(torch.full((50_000,), float(number)))

    path, wrong, done = cflow.save(Numbers(0), tmp_path / "m"), [], threading.Event()

    def write(number):
        for _ in range(30):
            cflow.save(Numbers(number), path)

    def read():
        while not done.is_set():
            try:
                found = cflow.load(path)
                wrong.extend([] if bool((found.values == found.number).all()) else [found.number])
            except Exception as error:  # a thread's own goes unseen
                wrong.append(error)

    reader, *writers = [threading.Thread(target=read), *(threading.Thread(target=write, args=(n,)) for n in (1, 2))]
    for each in (reader, *writers):
        each.start()
    for each in writers:
        each.join()
    done.set()
    reader.join()
    assert not wrong
    assert [each.name for each in path.iterdir()] == ["flow.safetensors"]


def test_parts_of_living_writers_are_left_alone(tmp_path):
    path = cflow.save(flow_with_everything(), tmp_path / "m")
    from cflow.storage import written

    with written(path / "flow.safetensors") as part:
        part.write_bytes(b"half")
        cflow.save(flow_with_everything(), path)
        assert part.read_bytes() == b"half"
        part.write_bytes((path / "flow.safetensors").read_bytes())
    cflow.load(path)


def test_the_folder_of_a_run_is_its_model(tmp_path):
    flow = flow_with_everything()
    cflow.save(flow, tmp_path / "model")
    assert torch.equal(draws(cflow.load(tmp_path)), draws(flow))


def test_a_compiled_network_is_saved_as_it_is_without(tmp_path):
    flow = flow_with_everything()
    before = draws(flow)
    flow.field = torch.compile(flow.field)  # compiles nothing before it is called
    again = cflow.load(cflow.save(flow, tmp_path / "m"))
    assert torch.equal(draws(again), before)
    assert isinstance(again.field, fields.MLP)
    assert cflow.registry.outline(flow) == cflow.registry.outline(again)
    flow.field = flow.field._orig_mod
    flow.field.compile()
    assert torch.equal(draws(cflow.load(cflow.save(flow, tmp_path / "m"))), before)
    assert torch.equal(draws(cflow.load(cflow.save(torch.compile(flow), tmp_path / "m"))), before)


def test_guidance_objects_are_plain_configuration(tmp_path):
    @cflow.register("tests.Holder")
    class Holder(torch.nn.Module):
        def __init__(self, option, numbers, names):
            super().__init__()
            self.option, self.numbers, self.names = option, numbers, names

    holder = Holder(guidance.ClassifierFree(2.0), (1, 2.5, float("inf")), {"a": [1, None, True]})
    again = cflow.load(cflow.save(holder, tmp_path / "m"))
    assert again.option == holder.option
    assert again.numbers == holder.numbers
    assert again.names == holder.names


def test_modules_by_name_are_saved(tmp_path):
    @cflow.register("tests.Named")
    class Named(torch.nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = torch.nn.ModuleDict(parts)

    named = Named({"left": bases.Normal(2, loc=torch.ones(2)), "right": bases.Uniform(1)})
    again = cflow.load(cflow.save(named, tmp_path / "m"))
    assert list(again.parts) == ["left", "right"]
    assert torch.equal(again.parts["left"].loc, torch.ones(2))


def test_lists_and_dicts_of_modules_come_back_as_what_they_were(tmp_path):
    @cflow.register("tests.Keeps")
    class Keeps(torch.nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = parts

    for parts in (torch.nn.ModuleDict({"z": fields.MLP(2), "a": fields.MLP(2)}), torch.nn.ModuleList([fields.MLP(2)])):
        again = cflow.load(cflow.save(Keeps(parts), tmp_path / "m"))
        assert type(again.parts) is type(parts)
        assert list(again.state_dict()) == list(Keeps(parts).state_dict())


def test_a_trained_base_stays_trained(tmp_path):
    loc, scale = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)
    flow = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2, loc=loc, scale=scale))
    again = cflow.load(cflow.save(flow, tmp_path / "m"))
    found = {name: each.requires_grad for name, each in again.base.named_parameters()}
    assert found == {"loc": True, "scale": False}
    assert torch.equal(again.base.loc, loc)
    assert not again.base.is_standard
