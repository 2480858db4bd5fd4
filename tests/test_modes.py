import pytest
from torch import nn

from cflow.modes import evaluating, modes_kept


def test_every_part_has_its_own_mode_back():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())).train()
    network[1].eval()
    network[1][1].train()
    before = [part.training for part in network.modules()]
    assert len(set(before)) == 2
    with evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == before
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert [part.training for part in network.modules()] == before
    with modes_kept(network):
        assert [part.training for part in network.modules()] == before
        network.train()
    assert [part.training for part in network.modules()] == before
