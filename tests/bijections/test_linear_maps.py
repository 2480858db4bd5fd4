import pytest
import torch

from cflow import bijections
from cflow.bijections.matrices import factors, orthonormal, reflections, rotation


def matrix_of(layer, features):
    """The matrix of a linear bijection: what it does to unit vectors, less what it does to zero."""
    eye = torch.eye(features, dtype=torch.float64)
    images = layer.encode(torch.cat((torch.zeros_like(eye[:1]), eye)))[0].detach()
    return (images[1:] - images[:1]).t()


def randomise(layer, generator, scale=1.0):
    layer = layer.double()
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(scale * torch.randn(each.shape, generator=generator, dtype=each.dtype))
    return layer


STARTS = [
    bijections.LULinear(4),
    bijections.Householder(5),
    bijections.Orthogonal(4),
    bijections.LowRank(4, 2),
]


@pytest.mark.parametrize("layer", STARTS, ids=lambda each: type(each).__name__)
def test_training_starts_at_the_identity_with_gradients(layer, generator):
    x = torch.randn(50, *layer.event_shape, generator=generator)
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-5)
    assert not ladj.any()
    target = x @ torch.randn(x.shape[1], x.shape[1], generator=generator)
    gradients = torch.autograd.grad((z - target).square().sum(), list(layer.parameters()), allow_unused=True)
    assert gradients[0].abs().max() > 1


def test_lu_is_the_product_of_its_factors(generator):
    layer = randomise(bijections.LULinear(5), generator)
    raw = layer.weight.detach()
    lower, upper = raw.tril(-1) + torch.eye(5), raw.triu(1) + raw.diagonal().exp().diag()
    torch.testing.assert_close(matrix_of(layer, 5), lower.double() @ upper, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(factors(raw)[2], torch.linalg.slogdet(lower.double() @ upper).logabsdet)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(layer.encode(x)[0], x @ (lower.double() @ upper).t() + layer.shift)


def test_solving_beats_the_inverse_of_a_badly_scaled_matrix(generator):
    layer = bijections.LULinear(6)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor([-20.0, 15, -10, 0, 12, 20])))
    x = torch.randn(100, 6, generator=generator)
    torch.testing.assert_close(layer.decode(layer.encode(x)[0])[0], x, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("features", "count"), [(1, 1), (3, 1), (4, 4), (3, 7), (5, 2)])
def test_compact_reflections_are_the_product_of_single_ones(features, count, generator):
    layer = randomise(bijections.Householder(features, count), generator)
    wanted = torch.eye(features, dtype=torch.float64)
    for v in layer.vectors.detach():
        wanted = wanted @ (torch.eye(features, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
    found = matrix_of(layer, features)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(found), torch.tensor((-1.0) ** count, dtype=torch.float64))
    if count <= features:
        torch.testing.assert_close(orthonormal(layer.vectors.detach()), wanted[:, :count], rtol=0, atol=1e-12)


def test_lengths_of_reflection_vectors_do_not_matter():
    vectors = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    wanted = reflections(vectors)
    for factor in (1e-30, 1e30):
        for one, other in zip(reflections(vectors * factor), wanted):
            torch.testing.assert_close(one, other)
    nothing, _ = reflections(torch.zeros(1, 2))
    assert not nothing.any()


@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.1, 1.0])
def test_a_rotation_is_the_exponential(scale, generator):
    weight = scale * torch.randn(6, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(rotation(weight), torch.matrix_exp(weight - weight.t()), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("scale", "roundings"), [(1.0, 30), (10.0, 300), (100.0, 1e6)])
def test_a_rotation_is_orthogonal_whatever_the_numbers(scale, roundings, generator):
    for dtype in (torch.float32, torch.float64):
        found = rotation(scale * torch.randn(8, 8, generator=generator, dtype=dtype))
        gap = (found @ found.t() - torch.eye(8, dtype=dtype)).abs().max() / torch.finfo(dtype).eps
        assert gap < roundings
        assert torch.linalg.det(found.double()) > 0


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_low_rank_is_the_matrix_it_says_and_never_singular(scale, generator):
    layer = randomise(bijections.LowRank(6, 2), generator, scale)
    with torch.no_grad():
        layer.log_scale.div_(scale)
    u, v = layer.left.detach(), layer.right.detach()
    s = (1 + (v.t() @ u).square().sum()).rsqrt()
    wanted = layer.log_scale.detach().exp()[:, None] * (torch.eye(6, dtype=torch.float64) + s * u @ v.t())
    torch.testing.assert_close(matrix_of(layer, 6), wanted, rtol=1e-10, atol=1e-9 * scale**2)
    small = torch.eye(2, dtype=torch.float64) + s * v.t() @ u
    assert torch.linalg.svdvals(small).min() > 0
    assert torch.linalg.det(small) > 0


def test_low_rank_refuses_more_directions_than_features():
    with pytest.raises(ValueError, match="rank must be from 1 to features"):
        bijections.LowRank(3, 4)


@pytest.mark.parametrize("kind", [bijections.LULinear, bijections.Householder, bijections.Orthogonal])
def test_events_without_features_are_refused(kind):
    with pytest.raises(ValueError, match="at least 1"):
        kind(0)
