import copy
import math
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import norm_processes
import pytest
import torch

import cflow
from cflow import bijections, discrete, training
from cflow.testing import check_bijection


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 5, 6)])
def test_the_first_batch_comes_out_standardised(shape, generator):
    layer = bijections.ActNorm(shape)
    x = 7 + 3 * torch.randn(50, *shape, generator=generator)
    z, ladj = layer.encode(x)
    over = (0, 2, 3) if len(shape) == 3 else (0,)
    torch.testing.assert_close(z.mean(over), torch.zeros_like(z.mean(over)), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(over, correction=0), torch.ones_like(z.mean(over)), rtol=1e-5, atol=0)
    kept = x.var(over, correction=0)
    pixels = 30 if len(shape) == 3 else 1
    torch.testing.assert_close(ladj, (-0.5 * pixels * kept.log().sum()).expand(50), rtol=1e-5, atol=1e-5)
    assert sum(each.numel() for each in layer.parameters()) == 2 * max(kept.numel(), 1)


def test_only_the_first_batch_in_training_counts(generator):
    layer = bijections.ActNorm(2)
    x = 3 + torch.randn(9, 2, generator=generator)
    layer.eval()
    assert torch.equal(layer.encode(x)[0], x)
    layer.train()
    assert torch.equal(layer.decode(x)[0], x)
    assert not layer.initialised
    layer.encode(x)
    kept = copy.deepcopy(layer.state_dict())
    layer.encode(100 * x)
    assert all(torch.equal(one, other) for one, other in zip(kept.values(), layer.state_dict().values()))
    assert layer.initialised


def test_a_batch_without_a_deviation_is_left_to_the_next(generator):
    layer = bijections.ActNorm(2)
    x = torch.randn(1, 2, generator=generator)
    assert torch.equal(layer.encode(x)[0], x)
    assert layer.encode(x[:0])[0].shape == (0, 2)
    assert not layer.initialised
    layer.encode(5 * torch.randn(4, 2, generator=generator))
    assert layer.initialised
    image = bijections.ActNorm((1, 2, 2))
    image.encode(torch.randn(1, 1, 2, 2, generator=generator))
    assert image.initialised  # four values per channel


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_constant_features_are_centred_at_scale_one(value, generator):
    layer = bijections.ActNorm(2)
    x = torch.stack((torch.full((33,), value), torch.randn(33, generator=generator)), 1)
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z[:, 0], torch.zeros(33), rtol=0, atol=2e-7 * (1 + value))
    assert layer.scale[0] == 1
    assert ladj.isfinite().all()


def test_bad_values_do_not_become_the_scale():
    layer = bijections.ActNorm(2)
    layer.encode(torch.tensor([[1.0, math.nan], [3.0, 1.0], [5.0, math.inf]]))
    assert layer.loc.tolist() == [3.0, 0.0]
    assert layer.scale[1] == 1.0


def test_what_was_measured_is_saved_and_never_measured_again(tmp_path, generator):
    layer = bijections.ActNorm(3)
    x = 4 + 2 * torch.randn(20, 3, generator=generator)
    layer.encode(x)
    fresh = bijections.ActNorm(3)
    fresh.load_state_dict(layer.state_dict())
    weights = tmp_path / "weights.pt"
    torch.save(layer.state_dict(), weights)
    read = bijections.ActNorm(3)
    read.load_state_dict(torch.load(weights, weights_only=True), assign=True)
    copies = {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "load_state_dict": fresh,
        "torch.load": read,
        "cflow.load": cflow.load(cflow.save(layer, tmp_path / "model")).train(),
    }
    other = 50 * torch.randn(20, 3, generator=generator)
    for name, each in copies.items():
        assert each.training, name
        assert torch.equal(each.encode(other)[0], layer.encode(other)[0]), name


def test_an_untouched_copy_still_measures(generator):
    layer = bijections.ActNorm(1)
    layer.encode(torch.randn(9, 1, generator=generator))
    layer.load_state_dict(bijections.ActNorm(1).state_dict())
    z, _ = layer.encode(8 + torch.randn(9, 1, generator=generator))
    torch.testing.assert_close(z.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)


def test_once_measured_no_flag_is_read_and_no_graph_breaks(generator, monkeypatch):
    layer = bijections.ActNorm(2)
    x = torch.randn(8, 2, generator=generator)
    layer.encode(x)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("a value was read from a tensor"))
    layer.encode(x)
    layer.decode(x)
    monkeypatch.undo()
    compiled = torch.compile(layer.encode, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], layer.encode(x)[0])


def test_scores_of_single_samples_do_not_measure(generator):
    layer = bijections.ActNorm(2)
    x = torch.randn(6, 2, generator=generator)
    score = torch.func.vmap(torch.func.grad(lambda row: layer.encode(row[None])[0].square().sum()))
    torch.testing.assert_close(score(x), 2 * x)
    assert not layer.initialised


def test_fitting_with_an_average_keeps_what_was_measured(generator):
    data = 1e3 + 50 * torch.randn(64, 2, generator=generator)
    flow = discrete.NormalizingFlow(bijections.ActNorm(2), cflow.bases.Normal(2))
    training.fit(
        flow, cflow.objectives.MaximumLikelihood(), data, steps=3, batch_size=64, ema=training.EMA(0.999, warmup=False)
    )
    layer = flow.bijection
    assert layer.initialised
    torch.testing.assert_close(layer.loc, data.mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(layer.scale, data.std(0, correction=0), rtol=1e-5, atol=0)
    assert layer.log_scale.abs().max() < 0.1


def test_two_processes_measure_their_batches_as_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, norm_processes.__file__, str(tmp_path)]
    started = [subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)}) for rank in range(2)]
    try:
        assert [each.wait(timeout=120) for each in started] == [0, 0]
    finally:
        for each in started:
            each.kill()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, rows in (("whole", norm_processes.rows()), ("pair", norm_processes.rows()[:2])):
        for each in found:
            torch.testing.assert_close(each[name]["loc"], rows.mean(0))
            torch.testing.assert_close(each[name]["scale"], rows.std(0, correction=0))
            assert each[name]["initialised"]
    assert not any(each["told"].any() for each in found)


def test_batch_norm_uses_the_batch_in_training_and_the_running_statistics_elsewhere(generator):
    layer = bijections.BatchNorm(2, momentum=0.25, eps=0.5).double()
    x = 3 + 2 * torch.randn(10, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.log_scale.fill_(0.3)
        layer.shift.fill_(-1.0)
    mean, variance = x.mean(0), x.var(0, correction=0)
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z, (x - mean) / (variance + 0.5).sqrt() * math.exp(0.3) - 1)
    torch.testing.assert_close(ladj, (0.6 - 0.5 * (variance + 0.5).log().sum()).expand(10))
    torch.testing.assert_close(layer.mean, 0.25 * mean)
    torch.testing.assert_close(layer.variance, 0.75 + 0.25 * variance)
    layer.eval()
    z, _ = layer.encode(x)
    torch.testing.assert_close(z, (x - layer.mean) / (layer.variance + 0.5).sqrt() * math.exp(0.3) - 1)
    torch.testing.assert_close(layer.train().decode(z)[0], x)


def test_batch_norm_log_determinant_holds_the_statistics_fixed(generator):
    """Each row by itself, the batch's mean and variance as constants: autograd through a frozen copy."""
    layer = bijections.BatchNorm(3, momentum=1.0).double()
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    _, ladj = layer.encode(x)
    check_bijection(layer.eval(), points=x)
    torch.testing.assert_close(layer.encode(x)[1], ladj)


def test_batch_norm_gradients_go_through_the_statistics(generator):
    layer = bijections.BatchNorm(2).double()
    x = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer.encode, x)


def test_batch_norm_of_one_or_none(generator):
    layer = bijections.BatchNorm(2)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="one sample has no variance"):
        layer.encode(torch.zeros(1, 2))
    assert layer.encode(torch.zeros(0, 2))[0].shape == (0, 2)
    assert all(torch.equal(one, other) for one, other in zip(before.values(), layer.state_dict().values()))
    assert layer.eval().encode(torch.zeros(1, 2))[0].shape == (1, 2)
    assert layer.changes
    assert not bijections.ActNorm(2).changes


def test_batch_norm_refuses_impossible_arguments():
    for arguments in ({"features": 0}, {"momentum": 0.0}, {"momentum": 1.1}, {"eps": -1.0}):
        with pytest.raises(ValueError, match=r"momentum in \(0, 1\]"):
            bijections.BatchNorm(**{"features": 2, **arguments})
