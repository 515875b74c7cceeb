"""One run of the benchmark through rl_zoo3's own command, in a process of its own, and what it measured."""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import rl_zoo3
import sb3_contrib
import stable_baselines3
import yaml
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import benchmarks.learning.environments
from benchmarks.children import attempt_all, run_python
from benchmarks.learning.suite import OURS, RANDOM, Task
from benchmarks.records import FOLDER, Result, known, record
from sb3_dreamer import DreamerV2
from sb3_dreamer.dream.zoo_run import find_run

RESULTS = FOLDER / "learning.json"
IDENTITY = ("task", "agent", "seed", "variant")


class Run(NamedTuple):
    """What tells runs apart. A variant is DreamerV2 with other options, for experiments beside the main table."""

    task: Task
    agent: str
    seed: int
    variant: str = ""
    options: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """Values of ``IDENTITY``."""
        return dict(zip(IDENTITY, (self.task.name, self.agent, self.seed, self.variant), strict=True))

    @property
    def frames_per_step(self) -> int:
        """Environment steps during one step of the agent."""
        return self.task.action_repeat if self.agent == OURS else 1

    def command(self, folder: Path) -> list[str]:
        """
        :param folder: for the zoo's log
        :return: the zoo's command line, without the interpreter
        """
        steps = self.task.budget(self.agent) // self.frames_per_step
        interval = self.task.steps // self.task.evaluations // self.frames_per_step
        evaluation = f"--eval-freq {interval} --eval-episodes {self.task.episodes} --n-eval-envs 5"
        command = (
            f"-m sb3_dreamer.zoo train --algo {self.agent} --env {self.task.name} --seed {self.seed} -n {steps} -f {folder}"
        )
        command += f" {evaluation} --gym-packages {benchmarks.learning.environments.__name__} --log-interval -1"
        hyperparameters = self.task.hyperparameters(self.agent)
        if hyperparameters is not None:
            path = folder / "hyperparameters.yml"
            path.write_text(yaml.safe_dump({self.task.name: hyperparameters}))
            command += f" --conf-file {path}"
        return [*command.split(), *(["--hyperparams", *self.options.split()] if self.options else [])]


def train(run: Run) -> Result:
    """
    Train in a child process with one thread.

    :param run: what to train
    :return: curve, final evaluation and costs
    :raises RuntimeError: with the end of its output, if the training fails
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = run.command(folder)
        cost = run_python(command)
        curve = read_curve(folder, run.frames_per_step)
        more = {} if run.agent != OURS else other_evaluations(run, folder)
        shown = [word.replace(str(folder), "logs") for word in command]
    return measured(run, curve, cost.wall, cost.cpu) | more | {"command": " ".join(["python", *shown])}


def read_curve(folder: Path, frames_per_step: int = 1) -> list[list[float]]:
    """
    :param folder: the zoo's log
    :param frames_per_step: environment steps during one step of the agent
    :return: environment steps, mean and standard deviation of the returns, of each evaluation
    """
    (path,) = folder.rglob("evaluations.npz")
    with np.load(path) as data:
        rows = zip(data["timesteps"], data["results"].mean(1), data["results"].std(1), strict=True)
        return [[int(step) * frames_per_step, round(float(mean), 4), round(float(std), 4)] for step, mean, std in rows]


def other_evaluations(run: Run, folder: Path) -> Result:
    """
    The trained agent once more, with other ways to act than the latent's and the action's mode.

    :param run: of DreamerV2
    :param folder: the zoo's log
    :return: mean returns
    """
    (path,) = (path for path in folder.rglob("*.zip") if path.stem != "best_model")
    model, zoo_run, results = DreamerV2.load(path, device="cpu"), find_run(path), {}
    assert zoo_run is not None
    for name, latent, deterministic in (("sampled_latent", "sample", True), ("sampled", "sample", False)):
        env = zoo_run.make_env(1, 20_000 + run.seed)
        model.policy.evaluation_latent = latent
        mean, _ = evaluate_policy(model, env, run.task.episodes, deterministic=deterministic)
        results[f"{name}_mean"] = round(float(mean), 4)  # type: ignore[arg-type]
    return results


def measured(run: Run, curve: list[list[float]], wall: float, cpu: float) -> Result:
    """
    :param run: what was trained
    :param curve: of :func:`read_curve`
    :param wall: seconds, evaluations included
    :param cpu: seconds likewise
    :return: the result without its provenance
    """
    versions = {"sb3": stable_baselines3.__version__, "sb3_contrib": sb3_contrib.__version__, "rl_zoo3": rl_zoo3.__version__}
    return {
        **run.identity,
        "options": run.options,
        "steps": run.task.budget(run.agent),
        "episodes": run.task.episodes,
        "final_mean": curve[-1][1],
        "final_std": curve[-1][2],
        "curve": curve,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        **versions,
    }


def play_randomly(run: Run, episodes: int = 100) -> Result:
    """
    :param run: whose task is played
    :param episodes: to average over
    :return: mean return of random actions, as a curve of one point
    """
    env = VecMonitor(DummyVecEnv([lambda: gym.make(run.task.name)]))
    env.seed(run.seed)
    env.action_space.seed(run.seed)
    env.reset()
    returns: list[float] = []
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while len(returns) < episodes:
        infos = env.step([env.action_space.sample()])[3]
        steps += 1
        returns += [info["episode"]["r"] for info in infos if "episode" in info]
    curve = [[steps, round(float(np.mean(returns)), 4), round(float(np.std(returns)), 4)]]
    result = measured(run, curve, time.perf_counter() - wall, time.process_time() - cpu)
    return result | {"steps": steps, "episodes": episodes, "command": "benchmarks.learning.run.play_randomly"}


def perform(run: Run, path: Path = RESULTS) -> Result:
    """
    One run, and its result in the file.

    :param run: what to train
    :param path: JSON file
    :return: the result
    """
    result = play_randomly(run) if run.agent == RANDOM else train(run)
    record(result, path, IDENTITY)
    mark = "" if run.task.threshold is None else f" (wanted {run.task.threshold:g})"
    print(
        f"{time.strftime('%H:%M:%S')} {run.task.name} {run.agent}{run.variant and ' ' + run.variant} seed {run.seed}: "
        f"{result['final_mean']:.2f} ± {result['final_std']:.2f} after {result['steps']} steps{mark}, "
        f"{result['cpu_seconds']:.0f} CPU-s",
        flush=True,
    )
    return result


def perform_all(runs: Iterable[Run], jobs: int, path: Path = RESULTS, again: bool = False) -> list[str]:
    """
    All runs that are not in the file yet: stopped and called again, this goes on with the run that it was stopped in.

    :param runs: in order
    :param jobs: processes at a time
    :param path: JSON file
    :param again: repeat runs that are in the file
    :return: what failed
    """
    missing = [run for run in runs if again or not known(path, **run.identity)]
    return attempt_all(lambda run: perform(run, path), missing, jobs)


def planned(tasks: Iterable[Task], agents: list[str] | None = None, seeds: list[int] | None = None) -> list[Run]:
    """
    :param tasks: to run
    :param agents: to run; ``"baselines"`` for all of them; None for everything
    :param seeds: of each; None for the task's own
    :return: runs, seed by seed, so that a suite that is stopped has something of everything
    """
    tasks, runs = list(tasks), []
    for seed in sorted({seed for task in tasks for seed in seeds or task.seeds}):
        for task in tasks:
            if seed not in (seeds or task.seeds):
                continue
            wanted = agents or task.agents
            chosen = [a for a in task.agents if a in wanted or ("baselines" in wanted and a not in (OURS, RANDOM))]
            runs += [Run(task, agent, seed) for agent in chosen if agent != RANDOM or seed == task.seeds[0]]
    return runs
