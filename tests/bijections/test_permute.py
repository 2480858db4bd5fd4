import pytest
import torch

from cflow import bijections


def test_each_place_takes_the_feature_that_is_named():
    layer = bijections.Permute([2, 0, 1])
    x = torch.tensor([[10.0, 11.0, 12.0]])
    assert layer.encode(x)[0].tolist() == [[12.0, 10.0, 11.0]]
    assert layer.decode(layer.encode(x)[0])[0].tolist() == x.tolist()


def test_random_orders_follow_their_generator_alone():
    draw = lambda seed: bijections.Permute.random(40, torch.Generator().manual_seed(seed)).permutation.tolist()
    torch.manual_seed(0)
    first = draw(5)
    torch.manual_seed(1)
    assert draw(5) == first != draw(6)
    assert sorted(first) == list(range(40))
    assert bijections.Permute.reverse(4).permutation.tolist() == [3, 2, 1, 0]


def test_an_order_is_no_parameter_and_survives_casts():
    layer = bijections.Permute([1, 0]).double().half()
    assert layer.permutation.dtype == torch.long
    assert not list(layer.parameters())
    assert list(layer.state_dict()) == ["permutation"]


def test_a_loaded_order_is_undone_by_decode(generator):
    layer = bijections.Permute.reverse(6)
    layer.load_state_dict(bijections.Permute([1, 2, 3, 4, 5, 0]).state_dict())
    x = torch.randn(3, 6, generator=generator)
    z, _ = layer.encode(x)
    assert torch.equal(z, x.roll(-1, 1))
    assert torch.equal(layer.decode(z)[0], x)


@pytest.mark.parametrize("wrong", [[], [0, 0], [1, 2], [0, 2, -1]])
def test_what_is_no_permutation_is_refused(wrong):
    with pytest.raises(ValueError, match="has every number from 0"):
        bijections.Permute(wrong)


def test_numbers_that_are_not_whole_are_refused():
    with pytest.raises(TypeError):
        bijections.Permute([0.0, 1.0])
