"""Pairs on disk, and what is learned from them."""

import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import cflow
from cflow import bases, bijections, fields, guidance, objectives, paths, solvers, training
from cflow.storage import read_json, read_tensors, write_json, write_tensors
from cflow.testing import GaussianField


def gaussian(mean=0.7, std=0.3):
    """A flow whose velocity is that of a normal, and whose pairs are known: x1 = mean + std * x0."""
    path = paths.Linear()
    return cflow.ContinuousFlow(GaussianField(path, 2, mean, std), bases.Normal(2), path=path)


def small(classes=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        field = fields.MLP(2, hidden=(16,), classes=classes, **options)
        for each in field.parameters():
            torch.nn.init.normal_(each, std=0.3)
    return cflow.ContinuousFlow(
        field, bases.Normal(2), path=paths.Linear(), context_shape=() if classes else None, solver=solvers.Heun(steps=3)
    )


def files(folder):
    return {each.name: load_file(each) for each in sorted(folder.glob("*.safetensors"))}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys()
        assert all(torch.equal(one[name][key], other[name][key]) for key in one[name])


def test_pairs_of_a_known_flow(tmp_path):
    pairs = training.generate_pairs(gaussian(), 50, tmp_path / "pairs", solver=solvers.Dopri5(1e-7, 1e-7), shard=20)
    x0, x1 = pairs.x.unbind(1)
    assert pairs.x.shape == (50, 2, 2)
    assert [len(each["x0"]) for each in files(tmp_path / "pairs").values()] == [20, 20, 10]
    torch.testing.assert_close(x1, 0.7 + 0.3 * x0, rtol=0, atol=1e-4)
    assert len(x0.unique(dim=0)) == 50  # every shard has draws of its own


def test_conditions_take_turns_over_all_shards(tmp_path):
    """Ten pairs of three conditions in shards of four: each condition three times, the first once more."""
    flow, solver = small(classes=3), solvers.Euler(1)
    given = torch.tensor([2, 0, 1])
    pairs = training.generate_pairs(flow, 10, tmp_path / "given", context=given, solver=solver, shard=4)
    assert pairs.context.tolist() == [2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    every = training.generate_pairs(flow, 10, tmp_path / "every", solver=solver, shard=4)
    assert every.context.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    x0, x1 = pairs.x.unbind(1)
    torch.testing.assert_close(x1, flow.transport(x0, 0.0, 1.0, pairs.context, solver=solver).y)


def test_an_interrupted_set_goes_on_and_is_the_same(tmp_path, monkeypatch):
    flow, options = small(), {"seed": 3, "shard": 8, "batch_size": 3}
    whole = training.generate_pairs(flow, 30, tmp_path / "whole", **options)
    taken, transport = [], type(flow).transport

    def stops(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == 5:  # in the second shard
            raise KeyboardInterrupt
        return transport(self, *args, **kwargs)

    monkeypatch.setattr(type(flow), "transport", stops)
    with pytest.raises(KeyboardInterrupt):
        training.generate_pairs(flow, 30, tmp_path / "parts", **options)
    with pytest.raises(ValueError, match=r"3 of 4 shards are missing.*generate_pairs again"):
        training.Pairs(tmp_path / "parts")
    monkeypatch.undo()
    kept = (tmp_path / "parts" / "pairs-00000.safetensors").stat().st_mtime_ns
    again = training.generate_pairs(flow, 30, tmp_path / "parts", **options)
    assert (tmp_path / "parts" / "pairs-00000.safetensors").stat().st_mtime_ns == kept
    same(files(tmp_path / "whole"), files(tmp_path / "parts"))
    assert torch.equal(whole.x, again.x)


def test_another_set_is_refused_in_the_same_folder(tmp_path):
    flow = small()
    training.generate_pairs(flow, 10, tmp_path / "pairs", seed=0)
    for changed, name in (({"seed": 1}, "seed"), ({"solver": solvers.Euler(steps=1)}, "solver")):
        with pytest.raises(ValueError, match=f"another {name}"):
            training.generate_pairs(flow, 10, tmp_path / "pairs", **changed)
    with torch.no_grad():
        next(flow.parameters()).add_(1)
    with pytest.raises(ValueError, match="another flow"):
        training.generate_pairs(flow, 10, tmp_path / "pairs", seed=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="has other files"):
        training.generate_pairs(flow, 10, tmp_path / "full")
    note = training.Pairs(tmp_path / "pairs").note
    assert note["solver"]["solvers.Heun"]["steps"] == 3


def test_pairs_of_another_flow_are_refused_where_the_weights_are_the_same(tmp_path):
    """Path, prediction and base are not weights, but decide where a pair ends."""
    make = lambda path, base: cflow.ContinuousFlow(small().field, base, path=path)
    options = {"solver": solvers.Heun(steps=2)}
    for number, (path, base, name) in enumerate(
        (
            (paths.Cosine(), bases.Normal(2), "path"),
            (paths.Linear("x1"), bases.Normal(2), "predict"),
            (paths.Linear(), bases.StudentT(2, df=5.0), "base"),
        )
    ):
        place = tmp_path / str(number)
        first = make(paths.Linear(), bases.Normal(2))
        training.generate_pairs(first, 4, place, **options)
        with pytest.raises(ValueError, match=rf"another flow \(.*{name}.*choose another folder"):
            training.generate_pairs(make(path, base), 4, place, **options)
        first.solver = solvers.Euler(steps=9)  # not the one that is used
        training.generate_pairs(first, 4, place, **options)


KILLER = """
import os, signal, sys
import cflow, torch
from cflow import bases, fields, paths, solvers, storage, training
from cflow.training.few_step import pairs
moment, folder = sys.argv[1:]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if moment == "claim": storage.os.replace = die
if moment == "note": pairs.write_tensors = die
if moment == "shard":
    seal = storage.seal
    storage.seal = lambda file: die() if "00001" in file.name else seal(file)
torch.manual_seed(0)
flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
training.generate_pairs(flow, 20, folder, solver=solvers.Heun(steps=2), shard=8)
"""


@pytest.mark.parametrize("moment", ["claim", "note", "shard"])
def test_a_kill_blocks_no_folder_and_leaves_nothing_behind(tmp_path, moment):
    script = [sys.executable, "-c", KILLER, moment, str(tmp_path / "broken")]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
    options = {"solver": solvers.Heun(steps=2), "shard": 8}
    training.generate_pairs(flow, 20, tmp_path / "broken", **options)
    training.generate_pairs(flow, 20, tmp_path / "whole", **options)
    same(files(tmp_path / "whole"), files(tmp_path / "broken"))
    assert names(tmp_path / "broken") == names(tmp_path / "whole")


def names(folder):
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("harm", ["cut", "empty", "flipped", "another place", "another set"])
def test_a_damaged_shard_is_named_and_drawn_anew(tmp_path, harm):
    flow, options = small(), {"shard": 8, "solver": solvers.Heun(steps=2)}
    training.generate_pairs(flow, 30, tmp_path / "whole", **options)
    training.generate_pairs(flow, 30, tmp_path / "pairs", **options)
    training.generate_pairs(flow, 30, tmp_path / "other", seed=1, **options)
    file = tmp_path / "pairs" / "pairs-00001.safetensors"
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-40],
            "empty": b"",
            "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
            "another place": (tmp_path / "pairs" / "pairs-00000.safetensors").read_bytes(),
            "another set": (tmp_path / "other" / "pairs-00001.safetensors").read_bytes(),
        }[harm]
    )
    with pytest.raises(ValueError, match=r"pairs-00001.safetensors is .*generate_pairs again"):
        training.Pairs(tmp_path / "pairs")
    with pytest.warns(UserWarning, match=r"pairs-00001.safetensors is .* drawn again"):
        training.generate_pairs(flow, 30, tmp_path / "pairs", **options)
    same(files(tmp_path / "whole"), files(tmp_path / "pairs"))


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    training.generate_pairs(small(), 30, tmp_path, shard=8, solver=solvers.Heun(steps=2))
    file = tmp_path / "pairs-00001.safetensors"
    tensors, note = read_tensors(file)
    for change in (
        {"x1": tensors["x1"][..., None]},
        {"x0": tensors["x0"][..., None], "x1": tensors["x1"][..., None]},
        {"x0": tensors["x0"].double(), "x1": tensors["x1"].double()},
        {"x0": tensors["x0"][:3], "x1": tensors["x1"][:3]},
        {"context": tensors["x0"].clone()},
    ):
        write_tensors(file, tensors | change, note)
        with pytest.raises(ValueError, match="pairs-00001.safetensors is "):
            training.Pairs(tmp_path)


def test_a_note_of_any_size_takes_no_memory(tmp_path):
    training.generate_pairs(small(), 30, tmp_path, shard=8, solver=solvers.Heun(steps=2))
    note = read_json(tmp_path / "pairs.json")
    for change, message in (
        ({"num": 10**15, "shard": 1}, "999999999999996 of 1000000000000000 shards are missing .*00004"),
        ({"num": "many"}, "pairs.json does not describe pairs"),
        ({"shard": 0}, "pairs.json does not describe pairs"),
        ({"format": "cflow pairs 1"}, "pairs.json does not describe pairs"),
        ({"seed": 1}, "from another set of pairs"),
    ):
        write_json(tmp_path / "pairs.json", note | change)
        with pytest.raises(ValueError, match=message):
            training.Pairs(tmp_path)


def test_a_damaged_note_is_written_anew_where_the_shards_are_of_this_set(tmp_path):
    flow, options = small(), {"shard": 8, "solver": solvers.Heun(steps=2)}
    whole = training.generate_pairs(flow, 30, tmp_path / "pairs", **options)
    note = tmp_path / "pairs" / "pairs.json"
    content = note.read_text()
    stamp = (tmp_path / "pairs" / "pairs-00000.safetensors").stat().st_mtime_ns
    note.write_text(content.replace('"num": 30', '"num": 31'))
    with pytest.raises(ValueError, match=r"pairs.json is damaged.*generate_pairs again"):
        training.Pairs(tmp_path / "pairs")
    with pytest.warns(UserWarning, match="pairs.json is damaged.*written again"):
        again = training.generate_pairs(flow, 30, tmp_path / "pairs", **options)
    assert torch.equal(again.x, whole.x)
    assert note.read_text() == content
    assert (tmp_path / "pairs" / "pairs-00000.safetensors").stat().st_mtime_ns == stamp
    note.unlink()
    with pytest.raises(ValueError, match="belongs to another set"):
        training.generate_pairs(flow, 30, tmp_path / "pairs", seed=1, **options)


def test_two_processes_do_not_make_one_set(tmp_path):
    from cflow.claims import claimed

    with claimed(tmp_path, "test"), pytest.raises(ValueError, match="is writing there"):
        training.generate_pairs(small(), 4, tmp_path)


def test_classes_in_turn_and_guidance_within(tmp_path):
    flow = small(classes=3)
    pairs = training.generate_pairs(flow, 7, tmp_path / "a", guidance=guidance.ClassifierFree(2.0))
    assert pairs.context.tolist() == [0, 1, 2, 0, 1, 2, 0]
    plain = training.generate_pairs(flow, 7, tmp_path / "b")
    assert torch.equal(pairs.x[:, 0], plain.x[:, 0])
    assert (pairs.x[:, 1] - plain.x[:, 1]).norm() > 1e-3
    own = training.generate_pairs(flow, 4, tmp_path / "c", context=torch.tensor([2, 1]))
    assert own.context.tolist() == [2, 1, 2, 1]
    with pytest.raises(ValueError, match="conditional"):
        training.generate_pairs(small(), 4, tmp_path / "d", context=torch.tensor([2, 1]))
    with pytest.raises(ValueError, match=r"context of shape \[2, 1\]"):
        training.generate_pairs(flow, 4, tmp_path / "d", context=torch.tensor([[2], [1]]))


def test_real_data_carried_back(tmp_path, generator):
    flow = gaussian().with_transform(bijections.Standardise(2, loc=5.0, scale=2.0))
    x = 5 + 2 * (0.7 + 0.3 * torch.randn(40, 2, generator=generator))
    pairs = training.generate_pairs(flow, 40, tmp_path / "back", data=x, solver=solvers.Dopri5(1e-7, 1e-7))
    x0, x1 = pairs.x.unbind(1)
    torch.testing.assert_close(x1, (x - 5) / 2)
    torch.testing.assert_close(x0, (x1 - 0.7) / 0.3, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="one pair per row"):
        training.generate_pairs(flow, 3, tmp_path / "other", data=x)


def test_reflow_straightens_and_distillation_takes_one_step(tmp_path):
    """Two normals joined across: the first flow turns, its pairs do not cross, and a line fits them."""
    flow = gaussian(mean=2.0, std=0.2)
    pairs = training.generate_pairs(flow, 2000, tmp_path / "pairs", solver=solvers.Dopri5(1e-6, 1e-6))
    student = small()
    straight = training.reflow(student, pairs, steps=300, batch_size=256, lr=1e-2, seed=0, ema=None)
    assert all(torch.equal(*each) for each in zip(student.parameters(), small().parameters()))
    assert [entry.coupling for entry in straight.trained_by] == ["couplings.Paired"]
    x0, x1 = pairs.x[:500].unbind(1)
    error = lambda flow, solver: float((flow.transport(x0, 0.0, 1.0, solver=solver).y - x1).square().mean().sqrt())
    assert error(straight, solvers.Euler(steps=1)) < 0.15
    one = training.distill(straight, pairs, evaluations=1, steps=200, batch_size=256, lr=5e-3, seed=0, ema=None)
    assert one.solver == solvers.Euler(steps=1)
    assert error(one, one.solver) < 0.1


def test_distillation_online_from_a_teacher(tmp_path):
    teacher = gaussian(mean=2.0, std=0.2)
    objective = objectives.Distillation(2, teacher=teacher, solver=solvers.RK4(steps=6))
    one = training.distill(small(), None, objective=objective, steps=150, batch_size=128, lr=1e-2, seed=0, ema=None)
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    error = (one.transport(x0, 0.0, 1.0, solver=one.solver).y - (2.0 + 0.2 * x0)).square().mean().sqrt()
    assert float(error) < 0.15
    assert objective.teacher is not teacher
    labelled, labels = small(classes=3), torch.arange(30) % 3
    before = [each.requires_grad for each in labelled.parameters()]
    online = objectives.Distillation(1, teacher=labelled, solver=solvers.Heun(steps=2))
    two = training.distill(labelled, None, objective=online, steps=2, batch_size=8, context=labels, seed=0)
    assert two.context_shape == ()
    assert [each.requires_grad for each in labelled.parameters()] == before  # what was given is not frozen
    with pytest.raises(ValueError, match="not both"):
        training.distill(small(), None)


def bimodal(path, steps=400):
    """A trained flow of one dimension onto two points, +1 and -1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = cflow.ContinuousFlow(fields.MLP(1, hidden=(32, 32)), bases.Normal(1), path=path)
    x = torch.randint(2, (2000, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    training.fit(flow, objectives.FlowMatching(), x, steps=steps, batch_size=256, lr=5e-3, seed=0, ema=None)
    return flow.eval()


@pytest.mark.parametrize("path", [paths.Linear("x1"), paths.Cosine("x1")], ids=["linear", "cosine"])
def test_flows_that_predict_the_data_are_straightened_too(path, tmp_path):
    flow = bimodal(path)
    pairs = training.generate_pairs(flow, 2000, tmp_path / "pairs", solver=solvers.Heun(steps=20))
    straight = training.reflow(flow, pairs, steps=400, batch_size=256, lr=3e-3, seed=0, ema=None)
    assert straight.path.predict == "x1"
    apart = lambda flow: float(
        (flow.sample((1000,), solver=solvers.Euler(steps=1), generator=torch.Generator().manual_seed(0)).abs() - 1)
        .abs()
        .mean()
    )
    assert apart(flow) > 0.8  # one step goes to the mean of the two
    assert apart(straight) < 0.15


def test_what_has_no_velocity_at_the_start_is_not_straightened(tmp_path):
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear("noise"))
    pairs = training.generate_pairs(flow, 8, tmp_path / "pairs", solver=solvers.Heun(steps=2))
    with pytest.raises(ValueError, match=r"velocities or x1 can continue; train a new flow of velocities"):
        training.reflow(flow, pairs, steps=1)


def test_a_distilled_flow_has_no_density_until_it_is_a_flow_again(tmp_path):
    flow = small()
    pairs = training.generate_pairs(flow, 64, tmp_path / "pairs")
    options = {"steps": 2, "batch_size": 32, "seed": 0}
    one = training.distill(training.reflow(flow, pairs, **options), pairs, **options)
    cflow.save(one, tmp_path / "one")
    again = cflow.load(tmp_path / "one")
    for each in (one, again):
        assert each.likelihood == "none"
        with pytest.raises(ValueError, match="use the flow that it was distilled from"):
            each.log_prob(torch.zeros(3, 2))
        with pytest.raises(ValueError, match="distilled"):
            each.sample_and_log_prob((3,))
    assert flow.likelihood == "exact"
    training.fit(again, objectives.FlowMatching(), torch.randn(64, 2), **options)
    assert again.likelihood == "exact"
    training.fit(again, objectives.Distillation(2), pairs.x, **options)
    assert again.likelihood == "none"


def test_a_solver_of_whole_steps_is_not_kept(tmp_path):
    flow = small(two_times=True)
    flow.solver = solvers.FlowMap(steps=2)
    pairs = training.generate_pairs(flow, 32, tmp_path / "pairs")
    assert isinstance(training.reflow(flow, pairs, steps=1, batch_size=16).solver, solvers.Dopri5)


def test_a_teacher_works_in_full_precision(tmp_path):
    """An adaptive solver would take the rounding of half precision for its own error, and hundreds of steps."""
    teacher, calls = small(), []
    teacher.solver = solvers.Dopri5(1e-4, 1e-4)
    objective = objectives.Distillation(1, teacher=teacher)
    objective.teacher.field.output.register_forward_hook(lambda *call: calls.append(call[-1].dtype))
    training.distill(teacher, objective=objective, steps=2, batch_size=16, seed=0, precision="bf16")
    assert set(calls) == {torch.float32}


@pytest.mark.parametrize("error", [objectives.Square(), objectives.Huber(), objectives.PseudoHuber()])
def test_errors_vanish_at_the_target_alone_and_grow(error, generator):
    a = torch.randn(6, 3, generator=generator)
    assert error(a, a).abs().max() < 1e-7
    small, large = error(a, a + 0.01), error(a, a + 10.0)
    assert (small > 0).all()
    assert (large > small).all()
    # Squares grow by the square of the size, the others at most in proportion to it, far out.
    ratio = float((error(a, a + 100.0) / large).mean())
    assert ratio == pytest.approx(100.0 if isinstance(error, objectives.Square) else 10.0, rel=0.1)


def test_a_feature_error_compares_ends(generator):
    flow = small()
    network = torch.nn.Linear(2, 5, bias=False)
    x = torch.randn(8, 2, 2, generator=generator)
    loss = objectives.Reflow(error=objectives.FeatureError(network, pixel=0.0))(
        flow, x, generator=torch.Generator().manual_seed(0)
    )
    t = objectives.Reflow().prepare(flow.base, x, None, torch.Generator().manual_seed(0)).t[:, None]
    xt = (1 - t) * x[:, 0] + t * x[:, 1]
    end = xt + (1 - t) * flow.predict(t[:, 0], xt)
    torch.testing.assert_close(loss, (network(end) - network(x[:, 1])).square().mean(1))
    assert not network.weight.requires_grad


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(TypeError, match="ContinuousFlow"):
        training.generate_pairs(cflow.discrete.nsf(2, layers=1), 4, tmp_path)
    with pytest.raises(ValueError, match="1 or more for each"):
        training.generate_pairs(small(), 0, tmp_path)
    with pytest.raises(FileNotFoundError, match="generate_pairs"):
        training.Pairs(tmp_path)
    cosine = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Cosine())
    with pytest.raises(ValueError, match="with_path"):
        objectives.Reflow()(cosine, torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="evaluations=0"):
        objectives.Distillation(0)
    with pytest.raises(ValueError, match="teacher"):
        objectives.Distillation(1, solver=solvers.Heun(steps=2))
    for wrong in (2.0, "2"):
        with pytest.raises((ValueError, TypeError), match="Distillation"):
            objectives.Distillation(wrong)
    with pytest.raises(TypeError, match="objectives.PseudoHuber"):
        objectives.Reflow(error=objectives.PseudoHuber)
    with pytest.raises(TypeError, match="the whole ContinuousFlow"):
        objectives.Distillation(1, teacher=small().field)
    stranger = cflow.ContinuousFlow(fields.MLP(3), bases.Normal(3), path=paths.Linear())
    with pytest.raises(ValueError, match="pass a teacher with the same shapes"):
        training.distill(small(), objective=objectives.Distillation(1, teacher=stranger), steps=1, batch_size=4)
    pairs = training.generate_pairs(small(), 4, tmp_path / "pairs")
    with pytest.raises(ValueError, match="these differ; omit evaluations"):
        training.distill(small(), pairs, 4, objective=objectives.Distillation(1))
    with pytest.raises(TypeError, match="call training.reflow"):
        training.distill(small(), pairs, objective=objectives.Reflow())
    with pytest.raises(TypeError, match="call training.distill"):
        training.reflow(small(), pairs, objective=objectives.Distillation(1))
    with pytest.raises(TypeError, match="pass the Pairs of training.generate_pairs"):
        training.reflow(small(), pairs.x)
    other = cflow.ContinuousFlow(fields.MLP(3), bases.Normal(3), path=paths.Linear())
    with pytest.raises(ValueError, match="pass pairs of these shapes"):
        training.reflow(other, pairs, steps=1)
