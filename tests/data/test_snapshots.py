import numpy as np
import pytest
import scipy.stats
import torch
from torch.utils.data import default_collate

from cflow.data import Snapshots, read_snapshots


def counted(*sizes):
    """Snapshots whose values name the snapshot and the row."""
    return [torch.stack([torch.full((n,), float(k)), torch.arange(n).float()], 1) for k, n in enumerate(sizes)]


def test_items_hold_a_row_of_every_snapshot():
    snapshots = Snapshots(counted(5, 8, 3))
    items = torch.stack(list(snapshots))
    assert items.shape == (8, 3, 2)
    assert torch.equal(items[..., 0], torch.arange(3.0).expand(8, 3))
    assert torch.equal(items[:, 1, 1], torch.arange(8.0))  # the largest goes through its rows in order
    assert snapshots.event_shape == (2,)
    assert snapshots.times == (0.0, 0.5, 1.0)


def test_the_other_rows_are_drawn_uniformly_and_apart_from_each_other():
    """Also where sizes are equal: nothing ties row i of one to row i of the next."""
    snapshots = Snapshots(counted(4, 4, 3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = torch.stack([snapshots[i % 4] for i in range(6000)])[..., 1].long()
    for a, b, m, n in ((0, 1, 4, 4), (0, 2, 4, 3), (1, 2, 4, 3)):
        table = torch.zeros(m, n).index_put((drawn[:, a], drawn[:, b]), torch.ones(6000), accumulate=True)
        assert scipy.stats.chisquare(table.flatten().numpy()).pvalue > 1e-4  # fails once in 10,000 seeds


def test_draws_follow_the_default_generator():
    snapshots, items = Snapshots(counted(50, 40)), []
    for seed in (1, 1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            items.append(default_collate([snapshots[i] for i in range(20)]))
    assert torch.equal(items[0], items[1])
    assert not torch.equal(items[0], items[2])


def test_one_can_be_left_out_and_times_normalised():
    snapshots = Snapshots(counted(5, 8, 3, 2), times=[2, 3, 7, 12])
    rest = snapshots.without(1)
    assert rest.times == (2.0, 7.0, 12.0)
    assert [len(each) for each in rest.samples] == [5, 3, 2]
    assert rest.normalised().times == (0.0, 0.5, 1.0)
    assert snapshots.normalised().times[1] == pytest.approx(0.1)
    assert len(snapshots) == 8
    assert len(rest) == 5


def test_dtypes_are_joined():
    mixed = Snapshots([torch.zeros(3, 2, dtype=torch.int64), torch.zeros(3, 2), torch.zeros(4, 2).double()])
    assert mixed[0].dtype == torch.float64
    assert Snapshots([torch.zeros(3, 2, dtype=torch.int64)] * 2)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("samples", "times", "error", "message"),
    [
        ([torch.zeros(3, 2)], None, ValueError, "at least two are needed"),
        ([torch.zeros(3, 2), [1.0]], None, TypeError, "samples\\[1\\] is a list"),
        ([torch.zeros(3, 2), torch.zeros(3, 4)], None, ValueError, "the same event shape"),
        ([torch.zeros(3, 2), torch.zeros(0, 2)], None, ValueError, "non-empty tensors"),
        ([torch.zeros(3, 2), torch.tensor([[0.0, torch.nan]])], None, ValueError, "1 rows have NaN"),
        (counted(3, 3), [1, 1], ValueError, "in increasing order"),
        (counted(3, 3), [0, 1, 2], ValueError, "one time per snapshot"),
        (counted(3, 3), [0, float("inf")], ValueError, "in increasing order"),
    ],
)
def test_bad_snapshots_are_explained(samples, times, error, message):
    with pytest.raises(error, match=message):
        Snapshots(samples, times)


def test_bad_requests_are_explained():
    snapshots = Snapshots(counted(3, 3))
    with pytest.raises(ValueError, match="at least two snapshots must remain"):
        snapshots.without(0)
    with pytest.raises(ValueError, match="0 to 1"):
        snapshots.without(-1)
    with pytest.raises(IndexError, match="3 rows"):
        snapshots[3]


def test_the_embryoid_layout_is_read(tmp_path, generator):
    pcs, labels = torch.randn(30, 4, generator=generator).numpy(), np.arange(30) % 3
    np.savez(tmp_path / "eb.npz", pcs=pcs, sample_labels=labels, delta_embedding=np.zeros((30, 4)))
    snapshots = read_snapshots(tmp_path / "eb.npz")
    assert snapshots.times == (0.0, 1.0, 2.0)
    assert all(np.array_equal(snapshots.samples[k].numpy(), pcs[labels == k]) for k in range(3))
    other = read_snapshots(tmp_path / "eb.npz", values="delta_embedding")
    assert float(other.samples[0].abs().max()) == 0


def test_tables_are_read(tmp_path):
    lines = ["", "\ufeff,a,day,b", "0,1.5,7,2", "1,2.5,3,4", "2,-1,7,0.5"]
    (tmp_path / "cells.csv").write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    snapshots = read_snapshots(tmp_path / "cells.csv")
    assert snapshots.times == (3.0, 7.0)
    assert snapshots.samples[1].tolist() == [[1.5, 2.0], [-1.0, 0.5]]
    assert read_snapshots(tmp_path / "cells.csv", values=["b"], times="day").samples[0].tolist() == [[4.0]]


def test_rows_that_miss_a_value_are_dropped_and_counted_on_demand(tmp_path):
    (tmp_path / "cells.csv").write_text("cell;day;a\nx;0;1\ny;0;NA\nz;1;2\nu;;3\nv;1;4\n")
    with pytest.raises(ValueError, match=r"(?s)2 of 5 rows.*drop_missing=True"):
        read_snapshots(tmp_path / "cells.csv", values=["a"])
    snapshots = read_snapshots(tmp_path / "cells.csv", values=["a"], drop_missing=True)
    assert ([each.tolist() for each in snapshots.samples], snapshots.dropped) == ([[[1.0]], [[2.0], [4.0]]], 2)
    np.savez(tmp_path / "cells.npz", x=np.array([1.0, np.nan, 2.0, 3.0]), t=np.array([0, 0, 1, np.nan]))
    snapshots = read_snapshots(tmp_path / "cells.npz", drop_missing=True)
    assert ([each.tolist() for each in snapshots.samples], snapshots.dropped) == ([[1.0], [2.0]], 2)


def test_unreadable_files_are_explained(tmp_path):
    x = np.zeros((4, 2))
    np.savez(tmp_path / "odd.npz", cells=x, day=np.array([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="'cells', 'day'; pass one of these as values"):
        read_snapshots(tmp_path / "odd.npz")
    assert len(read_snapshots(tmp_path / "odd.npz", values="cells")) == 2
    with pytest.raises(ValueError, match="times='week'"):
        read_snapshots(tmp_path / "odd.npz", values="cells", times="week")
    np.savez(tmp_path / "short.npz", pcs=x, times=np.arange(3))
    with pytest.raises(ValueError, match="need times of shape"):
        read_snapshots(tmp_path / "short.npz")
    np.savez(tmp_path / "one.npz", pcs=x, times=np.ones(4))
    with pytest.raises(ValueError, match="the same time"):
        read_snapshots(tmp_path / "one.npz")
    np.savez(tmp_path / "nan.npz", pcs=x, times=np.array([0, 1, np.nan, 1]))
    with pytest.raises(ValueError, match="1 times are NaN"):
        read_snapshots(tmp_path / "nan.npz")
    (tmp_path / "words.csv").write_text("kind,day,a\nblood,1,2\n")
    with pytest.raises(
        ValueError,
        match=r"(?s)kind: text in line 2 \('blood'\): omit the column.*for values= and times=: \['a', 'day'\]",
    ):
        read_snapshots(tmp_path / "words.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="the file is empty"):
        read_snapshots(tmp_path / "empty.csv")
    (tmp_path / "bad.npz").write_text("not an archive")
    with pytest.raises(ValueError, match="not a readable .npy or .npz"):
        read_snapshots(tmp_path / "bad.npz")
    (tmp_path / "cells.h5ad").write_text("")
    with pytest.raises(ValueError, match="write a .npz"):
        read_snapshots(tmp_path / "cells.h5ad")
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        read_snapshots(tmp_path / "nowhere.csv")
