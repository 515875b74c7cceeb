"""
Hyperparameters by Optuna, through rl_zoo3's own ``-optimize``; the winner is printed as constructor arguments.

    python examples/optuna_zoo.py --env CartPole-v1 --trials 20 --steps 8000

Calling it again adds trials to the study. Rates, discount, entropy, KL scale, train ratio, batch, horizon and one of four
network sizes are drawn (``sb3_dreamer.zoo.hyperparams_opt``).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from pprint import pprint

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from sb3_dreamer.zoo import register
from sb3_dreamer.zoo.hyperparams_opt import convert_dreamer_params


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8_000, help="environment steps of each trial")
    parser.add_argument("--evaluations", type=int, default=4, help="of each trial; bad ones are stopped after one of them")
    parser.add_argument("--episodes", type=int, default=5, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler; trials have no seed, so that luck does not win")
    parser.add_argument("--folder", type=Path, default=Path("tuning"), help="for the study and the logs of rl_zoo3")
    options = parser.parse_args(arguments)

    study_file, name = str(options.folder / "study.log"), f"dreamer-{options.env}"
    zoo_arguments = {
        "--algo": "dreamer",
        "--env": options.env,
        "--n-trials": options.trials,
        "--n-timesteps": options.steps,
        "--n-evaluations": options.evaluations,
        "--eval-episodes": options.episodes,
        "--sampler": "tpe",
        "--pruner": "median",
        "--seed": options.seed,
        "--storage": study_file,
        "--study-name": name,
        "--log-folder": options.folder,
    }
    register()  # not needed where rl_zoo3 knows `dreamer` by itself, i.e. after an ordinary installation
    from rl_zoo3.train import train

    command_line = sys.argv
    try:
        sys.argv = ["train", "-optimize", "--no-optim-plots", *(str(x) for pair in zoo_arguments.items() for x in pair)]
        train()
    finally:
        sys.argv = command_line

    study = optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(study_file)))
    print(f"Best of {len(study.trials)} trials: number {study.best_trial.number}, mean return {study.best_value:.1f}")
    pprint(convert_dreamer_params(study.best_params))


if __name__ == "__main__":
    main()
