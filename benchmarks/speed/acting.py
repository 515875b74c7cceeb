"""One acting step, the replay buffer, and the whole loop of acting and training."""

from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from benchmarks.speed.configurations import Configuration, fill, make_model
from benchmarks.speed.stopwatch import Stopwatch, timed
from benchmarks.tasks.images import PixelCatch
from sb3_dreamer.algorithm.graphs import WARM_UP
from sb3_dreamer.envs import AtariVecEnv, make_dreamer_atari_env

BATCHES = (1, 8, 64)
#: Environment steps per update: the paper's for Atari, else that of the small sections of ``dreamer.yml``
TRAIN_FREQ = {"cartpole": 4, "pixel-small": 4, "atari": 16, "atari-gpu": 16}


def measure_acting(configuration: Configuration, device: str, steps: int, engine: dict[str, Any]) -> dict[str, Any]:
    """
    :param configuration: sizes
    :param device: as in SB3
    :param steps: acting steps that are timed, for each batch
    :param engine: precision, graphs
    :return: wall and CPU milliseconds of one step by batch, from observations in NumPy to actions in NumPy
    """
    results: dict[str, Any] = {}
    for n_envs in BATCHES:
        model = make_model(configuration, n_envs, device, **engine)
        shape = model.env.observation_space.shape  # type: ignore[union-attr]
        observations = np.zeros((n_envs, *shape), model.env.observation_space.dtype)  # type: ignore[union-attr, misc]
        state, starts = model.policy.initial_state(n_envs), th.zeros(n_envs, dtype=th.bool, device=model.device)

        def step(model: Any = model, observations: Any = observations, state: Any = state, starts: Any = starts) -> None:
            model.engine.act(model.policy.stored_tensors(observations), state, starts).actions.cpu().numpy()

        with th.no_grad():
            times = [timed(step, model.device) for _ in range(steps + 10)][10:]
        wall, cpu = (1e3 * median(column) for column in zip(*times, strict=True))
        results[str(n_envs)] = {"wall_ms": wall, "cpu_ms": cpu}
    return results


def measure_replay(configuration: Configuration, device: str, rounds: int) -> dict[str, Any]:
    """
    :param configuration: sizes
    :param device: as in SB3
    :param rounds: samples and updates that are timed
    :return: milliseconds of adding a step, sampling a batch and of an update; the share of sampling in both
    """
    model = make_model(configuration, device=device)
    watch = Stopwatch(model.device)
    watch.wrap(model.replay_buffer, "add", "add")
    fill(model)
    add = watch.wall["add"] / watch.calls["add"]
    sample = lambda: model.replay_buffer.sample(model.batch_size, batch_length=model.batch_length)  # noqa: E731
    batch = sample()
    model.update(batch)
    sampling = median(timed(sample, model.device)[0] for _ in range(5 * rounds))
    update = median(timed(lambda: model.update(batch), model.device)[0] for _ in range(rounds))
    return {
        "add_ms": 1e3 * add,
        "sample_ms": 1e3 * sampling,
        "update_ms": 1e3 * update,
        "sampling_share": sampling / (sampling + update),
    }


def make_envs(configuration: Configuration, n_envs: int) -> VecEnv:
    """
    :param configuration: whose name chooses the environment
    :param n_envs: how many
    :return: real environments of its kind
    """
    if configuration.name.startswith("atari"):
        if n_envs > 1:
            return VecMonitor(AtariVecEnv("ALE/Pong-v5", n_envs, seed=0))
        return make_dreamer_atari_env("ALE/Pong-v5", n_envs, seed=0)
    make = (lambda: gym.make("CartPole-v1")) if configuration.name == "cartpole" else PixelCatch
    return DummyVecEnv([make] * n_envs)  # type: ignore[list-item]


def measure_loop(configuration: Configuration, device: str, steps: int, n_envs: int, engine: dict[str, Any]) -> dict[str, Any]:
    """
    Training end to end at the usual train ratio, after the first batch of data.

    :param configuration: sizes
    :param device: as in SB3
    :param steps: environment steps that are timed
    :param n_envs: number of environments; the train ratio stays
    :param engine: precision, graphs, overlap; with one of these only the whole is timed, since nothing else waits
    :return: environment steps per second, and the share of each part
    """
    learning_starts, per_update = 300, TRAIN_FREQ[configuration.name]
    envs = make_envs(configuration, n_envs)
    model = make_model(
        configuration,
        device=device,
        env=envs,
        learning_starts=learning_starts,
        train_freq=max(1, per_update // n_envs),
        gradient_steps=max(1, n_envs // per_update),
        **engine,
    )
    watch = Stopwatch(model.device)
    if not engine:
        watch.wrap(model.env, "step", "environment")  # with the wrappers that SB3 adds
        watch.wrap(model.engine, "act", "acting")
        watch.wrap(model.replay_buffer, "add", "storing")
        watch.wrap(model.replay_buffer, "sample", "sampling")
        watch.wrap(model, "update", "updating")
    model.learn(learning_starts + 2 * (WARM_UP + 1) * per_update, log_interval=10**9)
    watch.clear()
    before, updates = model.num_timesteps, model._n_updates
    wall, cpu = timed(lambda: model.learn(steps, log_interval=10**9, reset_num_timesteps=False), model.device)
    shares = {name: seconds / wall for name, seconds in watch.wall.items()}
    done = model.num_timesteps - before
    return {
        "environments": n_envs,
        "steps": done,
        "updates": model._n_updates - updates,
        "steps_per_second": done / wall,
        "cpu_ms_per_step": 1e3 * cpu / done,
        "shares": {**shares, "rest": max(0.0, 1.0 - sum(shares.values()))},
    }


def measure_envs(numbers: tuple[int, ...] = (1, 4, 8), steps: int = 500) -> dict[str, Any]:
    """
    Pong without an agent.

    :param numbers: of environments
    :param steps: of each environment
    :return: steps of all environments per second, by kind of VecEnv and number
    """
    results: dict[str, Any] = {}
    for n_envs in numbers:
        made: dict[str, VecEnv] = {
            cls.__name__: make_dreamer_atari_env("ALE/Pong-v5", n_envs, seed=0, vec_env_cls=cls)
            for cls in (DummyVecEnv, SubprocVecEnv)
        }
        made["AtariVecEnv"] = VecMonitor(AtariVecEnv("ALE/Pong-v5", n_envs, seed=0))
        for kind, env in made.items():
            actions = np.random.default_rng(0).integers(6, size=(steps, n_envs))
            env.reset()

            def play(env: VecEnv = env, actions: np.ndarray = actions) -> None:
                for row in actions:
                    env.step(row)

            wall, _ = timed(play, th.device("cpu"))
            results.setdefault(kind, {})[str(n_envs)] = steps * n_envs / wall
            env.close()
    return results


def sb3_for_orientation(steps: int = 4_000) -> dict[str, float]:
    """
    :param steps: of CartPole-v1
    :return: CPU milliseconds per environment step of SB3's PPO and DQN with their defaults, learning included
    """
    results = {}
    for algorithm in (PPO, DQN):
        model = algorithm("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
        results[algorithm.__name__] = 1e3 * timed(lambda model=model: model.learn(steps), th.device("cpu"))[1] / steps  # type: ignore[misc]
    return results
