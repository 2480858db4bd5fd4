import pytest
import torch
from torch import nn

import cflow
from cflow import bases, bijections, fields, objectives, paths, solvers, training
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


@cflow.register("tests.Dropped")
class Dropped(fields.Field):
    def __init__(self, norm=False):
        super().__init__(event_shape=(2,))
        self.norm = norm
        self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8) if norm else nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, t, x, context=None, *, s=None):
        return self.net(x)


def dropped(norm=False):
    return cflow.ContinuousFlow(Dropped(norm), bases.Normal(2), path=paths.Linear(), solver=solvers.Euler(steps=2))


@pytest.mark.parametrize(
    ("norm", "part"), [(False, r"field.net.1 \(Dropout\)"), (True, r"field.net.1 \(BatchNorm1d\)")]
)
def test_a_flow_that_would_sample_as_in_training_says_so(norm, part, recwarn):
    flow, x = dropped(norm), torch.randn(5, 2)
    for method, call in (
        ("sample", lambda: flow.sample((5,))),
        ("sample_and_log_prob", lambda: flow.sample_and_log_prob((5,))),
        ("log_prob", lambda: torch.no_grad()(flow.log_prob)(x)),
    ):
        with pytest.warns(
            UserWarning, match=rf"flow.{method}: the flow is in training mode, in which {part}.*flow.eval\(\)"
        ) as told:
            call()
        assert len({str(each.message) for each in told}) == 1
        assert told[0].filename == __file__
    flow.log_prob(x)  # a loss, perhaps
    flow.eval().sample((5,))
    assert not recwarn.list


def test_maps_that_look_at_the_batch_say_so_where_they_do(recwarn):
    flow = cflow.discrete.NormalizingFlow(bijections.BatchNorm(2), bases.Normal(2))
    flow.sample((5,))  # by the running statistics, as in evaluation mode
    assert not recwarn.list
    with torch.no_grad(), pytest.warns(UserWarning, match=r"\(BatchNorm\)"):
        flow.log_prob(torch.randn(5, 2))
    cflow.discrete.nsf(2, layers=1, hidden=(8,)).sample((3,))
    assert not recwarn.list


def test_training_leaves_the_mode_it_found_and_the_model_is_for_use(tmp_path, recwarn):
    for mode in (True, False):
        flow = dropped().train(mode)
        training.fit(
            flow, objectives.FlowMatching(), torch.randn(64, 2), steps=2, batch_size=8, out=tmp_path / str(mode)
        )
        assert all(part.training == mode for part in flow.modules())
        draws = [
            cflow.load(tmp_path / str(mode)).sample((4,), generator=torch.Generator().manual_seed(0)) for _ in "ab"
        ]
        assert torch.equal(*draws)  # dropout would draw from torch's own generator
    assert not recwarn.list
