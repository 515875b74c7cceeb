"""
Callbacks and TensorBoard: evaluation, checkpoints, what the world model predicts, and a figure of one's own.

    python examples/callbacks_tensorboard.py
    tensorboard --logdir runs
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import torch as th
from matplotlib.figure import Figure as Plot
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.logger import Figure
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.callbacks import VideoPredictionCallback
from sb3_dreamer.common.functional import REWARD_TRANSFORMS
from sb3_dreamer.envs import ScaleObservation


class RewardFigure(BaseCallback):
    """
    What the reward head says of remembered steps, against what they paid: a head that knows nothing draws a flat line.

    :param sequences: of the replay buffer
    """

    model: DreamerV2  # type: ignore[assignment]

    def __init__(self, sequences: int = 8):
        super().__init__()
        self.sequences = sequences

    def _on_step(self) -> bool:
        if self.model.replay_buffer.num_sampleable == 0:  # type: ignore[union-attr]
            return True
        batch = self.model.replay_buffer.sample(self.sequences, batch_length=self.model.batch_length)  # type: ignore
        with th.no_grad():
            world_model = self.model.policy.world_model
            states = world_model.loss(batch, self.model.model_objective).states
            predicted = world_model.predict_rewards(states.features)
        paid = REWARD_TRANSFORMS[self.model.reward_transform](batch.rewards)
        plot = Plot(figsize=(4.0, 4.0), layout="constrained")
        axes = plot.subplots()
        axes.plot(paid.flatten().cpu(), predicted.flatten().cpu(), ".", alpha=0.5)
        axes.axline((0.0, 0.0), slope=1.0, color="black", linewidth=0.5)
        axes.set(xlabel="reward (transformed)", ylabel="predicted")
        self.logger.record("world_model/rewards", Figure(plot, close=False), exclude=("stdout", "log", "json", "csv"))
        return True


def make_env(seed: int) -> gym.Env:
    """Pendulum in units of size one."""
    env = Monitor(ScaleObservation(gym.make("Pendulum-v1"), [2.0, 2.0, 0.3]))
    env.reset(seed=seed)
    return env


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=float, default=15_000, help="environment steps to learn from")
    parser.add_argument("--every", type=int, default=2_500, help="steps between evaluations, checkpoints and figures")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--logs", type=Path, default=Path("runs"), help="folder for TensorBoard, checkpoints and the best agent"
    )
    options = parser.parse_args(arguments)

    evaluation = EvalCallback(
        make_env(options.seed + 1),
        n_eval_episodes=options.episodes,
        eval_freq=options.every,
        best_model_save_path=str(options.logs / "best"),
        log_path=str(options.logs / "best"),
    )
    checkpoints = CheckpointCallback(options.every, str(options.logs / "checkpoints"))
    # after five observed steps the model is on its own: lines of truth and prediction (of pictures: films)
    predictions = VideoPredictionCallback(options.every, options.logs / "predictions", horizon=25)
    figures = EveryNTimesteps(options.every, RewardFigure())

    model = DreamerV2(
        "MlpPolicy",
        make_env(options.seed),
        **preset("Pendulum-v1"),
        tensorboard_log=str(options.logs),
        seed=options.seed,
        verbose=1,
    )
    model.learn(options.steps, callback=[evaluation, checkpoints, predictions, figures])
    print(f"Best mean return of an evaluation: {evaluation.best_mean_reward:.1f}")


if __name__ == "__main__":
    main()
