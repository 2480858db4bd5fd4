import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import cflow
from cflow import bases, fields, guidance, paths, solvers
from cflow.bijections import Standardise


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
    assert not again.training
    assert sorted(each.name for each in (tmp_path / "deep" / "model").iterdir()) == ["flow.json", "flow.safetensors"]


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


def test_hostile_and_damaged_files_execute_nothing(tmp_path):
    path = cflow.save(flow_with_everything(), tmp_path / "m")
    config, weights = path / "flow.json", path / "flow.safetensors"
    good_config, good_weights = config.read_text(), weights.read_bytes()

    def refuse(message, error=ValueError):
        with pytest.raises(error, match=message):
            cflow.load(path)
        config.write_text(good_config)
        weights.write_bytes(good_weights)

    weights.write_bytes(pickle.dumps(Bomb()))
    refuse("damaged")
    weights.write_bytes(good_weights[: len(good_weights) // 2])
    refuse("damaged")
    config.write_text(good_config[:100])
    refuse("damaged")
    config.write_bytes(b"\xff\xfe\x00")
    refuse("damaged")
    config.write_text("[" * 100_000)
    refuse("damaged")
    config.write_text(json.dumps({"format": "cflow 99", "flow": {}}))
    refuse("not a saved flow")

    tree = json.loads(good_config)
    for evil in ("os.system", "torch.load", "builtins.eval", "subprocess.Popen"):
        config.write_text(json.dumps(tree | {"flow": {"$class": evil, "arguments": {"command": "false"}}}))
        refuse("not a registered class")
    config.write_text(json.dumps(tree | {"flow": {"$class": "paths.Linear", "arguments": {}}}))
    refuse("not a flow")
    config.write_text(json.dumps(tree | {"flow": {"$evil": 1}}))
    refuse("nothing that")
    tree["flow"]["arguments"]["nonsense"] = 1
    config.write_text(json.dumps(tree))
    refuse("no constructor argument 'nonsense'")

    tensors = load_file(weights)
    name = "state.field.output.bias"
    save_file({key: value for key, value in tensors.items() if key != name}, weights)
    refuse("missing: field.output.bias")
    save_file(tensors | {name: torch.zeros(9)}, weights)
    refuse("of another shape or kind: field.output.bias")
    weights.unlink()
    refuse("holds no saved flow", FileNotFoundError)
    assert torch.equal(draws(cflow.load(path)), draws(flow := cflow.load(path)))
    assert isinstance(flow, cflow.ContinuousFlow)


def test_a_run_folder_is_hinted_at(tmp_path):
    cflow.save(flow_with_everything(), tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="Its folder `model` does"):
        cflow.load(tmp_path)


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
