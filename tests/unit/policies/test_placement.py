from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_policies.placement import GIB, Node, Request, fits

SMALL = Node("small", cpus=2, gpus=0, memory_bytes=4 * GIB)
BIG_HOST, SMALL_HOST = Node("host", 8, 0, GIB), Node("host", 4, 0, GIB)
BIG = Node("big", cpus=8, gpus=2, memory_bytes=32 * GIB)


def test_it_fits_with_the_room_that_is_there():
    fit = fits(Request(workers=2, cpus=2, gpus=1, memory_bytes=8 * GIB), [SMALL, BIG])
    assert fit.fits
    assert fit.workers_max == 2


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (
            Request(workers=1, cpus=64),
            "asked: 1 worker with 64 CPUs; CPUs: 64 asked, 8 at most on one node",
        ),
        (
            Request(workers=2, cpus=1, gpus=4, memory_bytes=64 * GIB),
            (
                "asked: 2 workers with 1 CPUs, 4 GPUs, 64.0 GiB of memory each; "
                "GPUs: 4 asked, 2 at most on one node; memory: 64.0 GiB asked, 32.0 GiB at most on one"
            ),
        ),
        (
            Request(workers=9, cpus=2),
            "asked: 9 workers with 2 CPUs each; the largest possible is 5 workers (4 on big, 1 on small)",
        ),
    ],
)
def test_a_refusal_names_what_was_asked_and_the_largest_possible(request_, reason):
    fit = fits(request_, [SMALL, BIG])
    assert not fit.fits
    assert fit.reason == reason


def test_no_single_node_has_all_of_it():
    nodes = [Node("a", 8, 0, GIB), Node("b", 1, 4, GIB)]
    fit = fits(Request(cpus=4, gpus=1), nodes)
    assert not fit.fits
    assert "no single node has all of it together" in fit.reason


def test_no_node_at_all():
    assert fits(Request(), []).reason == "asked: 1 worker with 1 CPUs; there is no node"


def test_fractions_are_counted_as_ray_counts_them():
    assert fits(Request(workers=3, cpus=0.1), [Node("n", 0.3, 0, 0)]).fits


def test_a_worker_that_asks_for_nothing_fits():
    assert fits(Request(workers=3, cpus=0), [SMALL]).fits


amounts = st.integers(0, 12)
nodes = st.lists(
    st.builds(Node, st.text("ab", max_size=4), amounts, amounts, amounts), unique_by=lambda n: n.node
)


@given(st.builds(Request, st.integers(1, 6), amounts, amounts, amounts), nodes)
def test_a_granted_gang_can_be_laid_out_by_hand(request_, cluster):
    fit = fits(request_, cluster)
    free = [[n.cpus, n.gpus, n.memory_bytes] for n in cluster]
    asked = [request_.cpus, request_.gpus, request_.memory_bytes]
    placed = 0
    for node in free:
        while placed < request_.workers and all(has >= asks for has, asks in zip(node, asked, strict=True)):
            node[:] = [has - asks for has, asks in zip(node, asked, strict=True)]
            placed += 1
    assert fit.fits == (placed == request_.workers)
    assert fit.reason


def test_nodes_of_one_name_all_count():
    """Raylets that share a machine have one address; the smaller one once hid the larger."""
    fit = fits(Request(workers=3, cpus=4), [BIG_HOST, SMALL_HOST, Node("host", 2, 0, GIB)])
    assert fit.fits
    assert fit.workers_max == 3
    assert "2 on host, 1 on host" in fits(Request(workers=9, cpus=4), [BIG_HOST, SMALL_HOST]).reason


SPOT = Node("spot", 8, 2, 32 * GIB, {"market-type": "spot", "ray.io/accelerator-type": "H100"})
STEADY = Node("steady", 4, 1, 32 * GIB, {"market-type": "on-demand"})


@pytest.mark.parametrize(
    ("labels", "workers_max"),
    [
        ({}, 12),
        ({"market-type": "spot"}, 8),
        ({"market-type": "!spot"}, 4),
        ({"market-type": "in(spot,on-demand)"}, 12),
        ({"ray.io/accelerator-type": "!in(A100, H100)"}, 4),
        ({"market-type": "in(spot, on-demand)", "ray.io/accelerator-type": "H100"}, 8),
    ],
)
def test_only_machines_with_the_labels_count(labels, workers_max):
    assert fits(Request(workers=1, labels=labels), [SPOT, STEADY]).workers_max == workers_max


def test_a_label_that_no_machine_has_is_named():
    fit = fits(Request(workers=1, labels={"market-type": "reserved"}), [SPOT, STEADY])
    assert not fit.fits
    assert fit.reason == "asked: 1 worker with 1 CPUs; no node is labelled market-type: reserved"
    assert fits(Request(labels={"market-type": "reserved"}), [Node("to come", 8, 0, GIB)]).fits, "not known"


def test_what_is_too_large_is_measured_on_the_machines_with_the_labels():
    fit = fits(Request(cpus=6, labels={"market-type": "on-demand"}), [SPOT, STEADY])
    assert fit.reason.endswith("CPUs: 6 asked, 4 at most on one node")
