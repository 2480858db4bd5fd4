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


def test_masked_means_are_those_of_the_entries_that_count(generator):
    x = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    x[0, 1, 2] = torch.nan  # an entry that does not count may have any value
    mask = torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])[:, None]
    found = mean_rows(x, mask)
    assert float(found[0]) == pytest.approx(float(x[0, :, :2].mean()), rel=1e-14)
    assert float(found[1]) == 0.0
    assert float(found[2]) == pytest.approx(float(x[2].mean()), rel=1e-14)
    torch.testing.assert_close(mean_rows(x, mask.double()), found)
