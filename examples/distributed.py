"""
One agent trained by several processes, on one machine or on many, that goes on after a crash.

    torchrun --nproc-per-node 2 --max-restarts 3 examples/distributed.py
    python examples/distributed.py                                          the same in one process

Every rank runs this script with environments of its own. torchrun starts all of them anew when one has died; they find the
newest checkpoint and go on. The number of ranks may differ from start to start.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.saving.checkpoint import checkpoints


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps of all ranks together")
    parser.add_argument("--n-envs", type=int, default=1, help="environments of every rank")
    parser.add_argument("--save-every", type=int, default=2_000, help="steps between two checkpoints")
    parser.add_argument("--folder", default="dreamer_distributed", help="of checkpoints and agents, seen by all ranks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = Path(options.folder)

    env = make_vec_env("CartPole-v1", n_envs=options.n_envs)
    if checkpoints(folder / "checkpoints"):
        model = DreamerV2.resume(folder / "checkpoints", env)
        if model.verbose:
            print(f"Going on from step {model.num_timesteps}")
    else:
        model = DreamerV2("MlpPolicy", env, **(preset("default") | dict(batch_size=8)), seed=options.seed, verbose=1)

    # Rank 0 runs the callbacks; the checkpoint's has a part on every rank
    evaluation = EvalCallback(make_vec_env("CartPole-v1", 1), best_model_save_path=str(folder), eval_freq=2_000)
    saving = ResumableCheckpointCallback(options.save_every, folder / "checkpoints")
    model.learn(options.steps - model.num_timesteps, callback=[evaluation, saving], reset_num_timesteps=False)
    model.save(folder / "final")


if __name__ == "__main__":
    main()
