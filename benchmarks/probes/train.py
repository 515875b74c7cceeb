"""
One run of a probe: trains DreamerV2, evaluates it on the way and at the end, and writes down what was measured.

    python -m benchmarks.probes.train cue-4 --seed 0 --output result.json

``benchmarks.probes run`` starts this as a child process for each of its runs.
"""

import argparse
import ast
import json
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.records import Result
from benchmarks.tasks.probes import PROBES, Probe
from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.presets import default_section

#: Evaluations and logs during the training
EVALUATIONS, LOGS = 10, 40
#: Of each evaluation: episodes and environment steps at least
EPISODES, STEPS = 20, 1_000
#: Logged numbers that go into the results: means over the last ``1 / LOGS`` of the training
LOGGED = (
    "train/kl",
    "train/reward_loss",
    "train/reward_variance",
    "train/discount_loss",
    "train/vector_loss",
    "train/image_loss",
    "train/actor_entropy",
    "train/return_mean",
    "train/value_mean",
    "train/n_updates",
    "rollout/ep_rew_mean",
)


class LastValues(KVWriter):
    """Keeps the newest value of everything that is logged, in ``values``."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values.update(key_values)

    def close(self) -> None:
        """Nothing is open."""


class Evaluations(BaseCallback):
    """
    Logs and evaluates at fixed steps. The random numbers of the training are left alone.

    :param probe: that is trained on
    :param seed: of the run
    :param steps: of the whole training
    """

    def __init__(self, probe: Probe, seed: int, steps: int) -> None:
        super().__init__()
        self.probe, self.seed, self.steps = probe, seed, steps
        self.curve: list[list[float]] = []
        self.cpu_seconds = 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps % max(self.steps // LOGS, 1) == 0:
            self.model.dump_logs()  # type: ignore[attr-defined]
        if self.num_timesteps % max(self.steps // EVALUATIONS, 1) == 0:
            cpu = time.process_time()
            returns = evaluate(self.model, self.probe, 10_000 + self.seed)  # type: ignore[arg-type]
            self.curve.append([self.num_timesteps, round(float(np.mean(returns)), 4)])
            self.cpu_seconds += time.process_time() - cpu
        return True


def evaluate(model: DreamerV2, probe: Probe, seed: int, sampled: bool = False) -> list[float]:
    """
    Play fresh episodes: at least ``EPISODES``, and of short ones enough for ``STEPS`` steps.

    :param model: the agent
    :param probe: to play
    :param seed: of the environments
    :param sampled: sample latent states and actions, in place of their modes
    :return: returns
    """
    env = DummyVecEnv([probe.make] * EPISODES)
    env.seed(seed)
    latent, model.policy.evaluation_latent = model.policy.evaluation_latent, "sample" if sampled else "mode"
    returns: list[float] = []
    count = EPISODES
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        while count > 0:
            played, lengths = evaluate_policy(model, env, count, not sampled, return_episode_rewards=True, warn=False)
            assert isinstance(played, list) and isinstance(lengths, list)
            count = EPISODES * (math.ceil(STEPS / sum(lengths)) - 1) if not returns else 0
            returns += played
    model.policy.evaluation_latent = latent
    return returns


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """
    Read settings from the command line.

    :param words: ``name=value``, with a literal of Python or a word; ``policy_kwargs.name=value`` for one entry of a dict
    :return: value by name
    :raises ValueError: if there is no ``=``
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (name and equals):
            raise ValueError(f"A setting is name=value, but this is {word!r}.")
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings


def constructor_arguments(probe: Probe, preset_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments of ``DreamerV2`` without environment and seed.

    :param probe: to train on
    :param preset_name: a preset; ``"default"`` means the one that ``default_section`` chooses for the observations
    :param settings: of :func:`parse_settings`, which replace those of the preset
    :return: the arguments, the policy's name among them
    """
    section, policy = default_section(probe.make().observation_space)
    arguments = {"policy": policy, **preset(section if preset_name == "default" else preset_name)}
    for name, value in settings.items():
        outer, dot, inner = name.partition(".")
        arguments[outer] = {**(arguments.get(outer) or {}), inner: value} if dot else value
    return arguments


def train(probe: Probe, seed: int, preset_name: str, settings: dict[str, Any], steps: int) -> Result:
    """
    Train and evaluate one agent.

    :param probe: to train on
    :param seed: of everything
    :param preset_name: see :func:`constructor_arguments`
    :param settings: likewise
    :param steps: of the training
    :return: returns, curve, costs, logged numbers and warnings
    """
    last, evaluations = LastValues(), Evaluations(probe, seed, steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        arguments = constructor_arguments(probe, preset_name, settings)
        model = DreamerV2(env=probe.make(), seed=seed, device="cpu", **arguments)
        model.set_logger(Logger(None, [last]))
        cpu = time.process_time()
        model.learn(steps, callback=evaluations, log_interval=None)
        cpu = time.process_time() - cpu - evaluations.cpu_seconds
    result: Result = {}
    for name in ("greedy", "sampled"):
        returns = evaluate(model, probe, 20_000 + seed, sampled=name == "sampled")
        result |= {f"{name}_mean": round(float(np.mean(returns)), 4), f"{name}_std": round(float(np.std(returns)), 4)}
        result["episodes"] = len(returns)
    reached = [step for step, mean in evaluations.curve if mean >= probe.threshold]
    return result | {
        "steps_to_threshold": reached[0] if reached else None,
        "curve": evaluations.curve,
        "training_cpu_seconds": round(cpu, 1),
        "logged": {key: float(f"{float(last.values[key]):.5g}") for key in LOGGED if key in last.values},
        "warnings": list(dict.fromkeys(f"{warning.category.__name__}: {warning.message}" for warning in caught)),
    }


def main() -> None:
    """Command line."""
    th.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(PROBES), metavar="TASK")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, help="of the training; default: the probe's budget")
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    given = parser.parse_args()
    probe = PROBES[given.task]
    result = train(probe, given.seed, given.preset, parse_settings(given.set), given.steps or probe.steps)
    given.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
