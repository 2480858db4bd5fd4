import dataclasses
import json

import pytest
import torch

from cflow import bases, paths, registry


def test_classes_of_the_package_have_names_of_their_own():
    assert registry.name_of(paths.Linear) == "paths.Linear"
    assert registry.lookup("bases.Normal") is bases.Normal
    inner = {name for name, cls in registry._classes.items() if cls.__module__.startswith("cflow.")}
    assert all(name.count(".") == 1 for name in inner)  # a room and a class, written beside the class


def test_a_name_does_not_depend_on_the_module():
    @registry.register("tests.Moved")
    class Moved:
        pass

    Moved.__module__ = "elsewhere.entirely"
    assert registry.name_of(Moved) == "tests.Moved"


def test_a_class_of_ones_own_may_go_by_its_own_name():
    @registry.register
    class OnlyHere:
        pass

    assert registry.name_of(OnlyHere) == "OnlyHere"


def test_replace_changes_one_argument_and_shares_the_rest():
    @registry.register("tests.Pair")
    class Pair(torch.nn.Module):
        def __init__(self, left, *, right=1):
            super().__init__()
            self.left, self.right = left, right

    first = Pair(torch.nn.Linear(2, 2))
    second = registry.replace(first, right=5)
    assert second.left is first.left
    assert second.right == 5
    with pytest.raises(ValueError, match="takes left, right"):
        registry.replace(first, wrong=1)


def test_spread_arguments_are_read_back():
    @registry.register("tests.Many")
    class Many:
        def __init__(self, first, *parts, last=0):
            self.first, self.parts, self.last = first, parts, last

    again = registry.replace(Many(1, 2, 3, last=4), last=5)
    assert (again.first, again.parts, again.last) == (1, (2, 3), 5)


def test_mistakes_are_named():
    @registry.register("tests.Forgetful")
    class Forgetful:
        def __init__(self, size):
            pass

    with pytest.raises(ValueError, match=r"set self\.size"):
        registry.configuration(Forgetful(3))
    with pytest.raises(ValueError, match="list its arguments"):

        @registry.register
        class Loose:
            def __init__(self, **options):
                pass

    with pytest.raises(ValueError, match="belongs to cflow"):

        @registry.register("paths.Linear")
        @dataclasses.dataclass
        class Linear:
            slope: float = 1.0

    with pytest.raises(ValueError, match="import the module"):
        registry.lookup("paths.Nowhere")
    with pytest.raises(ValueError, match=r"@cflow\.register"):
        registry.name_of(torch.nn.Linear)


def test_a_module_without_a_constructor_has_no_arguments():
    @registry.register("tests.Still")
    class Still(torch.nn.Module):
        def forward(self, t, x, context=None):
            return torch.zeros_like(x)

    assert registry.configuration(Still()) == {}
    assert isinstance(registry.replace(Still()), Still)


def test_an_outline_sees_values_that_no_state_holds():
    """Two guides or objectives that differ in a plain tensor are two; what training changes is no difference."""

    @registry.register("tests.Weighted")
    class Weighted:
        def __init__(self, weights):
            self.weights = weights

    one, other = (registry.outline(Weighted(torch.tensor(values))) for values in ([1.0, 2.0], [1.0, 3.0]))
    assert one != other
    assert one == registry.outline(Weighted(torch.tensor([1.0, 2.0])))
    assert json.loads(json.dumps(one)) == one

    @registry.register("tests.Shifted")
    class Shifted(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = torch.nn.Parameter(shift)

    assert registry.outline(Shifted(torch.ones(2))) == registry.outline(Shifted(torch.zeros(2)))
