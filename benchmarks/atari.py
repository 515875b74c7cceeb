"""
One Atari game with the paper's hyperparameters, beside the official curve:

    python -m benchmarks.atari Boxing --device cuda --minutes 9            # towards 2M frames, everything on
    python -m benchmarks.atari Boxing --steps 1000 --dry-run               # that it runs, on a CPU; proves nothing else

Writes ``atari_GAME.json`` (the score of every finished game against frames, an evaluation, frames per second), the training
log ``atari_GAME.csv`` and ``atari_GAME.png`` into ``--out``. What lies in ``benchmarks/results/gpu`` gets into
``docs/results.md`` by ``python -m benchmarks.learning report``. Networks, losses and the train ratio of one update per
16 agent steps are those of ``preset("atari")``.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import CSVOutputFormat, Logger
from stable_baselines3.common.vec_env import VecMonitor

from benchmarks.records import FOLDER, provenance
from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.common.precision import PRECISIONS
from sb3_dreamer.envs import AtariVecEnv

#: Mean of the 8 official seeds over the million frames that ends there (``bin_scores`` of its plots): danijar/dreamerv2,
#: scores/atari-dreamerv2.json at 07d906e. They are of 10 games per million frames: evaluations, with the most probable actions
OFFICIAL = {
    "Boxing": {1: 37.7, 2: 85.1, 5: 92.8, 10: 86.5},
    "Freeway": {1: 11.6, 2: 30.9, 5: 31.9, 10: 31.9},
    "Pong": {1: -18.3, 2: -8.6, 5: 11.3, 10: 17.1},
}
#: Learned within 2 million frames by the original, so they come first; those without a run stand in the table as such
FIRST = ("Boxing", "Freeway")
FRAMES = 4  # per agent step
RATIO = 16  # agent steps per update
SMALL: dict[str, Any] = dict(learning_starts=500, batch_size=8, batch_length=8, buffer_size=10_000)
REPORT = 30.0  # seconds between two reports
BIN = 50_000  # frames of which the mean score is drawn


class Scores(BaseCallback):
    """
    Collects the score of every finished game, and stops after some minutes.

    :param minutes: until the end
    :param report: called now and then, in case that the run is ended from outside
    """

    def __init__(self, minutes: float, report: Callable[[DreamerV2, "Scores"], object]) -> None:
        super().__init__()
        self.minutes, self.report, self.started = minutes, report, time.perf_counter()
        self.curve: list[tuple[int, float]] = []
        self.told = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.started

    def _on_step(self) -> bool:
        episodes = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.curve += [(FRAMES * self.num_timesteps, float(score)) for score in episodes]
        if self.seconds > REPORT * (self.told + 1):
            self.told += 1
            assert isinstance(self.model, DreamerV2)
            self.report(self.model, self)
            last = np.mean([score for _, score in self.curve[-20:]]) if self.curve else float("nan")
            rate = FRAMES * self.num_timesteps / self.seconds
            print(f"{FRAMES * self.num_timesteps:,} frames, {rate:.0f} frames/s, last 20 games {last:.1f}", flush=True)
        return self.seconds < 60 * self.minutes


def make_model(options: argparse.Namespace) -> DreamerV2:
    """
    :param options: of the command line
    :return: the paper's agent on a game
    """
    env = VecMonitor(AtariVecEnv(f"ALE/{options.game}-v5", options.envs, seed=options.seed))
    arguments: dict[str, Any] = {**preset("atari"), **(SMALL if options.dry_run else {})}
    arguments |= dict(train_freq=max(1, RATIO // options.envs), gradient_steps=max(1, options.envs // RATIO))
    if not options.dry_run:
        arguments |= dict(buffer_size=min(int(options.steps), arguments["buffer_size"]))
    fast = options.device != "cpu" and not options.plain
    arguments |= dict(precision=options.precision or ("bfloat16" if fast else "float32"), cuda_graphs=fast, overlap=fast)
    th.set_float32_matmul_precision("high" if fast else "highest")
    return DreamerV2("CnnPolicy", env, device=options.device, seed=options.seed, **arguments)


def summary(options: argparse.Namespace, model: DreamerV2, scores: Scores) -> dict[str, Any]:
    """
    :param options: of the command line
    :param model: trained so far
    :param scores: so far
    :return: everything that is known of the run
    """
    frames, seconds = FRAMES * model.num_timesteps, scores.seconds
    return {
        "game": options.game,
        "seed": options.seed,
        "dry_run": options.dry_run,
        "device": th.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "engine": {name: getattr(model, name) for name in ("precision", "cuda_graphs", "overlap")}
        | {"float32_products": th.get_float32_matmul_precision()},
        "envs": options.envs,
        "frames": frames,
        "updates": model._n_updates,
        "seconds": round(seconds, 1),
        "frames_per_second": round(frames / seconds, 1),
        "curve": scores.curve,
        **provenance(),
    }


def evaluate(options: argparse.Namespace, model: DreamerV2) -> list[float]:
    """
    :param options: of the command line
    :param model: trained
    :return: scores of games played to their end as the original does, with the actor's modes and sampled latents; none of
        their frames is trained on
    """
    model.policy.evaluation_latent = "sample"
    env = VecMonitor(AtariVecEnv(f"ALE/{options.game}-v5", min(options.envs, options.games), seed=options.seed + 1000))
    returns, _ = evaluate_policy(model, env, options.games, return_episode_rewards=True)
    env.close()
    return [float(score) for score in returns]


def train(options: argparse.Namespace) -> dict[str, Any]:
    """
    :param options: of the command line
    :return: what is written
    """
    model, path = make_model(options), options.out / f"atari_{options.game}"

    def save(result: dict[str, Any]) -> None:
        path.with_suffix(".json").write_text(json.dumps(result))

    scores = Scores(options.minutes, lambda model, scores: save(summary(options, model, scores)))
    model.set_logger(Logger(None, [CSVOutputFormat(str(path.with_suffix(".csv")))]))
    model.learn(options.steps, callback=scores)
    if model.device.type == "cuda":
        th.cuda.synchronize()
    result = summary(options, model, scores)
    save(result)
    if options.games:
        result |= {"evaluation": evaluate(options, model), "evaluation_latent": "sample"}
        save(result)
    return result


def binned(curve: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """
    :param curve: frames and scores of finished games
    :return: mean frames and mean scores of the games that ended within the same ``BIN`` frames
    """
    frames, scores = np.array(curve, dtype=float).reshape(-1, 2).T
    bins = [np.flatnonzero(frames // BIN == number) for number in np.unique(frames // BIN)]
    return np.array([frames[games].mean() for games in bins]), np.array([scores[games].mean() for games in bins])


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """
    One panel per run: every game, their means, the evaluation at the end and the official curve.

    :param results: of :func:`train`
    :param path: PNG file
    """
    figure = Figure(figsize=(6.0 * len(results), 3.8), layout="constrained")
    for axes, result in zip(np.atleast_1d(figure.subplots(1, len(results))), results, strict=True):
        official = OFFICIAL.get(result["game"], {})
        middles = [millions - 0.5 for millions in official]
        axes.plot(middles, list(official.values()), "s--", color="gray", label="official, mean of a million frames, 8 seeds")
        if result["curve"]:
            frames, scores = np.array(result["curve"]).T
            axes.plot(frames / 1e6, scores, ".", alpha=0.25, markersize=3, color="tab:blue", label="games in training")
            frames, scores = binned(result["curve"])
            label = f"mean of games within {BIN:,} frames, seed {result['seed']}"
            axes.plot(frames / 1e6, scores, color="tab:blue", label=label)
        if result.get("evaluation"):
            end, best = result["frames"] / 1e6, float(np.mean(result["evaluation"]))
            axes.plot([end], [best], "*", markersize=11, color="tab:red", label="afterwards, with the best actions")
        axes.set(
            xlabel="million frames",
            ylabel="score of a game",
            title=f"{result['game']} on {result['device']}{' (dry run)' if result['dry_run'] else ''}",
        )
        axes.set_xlim(0, max(2.0, 1.05 * result["frames"] / 1e6))
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def table(results: Sequence[dict[str, Any]]) -> str:
    """
    :param results: of :func:`train`
    :return: Markdown, with a row for each of ``FIRST`` that is missing
    """
    titles = ("game", "GPU", "frames", "minutes", "frames/s", "games within 1M frames", "last 20 games", "best actions")
    titles += ("official, 0 to 1M", "1M to 2M")
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for result in results:
        scores = [score for _, score in result["curve"]]
        first = [score for frames, score in result["curve"] if frames <= 1_000_000]
        groups = first, scores[-20:], result.get("evaluation")
        means = " | ".join(f"{np.mean(games):.1f}" if games else "" for games in groups)
        speed = f"{result['frames']:,} | {result['seconds'] / 60:.1f} | {result['frames_per_second']:,.0f}"
        official = " | ".join(str(OFFICIAL.get(result["game"], {}).get(millions, "")) for millions in (1, 2))
        rows.append(f"| {result['game']}, seed {result['seed']} | {result['device']} | {speed} | {means} | {official} |")
    for game in sorted(set(FIRST) - {result["game"] for result in results}):
        rows.append(f"| {game} |{' not yet measured |' + ' |' * 6} {OFFICIAL[game][1]} | {OFFICIAL[game][2]} |")
    return "\n".join(rows)


def committed() -> list[dict[str, Any]]:
    """
    :return: results of the runs in ``benchmarks/results/gpu``
    """
    return [json.loads(path.read_text()) for path in sorted((FOLDER / "gpu").glob("atari_*.json"))]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("game", help="such as Boxing")
    parser.add_argument("--steps", type=float, default=5e5, help="agent steps, of 4 frames each")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many")
    parser.add_argument("--envs", type=int, default=8, help="games at once; the train ratio stays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--games", type=int, default=16, help="of the evaluation at the end, 0 for none")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="of updates; default: bfloat16 on a GPU")
    parser.add_argument("--plain", action="store_true", help="on a GPU too: no graphs, no overlap, float32 by default")
    parser.add_argument("--dry-run", action="store_true", help="small batches and an early start")
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    result = train(options)
    draw([result], options.out / f"atari_{options.game}.png")
    if "evaluation" in result:
        print(f"{len(result['evaluation'])} games with the best actions: {np.mean(result['evaluation']):.1f}")
    print(f"{result['frames']:,} frames in {result['seconds']:.0f} s, {result['updates']} updates, on {result['device']}")


if __name__ == "__main__":
    main()
