"""Collects a scripted environment's experience as SB3 does, and checks what a sequence replay buffer makes of it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, VecTransposeImage

from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.replay import SequenceReplayBuffer
from tests.envs import ScriptedEnv, Step

store: Any = OffPolicyAlgorithm._store_transition  # needs three attributes of the algorithm only


class Collector:
    """Steps a VecEnv and stores through SB3's own ``_store_transition``; keeps a list of what the buffer must hold."""

    def __init__(self, env: VecEnv, buffer: SequenceReplayBuffer, script: ScriptedEnv) -> None:
        self.env, self.buffer, self.script = env, buffer, script
        self.normalize = env if isinstance(env, VecNormalize) else None
        self.expected: list[list[Step]] = [[] for _ in range(env.num_envs)]
        self.reset()

    def reset(self) -> None:
        """What ``learn`` does at its start."""
        obs = self.env.reset()
        original = obs if self.normalize is None else self.normalize.get_original_obs()
        self.algorithm = SimpleNamespace(_vec_normalize_env=self.normalize, _last_obs=obs, _last_original_obs=original)
        self.buffer.start_episodes()
        self.starting = [True] * self.env.num_envs

    def collect(self, n_steps: int) -> None:
        for _ in range(n_steps):
            now = self.algorithm._last_obs if self.normalize is None else self.algorithm._last_original_obs
            steps = read_steps(now)
            codes = np.array([step.action for step in steps])
            if isinstance(self.env.action_space, spaces.Box):
                scaled = box_action(codes)
                new_obs, rewards, dones, infos = self.env.step(3.0 * scaled)
            else:
                scaled = codes
                new_obs, rewards, dones, infos = self.env.step(codes)
            store(self.algorithm, self.buffer, scaled, new_obs, rewards, dones, infos)
            for i, step in enumerate(steps):
                self.expected[i] += [step] * self.starting[i] + [step._replace(step=step.step + 1)]
            self.starting = [bool(done) for done in dones]

    def held(self) -> list[list[Step]]:
        """What is left in the rings, oldest record first."""
        return [steps[-self.buffer.buffer_size :] for steps in self.expected]


def box_action(codes: np.ndarray) -> np.ndarray:
    return np.stack([codes / 8, -codes / 8], axis=-1)[..., None]  # (n, 2, 1) float64 in [-1, 1]


def read_steps(obs: Any) -> list[Step]:
    """Inverse of ScriptedEnv's observation, (n, ...) channel first."""
    value = obs["vector"] if isinstance(obs, dict) and "vector" in obs else obs
    if isinstance(value, dict):
        value = value["observation"]
    value = np.asarray(value)
    return [Step(*map(int, row)) for row in (value if value.ndim == 2 else value[:, :, 0, 0])]


def make_env(n_envs: int = 1, vec_env: Any = DummyVecEnv, **kwargs: Any) -> VecEnv:
    env = vec_env([lambda i=i: ScriptedEnv(i, **kwargs) for i in range(n_envs)])
    return env if kwargs.get("observation", "vector") == "vector" else VecTransposeImage(env)


def make_collector(env: VecEnv, buffer_size: int = 60, script: dict[str, Any] | None = None, **kwargs: Any) -> Collector:
    kwargs = {"device": "cpu", "batch_length": 6, "image_size": (8, 8), **kwargs}
    buffer = SequenceReplayBuffer(buffer_size, env.observation_space, env.action_space, n_envs=env.num_envs, **kwargs)
    buffer.seed(0)
    return Collector(env, buffer, ScriptedEnv(**(script or {})))


def windows(batch: SequenceBatch) -> list[list[Step]]:
    columns = range(batch.rewards.shape[1])
    return [read_steps({key: value[:, b] for key, value in batch.observations.items()}) for b in columns]


def check_window(batch: SequenceBatch, b: int, steps: list[Step], held: list[list[Step]], script: ScriptedEnv) -> None:
    """Every record of a column against the script, and their order against what was stored."""
    ring = held[steps[0].env]
    begin = ring.index(steps[0])
    assert steps == ring[begin : begin + len(steps)]  # consecutive, one env, never across the write head
    for t, step in enumerate(steps):
        start = step.step == 0
        assert bool(batch.episode_starts[t, b]) == (start or t == 0)
        assert batch.rewards[t, b] == (0.0 if start else step.reward)
        assert batch.continues[t, b] == (0.0 if not start and script.ending(step) in ("terminated", "both") else 1.0)
        action = batch.actions[t, b].numpy()
        code = step._replace(step=step.step - 1).action
        if start or t == 0:
            assert not action.any()
        elif len(action) == 7:
            assert action.tolist() == np.eye(7)[code].tolist()
        else:
            assert action.tolist() == box_action(np.array([code])).ravel().tolist()


def check_samples(collector: Collector, batch_size: int = 40, **kwargs: Any) -> set[Step]:
    """:return: every record that was seen"""
    batch = collector.buffer.sample(batch_size, **kwargs)
    columns = windows(batch)
    for b, steps in enumerate(columns):
        check_window(batch, b, steps, collector.held(), collector.script)
    return {step for steps in columns for step in steps}
