"""The cost model of several ranks: limits that can be worked out by hand."""

from itertools import pairwise

import pytest

from benchmarks.scaling.model import Costs, Link, affine_update, simulate
from benchmarks.scaling.predict import LINKS, RANKS, tables

#: A millisecond per message, a gigabyte per second
SLOW = Link(1e-3, 1e9)
STEADY = Costs(step=[0.01], update=[0.2], shares=(0.6, 0.4), bytes_=(80e6, 8e6))


def test_a_ring_sends_every_byte_twice_but_for_the_own_share() -> None:
    assert SLOW.all_reduce(80e6, 1) == 0.0
    assert SLOW.all_reduce(80e6, 2) == pytest.approx(2 * (1e-3 + 0.04))
    assert SLOW.all_reduce(80e6, 64) == pytest.approx(126 * 1e-3 + 2 * 63 / 64 * 0.08)


def test_one_rank_takes_the_sum_of_its_parts() -> None:
    prediction = simulate(STEADY, SLOW, ranks=1, steps=4)
    assert prediction.seconds == pytest.approx(4 * 0.01 + 0.2)
    assert prediction.waiting == prediction.communication == 0.0


def test_ranks_without_variation_only_add_communication() -> None:
    prediction = simulate(STEADY, SLOW, ranks=4, steps=4)
    talking = sum(SLOW.all_reduce(size, 4) for size in STEADY.bytes_) + SLOW.all_reduce(1000.0, 4)
    assert prediction.seconds == pytest.approx(0.24 + talking)
    assert prediction.communication == pytest.approx(talking / prediction.seconds)
    assert prediction.waiting == pytest.approx(0.0, abs=1e-12)
    copied = simulate(Costs(**{**vars(STEADY), "copying": 1e-9}), SLOW, ranks=4, steps=4)
    assert copied.seconds == pytest.approx(prediction.seconds + 88e6 * 1e-9)


def test_the_slowest_rank_is_waited_for() -> None:
    """An update takes 0.1 or 0.3 s: of two ranks the slower takes 0.25 on average, of many 0.3."""
    costs, link = Costs([0.0], [0.1, 0.3], (1.0, 0.0), (0.0, 0.0)), Link(0.0, 1e12)
    means = [simulate(costs, link, ranks, steps=1, rollouts=20_000).seconds for ranks in (1, 2, 20)]
    assert means == pytest.approx([0.2, 0.25, 0.3], abs=0.003)
    assert simulate(costs, link, 2, 1, 20_000).waiting == pytest.approx(0.05 / 0.25, abs=0.01)
    assert simulate(costs, link, 2, 1).rollouts == simulate(costs, link, 2, 1).rollouts, "the same draws each time"


def test_predictions_for_gpus() -> None:
    """More GPUs make more steps on every link, and faster links are never slower."""
    assert affine_update(0.04, 0.001, 60) == pytest.approx(0.1)
    rows = [row.strip("| ").split(" | ") for row in tables(100.0, 40.0, 8, 2, 1.5)[2:]]
    numbers = [[float(cell.replace(",", "")) for cell in row] for row in rows]
    assert [row[0] for row in numbers] == list(RANKS)
    steps, updates = [row[1:5] for row in numbers], [row[5:] for row in numbers]
    for before, after in pairwise(steps):
        assert all(a < b for a, b in zip(before, after, strict=True))
    assert all(row == sorted(row, reverse=True) for row in (*steps, *updates)) and len(LINKS) == 4
    slow, fast = list(LINKS).index("10 Gbit/s"), list(LINKS).index("nvlink")
    assert updates[-1][slow] < updates[0][slow] and updates[-1][fast] > 1.5 * updates[0][fast]
