"""
Quick start: DreamerV2 learns to balance a pole, is evaluated, saved and loaded again.

    python examples/quick_start.py
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.envs import ScaleObservation


def make_pole() -> gym.Env:
    """CartPole with position, speed, angle and angular velocity of sizes near one, in which the preset was found."""
    return ScaleObservation(gym.make("CartPole-v1"), [1.5, 2.0, 15.0, 2.0])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=8_000, help="environment steps to learn from")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", default="dreamer_cartpole", help="where the trained agent is saved")
    options = parser.parse_args(arguments)

    model = DreamerV2("MlpPolicy", make_pole(), **preset("CartPole-v1"), seed=options.seed, verbose=1)
    model.learn(options.steps)

    model.save(options.save)
    model = DreamerV2.load(options.save)
    env = make_vec_env(make_pole, seed=options.seed + 1)
    mean, deviation = evaluate_policy(model, env, n_eval_episodes=options.episodes)
    print(f"Return over {options.episodes} episodes: {mean:.1f} +/- {deviation:.1f} (500 is the best possible)")

    # A world model needs to remember: hand its state on from step to step, as with RecurrentPPO
    pole = make_pole()
    observation, _ = pole.reset(seed=options.seed)
    state, done = None, False
    for _ in range(500):
        action, state = model.predict(observation, state=state, episode_start=np.array([done]), deterministic=True)
        observation, _, terminated, truncated, _ = pole.step(action)
        done = terminated or truncated
        if done:
            observation, _ = pole.reset()


if __name__ == "__main__":
    main()
