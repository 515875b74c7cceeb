"""
Continuous control, from numbers and from pictures, with DreamerV2 and with the first version of Dreamer:

    python -m benchmarks.continuous                          # everything that is not in the results yet, seeds 0 1 2
    python -m benchmarks.continuous pendulum-v1 --seeds 0

Every run is evaluated with 20 (pendulum) or 50 (reacher) fresh episodes, deterministic actions, on an environment of its own.
Results go to ``benchmarks/results/continuous.json``, one entry per task and seed.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from benchmarks.records import known, record
from benchmarks.tasks.reacher import PixelReacher, ScriptedReacher
from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.envs import ScaleObservation

RESULTS = Path(__file__).with_name("results") / "continuous.json"


class Task(NamedTuple):
    """An agent and its environment, its budget, and the mean return that shows that it was learned."""

    make: Callable[[], gym.Env]
    policy: str
    options: Callable[[], dict[str, Any]]
    steps: int
    threshold: float
    episodes: int


def pendulum() -> gym.Env:
    """Pendulum-v1 in the units of its section in ``dreamer.yml``."""
    return ScaleObservation(gym.make("Pendulum-v1"), [2.0, 2.0, 0.3])


def scripted_best(episodes: int = 200) -> float:
    """
    :param episodes: to average over
    :return: mean return of the scripted policy on :class:`PixelReacher`
    """
    mean, _ = evaluate_policy(ScriptedReacher(), make_env(PixelReacher, 0), n_eval_episodes=episodes)  # type: ignore[arg-type]
    return float(mean)  # type: ignore[arg-type]


def make_env(make: Callable[[], gym.Env], seed: int) -> VecMonitor:
    """
    :param make: of one environment
    :param seed: of the environment
    :return: one environment
    """
    env = VecMonitor(DummyVecEnv([make]))
    env.seed(seed)
    return env


def first_version(options: dict[str, Any]) -> dict[str, Any]:
    """
    What makes an agent one of Dreamer's first version, as in the section ``dreamer_v1``; sizes and rates stay.

    :param options: constructor arguments
    :return: constructor arguments
    """
    v1 = preset("dreamer_v1")
    names = (
        "reinforce_weight",
        "kl_balance",
        "kl_scale",
        "free_nats",
        "ent_coef",
        "exploration_noise",
        "target_update_interval",
    )
    kinds = ("latent", "stochastic_size", "latent_std_activation", "actor_distribution")
    sizes = {k: value for k, value in options["policy_kwargs"].items() if not k.startswith("stochastic")}
    policy_kwargs = {**sizes, **{name: v1["policy_kwargs"][name] for name in kinds}, "actor_init_std": 1.0}
    return {**options, **{name: v1[name] for name in names}, "policy_kwargs": policy_kwargs}


REACHER = preset("continuous_pixels")

#: Gaussian states tell less of the target at first (the plain KL holds them back), and gradients through a critic that looks
#: far ahead are too rough to aim with
REACHER_V1: dict[str, Any] = {
    **first_version(REACHER),
    "learning_rate": "lin_2e-3_2e-4",
    "actor_learning_rate": "lin_2e-4_1e-3",
    "critic_learning_rate": 1e-3,
    "explore_until": 2_000,
    "batch_size": 14,
    "gamma": 0.85,
    "imagination_horizon": 8,
    "ent_coef": 0.003,
    "kl_scale": 0.3,
}

TASKS = {
    "pendulum": Task(pendulum, "MlpPolicy", lambda: preset("Pendulum-v1"), 15_000, -250.0, 20),
    "pendulum-v1": Task(pendulum, "MlpPolicy", lambda: preset("dreamer_v1_vector"), 15_000, -400.0, 20),
    "reacher": Task(PixelReacher, "CnnPolicy", lambda: REACHER, 10_000, 0.8, 50),
    "reacher-v1": Task(PixelReacher, "CnnPolicy", lambda: REACHER_V1, 10_000, 0.8, 50),
}


def train(name: str, seed: int) -> dict[str, Any]:
    """
    Train one agent from scratch and evaluate it.

    :param name: key of ``TASKS``
    :param seed: of everything
    :return: what goes into the results
    """
    task = TASKS[name]
    model = DreamerV2(task.policy, make_env(task.make, seed), seed=seed, device="cpu", **task.options())
    wall, cpu = time.perf_counter(), time.process_time()
    model.learn(task.steps, log_interval=50)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    returns, _ = evaluate_policy(
        model, make_env(task.make, 10_000 + seed), n_eval_episodes=task.episodes, return_episode_rewards=True
    )
    best = {"of_scripted_best": round(float(np.mean(returns)) / scripted_best(), 3)} if "reacher" in name else {}
    return {
        "task": name,
        "seed": seed,
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "episodes": task.episodes,
        "mean_return": round(float(np.mean(returns)), 2),
        "std_return": round(float(np.std(returns)), 2),
        **best,
        "threshold": task.threshold,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="also what is in the results already")
    options = parser.parse_args(arguments)
    th.set_num_threads(options.threads)
    for seed in options.seeds:
        for name in options.tasks:
            if known(RESULTS, task=name, seed=seed) and not options.again:
                continue
            result = train(name, seed)
            record(result, RESULTS, ("task", "seed"))
            print({key: result[key] for key in ("task", "seed", "mean_return", "std_return", "wall_seconds")}, flush=True)


if __name__ == "__main__":
    main()
