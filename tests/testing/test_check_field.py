"""The suite for fields sees what is wrong with a field, one defect at a time."""

import pytest
import torch
from torch import Size, nn

from cflow.fields import MLP, FieldWrapper
from cflow.registry import register
from cflow.testing import check_field


def plain(**options):
    return MLP(2, hidden=(8,), **options)


class WrongShape(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s)[..., :1]


class WrongDtype(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s).float()


class Rounded(FieldWrapper):
    """Computes in float32 whatever comes in."""

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x.float().double(), context, s=s).float().to(x.dtype)


class Noisy(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s) + 1e-6 * torch.randn_like(x)


class Centred(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x - 1e-3 * x.mean(0), context, s=s)


class FirstTime(FieldWrapper):
    """Takes the time of the first sample for all."""

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t if t.dim() == 0 else t[:1].expand(len(x)), x, context, s=s)


class Overwriting(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        value = super().forward(t, x, context, s=s)
        if not x.requires_grad:
            x.mul_(1.5)
        return value


class Detached(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s).detach() + 0 * x


class Halting(FieldWrapper):
    """Has a gradient in x that is not the derivative."""

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x.detach() + 0.5 * (x - x.detach()), context, s=s)


class Unused(FieldWrapper):
    def __init__(self, field):
        super().__init__(field)
        self.unused = nn.Parameter(torch.ones(()))


class Singular(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s) / t.reshape(-1, 1)


class DeafToTime(FieldWrapper):
    two_times = True

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context)


class Impatient(FieldWrapper):
    """Gives for s = t something else than without s."""

    def forward(self, t, x, context=None, *, s=None):
        value = super().forward(t, x, context, s=s)
        return value if s is None else value + 1e-3


class Permissive(FieldWrapper):
    """Ignores a second time."""

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context)


class Guessing(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, torch.zeros(len(x), 3, dtype=x.dtype) if context is None else context)


class NoEmpty(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        assert len(x) > 0
        return super().forward(t, x, context, s=s)


class Squeezing(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s).squeeze(0)


class NullIsContext(FieldWrapper):
    def null_context(self, context):
        return context


class NullIsShort(FieldWrapper):
    def null_context(self, context):
        return super().null_context(context)[:, :1]


class NullIsAClass(FieldWrapper):
    def null_context(self, context):
        return torch.zeros_like(context)


class NullIsDrawn(FieldWrapper):
    def null_context(self, context):
        return torch.randn_like(context)


class NullIsWritten(FieldWrapper):
    def null_context(self, context):
        return context.copy_(super().null_context(context))


class ConditionIgnored(FieldWrapper):
    def forward(self, t, x, context=None, *, s=None):
        if context is None:
            raise ValueError
        return super().forward(t, x, self.null_context(context))


class WrongTrace(FieldWrapper):
    def value_and_divergence(self, t, x, context=None):
        v, trace = super().value_and_divergence(t, x, context)
        return v, trace + 1e-4


class RoughTrace(FieldWrapper):
    def value_and_divergence(self, t, x, context=None):
        v, trace = super().value_and_divergence(t, x, context)
        return v, trace.double()


class OtherValue(FieldWrapper):
    def value_and_divergence(self, t, x, context=None):
        v, trace = super().value_and_divergence(t, x, context)
        return 2 * v, trace


class Forgetful(FieldWrapper):
    """Comes out of a copy as another field."""

    def __init__(self, field):
        super().__init__(field)
        self.copies = 0

    def __deepcopy__(self, memo):
        new = Forgetful(MLP(2, hidden=(8,)))
        new.load_state_dict(self.state_dict())
        new.copies = self.copies + 1
        return new.to(self.field.output.weight.dtype)

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x + self.copies, context, s=s)


class LooseEnds(FieldWrapper):
    interval = (0.0, 1.5)


class ListedShape(FieldWrapper):
    event_shape = [2]


class LabelOfThree(FieldWrapper):
    context_shape = Size([3])


DEFECTS = {
    "has shape": (WrongShape, {}),
    "float64 stays float64": (WrongDtype, {}),
    "derivative in x": (Rounded, {}),
    "random numbers": (Noisy, {}),
    "result of a sample does not depend": (Centred, {}),
    "time of the first": (FirstTime, {}),
    "inputs are not changed": (Overwriting, {}),
    "graph to the parameters": (Detached, {}),
    "agrees with differences": (Halting, {}),
    r"no gradient reaches \['unused'\]": (Unused, {}),
    "finite at t = 0.0": (Singular, {}),
    "depends on the second time": (DeafToTime, {}),
    "result without s is the velocity": (Impatient, {"two_times": True}),
    "second time must raise": (Permissive, {}),
    "missing context must raise": (Guessing, {"context": 3}),
    "result of one row": (Squeezing, {}),
    "the same for all contexts": (NullIsContext, {"context": 3}),
    "the shape and dtype of a context": (NullIsShort, {"context": 3}),
    "differs from the labels": (NullIsAClass, {"classes": 3}),
    "null_context draws": (NullIsDrawn, {"context": 3}),
    "does not change the context": (NullIsWritten, {"context": 3}),
    "differs from that without one": (ConditionIgnored, {"context": 3}),
    "trace by autograd": (WrongTrace, {}),
    "in float32 the divergence is": (RoughTrace, {}),
    "returns the value of a call": (OtherValue, {}),
    "deep copy": (Forgetful, {}),
    "interval is a part of": (LooseEnds, {}),
    "is a torch.Size": (ListedShape, {}),
    "label has the context_shape": (LabelOfThree, {"classes": 3}),
}
NAMED = {"time of the first": "result of a sample does not depend", "result of one row": "batch of 1"}


@pytest.mark.parametrize("said", DEFECTS)
def test_a_defect_is_seen_and_named(said):
    wrapper, options = DEFECTS[said]
    torch.manual_seed(0)
    check_field(FieldWrapper(plain(**options)), saved=False)
    with pytest.raises(AssertionError, match=NAMED.get(said, said)):
        check_field(wrapper(plain(**options)), saved=False)


def test_an_empty_batch_is_asked_for():
    with pytest.raises(AssertionError):
        check_field(NoEmpty(plain()), saved=False)


def test_what_cannot_be_saved_is_named():
    with pytest.raises(ValueError, match="FieldWrapper is not registered"):
        check_field(FieldWrapper(plain()))


def test_a_foreign_network_is_checked_with_what_it_does_not_say(generator):
    class Foreign(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)

        def forward(self, t, x, context):
            return torch.tanh(self.layer(torch.cat([x, t.expand(len(x))[:, None], context], 1)))

    context = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    check_field(Foreign(), context, event_shape=(2,), saved=False, null=False)
    with pytest.raises(AssertionError, match="result of a sample does not depend"):
        check_field(Centred(Foreign()), context, event_shape=(2,), saved=False, null=False)


@register("test_check_field.Lost")
class Lost(FieldWrapper):
    """Holds a number that no file knows of."""

    def __init__(self, field):
        super().__init__(field)
        self.shift = float(torch.rand(()))

    def forward(self, t, x, context=None, *, s=None):
        return super().forward(t, x, context, s=s) + self.shift


def test_what_a_file_does_not_bring_back_is_seen():
    with pytest.raises(AssertionError, match="a loaded field is the same field"):
        check_field(Lost(plain()))
