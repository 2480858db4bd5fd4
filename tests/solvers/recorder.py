"""A CUDA graph without a GPU: operations recorded once and carried out again on the same tensors, without Python."""

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cflow.testing.solvers.operations import READS, Operations


class Crossings(TorchDispatchMode):
    """Lists the operations that carry something between the CPU and another device; ``meta`` stands for one.

    ``torch.tensor(numbers)`` shows itself on the CPU alone, where the recorder refuses it.
    """

    def __enter__(self):
        self.found = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given, made = ({each.device.type for each in tensors(tree)} for tree in ((args, kwargs), result))
        if len(given | made) > 1:
            self.found.append(str(function))
        return result


TOLIST = torch.Tensor.tolist


class Recorder(Operations):
    """Records what runs inside; refuses, as a capture does, what the host would read or upload."""

    paused = False

    def __init__(self):
        super().__init__()
        self.tape = []

    @classmethod
    def on_the_host(cls, function):
        """Leaves out what a function computes: beside a GPU it would run on the CPU."""

        def paused(*args):
            counted, torch.Tensor.tolist, cls.paused = torch.Tensor.tolist, TOLIST, True
            try:
                return function(*args)
            finally:
                torch.Tensor.tolist, cls.paused = counted, False

        return paused

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.paused:
            return function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if name in READS or name == "lift_fresh":
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if not function.is_view:
            given = {id(each) for each in tensors((args, kwargs))}
            made = [id(each) not in given for each in tensors(result)]  # else it was written into
            self.tape.append((function, args, kwargs or {}, tensors(result), made))
        return result

    def replay(self):
        for function, args, kwargs, results, made in self.tape:
            again = tensors(function(*args, **kwargs))
            for old, new, fresh in zip(results, again, made):
                if fresh:
                    old.copy_(new)

    def spoil(self):
        """Leaves rubbish in what was made, as a capture, which computes nothing, does."""
        for *_, results, made in self.tape:
            for each, fresh in zip(results, made):
                if fresh and each.is_floating_point():
                    each.detach().fill_(-77.0)


def tensors(tree):
    return [each for each in pytree.tree_leaves(tree) if isinstance(each, torch.Tensor)]


class Machine:
    """Takes the place of ``cuda_graph._machine``; counts what was asked of it."""

    def __init__(self):
        self.replays = self.settled = 0
        self.operations = []

    def why_not(self, device):
        return None

    def warm_up(self, function, device):
        function()

    def capture(self, function, device):
        with Recorder() as recorder:
            result = function()
        if recorder.reads:
            raise RuntimeError("operation not permitted when stream is capturing: tolist")
        self.operations.append(recorder.counts)
        recorder.spoil()

        def replay():
            self.replays += 1
            with torch.no_grad():
                recorder.replay()

        return result, replay

    def settle(self):
        self.settled += 1


class Again(Machine):
    """Calls the function again at every replay: for what compilers run, which no dispatch sees."""

    def capture(self, function, device):
        result = function()

        def replay():
            self.replays += 1
            for old, new in zip(tensors(vars(result)), tensors(vars(function()))):
                old.copy_(new)

        return result, replay
