import pytest
import torch

from cflow.fields import MLP, UNet
from cflow.guidance import AutoGuidance, CFGZeroStar, ClassifierFree
from cflow.registry import configuration, replace


class Counted(torch.nn.Module):
    """Counts the calls of a field and their rows."""

    def __init__(self, field):
        super().__init__()
        self.field, self.rows = field, []
        self.event_shape, self.context_shape = field.event_shape, field.context_shape
        self.null_context = field.null_context

    def forward(self, t, x, context=None):
        self.rows.append(len(x))
        return self.field(t, x, context)


def shaken(field, generator):
    """Moves every parameter, so that no layer is zero."""
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return field


@pytest.fixture
def field(float64, generator):
    return Counted(shaken(MLP(2, classes=3), generator))


@pytest.fixture
def x(float64, generator):
    return torch.randn(5, 2, generator=generator)


t = torch.tensor(0.5, dtype=torch.float64)
labels = torch.tensor([0, 1, 2, 1, 0])
none = torch.full_like(labels, 3)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("per_sample", [False, True])
def test_classifier_free_is_the_line_through_both_velocities(field, x, scale, per_sample):
    time = torch.linspace(0, 1, 5, dtype=x.dtype) if per_sample else t
    c, u = field(time, x, labels), field(time, x, none)
    torch.testing.assert_close(ClassifierFree(scale)(field)(time, x, labels), u + scale * (c - u))
    assert (c - u).abs().min() > 1e-3


@pytest.mark.parametrize(("scale", "rows"), [(0.0, [5]), (1.0, [5]), (2.0, [10]), (0.5, [10])])
@pytest.mark.parametrize("time", [t, t.expand(5), torch.rand(5, dtype=t.dtype), 0.5])
def test_classifier_free_calls_the_field_once(field, x, scale, rows, time):
    ClassifierFree(scale)(field)(time, x, labels)
    assert field.rows == rows


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_interval_leaves_the_conditional_velocity_outside(field, x, scale):
    guided, full = ClassifierFree(scale, (0.2, 0.6))(field), ClassifierFree(scale)(field)
    times = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.7], dtype=x.dtype)
    expected = torch.where(
        torch.tensor([False, True, True, True, False])[:, None], full(times, x, labels), field(times, x, labels)
    )
    torch.testing.assert_close(guided(times, x, labels), expected)


@pytest.mark.parametrize(
    ("time", "rows"),
    [(0.1, [5]), (0.5, [10]), (torch.tensor(0.1).double(), [5]), (torch.full((5,), 0.9).double(), [5]),
     (torch.linspace(0, 1, 5).double(), [10]), (torch.tensor(0.3).double(), [10])],
)  # fmt: skip
def test_interval_saves_the_second_half_of_the_batch_outside(field, x, time, rows):
    ClassifierFree(2.0, [0.2, 0.6])(field)(time, x, labels)
    assert field.rows == rows


def test_scale_zero_inside_an_interval_costs_one_batch(field, x):
    guided = ClassifierFree(0.0, (0.2, 0.6))(field)
    torch.testing.assert_close(guided(t, x, labels), field.field(t, x, none))
    assert field.rows == [5]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_cfg_zero_star_projects_the_unconditional_velocity(field, x, scale):
    c, u = field(t, x, labels), field(t, x, none)
    guided = CFGZeroStar(scale)(field)(t, x, labels)
    for row in range(5):
        best = torch.linalg.lstsq(u[row, :, None], c[row, :, None]).solution.squeeze()  # argmin |c - s u|
        torch.testing.assert_close(guided[row], best * u[row] + scale * (c[row] - best * u[row]))


def test_cfg_zero_star_stands_still_first(field, x):
    guided = CFGZeroStar(2.0, zero_until=0.25)(field)
    times = torch.tensor([0.0, 0.2, 0.25, 0.6, 1.0], dtype=x.dtype)
    moving = CFGZeroStar(2.0, zero_until=0.0)(field)(times, x, labels)
    field.rows.clear()
    result = guided(times, x, labels)
    assert field.rows == [10]
    assert (result[:2] == 0).all()
    torch.testing.assert_close(result[2:], moving[2:])
    field.rows.clear()
    assert (guided(torch.tensor(0.1), x, labels) == 0).all()
    assert field.rows == []


def test_cfg_zero_star_of_a_field_at_rest_is_finite(x):
    assert (CFGZeroStar(2.0)(MLP(2, classes=3))(t, x, labels) == 0).all()


@pytest.mark.parametrize(("scale", "good", "weak"), [(0.0, 0, 1), (1.0, 1, 0), (2.5, 1, 1)])
def test_autoguidance_is_the_line_through_both_models(field, x, generator, scale, good, weak):
    other = Counted(shaken(MLP(2, hidden=(8,)), generator))
    guided = AutoGuidance(other, scale)(field)(t, x, labels)
    assert (len(field.rows), len(other.rows)) == (good, weak)
    v, w = field(t, x, labels), other(t, x)
    torch.testing.assert_close(guided, w + scale * (v - w))


def test_autoguidance_holds_the_weak_parameters_once(generator):
    guidance, field = AutoGuidance(MLP(2, classes=3, hidden=(8,)), 2.0), MLP(2, classes=3)
    names = [name for name, _ in guidance(field).named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(field.parameters())) + len(list(guidance.parameters()))
    assert replace(guidance, scale=3.0).weak_field is guidance.weak_field


@pytest.mark.parametrize("guidance", [ClassifierFree(2.0), CFGZeroStar(2.0)])
def test_a_field_under_guidance_is_a_field(guidance, generator):
    field = shaken(UNet(1, 8, width=8, heads=2, context=4), generator)
    guided = guidance(field)
    images, context = torch.randn(2, 1, 8, 8, generator=generator), torch.randn(2, 4, generator=generator)
    assert (guided.event_shape, guided.context_shape, guided.two_times) == ((1, 8, 8), (4,), False)
    assert (guided.null_context(context) == field.null_context(context)).all()
    batch = guided(torch.tensor([0.2, 0.7]), images, context)
    for row in range(2):
        alone = guided(torch.tensor([0.2, 0.7])[row], images[row, None], context[row, None])
        torch.testing.assert_close(alone[0], batch[row], rtol=1e-4, atol=1e-5)
    # A guided velocity can be guided by a weak model again.
    torch.testing.assert_close(AutoGuidance(field, 1.0)(guided)(0.5, images, context), guided(0.5, images, context))


def test_unconditional_use_is_refused():
    x = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="unconditional"):
        ClassifierFree(2.0)(MLP(2))
    with pytest.raises(ValueError, match="unconditional"):
        CFGZeroStar(2.0)(MLP(2))
    for guidance in (ClassifierFree(1.0), CFGZeroStar(2.0)):
        with pytest.raises(ValueError, match="without a context"):
            guidance(MLP(2, classes=3))(torch.tensor(0.5), x)
    with pytest.raises(ValueError, match="event_shape"):
        AutoGuidance(MLP(3), 2.0)(MLP(2))


@pytest.mark.parametrize("make", [ClassifierFree, CFGZeroStar, lambda scale: AutoGuidance(MLP(2), scale)])
def test_a_scale_must_be_finite(make):
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            make(scale)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.6, 0.2), (0.1, 0.2, 0.3)])
def test_an_interval_must_not_be_empty(interval):
    with pytest.raises(ValueError, match="interval"):
        ClassifierFree(2.0, interval)


@pytest.mark.parametrize("until", [-0.1, 1.0])
def test_zero_until_must_end(until):
    with pytest.raises(ValueError, match="zero_until"):
        CFGZeroStar(2.0, until)


def test_options_are_read_back():
    assert configuration(ClassifierFree(2.0, [0.1, 0.9])) == {"scale": 2.0, "interval": (0.1, 0.9)}
    assert replace(CFGZeroStar(2.0), scale=3.0) == CFGZeroStar(3.0)
