"""
Atari as in the DreamerV2 paper: sticky actions, 64x64 gray frames, whole games, the authors' hyperparameters.

    python examples/atari.py --env ALE/Pong-v5 --steps 1e7

The published curves take 5e7 steps (200 million frames), which is a matter of days on a GPU. To see the loop run on a
CPU, without learning anything:

    python examples/atari.py --small --steps 1000 --max-frames 2000 --episodes 1
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.envs import make_dreamer_atari_env

SMALL = dict(
    buffer_size=10_000,
    learning_starts=200,
    batch_size=4,
    batch_length=8,
    imagination_horizon=5,
    policy_kwargs=dict(
        deterministic_size=32, hidden_size=32, stochastic_size=4, stochastic_classes=4, net_arch=[32], cnn_depth=4
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="ALE/Pong-v5", help="game")
    parser.add_argument("--steps", type=float, default=5e7, help="agent steps, of 4 frames each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all-actions", action="store_true", help="all 18 actions, as in the paper's text")
    parser.add_argument("--max-frames", type=int, default=None, help="frames until a game is cut off (108,000)")
    parser.add_argument("--episodes", type=int, default=5, help="games of the evaluation")
    parser.add_argument("--save", type=Path, default=Path("dreamer_atari"), help="folder for the agent and its checkpoints")
    parser.add_argument("--save-every", type=int, default=100_000, help="agent steps between checkpoints")
    parser.add_argument("--small", action="store_true", help="a tiny network that only shows that everything runs")
    options = parser.parse_args(arguments)

    def make_env(seed: int):
        return make_dreamer_atari_env(
            options.env,
            seed=seed,
            full_action_space=options.all_actions,
            wrapper_kwargs={"max_frames": options.max_frames},
        )

    env = make_env(options.seed)
    print(env.envs[0])  # the protocol
    hyperparameters = {**preset("atari"), **(SMALL if options.small else {})}
    model = DreamerV2("CnnPolicy", env, **hyperparameters, seed=options.seed, verbose=1)
    model.learn(options.steps, callback=CheckpointCallback(options.save_every, str(options.save)), log_interval=1)
    model.save(options.save / "final")

    # As the original evaluates: the most probable action, a sampled latent
    model.policy.evaluation_latent = "sample"
    mean, deviation = evaluate_policy(model, make_env(options.seed + 1), options.episodes)
    print(f"Score over {options.episodes} games of {options.env}: {mean:.1f} +/- {deviation:.1f}")


if __name__ == "__main__":
    main()
