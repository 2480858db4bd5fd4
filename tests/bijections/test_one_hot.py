"""Tokens in, tokens out: the map, and continuous flows behind it."""

import copy

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, bijections, objectives, paths, solvers
from cflow.bijections import Compose, Inverse, OneHot, Reversible


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_round_trip_in_every_dtype(shape, generator):
    one_hot = OneHot(shape, vocabulary=7)
    x = torch.randint(7, (4, *shape), generator=generator)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64):
        z, contribution = one_hot.encode(x.to(dtype))
        assert z.shape == (4, *shape, 7)
        assert z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(z, nn.functional.one_hot(x, 7).to(z.dtype))
        back, inverse = one_hot.decode(z)
        assert back.dtype == torch.int64
        assert torch.equal(back, x)
        assert contribution.tolist() == inverse.tolist() == [0.0] * 4
    assert one_hot.encode(x[:0])[0].shape == (0, *shape, 7)
    assert one_hot.decode(z[:0])[0].shape == (0, *shape)


def test_a_large_vocabulary_keeps_every_token():
    x = torch.tensor([[49_999, 0, 25_001]])
    assert torch.equal(OneHot(3, 50_000).decode(OneHot(3, 50_000).encode(x)[0])[0], x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.tensor([[1, 2, 0], [0, 3, 4]]),
            r"token 3 \(row 1, position 1, and 1 more\) is not an integer",
        ),
        (torch.tensor([[1, 2, -1]]), r"token -1 \(row 0, position 2\)"),
        (torch.tensor([[1.0, 0.5, 0.0]]), r"token 0.5 \(row 0, position 1\)"),
        (torch.tensor([[1.0, 0.0, float("nan")]]), r"token nan \(row 0, position 2\)"),
    ],
)
def test_a_value_outside_the_vocabulary_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        OneHot(3, 3).encode(value)


def test_positions_of_a_grid_and_single_tokens_are_named():
    with pytest.raises(ValueError, match=r"token 9 \(row 1, position \[0, 2\]\)"):
        OneHot((2, 3), 3).encode(torch.tensor([[[0, 0, 0], [0, 0, 0]], [[0, 0, 9], [0, 0, 0]]]))
    with pytest.raises(ValueError, match=r"token 9 \(row 2\)"):
        OneHot((), 3).encode(torch.tensor([0, 1, 9]))


def test_a_device_does_not_wait_and_wrong_tokens_become_nan():
    """A compiled call reads no values, as on a device: a wrong token must not become a silent vector of zeros."""
    torch._dynamo.reset()
    compiled = torch.compile(OneHot(2, 3).encode, backend="eager", fullgraph=True)
    z, _ = compiled(torch.tensor([[1, 3]]))
    assert z[0, 0].tolist() == [0, 1, 0]
    assert z[0, 1].isnan().any()


@pytest.mark.parametrize("vocabulary", [1, 2.5, True, "27"])
def test_a_vocabulary_is_counted(vocabulary):
    with pytest.raises(ValueError, match="two tokens or more"):
        OneHot(2, vocabulary)


def test_it_has_no_likelihood_and_no_inverse():
    assert Compose(OneHot(2, 3)).likelihood == "none"
    for kind in (Inverse, Reversible):
        for member in (OneHot(2, 3), Compose(OneHot(2, 3))):
            with pytest.raises(ValueError):
                kind(member)


def test_it_is_copied_and_saved(tmp_path):
    one_hot, x = OneHot((2, 3), 5), torch.randint(5, (4, 2, 3))
    for again in (copy.deepcopy(one_hot), cflow.load(cflow.save(one_hot, tmp_path / "map"))):
        assert torch.equal(again.encode(x)[0], one_hot.encode(x)[0])


class Foreign(nn.Module):
    """A network that does not cast its inputs."""

    def __init__(self, positions, vocabulary):
        super().__init__()
        self.shape, self.matrix = (positions, vocabulary), nn.Linear(positions * vocabulary, positions * vocabulary)

    def forward(self, t, x, context=None):
        return self.matrix(x.flatten(1)).unflatten(1, self.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_continuous_flow_takes_and_returns_tokens(dtype, generator):
    flow = cflow.ContinuousFlow(Foreign(4, 3), bases.Normal((4, 3)), path=paths.Linear("logits")).to(dtype)
    flow = flow.with_transform(OneHot(4, 3))
    x = torch.randint(3, (8, 4), generator=generator)
    assert flow.event_shape == (4,)
    losses = [objectives.FlowMatching()(flow, x.to(kind), generator=torch.Generator().manual_seed(1))
              for kind in (torch.uint8, torch.int32, torch.int64, torch.float32)]  # fmt: skip
    assert losses[0].dtype == dtype
    assert all(torch.equal(losses[0], each) for each in losses)
    draws = flow.sample((5, 2), solver=solvers.Euler(steps=3), generator=generator)
    assert draws.dtype == torch.int64
    assert draws.shape == (5, 2, 4)
    assert flow().support.check(draws).all()
    assert not flow().support.check(torch.full((4,), 3))
    assert flow.likelihood == "none"
    with pytest.raises(ValueError, match="behind OneHot this ContinuousFlow has no density; for tokens"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match=r"token 9 \(row 0, position 3\)"):
        objectives.FlowMatching()(flow, torch.tensor([[0, 1, 2, 9]]))


def test_integer_data_get_the_dtype_of_the_flow():
    """Transforms of integers return torch's default dtype, and a network in float64 needs float64."""
    flow = cflow.ContinuousFlow(Foreign(1, 2), bases.Normal((1, 2)), path=paths.Linear()).double()
    flow = flow.with_transform(bijections.Dequantise((1, 2), 4))
    x = torch.tensor([[[0, 3]], [[1, 2]]])
    assert flow.preprocess(x)[0].dtype == torch.float64
    assert flow.log_prob(x).dtype == torch.float64
