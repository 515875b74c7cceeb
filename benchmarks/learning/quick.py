"""Some runs of the benchmark again, compared with what is in the results: does this machine say the same?"""

import math
import tempfile
from pathlib import Path

from benchmarks.learning.run import Run, perform_all
from benchmarks.learning.suite import OURS, Task
from benchmarks.records import Result, load

#: Task, agent and seed; some twenty minutes on two cores
CHOSEN = (("CartPole-v1", OURS, 0), ("Pendulum-v1", OURS, 0), ("CartPole-v1", "ppo", 0), ("Pendulum-v1", "ppo", 0))


def interval(results: list[Result]) -> tuple[float, float]:
    """
    :param results: of all seeds of an agent on a task
    :return: range of their final scores, widened by two standard errors of an evaluation
    """
    errors = [2.0 * result["final_std"] / math.sqrt(result["episodes"]) for result in results]
    lowest = min(result["final_mean"] - error for result, error in zip(results, errors, strict=True))
    return lowest, max(result["final_mean"] + error for result, error in zip(results, errors, strict=True))


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
            known = [
                r for r in load(recorded) if r["agent"] == result["agent"] and r["task"] == result["task"] and not r["variant"]
            ]
            name = f"{result['task']} {result['agent']} seed {result['seed']}: {result['final_mean']:.1f}"
            if not known:
                print(f"{name}; there is nothing to compare it with yet")
                continue
            low, high = interval(known)
            inside = low <= result["final_mean"] <= high
            print(f"{name} is {'inside' if inside else 'OUTSIDE'} of {low:.1f} to {high:.1f} ({len(known)} seeds)")
            wrong += not inside
    return wrong
