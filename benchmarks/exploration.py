"""
Does exploration explore? Plan2Explore without any reward against random actions: ``python -m benchmarks.exploration``.

Both play :class:`benchmarks.tasks.grid.SparseGrid` for the same number of steps. Counted are the distinct cells visited,
those of the agent's random warm-up included. Results go to ``benchmarks/results/exploration.json`` (one entry per method and
seed), the figure of all of them to ``docs/images/exploration.png``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from matplotlib.figure import Figure

from benchmarks.records import record
from benchmarks.tasks.grid import SparseGrid
from sb3_dreamer import DreamerV2

RESULTS = Path(__file__).with_name("results") / "exploration.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "exploration.png"
STEPS, EVERY = 5_000, 250  # environment steps of a run, and between two points of its curve
COLORS = {"random": "tab:gray", "plan2explore": "tab:blue"}
LABELS = {"random": "uniformly random actions", "plan2explore": "Plan2Explore, no reward"}

OPTIONS: dict[str, Any] = dict(
    learning_rate=1e-3,
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    buffer_size=20_000,
    learning_starts=300,
    batch_size=16,
    batch_length=12,
    train_freq=4,
    gamma=0.98,
    imagination_horizon=8,
    target_update_interval=50,
    ent_coef=0.1,  # with less the explorer settles for one way
    reward_transform="identity",
    observation_scale=100.0,  # an error of one cell, 0.08, is worth 0.3 nats
)
POLICY: dict[str, Any] = dict(
    deterministic_size=64, hidden_size=64, stochastic_size=8, stochastic_classes=8, net_arch=[64, 64]
)
#: Only the intrinsic reward (``extrinsic_scale`` is 0), in units of its running mean
EXPLORATION: dict[str, Any] = dict(ensemble_size=5, reward_norm_momentum=0.95)


class Visits(gym.Wrapper):
    """
    Counts the distinct cells that the agent has been in, over all episodes.

    :param env: the grid
    """

    def __init__(self, env: SparseGrid) -> None:
        super().__init__(env)
        self.grid = env
        self.cells: set[tuple[int, int]] = set()
        self.counts: list[int] = []  # after every step
        self.goals = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(**kwargs)
        self.cells.add(self.grid.position)
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.cells.add(self.grid.position)
        self.counts.append(len(self.cells))
        self.goals += int(result[2])
        return result


def play_randomly(env: gym.Env, steps: int, seed: int) -> None:
    """
    :param env: to act in
    :param steps: number of actions
    :param seed: of environment and actions
    """
    env.action_space.seed(seed)
    env.reset(seed=seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


def run(method: str, seed: int, steps: int = STEPS, verbose: int = 0) -> dict[str, Any]:
    """
    Explore an unknown grid.

    :param method: "random" or a name of an ``exploration_class``
    :param seed: of everything
    :param steps: of the environment
    :param verbose: as in SB3
    :return: what goes into the results
    """
    env = Visits(SparseGrid())
    wall, cpu = time.perf_counter(), time.process_time()
    if method == "random":
        play_randomly(env, steps, seed)
    else:
        policy_kwargs = {**POLICY, "exploration_class": method, "exploration_kwargs": EXPLORATION}
        model = DreamerV2("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", verbose=verbose, **OPTIONS)
        model.learn(steps, log_interval=10)
    return {
        "method": method,
        "seed": seed,
        "steps": steps,
        "cells": env.counts[steps - 1],
        "reachable_cells": env.grid.size**2,
        "goals": env.goals,
        "every": EVERY,
        "curve": env.counts[EVERY - 1 : steps : EVERY],
        "wall_seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "threads": th.get_num_threads(),
    }


def draw(results: list[dict[str, Any]], path: Path = FIGURE) -> None:
    """
    Distinct cells against steps: the mean over the seeds, and a band from the worst to the best of them.

    :param results: of one or more methods, all with as many steps
    :param path: PNG file
    """
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for method in sorted({result["method"] for result in results}):
        curves = np.array([result["curve"] for result in results if result["method"] == method])
        steps, color = EVERY * np.arange(1, curves.shape[1] + 1), COLORS.get(method)
        label = f"{LABELS.get(method, method)} ({len(curves)} seeds)"
        axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.25, linewidth=0)
        axes.plot(steps, curves.mean(0), color=color, label=label)
    axes.axhline(results[0]["reachable_cells"], color="black", linestyle=":", linewidth=1, label="all cells")
    axes.set(xlabel="environment steps", ylabel="distinct cells visited", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="center right", frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["random", "plan2explore"], help="also possible: model_loss")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, help="PyTorch threads; default: PyTorch's own choice")
    parser.add_argument("--verbose", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        th.set_num_threads(arguments.threads)
    for method in arguments.methods:
        for seed in arguments.seeds:
            result = run(method, seed, arguments.steps, arguments.verbose)
            results = record(result, RESULTS, ("method", "seed"))
            print(
                f"{method} seed {seed}: {result['cells']} of {result['reachable_cells']} cells after {result['steps']} steps, "
                f"{result['goals']} times at the goal, {result['wall_seconds']:.0f} s"
            )
    draw([result for result in results if result["steps"] == arguments.steps])


if __name__ == "__main__":
    main()
