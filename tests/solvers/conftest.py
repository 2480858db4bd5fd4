import pytest
from recorder import Machine, Recorder

from cflow.solvers import (
    DEIS,
    DPMSolverPP2M,
    UniPC,
)
from cflow.solvers.capture import cuda_graph


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(cuda_graph, "_machine", machine)
    for method in (DPMSolverPP2M, UniPC, DEIS):
        monkeypatch.setattr(method, "plan", Recorder.on_the_host(method.plan))
    return machine
