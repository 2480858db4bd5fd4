import os

import pytest
import torch

from cflow.discrete import RationalQuadratic
from cflow.discrete.spline_kernel import available, fused

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_triton = pytest.mark.skipif(
    not available() or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton, and a GPU or its interpreter (TRITON_INTERPRET=1)",
)


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


@pytest.mark.skipif(available(), reason="Triton is installed")
def test_without_triton_the_error_says_what_to_do():
    family = RationalQuadratic()
    with pytest.raises(ImportError, match="pip install triton"):
        fused(family, torch.zeros(2), torch.zeros(2, family.size))
