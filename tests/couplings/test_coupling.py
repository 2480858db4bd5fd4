import copy

import pytest
import torch

from cflow.couplings import Coupling, Independent, OptimalTransport, Paired, paired
from cflow.registry import configuration
from cflow.testing import check_coupling

each = pytest.mark.parametrize("coupling", [Independent(), OptimalTransport(), OptimalTransport("simplex"), Paired()])


@each
def test_every_coupling_keeps_the_contract(coupling):
    assert isinstance(coupling, Coupling)
    assert type(coupling)(**configuration(coupling)) == coupling == copy.deepcopy(coupling)
    assert coupling.draws_base is not isinstance(coupling, Paired)
    assert "draws_base" not in configuration(coupling)
    check_coupling(coupling)


@each
@pytest.mark.parametrize("count", [0, 1])
def test_small_batches_pass_unchanged(coupling, count):
    x0, x1, label = torch.rand(count, 3), torch.rand(count, 3), torch.arange(count)
    got = coupling(x0, x1, label, generator=torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(got, (x0, x1, label)))


@each
def test_rows_that_do_not_match_are_named(coupling):
    name = type(coupling).__name__
    with pytest.raises(
        ValueError, match=rf"{name}\(x0 of shape \[4, 2\], x1 of shape \[5, 2\]\).*as many base samples"
    ):
        coupling(torch.zeros(4, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"context of shape \[4\].*5 rows of x1"):
        coupling(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(4))
    with pytest.raises(ValueError, match=r"label of shape \[4\].*5 rows of x1"):
        coupling(torch.zeros(5, 2), torch.zeros(5, 2), {"text": torch.zeros(5, 1), "label": torch.zeros(4)})
    with pytest.raises(TypeError, match=r"x0=dict\): couplings pair tensors"):
        coupling({"a": torch.zeros(5, 2)}, {"a": torch.zeros(5, 2)})


def test_independent_leaves_pairs_alone(generator):
    x0, x1 = torch.randn(6, 2, generator=generator), torch.randn(6, 2, generator=generator)
    context = {"label": torch.arange(6)}
    got = Independent()(x0, x1, context)
    assert got[0] is x0
    assert got[1] is x1
    assert got[2] is context


@pytest.mark.parametrize("event", [(), (3,), (2, 4, 4)])
def test_pairs_come_apart_as_they_were_put_together(event, generator):
    x0, x1 = (torch.randn(5, *event, generator=generator) for _ in range(2))
    data = paired(x0, x1)
    assert data.shape == (5, 2, *event)
    first, second = Paired().split(data[2:4])
    assert torch.equal(first, x0[2:4])
    assert torch.equal(second, x1[2:4])
    context = torch.arange(2)
    got = Paired()(first, second, context)
    assert got[0] is first
    assert got[1] is second
    assert got[2] is context


def test_data_that_are_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"split\(x of shape \[5, 3\]\).*couplings.paired"):
        Paired().split(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"of shape \[2\]"):
        Paired().split(torch.zeros(2))
    with pytest.raises(ValueError, match="a dict"):
        Paired().split({"x": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"shape \[5, 3\], x1 with shape \[5, 2\]"):
        paired(torch.zeros(5, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"dtype torch.float32, x1 with dtype torch.float64"):
        paired(torch.zeros(5, 3), torch.zeros(5, 3).double())
    with pytest.raises(ValueError, match="same number of rows"):
        paired(torch.zeros(5, 3), torch.zeros(4, 3))
