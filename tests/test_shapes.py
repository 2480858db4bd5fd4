import pytest
import torch

from cflow.shapes import mean_rows, pattern, rows, shown, sum_rows


def test_shapes_are_written_as_they_are_to_be_given():
    assert pattern(torch.Size([3, 4])) == "[..., 3, 4]"
    assert pattern(torch.Size([]), "B") == "[B]"
    assert pattern({"x": torch.Size([2])}, "B") == "{'x': [B, 2]}"
    assert pattern(..., "B") == "[B, ...]"
    assert [shown(each) for each in (None, ..., torch.Size([2]))] == [None, ..., (2,)]
    assert str(shown({"x": torch.Size([2])})) == "{'x': (2,)}"


@pytest.mark.parametrize("event", [(), (3,), (2, 1, 2), (0,)])
def test_rows_are_reduced_whatever_the_event(event, generator):
    x = torch.randn(4, *event, generator=generator)
    assert rows(x).shape == (4, torch.Size(event).numel())
    torch.testing.assert_close(sum_rows(x), torch.stack([row.sum() for row in x]))
    torch.testing.assert_close(mean_rows(x), torch.stack([row.mean() for row in x]), equal_nan=True)
