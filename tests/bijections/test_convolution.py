import pytest
import torch

from cflow import bijections


def filled(generator, permutation=(2, 0, 1)):
    layer = bijections.Conv1x1((3, 4, 5), permutation).double()
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(torch.randn(each.shape, generator=generator, dtype=each.dtype))
    return layer


def test_it_is_a_convolution_of_one_pixel(generator):
    layer = filled(generator)
    raw = layer.weight.detach()
    lower, upper = raw.tril(-1) + torch.eye(3), raw.triu(1) + raw.diagonal().exp().diag()
    matrix = (lower @ upper)[[2, 0, 1]]
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    z, ladj = layer.encode(x)
    torch.testing.assert_close(z, torch.nn.functional.conv2d(x, matrix[:, :, None, None], layer.shift.detach()))
    torch.testing.assert_close(ladj, (20 * torch.linalg.slogdet(matrix).logabsdet).expand(2))


def test_images_in_any_memory_format_are_mapped_alike(generator):
    layer = filled(generator)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    last = x.to(memory_format=torch.channels_last)
    for name in ("encode", "decode"):
        torch.testing.assert_close(getattr(layer, name)(last)[0], getattr(layer, name)(x)[0], rtol=0, atol=1e-12)


def test_a_single_pixel_is_a_linear_layer(generator):
    layer = bijections.Conv1x1((4, 1, 1), range(4)).double()
    linear = bijections.LULinear(4).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 4, generator=generator, dtype=torch.float64))
        linear.weight.copy_(layer.weight)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    for name in ("encode", "decode"):
        z, ladj = getattr(layer, name)(x[..., None, None])
        wanted, wanted_ladj = getattr(linear, name)(x)
        torch.testing.assert_close(z.flatten(1), wanted)
        torch.testing.assert_close(ladj, wanted_ladj)


def test_it_starts_by_shuffling_the_channels(generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = bijections.Conv1x1((8, 2, 2))
    x = torch.randn(3, 8, 2, 2, generator=generator)
    z, ladj = layer.encode(x)
    order = layer.permutation.tolist()
    assert order != sorted(order) == list(range(8))
    assert torch.equal(z, x[:, order])
    assert not ladj.any()


@pytest.mark.parametrize(("shape", "order"), [((3, 4), None), (3, None), ((3, 2, 2), [0, 1]), ((2, 2, 2), [0, 1, 2])])
def test_what_is_no_image_or_no_order_of_its_channels_is_refused(shape, order):
    with pytest.raises(ValueError, match=r"not an image; pass \(channels|has every number"):
        bijections.Conv1x1(shape, order)
