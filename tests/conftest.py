import os
from pathlib import Path

import pytest
import torch

# Two workers run the tests, on a core each; so do the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a GPU, Triton's kernels are interpreted. It wants to be told before it is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def generator():
    """A fresh generator with a fixed seed: statistical tests are deterministic."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def real_data():
    """The folder of real data sets, where the environment names one."""
    folder = os.environ.get("CFLOW_DATA")
    if folder is None:
        pytest.skip("CFLOW_DATA is not set: no real data sets at hand")
    return Path(folder)


@pytest.fixture
def float64():
    """Makes float64 the default dtype for one test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
