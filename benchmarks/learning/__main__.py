"""
Does it learn, and faster than what Stable-Baselines3 has? Tasks, budgets and thresholds are in ``suite.yaml``.

    python -m benchmarks.learning run                                   # everything that is not in the results yet
    python -m benchmarks.learning run --tasks CartPole-v1 --agents dreamer --seeds 0 1 --jobs 2
    python -m benchmarks.learning run --tasks CartPole-v1 --agents dreamer --variant sampled \
        --options policy_kwargs:"dict(...)"                             # beside the main table
    python -m benchmarks.learning report                                # tables and figures from the results
    python -m benchmarks.learning quick                                 # some of it again, and whether it says the same

Every run is rl_zoo3's own command in a process with one thread; ``--jobs`` of them run at a time. Results go to
``benchmarks/results/learning.json``; a suite that was stopped goes on where it was.
"""

import argparse
import sys
from pathlib import Path

import torch as th

from benchmarks.learning.quick import repeat
from benchmarks.learning.run import RESULTS, Run, perform_all, planned
from benchmarks.learning.suite import OURS, load_suite


def main() -> None:
    """Command line."""
    th.set_num_threads(1)  # for the evaluations after a run: beside other runs two threads only wait for one another
    tasks = load_suite()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report", "list", "quick"])
    parser.add_argument("--tasks", nargs="+", choices=list(tasks), default=list(tasks), metavar="ID")
    parser.add_argument("--agents", nargs="+", help="dreamer, random, baselines, or names of algorithms")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="repeat what is in the results")
    parser.add_argument("--variant", default="", help="name of DreamerV2 with --options")
    parser.add_argument("--options", default="", help="hyperparameters in the form of rl_zoo3's --hyperparams")
    arguments = parser.parse_args()
    chosen = [tasks[name] for name in arguments.tasks]
    if bool(arguments.variant) != bool(arguments.options):
        parser.error("--variant and --options go together")
    if arguments.action == "report":
        from benchmarks.learning.report import write_report

        return write_report(arguments.results)
    if arguments.action == "quick":
        return sys.exit(repeat(tasks, arguments.results, arguments.jobs))
    runs = planned(chosen, [OURS] if arguments.variant else arguments.agents, arguments.seeds)
    runs = [Run(run.task, run.agent, run.seed, arguments.variant, arguments.options) for run in runs]
    if arguments.action == "list":
        return print("\n".join(f"{run.task.name} {run.agent} seed {run.seed}" for run in runs))
    failures = perform_all(runs, arguments.jobs, arguments.results, arguments.again)
    sys.exit(f"{len(failures)} runs failed" if failures else 0)


if __name__ == "__main__":
    main()
