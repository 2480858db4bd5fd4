import copy

import pytest
import torch

from cflow import couplings
from cflow.couplings import (
    ConditionalOT,
    Coupling,
    Independent,
    OptimalTransport,
    Paired,
    Partial,
    Sinkhorn,
    Unbalanced,
    paired,
)
from cflow.registry import configuration
from cflow.testing import check_coupling

PROMISES = [
    (Independent(), {}),
    (OptimalTransport(), {}),
    (OptimalTransport("simplex"), {}),
    (Paired(), {}),
    (ConditionalOT(), {"conditional": True}),
    (ConditionalOT(3.0, method="simplex"), {"conditional": True}),
    (ConditionalOT(torch.inf), {"conditional": True}),
    (Sinkhorn(), {"rows": "kept"}),
    (Sinkhorn(2.0, relative=False, annealing=None), {"rows": "kept"}),
    (Unbalanced(), {"rows": "drawn"}),
    (Unbalanced(3.0, 0.3, relative=False), {"rows": "drawn"}),
    (Partial(0.6), {"rows": "fewer"}),
    (Partial(1.0), {}),
]
each = pytest.mark.parametrize("coupling", [coupling for coupling, _ in PROMISES], ids=repr)


@pytest.mark.parametrize(("coupling", "promises"), PROMISES, ids=lambda value: repr(value))
def test_every_coupling_keeps_the_contract(coupling, promises):
    assert isinstance(coupling, Coupling)
    assert type(coupling)(**configuration(coupling)) == coupling == copy.deepcopy(coupling)
    assert coupling.draws_base is not isinstance(coupling, Paired)
    assert coupling.prepares_ahead is not isinstance(coupling, Independent | Paired)
    assert not {"draws_base", "prepares_ahead"} & configuration(coupling).keys()
    check_coupling(coupling, **promises)


def test_every_coupling_is_on_the_list():
    members = {value for name, value in vars(couplings).items() if hasattr(value, "draws_base") and name != "Coupling"}
    assert members == {type(coupling) for coupling, _ in PROMISES}


class Broken:
    """Couples as Independent does, but for one fault."""

    draws_base = True

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, x0, x1, context=None, generator=None):
        x0, x1, context = Independent()(x0, x1, context)
        if len(x1) < 2:
            return x0, x1, context
        order = torch.arange(len(x1)).flip(0)
        if self.fault == "context":
            return x0, x1[order], context
        if self.fault == "twice":
            return x0[order.clamp(min=1)], x1, context
        if self.fault == "other":
            return x0 + 1, x1, context
        if self.fault == "mutates":
            x0[0] = x0[1]
        if self.fault == "seed":
            return x0[torch.randperm(len(x0), generator=None)], x1, context
        if self.fault == "worse":
            index = torch.cdist(x0, x1).argmax(0)
            return x0[index], x1, context
        return x0, x1, context


@pytest.mark.parametrize(
    ("fault", "rows", "message"),
    [
        ("context", "permuted", "contexts stay with"),
        ("twice", "permuted", "no row of x0 is used twice"),
        ("other", "kept", "a row of the input"),
        ("mutates", "kept", "inputs are not changed"),
        ("seed", "kept", "no other random number"),
        ("worse", "kept", "on average over draws"),
        ("none", "fewer", "fewer rows"),
    ],
)
def test_the_conformance_suite_finds_faults(fault, rows, message):
    with pytest.raises(AssertionError, match=message):
        check_coupling(Broken(fault), rows=rows)
    check_coupling(Broken("none"))
    with pytest.raises(ValueError, match=r"rows='all'\): not supported; pass one of 'permuted'"):
        check_coupling(Independent(), rows="all")


CHECKED = [OptimalTransport(), ConditionalOT(), ConditionalOT(1.0), Sinkhorn(), Unbalanced(), Partial()]


@pytest.mark.parametrize("coupling", CHECKED, ids=repr)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("count", [1, 6])
def test_samples_that_are_no_numbers_are_named(coupling, value, count):
    x0, x1 = torch.zeros(count, 3), torch.ones(count, 3)
    for name in ("x0", "x1"):
        broken = {"x0": x0.clone(), "x1": x1.clone()}
        broken[name][0, 1] = value
        with pytest.raises(ValueError, match=rf"{name} of shape .*: 1 entries are NaN or infinite; remove them"):
            coupling(broken["x0"], broken["x1"], torch.rand(count))


@pytest.mark.parametrize("coupling", CHECKED, ids=repr)
def test_samples_that_cannot_be_compared_are_refused(coupling):
    label = torch.zeros(4, dtype=torch.long)
    name = type(coupling).__name__
    with pytest.raises(ValueError, match=rf"{name}\(x0 with shape \[4, 2\], x1 with shape \[4, 3\]\): distances need"):
        coupling(torch.zeros(4, 2), torch.zeros(4, 3), label)
    with pytest.raises(ValueError, match=rf"{name}\(x0 with device meta, x1 with device cpu\)"):
        coupling(torch.zeros(4, 2, device="meta"), torch.zeros(4, 2), label)
    with pytest.raises(TypeError, match=rf"{name}\(x0 of torch.complex64\): distances need real numbers"):
        coupling(torch.zeros(4, 2, dtype=torch.cfloat), torch.zeros(4, 2), label)
    with pytest.raises(ValueError, match="squared distances overflow torch.float64; rescale"):
        coupling(1e200 * torch.rand(4, 2).double(), torch.zeros(4, 2).double(), label)


@pytest.mark.parametrize("coupling", CHECKED, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_kept_and_autocast_changes_nothing(coupling, dtype, generator):
    x0, x1 = (torch.randn(30, 5, generator=generator).to(dtype) for _ in range(2))
    context = torch.rand(30, generator=generator)
    plain = coupling(x0, x1, context, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = coupling(x0, x1, context, generator=torch.Generator().manual_seed(1))
    assert plain[0].dtype == plain[1].dtype == dtype
    assert torch.equal(plain[0], inside[0])
    assert torch.equal(plain[1], inside[1])


@each
def test_rows_that_do_not_match_are_named(coupling):
    name = type(coupling).__name__
    with pytest.raises(
        ValueError, match=rf"{name}\(x0 of shape \[4, 2\], x1 of shape \[5, 2\]\).*one base sample per data sample"
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


DISTANT = [
    OptimalTransport(),
    ConditionalOT(),
    Sinkhorn(),
    Unbalanced(),
    Partial(0.5),
]


@pytest.mark.parametrize("coupling", DISTANT, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_distances_between_integers_are_refused(coupling, dtype, generator):
    x = torch.randint(0, 2, (6, 3), generator=generator)
    labels = torch.arange(6) % 2
    with pytest.raises(TypeError, match=rf"{type(coupling).__name__}\(x1 of {dtype}\).*x1.float\(\)"):
        coupling(x.float(), x.to(dtype), labels, generator=generator)
    with pytest.raises(TypeError, match=r"x0.float\(\) for quantities"):
        coupling(x.to(dtype), x.float(), labels, generator=generator)
    assert coupling(x.float(), 1.0 + x, labels, generator=generator)[0].dtype == torch.float32
