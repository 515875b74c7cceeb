"""Learning from scratch; long, hence ``pytest -m slow``. The tasks and the agent are those of ``benchmarks/end_to_end.py``."""

import pytest

from benchmarks.end_to_end import TASKS, train


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TASKS))
def test_learns(name: str) -> None:
    result = train(name, seed=0)
    assert result["steps"] <= 10_000
    assert result["mean_return"] >= TASKS[name].threshold, result
