"""tf.data under run.batches and as iterators: which batches come after a resume, and what is said about them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from orch_workers.training import tf_data


def shuffled(seed=1, buffer=10):
    tf.random.set_seed(seed)
    return tf.data.Dataset.range(24).shuffle(buffer).batch(4, drop_remainder=True).prefetch(2)


def stateful(parallel=None):
    tf.random.set_seed(1)
    noisy = tf.data.Dataset.range(24).shuffle(10)
    return noisy.map(
        lambda x: tf.cast(x, tf.float32) + tf.random.uniform([]), num_parallel_calls=parallel
    ).batch(4)


def with_generator():
    tf.random.set_seed(1)
    generator = tf.random.Generator.from_seed(7)
    made = tf.data.Dataset.range(24).shuffle(10).map(lambda x: tf.cast(x, tf.float32) + generator.uniform([]))
    made.kept = generator
    return made.batch(4).prefetch(1)


def with_python():
    rng = np.random.default_rng(3)

    def numbers():
        for number in range(24):
            yield number + rng.integers(1000)

    return tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec([], tf.int64)).batch(4)


def one_pass(run, dataset, seen, stop_at):
    """Appends each batch to `seen`. Saves after step `stop_at`; False, without it, when one more is read."""
    for batch in run.batches(dataset):
        run.step()
        if stop_at is not None and run.step_count > stop_at:
            return False
        seen.append(batch.numpy().tolist())
        if run.step_count == stop_at:
            run.save()
    return True


def epochs_of(run, dataset, count, *, stop_at=None):
    """All batches of `count` epochs as lists; ends in the middle, saved, at step `stop_at`."""
    seen = []
    for epoch in run.epochs(count):
        batches = []
        goes_on = one_pass(run, dataset, batches, stop_at)
        seen += [(epoch, batch) for batch in batches]
        if not goes_on:
            break
    return seen


@pytest.mark.parametrize("make", [shuffled, stateful, with_generator], ids=lambda make: make.__name__)
@pytest.mark.parametrize("stop_at", [1, 6, 8, 12, 17])
def test_a_resumed_run_reads_the_batches_that_an_undisturbed_one_reads(agents, begin, make, stop_at):
    calm = begin(agents(), data=(calm_data := make()))
    expected = epochs_of(calm, calm_data, 4)
    calm.give_up()
    assert len({tuple(batch) for _, batch in expected}) == len(expected), "every epoch is shuffled anew"

    agent = agents()
    run = begin(agent)
    first = epochs_of(run, make(), 4, stop_at=stop_at)
    run.give_up()
    assert first == expected[:stop_at]
    run = begin(agent)
    rest = epochs_of(run, make(), 4)
    run.give_up()
    assert rest == expected[stop_at:]
    assert run.exact, run.inexact_reasons
    assert calm.exact


def test_twice_resumed_and_with_two_datasets(agents, begin):
    def objects():
        return shuffled(1), shuffled(2, 30)

    def both(run, train, extra, stop_at=None):
        seen = []
        for _ in run.epochs(4):
            if not one_pass(run, train, seen, stop_at):
                break
            seen.append([batch.numpy().tolist() for batch in run.batches(extra)])
        return seen

    calm = begin(agents())
    expected = both(calm, *objects())
    calm.give_up()
    agent, got = agents(), []
    for stop_at in (6, 8, 20, None):
        run = begin(agent)
        got += both(run, *objects(), stop_at=stop_at)
        run.give_up()
    # an evaluation after the last step of an epoch is repeated when that step was the restored one
    assert [seen for seen in got if seen in expected] == got
    assert len(got) in (len(expected), len(expected) + 1)


def test_a_state_over_the_limit_is_replayed(agents, begin, monkeypatch):
    monkeypatch.setattr(tf_data, "STATE_BYTES_MAX", 100)
    calm = begin(agents())
    expected = epochs_of(calm, shuffled(), 2)
    calm.give_up()
    agent = agents()
    run = begin(agent)
    epochs_of(run, shuffled(), 2, stop_at=9)
    run.give_up()
    run = begin(agent)
    assert epochs_of(run, shuffled(), 2) == expected[9:]
    run.give_up()


def test_a_dataset_that_is_built_anew_in_every_epoch(agents, begin):
    def epochs(run, stop_at=None):
        seen = []
        for epoch in run.epochs(3):
            if not one_pass(run, shuffled(10 + epoch), seen, stop_at):
                break
        return seen

    calm = begin(agents())
    expected = epochs(calm)
    calm.give_up()
    for stop_at in (4, 6, 8, 13):
        agent = agents()
        run = begin(agent)
        epochs(run, stop_at)
        run.give_up()
        run = begin(agent)
        assert epochs(run) == expected[stop_at:], stop_at
        run.give_up()


def test_an_iterator_given_as_an_argument(agents, begin):
    def make():
        tf.random.set_seed(1)
        return iter(tf.data.Dataset.range(24).shuffle(10).repeat().batch(4).prefetch(2))

    agent = agents()
    iterator = make()
    run = begin(agent, iterator=iterator)
    for _ in range(9):
        next(iterator)
    run.step()
    run.save()
    run.give_up()
    expected = [next(iterator).numpy().tolist() for _ in range(20)]
    again = make()
    run = begin(agent, iterator=again)
    assert [next(again).numpy().tolist() for _ in range(20)] == expected
    assert run.exact
    run.give_up()


def test_an_iterator_that_is_saved_between_two_passes_is_reported(agents, begin):
    agent = agents()
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = (
        False  # TensorFlow would read ahead, as far as it gets
    )
    iterator = iter(tf.data.Dataset.range(24).shuffle(10).batch(5).repeat().with_options(options))
    run = begin(agent, iterator=iterator)
    for number in range(1, 6):
        next(iterator)
        run.step()
        run.save()
        assert run.exact == (number < 5), "the fifth batch is the end of the first pass"
    assert "repeat right after shuffle" in run.inexact_reasons[0]


@pytest.mark.parametrize(
    ("make", "op"),
    [
        (lambda: stateful(parallel=4), "RandomUniform"),
        (
            lambda: tf.data.Dataset.range(8).map(lambda x: x + 1, num_parallel_calls=2, deterministic=False),
            None,
        ),
    ],
)
def test_what_cannot_be_exact_is_said_with_its_operation(agents, begin, make, op):
    run = begin(agents(), data=make())
    assert not run.exact
    assert (op or "deterministic=False") in run.inexact_reasons[0]
    run.give_up()


def test_an_iterator_with_stateful_operations_is_reported(agents, begin):
    run = begin(agents(), iterator=iter(stateful()))
    assert "RandomUniform" in run.inexact_reasons[0]
    assert "run.batches()" in run.inexact_reasons[0]
    run.give_up()


def test_python_functions_are_replayed(agents, begin):
    calm = begin(agents())
    expected = epochs_of(calm, with_python(), 1)
    calm.give_up()
    agent = agents()
    run = begin(agent)
    epochs_of(run, with_python(), 1, stop_at=3)
    run.give_up()
    run = begin(agent)
    assert epochs_of(run, with_python(), 1) == expected[3:]
    run.give_up()
