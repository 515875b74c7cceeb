"""
What the dream tools are worth: ``python -m benchmarks.dream train|horizon|transfer|speed``.

``train`` makes the models (``logs/dream``; CartPole-v1 with the section ``default`` and three seeds, a tall PixelCatch with
``default_pixels``, 10,000 steps each) through RL Zoo's command; the others measure and write ``results/dream.json``,
``docs/images/dream_horizon.png`` and ``docs/images/dream.gif``.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from benchmarks.records import FOLDER, Result, record
from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.dream import DreamVecEnv, open_loop, open_recording
from sb3_dreamer.dream.drawing import save_film
from sb3_dreamer.dream.plots import draw_horizon, new_figure, prediction_frames
from sb3_dreamer.dream.recording import record as play
from tests.tasks import PixelCatch

RESULTS, IMAGES = FOLDER / "dream.json", Path(__file__).parents[1] / "docs" / "images"
IDENTITY = ("benchmark", "task", "seed", "batch")
CARTPOLE, CATCH = "CartPole-v1", "dream/PixelCatch-v0"
STEPS, SEEDS, CONTEXT, HORIZON = 10_000, (0, 1, 2), 5, 16
#: PPO's in the dream, and episodes of every evaluation
DREAM_STEPS, DREAM_ENVS, DREAM_HORIZON, EPISODES = 60_000, 64, 50, 50
BATCHES = (1, 64, 1024)

# 21 rows: a fall of 20 steps, of which 5 frames are seen and 16 are left to predict
if CATCH not in gym.registry:
    entry_point: Any = PixelCatch
    gym.register(CATCH, entry_point=entry_point, kwargs={"rows": 21})


def folder(logs: Path, task: str, seed: int) -> Path:
    """
    :param logs: folder of all runs
    :param task: id of the environment
    :param seed: of the run
    :return: folder of one run, as RL Zoo names it
    """
    return logs / f"seed{seed}" / "dreamer" / f"{task.replace('/', '-')}_1"


def train(args: argparse.Namespace) -> None:
    """
    :param args: of the command line
    """
    import yaml

    from sb3_dreamer.presets import sections

    args.logs.mkdir(parents=True, exist_ok=True)
    config = args.logs / "hyperparameters.yml"
    config.write_text(yaml.safe_dump({CARTPOLE: sections()["default"], CATCH: sections()["default_pixels"]}))
    for task, seed in [(CATCH, 0), *((CARTPOLE, seed) for seed in SEEDS)]:
        if folder(args.logs, task, seed).exists():
            continue
        command = f"-m sb3_dreamer.zoo train --algo dreamer --env {task} --seed {seed} -n {STEPS} --conf-file {config}"
        command += f" -f {args.logs}/seed{seed} --save-replay-buffer --eval-freq -1 --gym-packages benchmarks.dream"
        subprocess.run([sys.executable, *command.split()], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def load(logs: Path, task: str, seed: int) -> tuple[DreamerV2, Path]:
    """
    :param logs: folder of all runs
    :param task: id of the environment
    :param seed: of the run
    :return: final model, and its replay buffer
    """
    run = folder(logs, task, seed)
    return DreamerV2.load(run / f"{task.replace('/', '-')}.zip", device="cpu"), run / "replay_buffer.pkl"


def real(task: str, n_envs: int, seed: int) -> VecEnv:
    """
    :param task: id of the environment
    :param n_envs: number of copies
    :param seed: of the first
    :return: the environment itself
    """
    env = VecMonitor(DummyVecEnv([lambda: gym.make(task)] * n_envs))
    env.seed(seed)
    return env


def horizon(args: argparse.Namespace) -> None:
    """
    Error against horizon, in episodes that were played after the training.

    :param args: of the command line
    """
    model, _ = load(args.logs, CATCH, 0)
    recording = open_recording(model, play(model, real(CATCH, 5, 100), 840, seed=100))
    loop = open_loop(model, recording, 128, CONTEXT, HORIZON, seed=0)
    error = loop.error("observation")
    result: Result = {"benchmark": "horizon", "task": CATCH, "seed": 0, "batch": loop.rewards.shape[1], "steps": STEPS}
    result |= {"context": CONTEXT, "model": np.round(error.model, 6).tolist()}
    result |= {"copy_last": np.round(error.copy_last, 6).tolist(), "command": "python -m benchmarks.dream horizon"}
    record(result, RESULTS, IDENTITY)
    figure = new_figure(6.0, 3.5)
    axes = figure.subplots()
    draw_horizon(loop, "observation", axes)
    axes.set_title(f"PixelCatch, 21 rows, {CONTEXT} frames seen, {loop.rewards.shape[1]} new episodes", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / "dream_horizon.png", dpi=120)
    short = open_loop(model, recording, 3, CONTEXT, HORIZON, seed=1)
    save_film(prediction_frames(short, "observation"), IMAGES / "dream.gif", 4.0)
    print(
        f"model {error.model.mean():.5f}, copy {error.copy_last.mean():.5f}, better in {(error.model < error.copy_last).sum()}"
    )


def transfer(args: argparse.Namespace) -> None:
    """
    PPO that has seen nothing but dreams, in the real environment, beside the agent of the world model.

    :param args: of the command line
    """
    for seed in args.seeds:
        model, buffer = load(args.logs, CARTPOLE, seed)
        env = real(CARTPOLE, 10, 10_000 + seed)
        result: Result = {"benchmark": "transfer", "task": CARTPOLE, "seed": seed, "batch": DREAM_ENVS, "steps": STEPS}
        for name, latent, deterministic in (
            ("mode", "mode", True),
            ("sampled_latent", "sample", True),
            ("sampled", "sample", False),
        ):
            model.policy.evaluation_latent = latent
            mean, std = evaluate_policy(model, env, EPISODES, deterministic=deterministic)
            result |= {f"dreamer_{name}": round(float(mean), 2), f"dreamer_{name}_std": round(float(std), 2)}  # type: ignore[arg-type]
        dream = DreamVecEnv(model, DREAM_ENVS, buffer, DREAM_HORIZON, seed=seed)
        begun = time.process_time()
        rate: Callable[[float], float] = lambda remaining: 1e-3 * remaining  # noqa: E731
        sizes: dict[str, Any] = dict(n_steps=64, batch_size=256, gamma=0.99, learning_rate=rate)
        ppo = PPO("MlpPolicy", dream, **sizes, seed=seed, device="cpu").learn(DREAM_STEPS)
        seconds = time.process_time() - begun
        untrained = PPO("MlpPolicy", dream, seed=seed, device="cpu")
        for name, agent in (("ppo", ppo), ("untrained", untrained)):
            for suffix, deterministic in (("", True), ("_sampled", False)):
                mean, std = evaluate_policy(agent, env, EPISODES, deterministic=deterministic)
                result |= {name + suffix: round(float(mean), 2), f"{name}{suffix}_std": round(float(std), 2)}  # type: ignore[arg-type]
        result |= {"dream_steps": DREAM_STEPS, "dream_horizon": DREAM_HORIZON, "cpu_seconds": round(seconds, 1)}
        record(result | {"episodes": EPISODES, "command": "python -m benchmarks.dream transfer"}, RESULTS, IDENTITY)
        print(result, flush=True)


def steps_per_second(env: Any, seconds: float) -> float:
    """
    :param env: VecEnv
    :param seconds: to measure, after a warm-up
    :return: steps over all environments with random actions
    """
    env.action_space.seed(0)
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(8)]
    env.reset()
    env.step(actions[0])
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or count < 2:
        env.step(actions[count % len(actions)])
        count += 1
    return count * env.num_envs / (time.perf_counter() - begun)


def speed(args: argparse.Namespace) -> None:
    """
    Steps per second, dreams and real environments in turns. Pong's world models are not trained: their speed is the same.

    :param args: of the command line
    """
    from sb3_dreamer.envs import AtariVecEnv, make_dreamer_atari_env

    def pong(n: int) -> VecEnv:
        return make_dreamer_atari_env("ALE/Pong-v5", n)

    def pong_threads(n: int) -> VecEnv:
        return AtariVecEnv("ALE/Pong-v5", n)

    def catch(n: int) -> VecEnv:
        return DummyVecEnv([lambda: gym.make(CATCH)] * n)

    small = {name: value for name, value in preset("default_pixels").items() if name != "learning_starts"}
    trained, _ = load(args.logs, CATCH, 0)
    models = {
        "dream of PixelCatch (default_pixels)": (trained, play(trained, catch(1), 200, 0)),
    }
    for name, arguments in (("default_pixels", small), ("paper's size", preset("atari"))):
        model = DreamerV2("CnnPolicy", pong(1), **arguments, device="cpu", seed=0)
        models[f"dream of Pong ({name})"] = model, play(model, pong(1), 100, 0)

    def dream(pair: tuple[DreamerV2, Any]) -> Callable[[int], VecEnv]:
        return lambda n: DreamVecEnv(pair[0], n, pair[1], 15, seed=0)

    makers: dict[str, Callable[[int], VecEnv]] = {name: dream(pair) for name, pair in models.items()}
    makers |= {"Pong": pong, "Pong (AtariVecEnv)": pong_threads, "PixelCatch": catch}
    for batch in BATCHES:
        for name, make in makers.items():
            if batch > 64 and name.startswith("Pong"):
                continue  # a thousand emulators do not fit into the memory of a small machine
            env = make(batch)
            rate = steps_per_second(env, args.seconds)
            env.close()
            result = {"benchmark": "speed", "task": name, "seed": 0, "batch": batch, "steps_per_second": round(rate, 1)}
            result |= {
                "cores": os.cpu_count(),
                "threads": os.environ.get("OMP_NUM_THREADS"),
                "load": round(os.getloadavg()[0], 1),
            }
            record(result | {"command": "OMP_NUM_THREADS=1 python -m benchmarks.dream speed"}, RESULTS, IDENTITY)
            print(result, flush=True)


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"train": train, "horizon": horizon, "transfer": transfer, "speed": speed}
    parser.add_argument("command", choices=commands)
    parser.add_argument("--logs", type=Path, default=Path("logs/dream"), help="folder of the trained models")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of transfer")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement of speed")
    args = parser.parse_args()
    commands[args.command](args)


if __name__ == "__main__":
    main()
