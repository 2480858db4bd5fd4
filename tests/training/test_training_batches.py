"""The order of batches, the random streams they are drawn in, and preparation ahead of the step."""

import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from training_standins import SmallMatching, data, small_flow

from cflow import training
from cflow.objectives import Shared
from cflow.training.batches import batches_of
from cflow.training.preparation import ahead, cut, default_workers, pieces, rows_of


class Noise(Dataset):
    """Nothing but draws from torch's default generator."""

    def __len__(self):
        return 12

    def __getitem__(self, row):
        return torch.rand(2)


def test_an_epoch_holds_every_row_once_and_the_next_another_order():
    source = batches_of(torch.arange(10.0)[:, None], 3, seed=0)
    batches = [source.fetch() for _ in range(6)]
    first, second = (torch.cat([each.x for each in batches if each.epoch == epoch]).flatten() for epoch in (0, 1))
    assert len(first.unique()) == len(second.unique()) == 9  # the tenth row waits for another epoch
    assert not torch.equal(first, second)
    assert [(each.epoch, each.used) for each in batches] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]


def test_processes_share_an_epoch_without_overlap():
    sources = [batches_of(torch.arange(12.0)[:, None], 2, 0, rank, world=3) for rank in range(3)]
    rows = torch.cat([source.fetch().x for _ in range(2) for source in sources])
    assert sorted(rows.flatten().tolist()) == list(range(12))


@pytest.mark.parametrize("data", [Noise(), DataLoader(Noise(), batch_size=4), DataLoader(Noise(), 4, num_workers=1)])
def test_augmentations_differ_between_batches_and_repeat_between_runs(data):
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        source = batches_of(data, 4, seed=0)
        runs.append([source.fetch().x for _ in range(6)])
        torch.rand(1)
        state = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert len(torch.cat(runs[0]).unique()) == 6 * 4 * 2
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("data", [Noise(), DataLoader(Noise(), batch_size=4, shuffle=True)])
def test_seeking_gives_the_batches_that_follow(data):
    source = batches_of(data, 4, seed=0)
    batches = [source.fetch() for _ in range(9)]
    again = batches_of(data, 4, seed=0)
    again.seek(5, batches[4].epoch, batches[4].used)
    assert all(torch.equal(again.fetch().x, each.x) for each in batches[5:])


def test_contexts_follow_their_rows():
    x = torch.arange(20.0)[:, None]
    batch = batches_of((x, -x), 5, seed=0).fetch()
    assert torch.equal(batch.x, -batch.context)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_preparation_keeps_order_and_runs_no_further_ahead_than_asked(depth):
    fetched, threads = [], set()

    def fetch():
        fetched.append(len(fetched))
        return fetched[-1]

    def prepare(step, raw):
        threads.add(threading.current_thread() is threading.main_thread())
        return 10 * step

    for number, (raw, prepared) in enumerate(ahead(fetch, prepare, 4, 12, depth)):
        assert (raw, prepared) == (number, 10 * (number + 4))
        assert len(fetched) <= number + 1 + depth
    assert number == 7
    assert threads == {depth == 0}


def test_preparation_overlaps_with_the_step():
    """The next batch is prepared while this one is used: the worker starts before the caller asks again."""
    started = [threading.Event() for _ in range(4)]

    def prepare(step, raw):
        started[step].set()

    batches = ahead(lambda: None, prepare, 0, 4, 2)
    next(batches)
    assert started[1].wait(10)
    assert started[2].wait(10)
    assert not started[3].is_set()
    batches.close()


def test_workers_prepare_at_the_same_time_and_results_stay_in_order():
    """Three preparations wait for each other: one worker alone would never end."""
    meeting = threading.Barrier(3, timeout=20)

    def prepare(step, raw):
        meeting.wait()
        time.sleep(0.02 * (2 - step % 3))  # later ones end first
        return step

    made = list(ahead(lambda: None, prepare, 0, 9, depth=4, workers=3))
    assert [prepared for _, prepared in made] == list(range(9))


@pytest.mark.parametrize("depth", [0, 3])
def test_errors_are_raised_at_their_step(depth):
    def prepare(step, raw):
        if step == 3:
            raise ZeroDivisionError
        return step

    def go(fetch, prepare):
        for _, prepared in ahead(fetch, prepare, 0, 9, depth, workers=2):
            seen.append(prepared)

    seen, numbers = [], iter(range(4))
    with pytest.raises(ZeroDivisionError):
        go(lambda: None, prepare)
    assert seen == [0, 1, 2]
    with pytest.raises(LookupError):
        go(lambda: fetched(numbers), lambda step, raw: 10 * raw)
    assert seen == [0, 1, 2, 0, 10, 20, 30]


def fetched(numbers):
    for number in numbers:
        return number
    raise LookupError


def test_batches_are_cut_by_the_rows_they_have_left():
    x, t, grid = torch.arange(14.0)[:, None], torch.rand(14), torch.linspace(0, 1, 5)
    batch = {"grid": Shared(grid), "pair": (x, t)}
    assert rows_of(batch, 14) == 14
    assert rows_of({"pair": (x, t), "grid": Shared(grid)}, 20) == 14  # a coupling left 14 of 20
    parts = cut(batch, 14, 4)
    assert [size for _, size in parts] == [3, 4, 3, 4]
    assert torch.equal(torch.cat([part["pair"][0] for part, _ in parts]), x)
    assert all(len(part["pair"][1]) == size and part["grid"].value is grid for part, size in parts)
    assert sum(share for _, share in pieces(batch, 14, 64)) == pytest.approx(1)
    with pytest.raises(ValueError, match="has no tensor with rows"):
        rows_of({"rate": 1.0}, 14)
    with pytest.raises(ValueError, match=r"14 rows, but a tensor of shape \[5\].*objectives.Shared"):
        cut({"grid": grid, "pair": (x, t)}, 14, 4)


def test_a_table_as_long_as_the_batch_is_not_cut():
    table = torch.arange(64.0)
    seen = []

    class Tabled(SmallMatching):
        def prepare(self, base, u, context, generator):
            return {"batch": super().prepare(base, u, context, generator), "table": Shared(table)}

        def loss(self, flow, batch):
            seen.append(batch["table"].value)
            return super().loss(flow, batch["batch"])

    training.fit(small_flow(), Tabled(), data(), steps=1, batch_size=64, accumulate=2, log_every=1)
    assert [len(each) for each in seen] == [64, 64]


def test_a_dataset_may_bring_collate():
    class Words(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, row):
            return "a" * (row % 5)

        def collate(self, items):
            return torch.tensor([[float(len(item)), 1.0] for item in items])

    parts = [Words(), *torch.utils.data.random_split(Words(), [20, 20])]
    for dataset in parts:
        run = training.fit(small_flow(), SmallMatching(), dataset, steps=2, batch_size=10, log_every=1)
        assert run.steps == 2
    Words.collate = 3
    with pytest.raises(TypeError, match=r"fit\(data=Words\): its collate is 3; write a method collate"):
        training.fit(small_flow(), SmallMatching(), Words(), steps=2, batch_size=10)


def test_processes_across_read_the_batches_of_one():
    alone = batches_of(torch.arange(40.0)[:, None], 8, 0)
    others = [batches_of(torch.arange(40.0)[:, None], 4, 0, rank, 2, across=True) for rank in range(2)]
    for _ in range(7):
        x = alone.fetch().x
        assert all(torch.equal(x, other.fetch().x) for other in others)
    with pytest.raises(ValueError, match=r"across_processes=True\): a loader has only the rows of its process"):
        batches_of(DataLoader(Noise(), 4), 4, 0, 0, 2, across=True)


def test_workers_leave_the_step_its_threads(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(12)), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 5)
    assert default_workers(torch.device("cpu")) == 7
    assert default_workers(torch.device("cuda")) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers(torch.device("cpu")) == 1
    assert default_workers(torch.device("cuda")) == 2


def test_an_abandoned_run_leaves_no_thread():
    before = threading.active_count()
    batches = ahead(lambda: None, lambda step, raw: time.sleep(0.01), 0, 100, 3)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_iterable_datasets_need_a_loader():
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(5))

    with pytest.raises(TypeError, match="wrap it in torch.utils.data.DataLoader"):
        batches_of(Endless(), 4, 0)
