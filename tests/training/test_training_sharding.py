"""What fit takes from a launcher and what it refuses; signals that arrive twice."""

import signal
from types import SimpleNamespace

import pytest

from cflow.training.safety import Interrupt
from cflow.training.sharding import wants_sharding


def accelerator(processes=2):
    return SimpleNamespace(num_processes=processes, state=SimpleNamespace())


def launched(monkeypatch, **environment):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **environment}.items():
        monkeypatch.setenv(name, value)


def test_sharding_is_what_the_launcher_says(monkeypatch):
    assert not wants_sharding(accelerator())
    launched(monkeypatch)
    assert wants_sharding(accelerator())
    assert not wants_sharding(accelerator(processes=1))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FSDP_VERSION": "1"}, "--fsdp_version 1, which is not supported; pass --fsdp_version 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params true"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "--fsdp_activation_checkpointing true"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, "--fsdp_auto_wrap_policy.*NO_WRAP"),
    ],
)
def test_other_kinds_of_sharding_are_refused(monkeypatch, environment, message):
    launched(monkeypatch, **environment)
    with pytest.raises(ValueError, match=message):
        wants_sharding(accelerator())


def test_a_repeated_signal_counts_as_one_where_a_launcher_passes_it_on():
    patient, hasty = Interrupt(patience=60.0), Interrupt()
    for interrupt in (patient, hasty):
        interrupt._note(signal.SIGINT, None)
        assert interrupt.name == "SIGINT"
    patient._note(signal.SIGTERM, None)
    assert patient.name == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        hasty._note(signal.SIGINT, None)
