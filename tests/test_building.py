"""What a constructor may take while a saved flow is built."""

import pytest
import torch

from cflow.building import Budget

MANY = 60_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Linear(MANY, MANY),
        lambda: torch.eye(MANY),
        lambda: torch.diag_embed(torch.ones(MANY)),
        lambda: torch.diag(torch.ones(MANY)),
        lambda: torch.randn(MANY, MANY),
        lambda: torch.full((10**10,), 1.0),
        lambda: torch.randperm(10**10),
        lambda: torch.linspace(0, 1, 10**10),
        lambda: torch.zeros(1, 1).repeat(MANY, MANY),
        lambda: torch.ones(MANY)[:, None].expand(MANY, MANY).contiguous(),
        lambda: torch.outer(torch.ones(MANY), torch.ones(MANY)),
        lambda: torch.ones(MANY, 1) @ torch.ones(1, MANY),
        lambda: torch.arange(MANY)[:, None] - torch.arange(MANY)[None],
        lambda: torch.nn.functional.one_hot(torch.arange(MANY)),
        lambda: torch.cat([torch.ones(10**6)] * 100),
        lambda: torch.nn.functional.pad(torch.ones(1, 1), (MANY, MANY, MANY, MANY)),
        lambda: [torch.ones(10**6) for _ in range(1000)],
    ],
)
def test_memory_that_the_tensors_do_not_explain_is_not_taken(make):
    """Asked for are 0.4 to 80 GB; the process may grow by half of one."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="too much for 0 MB of saved tensors"), Budget(tensors=2, size=1000):
        make()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def test_what_is_let_go_is_not_counted():
    with Budget(tensors=2, size=1000):
        for _ in range(600):
            torch.ones(10**6)


def test_operations_end():
    def make():
        for _ in range(101):
            torch.ones(1)

    budget = Budget(tensors=2, size=1000)
    budget.operations_left = 100
    with pytest.raises(ValueError, match="too many operations"), budget:
        make()
