"""Which runs there are, and their results: each run is a child process with one thread."""

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.children import attempt_all, run_python
from benchmarks.records import FOLDER, Result, known, record
from benchmarks.tasks.probes import PROBES, Probe

RESULTS = FOLDER / "probes.json"
IDENTITY = ("preset", "settings", "task", "seed", "steps")


class Run(NamedTuple):
    """
    What tells runs apart.

    :param task: name of the probe
    :param seed: of everything
    :param preset: hyperparameters; ``"default"`` is ``default_pixels`` for images
    :param settings: ``name=value`` that replace some of them, sorted
    :param steps: of the training
    """

    task: str
    seed: int
    preset: str
    settings: tuple[str, ...]
    steps: int

    @property
    def identity(self) -> dict[str, Any]:
        """Values of ``IDENTITY``."""
        return {**self._asdict(), "settings": " ".join(self.settings)}

    @property
    def command(self) -> list[str]:
        """Arguments of Python, without the output."""
        command = ["-m", "benchmarks.probes.train", self.task, "--seed", str(self.seed), "--steps", str(self.steps)]
        return [*command, "--preset", self.preset, *(["--set", *self.settings] if self.settings else [])]


def planned(
    probes: Iterable[Probe],
    seeds: Sequence[int],
    preset: str = "default",
    settings: Sequence[str] = (),
    steps: int | None = None,
) -> list[Run]:
    """
    List runs, seed by seed, so that a series that is stopped has something of every probe.

    :param probes: to train on
    :param seeds: of each
    :param preset: see :class:`Run`
    :param settings: likewise, in any order
    :param steps: of every training; None for the probes' budgets
    :return: the runs
    """
    probes = list(probes)
    return [Run(p.name, seed, preset, tuple(sorted(settings)), steps or p.steps) for seed in seeds for p in probes]


def perform(run: Run, path: Path = RESULTS) -> Result:
    """
    Train one agent, and add the result to the file.

    :param run: what to train
    :param path: JSON file
    :return: the result
    :raises RuntimeError: if the training fails
    """
    probe = PROBES[run.task]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        cost = run_python([*run.command, "--output", str(output)])
        measured = json.loads(output.read_text())
    table = {name: getattr(probe, name) for name in ("kind", "half", "best", "random", "threshold")}
    result = {**run.identity, **table, **measured, "cpu_seconds": round(cost.cpu, 1), "wall_seconds": round(cost.wall, 1)}
    record(result, path, IDENTITY)
    warned = f", {len(result['warnings'])} warnings" if result["warnings"] else ""
    print(
        f"{time.strftime('%H:%M:%S')} {run.task} seed {run.seed}: {result['greedy_mean']:.3g} (sampled "
        f"{result['sampled_mean']:.3g}) after {run.steps} steps, threshold {probe.threshold:.3g} "
        f"{'reached' if result['greedy_mean'] >= probe.threshold else 'not reached'}, {cost.cpu:.0f} CPU-s{warned}",
        flush=True,
    )
    return result


def perform_all(runs: Iterable[Run], jobs: int, path: Path = RESULTS, again: bool = False) -> list[str]:
    """
    Perform all runs that are not in the file yet.

    :param runs: in order
    :param jobs: processes at a time
    :param path: JSON file
    :param again: repeat runs that are in the file
    :return: what failed
    """
    missing = [run for run in runs if again or not known(path, **run.identity)]
    return attempt_all(lambda run: perform(run, path), missing, jobs)
