import os

import pytest
import torch

from cflow import registry
from cflow.discrete import Coupling, RationalQuadratic
from cflow.discrete.univariate import spline_kernel
from cflow.discrete.univariate.spline_kernel import available, fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_triton = pytest.mark.skipif(not available(), reason="needs Triton, which has no wheel for this system")


def eager(family, value, raw, inverse):
    return (family.decode if inverse else family.encode)(value, raw)


@needs_triton
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("bins", "bound"), [(8, 5.0), (5, 32.0)])
def test_the_kernel_and_the_eager_arithmetic_agree(bins, bound, inverse, generator):
    family = RationalQuadratic(bins=bins, bound=bound)
    value = torch.cat(
        (bound * torch.randn(15, 11, generator=generator) / 2, torch.tensor([[-bound, bound, 0.0] + [9e9] * 8]))
    )
    raw = 1.5 * torch.randn(16, 11, family.size, generator=generator)
    weights = torch.randn(2, 16, 11, generator=generator)
    exact = [each.double().requires_grad_() for each in (value, raw)]
    wanted = eager(family, *exact, inverse)
    given = [each.to(DEVICE).requires_grad_() for each in (value, raw)]
    found = fused(family, *given, inverse=inverse)
    for mine, theirs in zip(found, wanted):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=1e-4, atol=2e-6 * bound)
    gradients = [
        torch.autograd.grad((weights.to(each[0]) * torch.stack(tuple(each))).sum(), at)
        for each, at in ((found, given), (wanted, exact))
    ]
    for mine, theirs in zip(*gradients):
        scale = float(theirs.abs().mean())
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=2e-3, atol=2e-4 * scale)


@needs_triton
def test_the_operator_conforms(generator):
    family = RationalQuadratic(bins=3)
    value = torch.randn(7, generator=generator).to(DEVICE).requires_grad_()
    raw = torch.randn(7, family.size, generator=generator).to(DEVICE).requires_grad_()
    numbers = (3, 5.0, 1e-3, 1e-3, False)
    torch.library.opcheck(torch.ops.cflow.spline.default, (value, raw, *numbers))


@needs_triton
def test_an_empty_batch_stays_empty():
    family = RationalQuadratic()
    value, ladj = fused(family, torch.zeros(0, 3, device=DEVICE), torch.zeros(0, 3, family.size, device=DEVICE))
    assert value.shape == ladj.shape == (0, 3)


@needs_triton
def test_what_the_kernel_is_not_for_is_refused():
    family = RationalQuadratic()
    with pytest.raises(ValueError, match="float64"):
        fused(family, torch.zeros(2, dtype=torch.float64), torch.zeros(2, family.size, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\[2, 23\]"):
        fused(family, torch.zeros(2), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="tails='box'"):
        fused(RationalQuadratic(tails="box"), torch.zeros(2), torch.zeros(2, 25))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flow_of_splines_in_either_kernel(dtype, generator):
    """The public switch: a coupling whose network may run in a narrower dtype."""
    x = 3 * torch.randn(40, 3, generator=generator).to(DEVICE)
    found = []
    for kernel in ("eager", "triton"):
        layer = Coupling(RationalQuadratic(bins=5, kernel=kernel), 3, hidden=(8,)).to(DEVICE)
        weights = torch.Generator().manual_seed(1)
        for each in layer.parameters():
            torch.nn.init.normal_(each.data, std=0.4, generator=weights)
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            z, ladj = layer.encode(x)
            back, inverse = layer.decode(z)
        (z.square().sum() - ladj.sum()).backward()
        found.append((z, ladj, back, inverse, layer.conditioner.layers[0].weight.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4)


def test_the_kernel_is_saved_and_refused_by_name(monkeypatch):
    family = RationalQuadratic(kernel="triton")
    assert registry.replace(family, bins=4).kernel == "triton"
    with pytest.raises(ValueError, match="with linear tails"):
        RationalQuadratic(tails="circular", kernel="triton")
    with pytest.raises(ValueError, match="a kernel is 'eager'"):
        RationalQuadratic(kernel="cuda")
    value, raw = torch.zeros(2), torch.zeros(2, family.size)
    monkeypatch.setattr(spline_kernel, "triton", None)
    with pytest.raises(ImportError, match="pip install triton"):
        family.encode(value, raw)
    monkeypatch.setattr(spline_kernel, "triton", object())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="Triton compiles for GPUs"):
        family.decode(value, raw)
