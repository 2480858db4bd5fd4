"""What two processes do with ActNorm, started by test_normalisation.py: writes what each found to the folder given."""

import os
import sys

import torch

from cflow import bijections


def rows():
    return 5 + 3 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    layer = bijections.ActNorm(2)
    mine = rows()[:10] if rank == 0 else rows()[10:]  # unequal parts
    layer.encode(mine)
    # One row on each process: two of them together.
    pair = bijections.ActNorm(2)
    pair.encode(rows()[rank : rank + 1])
    # What one process has measured reaches the other as a buffer, and neither measures again.
    told = bijections.ActNorm(2)
    told.initialised.fill_(True)
    told.encode(mine)
    torch.save({"whole": layer.state_dict(), "pair": pair.state_dict(), "told": told.loc}, f"{sys.argv[1]}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # as training_processes.py ends: a thread of the group may abort while the interpreter shuts down
