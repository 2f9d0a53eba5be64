"""A pass over the data goes on with another number of ranks: every sample is seen once, counted one by one."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest
import torch
from harness import begin
from torch.utils import data as td
from torch.utils.data.distributed import DistributedSampler

from orch_workers.training.slots import Slot

EPOCHS = 2


class Numbers(td.Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


class World:
    """Ranks one after the other in this process; each with an agent, a loader and a run of its own."""

    def __init__(self, agents, monkeypatch, count, *, shuffle=True, skip="replay", drop_last=False):
        self.agents, self.monkeypatch = agents, monkeypatch
        self.data, self.skip = Numbers(count), skip
        self.of_sampler = {"shuffle": shuffle, "seed": 5, "drop_last": drop_last}
        self.slots = []

    def go(self, ranks, batch_size, *, batches=None, epochs=EPOCHS):
        """From what was saved last to the end, or until each rank has consumed so many batches of this start: the
        samples of each epoch, and what each run calls inexact.
        """
        seen, reasons, slots = [Counter() for _ in range(epochs)], [], []
        for rank in range(ranks):
            agent = self.agents()
            if self.slots:
                self._give(agent, rank, ranks)
            sampler = DistributedSampler(self.data, ranks, rank, **self.of_sampler)
            loader = td.DataLoader(self.data, batch_size=batch_size, sampler=sampler)
            run = begin(agent, self.monkeypatch, model=torch.nn.Linear(1, 1), skip=self.skip, seed=3)
            self._train(run, sampler, loader, seen, batches, epochs)
            assert loader.batch_sampler.sampler is sampler, "the script's own again"
            agent.wait_idle()
            slots.append(agent.snapshots[max(agent.snapshots)])
            reasons += run.inexact_reasons
        self.slots = slots
        return seen, reasons

    @staticmethod
    def _train(run, sampler, loader, seen, batches, epochs):
        done = 0
        for epoch in run.epochs(epochs):
            sampler.set_epoch(epoch)
            for batch in run.batches(loader):
                if done == batches:
                    break  # the state was saved when the body before this one was over
                seen[epoch].update(batch.tolist())
                done += 1
                run.step()
                if done == batches:
                    run.save()
            else:
                continue
            break
        run.give_up()

    def _give(self, agent, rank, ranks):
        """As an agent does: the part of one of those that saved, and how many they were."""
        source = rank % len(self.slots)
        path = agent.folder / "given"
        shutil.copy(self.slots[source], path)
        slot = Slot(str(path), writable=True)
        header, meta = slot.read()
        if len(self.slots) != ranks:
            meta["moved"] = {"ranks": len(self.slots), "rank": source, "onto": ranks, "as": rank}
        data = bytes(slot.data()[: header.data_bytes])
        slot.close()
        Slot.create(str(path) + ".new", header.data_bytes + 1_000_000)
        slot = Slot(str(path) + ".new", writable=True)
        slot.begin(header.generation, header.step)
        slot.data()[: len(data)] = data
        slot.finish(header.generation, header.step, len(data), meta)
        slot.close()
        agent.snapshots[header.step] = path.with_name("given.new")


@pytest.mark.parametrize("skip", ["replay", "index"])
@pytest.mark.parametrize(("before", "after"), [((2, 3), (3, 2)), ((4, 1), (1, 4)), ((1, 6), (4, 3))])
def test_no_sample_is_seen_twice_and_none_left_out(agents, monkeypatch, before, after, skip):
    """(ranks, batch size) before and after; 48 samples are a multiple of all of it."""
    world = World(agents, monkeypatch, 48, skip=skip)
    first, _ = world.go(*before, batches=2)
    assert sum(first[0].values()) == 2 * before[0] * before[1]
    second, reasons = world.go(*after)
    assert first[0] + second[0] == Counter(range(48))
    assert second[1] == Counter(range(48)), "the next epoch is whole"
    assert any(f"saved by {before[0]} ranks and goes on with {after[0]}" in reason for reason in reasons)


def test_it_may_change_again_and_again_and_be_killed_in_between(agents, monkeypatch):
    world = World(agents, monkeypatch, 120)
    total = Counter()
    for ranks, batch_size, batches in ((2, 4, 3), (3, 4, 2), (3, 4, 1), (1, 4, 2), (4, 2, 1)):
        seen, _ = world.go(ranks, batch_size, batches=batches)
        total += seen[0]
        assert max(total.values()) == 1
    seen, _ = world.go(4, 2)
    assert total + seen[0] == Counter(range(120))


@pytest.mark.parametrize("drop_last", [False, True])
def test_what_does_not_divide_is_repeated_or_dropped_as_the_sampler_does(agents, monkeypatch, drop_last):
    world = World(agents, monkeypatch, 50, drop_last=drop_last)
    first, _ = world.go(2, 3, batches=2)  # 12 of 50; 38 are left, and 38 = 12 * 3 + 2
    second, _ = world.go(3, 4)
    total = first[0] + second[0]
    if drop_last:
        assert max(total.values()) == 1
        assert sum(total.values()) == 48
    else:
        assert set(total) == set(range(50))
        assert sum(total.values()) == 51


def test_another_batch_size_on_as_many_ranks(agents, monkeypatch):
    world = World(agents, monkeypatch, 48, shuffle=False)
    first, _ = world.go(2, 6, batches=1)
    second, _ = world.go(2, 3)
    assert first[0] == Counter(range(12))
    assert first[0] + second[0] == Counter(range(48))


def test_a_rank_that_nobody_was_before_draws_other_numbers(agents, monkeypatch):
    world = World(agents, monkeypatch, 48)
    torch.manual_seed(1)
    world.go(2, 3, batches=2)
    drawn = []
    for rank in range(4):
        agent = agents()
        world._give(agent, rank, 4)
        run = begin(agent, monkeypatch, model=torch.nn.Linear(1, 1))
        for _ in run.epochs(EPOCHS):
            drawn.append(torch.rand(2).tolist())
            break
        run.give_up()
    assert drawn[0] != drawn[2]
    assert drawn[1] != drawn[3]
    assert drawn[2] != drawn[3]


def test_data_that_no_sampler_divides_is_said_to_be_inexact(agents, monkeypatch):
    world = World(agents, monkeypatch, 48)
    reasons = []
    for ranks in (2, 3):
        slots = []
        for rank in range(ranks):
            agent = agents()
            if world.slots:
                world._give(agent, rank, ranks)
            run = begin(agent, monkeypatch, model=torch.nn.Linear(1, 1))
            for _ in run.epochs(1):
                for done, _ in enumerate(run.batches(td.DataLoader(world.data, batch_size=3))):
                    if done == 2:
                        break
                    run.step()
                    run.save()
                break
            run.give_up()
            agent.wait_idle()
            slots.append(agent.snapshots[max(agent.snapshots)])
            reasons += run.inexact_reasons
        world.slots = slots
    assert any("no DistributedSampler of torch's divides it" in reason for reason in reasons)
