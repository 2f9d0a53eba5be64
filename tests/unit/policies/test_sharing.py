"""Who writes what: evenly, by bytes, and the same whoever works it out."""

from __future__ import annotations

import random

from orch_policies.sharing import Row, owners


def row(name: str, size_bytes: int) -> Row:
    return Row(name.encode(), size_bytes)


def loads(rows, found) -> list[int]:
    total = dict.fromkeys(rows, 0)
    for rank, held in rows.items():
        for each, owner in zip(held, found[rank], strict=True):
            if owner == rank:
                total[rank] += each.size_bytes
    return [total[rank] for rank in sorted(total)]


def test_what_all_have_is_written_once_and_evenly():
    held = [row(f"layer {number}", 1000) for number in range(100)]
    rows = dict.fromkeys(range(4), held)
    found = owners(rows)
    assert loads(rows, found) == [25_000] * 4
    assert len({tuple(each) for each in found.values()}) == 1, "every rank is told the same"
    assert found[0] == sorted(found[0]), "small ones side by side"


def test_what_differs_is_written_by_each():
    rows = {rank: [row(f"running mean {rank}", 500), row("weight", 10_000)] for rank in (0, 1)}
    found = owners(rows)
    assert [found[0][0], found[1][0]] == [0, 1]
    assert found[0][1] == found[1][1]


def test_who_has_more_of_its_own_writes_less_of_the_rest():
    common = [row(f"layer {number}", 100) for number in range(60)]
    rows = {0: [row("mine", 3000), *common], 1: list(common)}
    assert loads(rows, owners(rows)) == [4500, 4500]


def test_replicas_of_a_part_of_the_ranks():
    """As with a mesh of two by two: each half of a tensor is on two ranks."""
    half = {side: [row(f"{side} {n}", 100) for n in range(40)] for side in ("upper", "lower")}
    rows = {0: half["upper"], 1: half["lower"], 2: half["upper"], 3: half["lower"]}
    found = owners(rows)
    assert loads(rows, found) == [2000] * 4
    assert set(found[0]) == {0, 2}
    assert set(found[1]) == {1, 3}


def test_large_ones_are_given_to_who_has_least():
    held = [row("embedding", 800), row("head", 700), row("one", 500), row("two", 500)]
    rows = dict.fromkeys((0, 1), held)
    assert loads(rows, owners(rows)) == [1300, 1200]


def test_everything_has_one_owner_that_holds_it_and_the_order_of_the_ranks_does_not_matter(
    rng: random.Random,
):
    for _ in range(200):
        size = rng.randrange(2, 6)
        names = [
            row(str(number), rng.choice((0, 1, 64, 4096, 10**6))) for number in range(rng.randrange(1, 60))
        ]
        rows = {rank: [each for each in names if rng.random() < 0.8] for rank in range(size)}
        found = owners(rows)
        shuffled = list(rows.items())
        rng.shuffle(shuffled)
        assert owners(dict(shuffled)) == found
        owner: dict[Row, int] = {}
        for rank, held in rows.items():
            for each, by in zip(held, found[rank], strict=True):
                assert owner.setdefault(each, by) == by
        for each, by in owner.items():
            assert each in rows[by]
        written = loads(dict.fromkeys(range(size), names), owners(dict.fromkeys(range(size), names)))
        assert max(written) - min(written) <= max(each.size_bytes for each in names)
