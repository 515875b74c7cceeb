"""
``python -m sb3_dreamer.zoo report --env CartPole-v1``: evaluates a trained agent, draws its learning curve, and films the
dreams of an agent that sees images.

Reads a run as rl_zoo3 writes it: the model, the monitor files of the training envs and ``evaluations.npz``.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_sb3 import EnvironmentName
from rl_zoo3.utils import ALGOS, get_model_path
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.dream.drawing import save_film
from sb3_dreamer.dream.plots import new_figure, prediction_frames
from sb3_dreamer.dream.recording import open_recording
from sb3_dreamer.dream.rollout import open_loop
from sb3_dreamer.dream.zoo_run import ZooRun, find_run
from sb3_dreamer.zoo import ALGO, register
from sb3_dreamer.zoo.algorithms import ALGORITHMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of the film: steps that are played for it, and frames that the model sees before it dreams
FILM_STEPS, FILM_CONTEXT = 500, 5


def frames_per_step(env: VecEnv) -> int:
    """
    Find out what the monitor counts during one step of the agent, since rl_zoo3 puts it inside of ``env_wrapper``.

    :param env: as the run was trained in
    :return: number of frames
    """
    repeats = [name for name in ("action_repeat", "_skip") if env.has_attr(name)]  # our Atari wrapper; FrameSkip of rl_zoo3
    return int(env.get_attr(repeats[0])[0]) if repeats else 1


def film_dream(model: SequenceOffPolicyAlgorithm, run: ZooRun, seed: int) -> str | None:
    """
    Film truth and dream of an agent that sees images, in episodes that are played for it.

    :param model: the agent
    :param run: in which it was trained
    :param seed: of the env
    :return: a line about the film; None for agents that reconstruct no images
    """
    parts, decoded = model.policy.observations.parts, model.policy.world_model.decoder_keys
    keys = [key for key in decoded if parts[key].kind == "image"]
    if not keys:
        return None
    env = run.make_env(1, seed)
    recording = open_recording(model, env, steps=FILM_STEPS, seed=seed)
    env.close()
    if recording.longest <= FILM_CONTEXT:
        return f"no film: episodes of {recording.longest - 1} steps are too short to see {FILM_CONTEXT} frames of"
    loop = open_loop(model, recording, 3, FILM_CONTEXT, keys=keys[:1], seed=0)
    path = run.folder / "dream.gif"
    save_film(prediction_frames(loop, keys[0]), path, fps=6.0)
    return f"{path}: {loop.summary(keys[0])}"


def _draw_training(axes: "Axes", run: Path, frames_per_step: int) -> None:
    """Returns of the training episodes as dots, and their running mean."""
    try:
        episodes = load_results(str(run))
    except LoadMonitorResultsError:
        return
    if len(episodes) == 0:
        return
    steps, returns = episodes.l.cumsum().to_numpy() / frames_per_step, episodes.r.to_numpy()
    window = int(np.clip(len(returns) // 10, 1, 100))
    axes.plot(steps, returns, ".", markersize=4, alpha=0.25, color="tab:blue", label="training episode")
    smooth = np.convolve(returns, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color="tab:blue", linewidth=2, label=f"mean of {window} training episodes")


def _draw_evaluations(axes: "Axes", run: Path) -> None:
    """Mean and standard deviation of every evaluation during the training."""
    file = run / "evaluations.npz"
    if not file.is_file():
        return
    with np.load(file) as evaluations:
        steps, results = evaluations["timesteps"], evaluations["results"]
    label, mean, std = f"evaluation, {results.shape[1]} episodes (mean ± std)", results.mean(axis=1), results.std(axis=1)
    axes.errorbar(steps, mean, yerr=std, fmt="o-", capsize=3, color="tab:orange", label=label)


def _draw(run: Path, title: str, final: np.ndarray, output: Path, frames_per_step: int) -> None:
    """Draw the learning curve and the returns of the trained agent into a PNG file."""
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    _draw_training(axes, run, frames_per_step)
    _draw_evaluations(axes, run)
    label = f"trained agent, {len(final)} episodes: {final.mean():.1f} ± {final.std():.1f}"
    axes.axhline(final.mean(), color="tab:green", linestyle="--", linewidth=1.5, label=label)
    axes.set(title=title, xlabel="env steps", ylabel="episode return")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize="small", frameon=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)


def _parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Evaluate an agent trained with rl_zoo3 and draw its learning curve.")
    parser.add_argument("--algo", choices=sorted(ALGORITHMS), default=ALGO, help="name of the algorithm")
    parser.add_argument("--env", type=EnvironmentName, default="CartPole-v1", help="env id")
    parser.add_argument("-f", "--folder", default="logs", help="log folder of the training")
    parser.add_argument("--exp-id", type=int, default=0, help="number of the run (default: the latest)")
    parser.add_argument("--episodes", type=int, default=20, help="number of evaluation episodes")
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the evaluation envs, far from the training's")
    parser.add_argument("--device", default="auto", help="PyTorch device")
    parser.add_argument("-o", "--output", type=Path, default=None, help="PNG file (default: in the folder of the run)")
    return parser.parse_args()


def main(args: Any = None) -> None:
    """
    Evaluate, draw and film a run.

    :param args: parsed arguments, the command line's by default
    :raises FileNotFoundError: if files of rl_zoo3 are missing
    """
    args = args or _parse_args()
    register()
    _, model_path, log_path = get_model_path(args.exp_id, args.folder, args.algo, args.env)
    run = find_run(Path(log_path))
    if run is None:
        raise FileNotFoundError(f"RL Zoo's args.yml is missing in {log_path}.")
    env = run.make_env(min(args.episodes, 10), args.seed)  # which imports the run's --gym-packages
    model, best, best_path = ALGOS[args.algo].load(model_path, device=args.device), None, run.folder / "best_model.zip"
    final = run.evaluate(model, env, args.episodes)
    if best_path.is_file():
        best = run.evaluate(ALGOS[args.algo].load(best_path, device=args.device), env, args.episodes)
    repeat = frames_per_step(env)
    env.close()

    title, output = f"{type(model).__name__} on {args.env.gym_id}", args.output or run.folder / "learning_curve.png"
    _draw(run.folder, title, final, output, repeat)
    print(f"\n{title}, {args.episodes} evaluation episodes (mean ± std of the return)")
    print(f"  trained agent:   {final.mean():.1f} ± {final.std():.1f}   {model_path}")
    if best is not None:
        print(f"  best checkpoint: {best.mean():.1f} ± {best.std():.1f}   {best_path}")
    print(f"  learning curve:  {output}")
    film = film_dream(model, run, args.seed)  # type: ignore[arg-type]
    if film is not None:
        print(f"  dream and truth: {film}")


if __name__ == "__main__":
    main()
