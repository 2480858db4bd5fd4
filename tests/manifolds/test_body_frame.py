import pytest
import torch
from torch import nn

import cflow
from cflow import paths, solvers
from cflow.divergence import Exact
from cflow.fields import MLP
from cflow.manifolds import IGSO3, SE3, SO3, BodyFrame, Sphere, Uniform


@cflow.register("tests.Flattened")
class Flattened(nn.Module):
    """A network of the entries of a matrix, with a given number of outputs."""

    def __init__(self, size: int, numbers: int):
        super().__init__()
        self.size, self.numbers = size, numbers
        self.layers = nn.Sequential(nn.Linear(size + 1, 16), nn.Tanh(), nn.Linear(16, numbers))

    def forward(self, t, x, context=None):
        return self.layers(torch.cat((x.flatten(1), t.expand(len(x)).unsqueeze(1)), 1))


@pytest.fixture
def flow(float64):
    torch.manual_seed(0)
    return cflow.ContinuousFlow(
        BodyFrame(Flattened(9, 3), SO3()), IGSO3(1.2), path=paths.Geodesic(), solver=solvers.RKMK4(steps=20)
    ).double()


def test_a_field_is_tangent_and_its_divergence_is_that_of_components(flow, generator):
    group, field = SO3(), flow.field
    x = group.uniform((5,), generator=generator, dtype=torch.float64)
    t = torch.full((5,), 0.3, dtype=torch.float64)
    v = field(t, x)
    assert torch.allclose(group.to_tangent(x, v), v)
    assert torch.allclose(group.to_body(x, v), field.field(t, x))
    ambient = lambda t, x: field(t, group.project(x))
    _, found, _ = Exact().on(group)(ambient, t, x, None)
    total = 0.0
    for i in range(3):  # the left-invariant fields have no divergence
        w = torch.eye(3, dtype=torch.float64)[i].expand(5, 3)
        along = lambda a: field.field(t, group.exp(x, group.from_body(x, a * w)))[:, i]  # noqa: B023
        step = 1e-5
        total = total + (along(step) - along(-step)) / (2 * step)
    assert torch.allclose(found, total, atol=1e-8)


def test_a_flow_of_rotations_has_one_density_for_all_solvers(flow, generator):
    x, logp = flow.sample_and_log_prob((6,), generator=generator)
    assert SO3().deviation(x).max() < 1e-12
    assert torch.allclose(flow.log_prob(x), logp, atol=1e-6)
    exact = solvers.Dopri5(1e-9, 1e-9)
    assert torch.allclose(flow.log_prob(x, solver=exact), logp, atol=1e-5)
    assert torch.allclose(flow.log_prob(x, solver=solvers.GeodesicDopri5(1e-8, 1e-8)), logp, atol=1e-5)


def test_a_saved_flow_is_the_same(flow, tmp_path, generator):
    x = flow.sample((3,), generator=generator)
    cflow.save(flow, tmp_path / "flow")
    assert torch.equal(cflow.load(tmp_path / "flow").log_prob(x), flow.log_prob(x))


def test_rigid_motions_and_refusals():
    x = SE3().origin().expand(2, 3, 4)
    assert BodyFrame(Flattened(12, 6), SE3())(torch.zeros(2), x).shape == (2, 3, 4)
    assert BodyFrame(Flattened(12, 6), SE3()).event_shape == (3, 4)
    with pytest.raises(ValueError, match=r"returned \[2, 3\].*6 components"):
        BodyFrame(Flattened(12, 3), SE3())(torch.zeros(2), x)
    with pytest.raises(ValueError, match="it is not a Lie group"):
        BodyFrame(MLP(3), Sphere(2))
    assert Uniform(SO3()).log_prob(torch.eye(3)) < 0
