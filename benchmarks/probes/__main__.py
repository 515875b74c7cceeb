"""
Probes: does one group of settings learn everything? The tasks are those of ``benchmarks/tasks/probes.py``.

    python -m benchmarks.probes list
    python -m benchmarks.probes run                                   # tuning half, three seeds: what the results lack
    python -m benchmarks.probes run --tasks cue-4 grab --seeds 0 --set ent_coef=lin_1e-1_3e-3 policy_kwargs.hidden_size=64
    python -m benchmarks.probes run --half validation                 # once, when the settings are chosen
    python -m benchmarks.probes report                                # a table per group of settings and half

Each run is a child process with one thread; ``--jobs`` of them run at a time. Results go to
``benchmarks/results/probes.json``; a series that was stopped resumes where it was.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.probes.report import report
from benchmarks.probes.run import RESULTS, perform_all, planned
from benchmarks.probes.train import parse_settings
from benchmarks.records import load
from benchmarks.tasks.probes import HALVES, PROBES, Probe, chosen


def describe(probe: Probe) -> str:
    """
    Describe a probe.

    :param probe: one of ``PROBES``
    :return: a line of text
    """
    returns = f"random {probe.random:.4g}, threshold {probe.threshold:.4g}, best {probe.best:.4g}"
    return f"{probe.half:10} {probe.kind:12} {probe.name:16} {probe.steps:6} steps, {returns}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "report", "list"])
    parser.add_argument("--tasks", nargs="+", choices=list(PROBES), default=[], metavar="NAME")
    parser.add_argument("--half", choices=HALVES, help="default of run without --tasks: tuning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="default", help="'default' is 'default_pixels' for images")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings in place of the preset's")
    parser.add_argument("--steps", type=int, help="of every run; default: the probe's budget")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="repeat what is in the results")
    given = parser.parse_args()
    if given.action == "run" and not given.tasks:
        given.half = given.half or HALVES[0]
    probes = chosen(given.tasks, given.half)
    if given.action == "list":
        return print("\n".join(map(describe, sorted(probes, key=lambda probe: HALVES.index(probe.half)))))
    if given.action == "report":
        names = {probe.name for probe in probes}
        return print(report(result for result in load(given.results) if result["task"] in names))
    parse_settings(given.set)
    runs = planned(probes, given.seeds, given.preset, given.set, given.steps)
    failures = perform_all(runs, given.jobs, given.results, given.again)
    sys.exit(f"{len(failures)} runs failed" if failures else 0)


if __name__ == "__main__":
    main()
