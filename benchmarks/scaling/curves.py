"""
Loss curves of one process with batches of 32 and of two processes with 16 each: the same learner, other random numbers.

    python -m benchmarks.scaling.curves                  all runs that are not recorded yet, then the comparison

Each run is a process of its own (``run``), under torchrun where there are two. Both have two environments in all.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import LogEveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from benchmarks.records import FOLDER, known, load, record
from benchmarks.tasks.images import PixelCatch
from sb3_dreamer import DreamerV2
from sb3_dreamer.envs import ScaleObservation
from sb3_dreamer.ranks import distributed

FILE = FOLDER / "scaling_curves.json"
SEEDS = {"CartPole-v1": 8, "PixelCatch": 3}
COMPARED = ("model_loss", "reward_loss", "kl", "actor_entropy", "critic_loss")
COMMON: dict[str, Any] = dict(
    learning_starts=320, batch_size=32, train_freq=4, gamma=0.99, kl_scale=1.0, free_nats=1.0, reward_transform="identity",
    learning_rate=6e-4, actor_learning_rate=2e-4, critic_learning_rate=3e-4, device="cpu", imagination_horizon=10,
    replay_buffer_kwargs=dict(prioritize_ends=False),
)  # fmt: skip
SIZES: dict[str, Any] = dict(deterministic_size=64, hidden_size=64, net_arch=[64, 64])
TASKS: dict[str, dict[str, Any]] = {
    "CartPole-v1": dict(
        steps=1600, policy="MlpPolicy", batch_length=16,
        policy_kwargs=SIZES | dict(stochastic_size=8, stochastic_classes=8),
    ),
    "PixelCatch": dict(
        steps=1280, policy="CnnPolicy", batch_length=8,
        policy_kwargs=SIZES | dict(stochastic_size=16, stochastic_classes=16, cnn_depth=8),
    ),
}  # fmt: skip


def run(task: str, seed: int, folder: str) -> None:
    """
    One run, or one rank of it.

    :param task: name
    :param seed: of the run
    :param folder: for rank 0's log
    """
    th.set_num_threads(1)
    options = {**COMMON, **TASKS[task]}
    steps, policy = options.pop("steps"), options.pop("policy")
    of_rank: dict[str, Any] = dict(n_envs=2 // distributed.world_size(), seed=seed)
    if task == "CartPole-v1":
        env = make_vec_env(task, wrapper_class=lambda env: ScaleObservation(env, scale=[1.5, 2.0, 15.0, 2.0]), **of_rank)
    else:
        env = make_vec_env(lambda: PixelCatch(columns=4, rows=6), **of_rank)
    model = DreamerV2(policy, env, seed=seed, buffer_size=20_000, **options)
    if distributed.rank() == 0:
        model.set_logger(configure(folder, ["json"]))
    model.learn(steps, callback=LogEveryNTimesteps(80), log_interval=None)


def curve(path: Path) -> list[dict[str, float]]:
    """
    :param path: SB3's JSON log
    :return: what is compared, for every entry with updates
    """
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    names = {name: f"train/{name}" for name in COMPARED} | {"steps": "time/total_timesteps", "return": "rollout/ep_rew_mean"}
    return [
        {short: round(float(entry[name]), 4) for short, name in names.items() if name in entry}
        for entry in entries
        if "train/model_loss" in entry
    ]


def measure() -> None:
    """All runs that are not there yet, one after the other."""
    for task in TASKS:
        for seed in range(SEEDS[task]):
            for ranks in (1, 2):
                if known(FILE, task=task, seed=seed, ranks=ranks):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    arguments = ["run", "--task", task, "--seed", str(seed), "--folder", folder]
                    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
                    command = [sys.executable, *launcher, "-m", "benchmarks.scaling.curves", *arguments]
                    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                    points = curve(Path(folder, "progress.json"))
                result = dict(task=task, seed=seed, ranks=ranks, batch=32 // ranks, curve=points)
                record(result, FILE, ("task", "ranks", "seed"))


def comparison() -> Iterator[str]:
    """One line of Markdown for each quantity: last quarter of the curves, mean and range over the seeds."""
    results = load(FILE)
    yield "| task (seeds) | quantity | 1 × (batch 32) | 2 × (batch 16) | difference, in standard deviations of a seed |"
    yield "|---|---|---|---|---|"
    for task in TASKS:
        for name in (*COMPARED, "return"):
            values = {}
            for ranks in (1, 2):
                runs = [result["curve"] for result in results if result["task"] == task and result["ranks"] == ranks]
                values[ranks] = np.array([np.mean([p[name] for p in run[-len(run) // 4 :] if name in p]) for run in runs])
            spread = float(np.sqrt((values[1].var(ddof=1) + values[2].var(ddof=1)) / 2))
            texts = [f"{v.mean():.3g} ({v.min():.3g} to {v.max():.3g})" for v in values.values()]
            apart = abs(values[1].mean() - values[2].mean()) / spread
            yield f"| {task} ({len(values[1])}) | {name} | {texts[0]} | {texts[1]} | {apart:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["all", "run"], default="all")
    parser.add_argument("--task", choices=list(TASKS))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--folder")
    options = parser.parse_args()
    if options.command == "run":
        return run(options.task, options.seed, options.folder)
    measure()
    print("\n".join(comparison()))


if __name__ == "__main__":
    main()
