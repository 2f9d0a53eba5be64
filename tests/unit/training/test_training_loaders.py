"""Loaders of every kind resume in the middle of an epoch with the very batches that were left."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from harness import begin
from torch.utils import data as td

# ruff: noqa: NPY002  NumPy's global state is what this is about
from orch_workers.training.errors import TrainingError

STEPS_MAX = 200


class Killed(Exception):  # noqa: N818
    pass


class Numbers(td.Dataset):
    """Reads are augmented from all three global generators."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return torch.tensor([float(index), torch.rand(()).item(), np.random.rand(), random.random()])


class OwnGenerators(Numbers):
    def __init__(self):
        self.numpy = np.random.default_rng(4)
        self.transforms = [{"jitter": random.Random(5)}]
        self.torch = torch.Generator()

    def __getitem__(self, index):
        own = [
            self.numpy.random(),
            self.transforms[0]["jitter"].random(),
            torch.rand((), generator=self.torch),
        ]
        return torch.tensor([float(index), *map(float, own)])


class Buffer(td.IterableDataset):
    """Which item comes next is drawn from the states that training draws from, too."""

    def __iter__(self):
        held = list(range(4))
        for number in range(4, 11):
            place = int(torch.randint(4, ())) if random.random() < 0.5 else np.random.randint(4)
            yield torch.tensor([float(held[place])])
            held[place] = number
        yield from (torch.tensor([float(number)]) for number in held)


class LazySampler(td.Sampler):
    def __iter__(self):
        for _ in range(11):
            yield int(torch.randint(11, ()))

    def __len__(self):
        return 11


class OwnIterable:
    """No torch loader at all."""

    def __iter__(self):
        for _ in range(5):
            yield torch.rand(2) + random.random()


class KeepsState:
    """As torchdata's StatefulDataLoader: it goes on where its state says."""

    def __init__(self):
        self.at = 0
        self.reads = 0

    def __iter__(self):
        while self.at < 5:
            self.at += 1
            self.reads += 1
            yield torch.tensor([float(self.at)])
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def noisy_collate(items):
    return torch.stack(items) + torch.rand(())


def seeded_generator():
    return torch.Generator().manual_seed(11)


LOADERS = {
    "in order": lambda: td.DataLoader(Numbers(), 3),
    "shuffled": lambda: td.DataLoader(Numbers(), 3, shuffle=True, drop_last=True),
    "shuffled by a generator": lambda: td.DataLoader(
        Numbers(), 3, shuffle=True, generator=seeded_generator()
    ),
    "two workers": lambda: td.DataLoader(Numbers(), 3, shuffle=True, num_workers=2),
    "own generators": lambda: td.DataLoader(OwnGenerators(), 3, shuffle=True),
    "own generators, a worker": lambda: td.DataLoader(OwnGenerators(), 3, num_workers=1),
    "with replacement": lambda: td.DataLoader(
        Numbers(), 3, sampler=td.RandomSampler(Numbers(), replacement=True)
    ),
    "weighted": lambda: td.DataLoader(Numbers(), 3, sampler=td.WeightedRandomSampler([1.0, 2.0] * 5, 9)),
    "subset": lambda: td.DataLoader(Numbers(), 3, sampler=td.SubsetRandomSampler(range(9))),
    "lazy sampler": lambda: td.DataLoader(Numbers(), 3, sampler=LazySampler()),
    "lazy sampler, a worker": lambda: td.DataLoader(Numbers(), 3, sampler=LazySampler(), num_workers=1),
    "batch sampler": lambda: td.DataLoader(Numbers(), batch_sampler=td.BatchSampler(LazySampler(), 3, False)),
    "unbatched": lambda: td.DataLoader(Numbers(), batch_size=None, shuffle=True),
    "collate draws": lambda: td.DataLoader(Numbers(), 3, collate_fn=noisy_collate),
    "iterable": lambda: td.DataLoader(Buffer(), 3),
    "iterable, two workers": lambda: td.DataLoader(Buffer(), 3, num_workers=2),
    "own iterable": OwnIterable,
    "a list": lambda: list(torch.arange(5.0)),
    "keeps state": KeepsState,
}
INDEXED = ("in order", "shuffled", "shuffled by a generator", "two workers", "own generators", "unbatched")


def draw(history, batch):
    """A step of training: it draws, like a dropout layer, and remembers what it was given."""
    history.append((batch.tolist(), torch.rand(()).item(), random.random(), np.random.rand()))


def simple(run, loader, history, done):
    for _epoch in run.epochs(3):
        for batch in run.batches(loader):
            draw(history, batch)
            run.step()
            done()
        draw(history, torch.rand(1))


def accumulating(run, loader, history, done):
    for _epoch in run.epochs(8):
        for batch in run.batches(loader):
            draw(history, batch)
            if run.batch % 2:
                run.step()
                done()


def evaluating(run, loader, history, done):
    """An evaluation before the epoch and one in the middle of each batch's body."""
    for _epoch in run.epochs(3):
        quality = sum(batch.sum().item() for batch in run.batches(loader))
        for batch in run.batches(loader):
            draw(history, batch + quality)
            history.append([other.tolist() for other in run.batches(loader)])
            run.step()
            done()


def two_loops(run, loader, history, done):
    for _epoch in run.epochs(2):
        for _ in range(2):
            for batch in run.batches(loader):
                draw(history, batch)
                run.step()
                done()


def zipped(run, loader, history, done):
    other = td.DataLoader(Numbers(), 2, shuffle=True)
    for _epoch in run.epochs(3):
        for batch, second in zip(run.batches(loader), run.batches(other), strict=False):
            draw(history, batch.sum() + second.sum())
            run.step()
            done()


def breaking(run, loader, history, done):
    for _epoch in run.epochs(3):
        for batch in run.batches(loader):
            draw(history, batch)
            run.step()
            done()
            if run.batch == 2:
                break


def stepping_first(run, loader, history, done):
    """The step is counted before the rest of the body, and twice."""
    for _epoch in run.epochs(3):
        for batch in run.batches(loader):
            run.step()
            draw(history, batch)
            run.step()
            done()
            history.append(torch.rand(()).item())


def nested(run, loader, history, done):
    """Steps in a loop within a loop."""
    for _epoch in run.epochs(2):
        for part in run.batches([1.0, 2.0, 3.0]):
            for batch in run.batches(loader):
                draw(history, batch * part)
                run.step()
                done()


def own_order(run, loader, history, done):
    """The script draws its own permutation at the top of the epoch."""
    for _epoch in run.epochs(3):
        order = torch.randperm(12) + int(random.random() * 100)
        for batch in run.batches(order.split(3)):
            draw(history, batch)
            run.step()
            done()


def own_loop(run, loader, history, done):
    """No epochs, no loader of orch: by step count."""
    while run.step_count < 12:
        draw(history, torch.rand(2))
        run.step()
        done()


def play(agent, monkeypatch, body, loader, kill_at=(), **options):
    """Runs `body`, abandoned at each of the steps in `kill_at`, to its end; history and random states."""
    kills = list(kill_at)
    while True:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(7)
        made = loader()
        run = begin(agent, monkeypatch, history=[], data=made, **options)

        def done(run=run):
            assert run.step_count < STEPS_MAX
            if kills and run.step_count >= kills[0]:
                raise Killed

        try:
            body(run, made, run.values["history"], done)
        except Killed:
            kills.pop(0)
            run.give_up()
            continue
        except BaseException:
            run.give_up()
            raise
        run.finish()
        return run, (run.values["history"], torch.rand(1).item(), random.random(), np.random.rand())


def assert_exact(agents, monkeypatch, body, loader, **options):
    _, expected = play(agents(), monkeypatch, body, loader, **options)
    for steps, kills in ((2, (3, 7)), (1, (2, 4)), (3, (5,))):
        agent = agents(rules={"steps": steps, "first": False})
        run, found = play(agent, monkeypatch, body, loader, kills, **options)
        assert found == expected
        assert run.restored_step == (kills[-1] - 1) // steps * steps  # the last step's body never ended
        assert run.exact, run.inexact_reasons


@pytest.mark.parametrize("name", LOADERS)
def test_replay_is_exact(agents, monkeypatch, name):
    assert_exact(agents, monkeypatch, simple, LOADERS[name])


@pytest.mark.parametrize("name", INDEXED)
def test_skipping_by_index_is_exact(agents, monkeypatch, name):
    assert_exact(agents, monkeypatch, simple, LOADERS[name], skip="index")


@pytest.mark.parametrize("body", [accumulating, evaluating, two_loops, zipped, breaking, own_order])
@pytest.mark.parametrize("name", ["shuffled", "iterable"])
def test_loops_of_other_shapes_are_exact(agents, monkeypatch, name, body):
    assert_exact(agents, monkeypatch, body, LOADERS[name])


@pytest.mark.parametrize("name", ["shuffled", "iterable"])
@pytest.mark.parametrize("body", [stepping_first, nested, own_loop])
def test_steps_anywhere_are_exact(agents, monkeypatch, name, body):
    _, expected = play(agents(), monkeypatch, body, LOADERS[name])
    for steps, kills in ((2, (4, 9)), (3, (11,))):
        agent = agents(rules={"steps": steps, "first": False})
        run, found = play(agent, monkeypatch, body, LOADERS[name], kills)
        assert found == expected
        assert 0 < run.restored_step <= kills[-1]
        assert run.exact, run.inexact_reasons


def test_a_standard_loader_gives_what_it_gives_without_orch(agents, monkeypatch):
    _, (history, *_) = play(agents(), monkeypatch, simple, LOADERS["shuffled"])
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(7)
    plain = []
    loader = LOADERS["shuffled"]()
    for _epoch in range(3):
        for batch in loader:
            draw(plain, batch)
        draw(plain, torch.rand(1))
    assert history == plain


def test_skipping_by_index_reads_nothing_it_does_not_need(agents, monkeypatch):
    class Counted(Numbers):
        reads = 0

        def __getitem__(self, index):
            Counted.reads += 1
            return torch.tensor([float(index)])

        def __getitems__(self, indices):
            return [self[index] for index in indices]

    def one_epoch(run, loader, history, done):
        for _epoch in run.epochs(1):
            for _batch in run.batches(loader):
                run.step()
                done()

    agent = agents(rules={"steps": 1})
    play(agent, monkeypatch, one_epoch, lambda: td.DataLoader(Counted(), 2), (4,), skip="index")
    assert Counted.reads == 8 + 5  # up to the kill in the fourth body; then what is left after three


INEXACT = {
    "persistent_workers=True": lambda: td.DataLoader(Numbers(), 3, num_workers=1, persistent_workers=True),
    "in_order=False": lambda: td.DataLoader(Numbers(), 3, num_workers=1, in_order=False),
}


@pytest.mark.parametrize("reason", INEXACT)
def test_a_loader_that_cannot_be_exact_is_reported(agents, monkeypatch, reason):
    agent = agents()
    run, _ = play(agent, monkeypatch, simple, INEXACT[reason])
    assert not run.exact
    agent.wait_idle()
    assert [reason in note["message"] for note in agent.of("note")] == [True]


def test_persistent_workers_are_exact_by_index(agents, monkeypatch):
    assert_exact(agents, monkeypatch, simple, INEXACT["persistent_workers=True"], skip="index")


def stepping_outside(run, loader, history, done):
    for _epoch in run.epochs(1):
        run.step()


def one_iterator(run, loader, history, done):
    iterator = iter(loader)
    for _epoch in run.epochs(2):
        for _batch in run.batches(iterator):
            run.step()


def no_epochs(run, loader, history, done):
    for _pass in range(2):
        for _batch in run.batches(loader):
            run.step()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (stepping_outside, "outside run.batches"),
        (one_iterator, "one iterator twice"),
        (no_epochs, "without run.epochs"),
    ],
)
def test_loops_that_cannot_be_exact_are_reported(agents, monkeypatch, body, reason):
    run, _ = play(agents(), monkeypatch, body, LOADERS["a list"])
    assert [reason in found for found in run.inexact_reasons] == [True]


def test_an_iterable_has_no_index(agents, monkeypatch):
    with pytest.raises(TrainingError, match="map-style"):
        play(agents(), monkeypatch, simple, LOADERS["iterable"], skip="index")


def test_shorter_data_is_an_error(agents, monkeypatch):
    agent = agents(rules={"steps": 1})
    lengths = [8, 2]
    with pytest.raises(TrainingError, match="gives 2 batches, and the checkpoint was made after 4"):
        play(agent, monkeypatch, simple, lambda: list(torch.arange(float(lengths.pop(0)))), (5,))


def test_another_way_of_skipping_is_an_error(agents, monkeypatch):
    agent = agents(rules={"steps": 1})
    run = begin(agent, monkeypatch)
    next(iter(run.batches([1])))
    run.step()
    run.give_up()
    run = begin(agent, monkeypatch, skip="index")
    with pytest.raises(TrainingError, match="skip='replay'"):
        next(iter(run.batches([1])))
    run.give_up()
