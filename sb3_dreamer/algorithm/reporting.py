"""What a run reports: a summary before it, warnings, and the remaining time during it."""

import math
import os
import shutil
import sys
import time
import warnings
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import ProgressBarCallback

from sb3_dreamer.algorithm.learner import Learner
from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat
from sb3_dreamer.ranks.distributed import world_size
from sb3_dreamer.replay.buffer import SequenceReplayBuffer

#: Longest name of an observation key in the log; SB3's table cuts keys at 36 characters and refuses collisions
LONGEST_LOGGED_KEY = 20
#: Names in the log that an observation key, such as "reward", must not take
OTHER_LOSSES = ("model_loss", "reward_loss", "discount_loss", "kl_loss", "actor_loss", "critic_loss", "exploration_loss")

GIGABYTE = 1e9


def available_memory() -> float | None:
    """Bytes of memory that this machine could still give to the buffer, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024.0 * float(line.split()[1])
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError):
        return None


def loss_names(observations: ObservationFormat) -> dict[str, str]:
    """
    Names of the reconstruction losses in the log.

    :param observations: format of the observation space
    :return: by observation key
    """
    if not observations.is_dict:
        return {OBSERVATION_KEY: "image_loss" if observations.parts[OBSERVATION_KEY].is_image else "vector_loss"}
    names: dict[str, str] = {}
    for i, key in enumerate(observations.parts):
        name = key if len(key) <= LONGEST_LOGGED_KEY else f"{key[:LONGEST_LOGGED_KEY - 3]}~{i}"
        while f"{name}_loss" in (*OTHER_LOSSES, *names.values()):
            name += "~"
        names[key] = f"{name}_loss"
    return names


def parameter_counts(policy: WorldModelPolicy) -> dict[str, int]:
    """
    Count the trained parameters.

    :param policy: any
    :return: number of parameters by part
    """
    world_model, behavior = policy.world_model, policy.behavior
    parts: dict[str, th.nn.Module | None] = {
        "encoder": world_model.encoder,
        "RSSM": world_model.rssm,
        "decoder": world_model.decoder,
        "reward": world_model.reward_head,
        "discount": world_model.discount_head,
        "actor": behavior.actor,
        "critic": behavior.critic,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    if policy.exploration is not None:
        copied = {id(p) for p in policy.exploration.behavior.critic_target.parameters()}  # not trained
        counts["exploration"] = sum(p.numel() for p in policy.exploration.parameters() if id(p) not in copied)
    return counts


def training_summary(algorithm: Learner, total_timesteps: int) -> str:
    """
    Summarize a run before it starts: size, memory, updates.

    :param algorithm: set up, with an environment
    :param total_timesteps: at which the run ends
    :return: a few lines of text
    """
    counts = parameter_counts(algorithm.policy)
    parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in counts.items())
    dtype = str(next(algorithm.policy.parameters()).dtype).removeprefix("torch.")
    buffer = algorithm.replay_buffer
    bytes_full = buffer.memory_bytes()
    steps = max(total_timesteps - algorithm.num_timesteps, 0)
    filled = min(1.0, steps / max(algorithm.buffer_size, 1))
    name, total, batch = type(algorithm).__name__, sum(counts.values()), f"{algorithm.batch_size} sequences"
    where = "of memory" if buffer.storage_path is None else "on the disk"
    ranks = f" on each of {world_size()} ranks" if world_size() > 1 else ""
    return "\n".join(
        [
            f"{name} on {algorithm.device}, {dtype}: {total / 1e6:.2f}M parameters ({parts})",
            f"Replay{ranks}: {algorithm.buffer_size // world_size():,} steps take {bytes_full / GIGABYTE:.2f} GB {where} "
            f"when full ({filled * bytes_full / GIGABYTE:.2f} GB in this run)",
            f"Updates: {train_ratio_text(algorithm)}, each on {batch} of {algorithm.batch_length} steps, "
            f"after {max(int(algorithm.learning_starts) - algorithm.num_timesteps, 0):,} random steps",
        ]
    )


def train_ratio_text(algorithm: Learner) -> str:
    """How often an algorithm updates, in words."""
    frequency, unit = algorithm.train_freq.frequency, algorithm.train_freq.unit.value  # type: ignore[union-attr]
    if unit == "episode" and algorithm.gradient_steps < 0:
        return "1 per environment step"
    if unit == "episode":
        return f"{algorithm.gradient_steps} per {frequency} episodes"
    per_rollout = frequency * algorithm.n_envs * world_size()
    updates = per_rollout if algorithm.gradient_steps < 0 else algorithm.gradient_steps
    return f"{updates} per {per_rollout} environment steps"


def warn_if_memory_is_short(buffer: SequenceReplayBuffer) -> None:
    """
    Warn before a run if the full buffer will not fit, with SB3's text.

    :param buffer: full, partly full or empty
    """
    capacity = buffer.buffer_size * buffer.n_envs
    needed = buffer.memory_bytes() * (1.0 - buffer.num_records / capacity)
    folder = buffer.storage_path
    available = available_memory() if folder is None else float(shutil.disk_usage(folder).free)
    if available is not None and needed > available:
        where = "memory" if folder is None else "room on the disk"
        warnings.warn(
            f"This system does not have apparently enough {where} to store the complete replay buffer "
            f"{needed / GIGABYTE:.2f}GB > {available / GIGABYTE:.2f}GB. Make buffer_size smaller."
        )


class TrainingClock:
    """Speed and remaining time, measured from the first update on: the random steps before it are much faster."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._steps = self._updates = 0

    def first_update(self, num_timesteps: int, n_updates: int) -> None:
        """Start to count at these numbers of steps and updates, unless already counting."""
        if self._started is None:
            self._started, self._steps, self._updates = time.perf_counter(), num_timesteps, n_updates

    def updates_per_second(self, n_updates: int) -> float | None:
        """Wall-clock rate, environment included, given the number of updates so far; None before the first update."""
        if self._started is None or n_updates == self._updates:
            return None
        return (n_updates - self._updates) / max(time.perf_counter() - self._started, sys.float_info.epsilon)

    def remaining(self, num_timesteps: int, total_timesteps: int) -> float | None:
        """
        Estimate the remaining time.

        :param num_timesteps: so far
        :param total_timesteps: at which the run ends
        :return: seconds; None before there is anything to extrapolate from
        """
        if self._started is None or num_timesteps <= self._steps:
            return None
        per_step = (time.perf_counter() - self._started) / (num_timesteps - self._steps)
        return per_step * max(total_timesteps - num_timesteps, 0)


class DreamerProgressBar(ProgressBarCallback):
    """SB3's progress bar, with the phase of training and an ETA that ignores the fast steps before it."""

    def _on_step(self) -> bool:
        algorithm: Any = self.model
        seconds = algorithm.clock.remaining(algorithm.num_timesteps, algorithm._total_timesteps)
        text = "collecting first steps" if seconds is None else f"training, ETA {format_seconds(seconds)}"
        self.pbar.set_description_str(text, refresh=False)
        return super()._on_step()


def format_seconds(seconds: float) -> str:
    """A duration as h:mm:ss."""
    if not math.isfinite(seconds):  # learn(float("inf")), which a callback ends
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
