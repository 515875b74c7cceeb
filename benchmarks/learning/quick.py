"""Some runs of the benchmark again, compared with what is in the results: does this machine say the same?"""

import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from benchmarks.learning.run import Run, perform_all
from benchmarks.learning.suite import OURS, RANDOM, Task
from benchmarks.records import load

#: Task, agent and seed; some twenty minutes on two cores
CHOSEN = (("CartPole-v1", OURS, 0), ("Pendulum-v1", OURS, 0), ("CartPole-v1", "ppo", 0), ("Pendulum-v1", "ppo", 0))
#: Seeds that must be recorded before anything can be said about one more
FEWEST_SEEDS = 3
#: Seeds are taken to differ by at least this share of the way from random actions to the threshold, also where all are perfect
LEAST_SPREAD = 0.02


def interval(scores: list[float], way: float) -> tuple[float, float]:
    """
    :param scores: final ones of all seeds of an agent on a task
    :param way: from the score of random actions to the threshold
    :return: where the score of one more run lies with 95 % probability, if they are normally distributed
    """
    count = len(scores)
    spread = max(float(np.std(scores, ddof=1)) if count > 1 else 0.0, LEAST_SPREAD * abs(way))
    half = float(student.ppf(0.975, max(count - 1, 1))) * spread * (1.0 + 1.0 / count) ** 0.5
    return float(np.mean(scores)) - half, float(np.mean(scores)) + half


def repeat(tasks: dict[str, Task], recorded: Path, jobs: int) -> int:
    """
    :param tasks: of the suite
    :param recorded: results to compare with
    :param jobs: processes at a time
    :return: number of runs that failed or lie outside
    """
    runs = [Run(tasks[task], agent, seed) for task, agent, seed in CHOSEN]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quick.json"
        wrong = len(perform_all(runs, jobs, path))
        for result in load(path):
            same_task = [r for r in load(recorded) if r["task"] == result["task"] and not r["variant"]]
            known = [r["final_mean"] for r in same_task if r["agent"] == result["agent"]]
            random = next((r["final_mean"] for r in same_task if r["agent"] == RANDOM), 0.0)
            name = f"{result['task']} {result['agent']} seed {result['seed']}: {result['final_mean']:.1f}"
            if len(known) < FEWEST_SEEDS:
                print(f"{name}; not compared, {len(known)} of {FEWEST_SEEDS} seeds are recorded")
                continue
            low, high = interval(known, (tasks[result["task"]].threshold or 0.0) - random)
            inside = low <= result["final_mean"] <= high
            print(f"{name} is {'inside' if inside else 'OUTSIDE'} of {low:.1f} to {high:.1f} ({len(known)} seeds)")
            wrong += not inside
    return wrong
