"""
SB3's PPO inside of a dream: DreamerV2 learns a world model from real steps, PPO learns in that model alone, and is then put
into the real environment, which it has never seen.

    python examples/ppo_in_dream.py

PPO has RL Zoo's hyperparameters for CartPole-v1. What it reaches depends on the world model and on the seed: `docs/dream.md`
has three of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecMonitor

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.dream import DreamVecEnv
from sb3_dreamer.envs import ScaleObservation


def make_env(seed: int) -> gym.Env:
    """CartPole in the units in which the preset was found; observations of the dream have them too."""
    env = Monitor(ScaleObservation(gym.make("CartPole-v1"), [1.5, 2.0, 15.0, 2.0]))
    env.reset(seed=seed)
    return env


def dreamer(options: argparse.Namespace) -> DreamerV2:
    """A trained DreamerV2 with its replay buffer, in which dreams begin: from a folder, or made anew and put there."""
    model_file, buffer_file = options.folder / "dreamer.zip", options.folder / "dreamer_buffer.pkl"
    if model_file.exists():
        model = DreamerV2.load(model_file, env=make_env(options.seed))
        model.load_replay_buffer(buffer_file)
        return model
    model = DreamerV2("MlpPolicy", make_env(options.seed), **preset("CartPole-v1"), seed=options.seed)
    model.learn(options.steps)
    model.save(model_file)
    model.save_replay_buffer(buffer_file)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_000, help="real steps, of DreamerV2")
    parser.add_argument("--dream-steps", type=int, default=100_000, help="imagined steps, of PPO")
    parser.add_argument("--dreams", type=int, default=8, help="dreams in one batch")
    parser.add_argument("--horizon", type=int, default=50, help="steps of a dream; errors grow with every one")
    parser.add_argument("--episodes", type=int, default=20, help="of each evaluation, in the real environment")
    parser.add_argument("--folder", type=Path, default=Path("ppo_in_dream"), help="where DreamerV2 is kept")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    world = dreamer(options)
    dreams = VecMonitor(DreamVecEnv(world, n_envs=options.dreams, horizon=options.horizon, seed=options.seed))
    ppo = PPO(
        "MlpPolicy",
        dreams,
        n_steps=32,
        batch_size=32 * options.dreams,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        learning_rate=lambda remaining: 1e-3 * remaining,
        clip_range=lambda remaining: 0.2 * remaining,
        seed=options.seed,
        device="cpu",
    )
    ppo.learn(options.dream_steps)

    real = make_env(options.seed + 1)
    for name, agent in (("DreamerV2", world), ("PPO, trained in the dream alone", ppo)):
        mean, deviation = evaluate_policy(agent, real, n_eval_episodes=options.episodes)
        print(f"{name}: {mean:.1f} +/- {deviation:.1f} over {options.episodes} real episodes")


if __name__ == "__main__":
    main()
