"""
A run that goes on wherever it was stopped: the first call starts it, every other one continues. Press Ctrl-C and try.

    python examples/resume.py
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.envs import ScaleObservation


def start_or_resume(folder: Path, env: gym.Env, seed: int) -> DreamerV2:
    """The model of the newest checkpoint, or a new one."""
    if any(folder.glob("step_*")):
        model = DreamerV2.resume(folder, env)
        kept = "all" if model.num_timesteps <= model.buffer_size else f"the last {model.buffer_size:,}"
        print(f"Going on from {model.num_timesteps:,} steps, {kept} of them remembered")
        return model
    print(f"There is no checkpoint in {folder}: starting")
    return DreamerV2("MlpPolicy", env, **preset("CartPole-v1"), seed=seed, verbose=1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_000, help="environment steps of the whole run")
    parser.add_argument("--save-every", type=int, default=1_000, help="steps between checkpoints")
    parser.add_argument("--folder", type=Path, default=Path("checkpoints"), help="of the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    env = ScaleObservation(gym.make("CartPole-v1"), [1.5, 2.0, 15.0, 2.0])
    model = start_or_resume(options.folder, env, options.seed)
    left = options.steps - model.num_timesteps
    if left > 0:
        checkpoints = ResumableCheckpointCallback(options.save_every, options.folder, verbose=1)
        model.learn(left, callback=checkpoints, reset_num_timesteps=False)
    print(f"{model.num_timesteps:,} steps and {model._n_updates:,} updates")


if __name__ == "__main__":
    main()
