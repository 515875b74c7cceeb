"""
One Atari game with the paper's hyperparameters, beside the official curve:

    python -m benchmarks.atari Boxing --device cuda --minutes 9            # towards 2M frames, everything on
    python -m benchmarks.atari Boxing --steps 1000 --dry-run               # that it runs, on a CPU; proves nothing else

Writes ``atari_GAME.json`` (the score of every finished game against frames, frames per second) and ``atari_GAME.png`` into
``--out``. The networks, losses and the train ratio of one update per 16 agent steps are those of ``preset("atari")``.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from benchmarks.records import provenance
from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.envs import AtariVecEnv

#: Mean of the 8 official seeds at millions of frames: danijar/dreamerv2, scores/atari-dreamerv2.json at 07d906e
OFFICIAL = {
    "Boxing": {1: 37.7, 2: 85.1, 5: 92.8, 10: 86.5},
    "Freeway": {1: 11.6, 2: 30.9, 5: 31.9, 10: 31.9},
    "Pong": {1: -18.3, 2: -8.6, 5: 11.3, 10: 17.1},
}
FRAMES = 4  # per agent step
RATIO = 16  # agent steps per update
SMALL: dict[str, Any] = dict(learning_starts=500, batch_size=8, batch_length=8, buffer_size=10_000)


class Scores(BaseCallback):
    """
    Collects the score of every finished game, and stops after some minutes.

    :param minutes: until the end
    """

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.minutes, self.started = minutes, time.perf_counter()
        self.curve: list[tuple[int, float]] = []
        self.told = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.started

    def _on_step(self) -> bool:
        episodes = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.curve += [(FRAMES * self.num_timesteps, float(score)) for score in episodes]
        if self.seconds > 30 * (self.told + 1):
            self.told += 1
            last = np.mean([score for _, score in self.curve[-20:]]) if self.curve else float("nan")
            rate = FRAMES * self.num_timesteps / self.seconds
            print(f"{FRAMES * self.num_timesteps:,} frames, {rate:.0f} frames/s, last 20 games {last:.1f}", flush=True)
        return self.seconds < 60 * self.minutes


def train(options: argparse.Namespace) -> dict[str, Any]:
    """
    :param options: of the command line
    :return: what is written
    """
    env = VecMonitor(AtariVecEnv(f"ALE/{options.game}-v5", options.envs, seed=options.seed))
    arguments: dict[str, Any] = {**preset("atari"), **(SMALL if options.dry_run else {})}
    arguments |= dict(train_freq=max(1, RATIO // options.envs), gradient_steps=max(1, options.envs // RATIO))
    if not options.dry_run:
        arguments |= dict(buffer_size=min(int(options.steps), arguments["buffer_size"]))
    if options.device != "cpu" and not options.plain:
        arguments |= dict(precision="bfloat16", cuda_graphs=True, overlap=True)
    model = DreamerV2("CnnPolicy", env, device=options.device, seed=options.seed, **arguments)
    scores = Scores(options.minutes)
    model.learn(options.steps, callback=scores, log_interval=None)
    if model.device.type == "cuda":
        th.cuda.synchronize()
    frames = FRAMES * model.num_timesteps
    return {
        "game": options.game,
        "seed": options.seed,
        "dry_run": options.dry_run,
        "device": th.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "engine": {name: getattr(model, name) for name in ("precision", "cuda_graphs", "overlap")},
        "frames": frames,
        "updates": model._n_updates,
        "seconds": round(scores.seconds, 1),
        "frames_per_second": round(frames / scores.seconds, 1),
        "curve": scores.curve,
        **provenance(),
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """
    :param result: of :func:`train`
    :param path: PNG file
    """
    figure = Figure(figsize=(6.0, 3.8), layout="constrained")
    axes = figure.subplots()
    official = OFFICIAL.get(result["game"], {})
    axes.plot(
        list(official), list(official.values()), "s--", color="grey", label="official, mean of 8 seeds (at these points)"
    )
    if result["curve"]:
        frames, scores = np.array(result["curve"]).T
        width = max(1, len(scores) // 40)
        mean = np.convolve(scores, np.ones(width) / width, mode="valid")
        axes.plot(frames / 1e6, scores, ".", alpha=0.25, markersize=3, color="tab:blue")
        axes.plot(
            frames[width - 1 :] / 1e6, mean, color="tab:blue", label=f"ours, seed {result['seed']}, mean of {width} games"
        )
    axes.set(
        xlabel="million frames",
        ylabel="score of a game",
        title=f"{result['game']} on {result['device']}{' (dry run)' if result['dry_run'] else ''}",
    )
    axes.set_xlim(0, max(2.0, 1.05 * result["frames"] / 1e6))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help="such as Boxing")
    parser.add_argument("--steps", type=float, default=5e5, help="agent steps, of 4 frames each")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--envs", type=int, default=8, help="games at once; the train ratio stays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plain", action="store_true", help="float32 without graphs and overlap on a GPU too")
    parser.add_argument("--dry-run", action="store_true", help="small batches and an early start")
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args(arguments)
    result = train(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"atari_{options.game}.json").write_text(json.dumps(result))
    draw(result, options.out / f"atari_{options.game}.png")
    print(f"{result['frames']:,} frames in {result['seconds']:.0f} s, {result['updates']} updates, on {result['device']}")


if __name__ == "__main__":
    main()
