"""
``python -m sb3_dreamer.zoo report --env CartPole-v1``: evaluates a trained agent, draws its learning curve, and films the
dreams of an agent that sees pictures.

Reads a run as rl_zoo3 writes it: the model, the monitor files of the training envs and ``evaluations.npz``.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_model_path
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.common.observations import ImagePart
from sb3_dreamer.dream.drawing import save_film
from sb3_dreamer.dream.plots import prediction_frames
from sb3_dreamer.dream.recording import open_recording
from sb3_dreamer.dream.rollout import open_loop
from sb3_dreamer.dream.zoo_run import find_run
from sb3_dreamer.dreamer_v2.dreamer_v2 import DreamerV2
from sb3_dreamer.zoo import ALGO, register

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_EVAL_ENVS = 10
#: Of the film: steps that are played for it, and frames that the model sees before it dreams
FILM_STEPS, FILM_CONTEXT = 500, 5


def evaluate(model_path: Path, env: VecEnv, episodes: int, deterministic: bool, device: str) -> np.ndarray:
    """
    :param model_path: zip file of the agent
    :param env: env to play in
    :param episodes: number of episodes
    :param deterministic: take the most probable action
    :param device: PyTorch device
    :return: return of each episode
    """
    model = ALGOS[ALGO].load(model_path, device=device)
    returns, _ = evaluate_policy(
        model, env, n_eval_episodes=episodes, deterministic=deterministic, return_episode_rewards=True  # type: ignore[arg-type]
    )
    return np.array(returns)


def make_env(run: Path, n_envs: int, seed: int) -> VecEnv:
    """
    :param run: folder of the run
    :param n_envs: number of copies
    :param seed: seed of the first copy
    :return: the env as the run was trained in, wrappers and arguments included
    :raises FileNotFoundError: if the zoo's files are missing
    """
    found = find_run(run)
    if found is None:
        raise FileNotFoundError(f"RL Zoo's args.yml is missing in {run}.")
    return found.make_env(n_envs, seed)


def frames_per_step(env: VecEnv) -> int:
    """
    :param env: as the run was trained in
    :return: what the monitor counts during one step of the agent: rl_zoo3 puts it inside of ``env_wrapper``
    """
    repeats = [name for name in ("action_repeat", "_skip") if env.has_attr(name)]  # our Atari wrapper; FrameSkip of rl_zoo3
    return int(env.get_attr(repeats[0])[0]) if repeats else 1


def film_dream(model_path: Path, run: Path, seed: int, device: str) -> str | None:
    """
    A film of dream against truth for agents that see pictures, in episodes that are played for it.

    :param model_path: zip file of the agent
    :param run: folder of the run
    :param seed: of the env
    :param device: PyTorch device
    :return: what to say about it; None for agents that reconstruct no pictures
    """
    model = DreamerV2.load(model_path, device=device)
    parts, decoded = model.policy.observations.parts, model.policy.world_model.decoder_keys
    keys = [key for key in decoded if isinstance(parts[key], ImagePart)]
    if not keys:
        return None
    env = make_env(run, 1, seed)
    recording = open_recording(model, env, steps=FILM_STEPS, seed=seed)
    env.close()
    if recording.longest <= FILM_CONTEXT:
        return f"no film: episodes of {recording.longest - 1} steps are too short to see {FILM_CONTEXT} frames of"
    loop = open_loop(model, recording, 3, FILM_CONTEXT, keys=keys[:1], seed=0)
    path = run / "dream.gif"
    save_film(prediction_frames(loop, keys[0]), path, fps=6.0)
    error = loop.error(keys[0])
    return (
        f"{path} ({FILM_CONTEXT} frames seen, {len(error.model)} dreamt; error {error.model.mean():.4f}, "
        f"of a copy of the last frame {error.copy_last.mean():.4f})"
    )


def draw_training(axes: "Axes", run: Path, frames_per_step: int) -> None:
    """
    Returns of the training episodes as dots, and their running mean.

    :param axes: where to draw
    :param run: folder of the run
    :param frames_per_step: what the monitor counts during one step of the agent
    """
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


def draw_evaluations(axes: "Axes", run: Path) -> None:
    """
    Mean and standard deviation of every evaluation in mid-training.

    :param axes: where to draw
    :param run: folder of the run
    """
    file = run / "evaluations.npz"
    if not file.is_file():
        return
    with np.load(file) as evaluations:
        steps, results = evaluations["timesteps"], evaluations["results"]
    axes.errorbar(
        steps,
        results.mean(axis=1),
        yerr=results.std(axis=1),
        fmt="o-",
        capsize=3,
        color="tab:orange",
        label=f"evaluation, {results.shape[1]} episodes (mean ± std)",
    )


def draw(run: Path, env_id: str, final: np.ndarray, output: Path, frames_per_step: int = 1) -> None:
    """
    Draw the learning curve into a PNG file.

    :param run: folder of the run
    :param env_id: for the title
    :param final: returns of the trained agent
    :param output: file to write
    :param frames_per_step: what the monitor counts during one step of the agent
    """
    # not pyplot: the backend of the caller stays as it is, and no display is needed
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_training(axes, run, frames_per_step)
    draw_evaluations(axes, run)
    label = f"trained agent, {len(final)} episodes: {final.mean():.1f} ± {final.std():.1f}"
    axes.axhline(final.mean(), color="tab:green", linestyle="--", linewidth=1.5, label=label)
    axes.set_title(f"DreamerV2 on {env_id}")
    axes.set_xlabel("env steps")
    axes.set_ylabel("episode return")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize="small", frameon=True)
    figure.savefig(output, dpi=150)


def parse_args() -> argparse.Namespace:
    """:return: the arguments of the command line"""
    parser = argparse.ArgumentParser(description="Evaluate an agent trained with rl_zoo3 and draw its learning curve.")
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
    :param args: parsed arguments, the command line's by default
    """
    args = args or parse_args()
    register()
    env_id = args.env.gym_id
    _, model_path, log_path = get_model_path(args.exp_id, args.folder, ALGO, args.env)
    run = Path(log_path)
    env = make_env(run, min(args.episodes, MAX_EVAL_ENVS), args.seed)  # which imports the run's --gym-packages
    deterministic = not (ExperimentManager.is_atari(env_id) or ExperimentManager.is_minigrid(env_id))  # as in rl_zoo3
    final = evaluate(Path(model_path), env, args.episodes, deterministic, args.device)
    best_path = run / "best_model.zip"
    best = evaluate(best_path, env, args.episodes, deterministic, args.device) if best_path.is_file() else None
    repeat = frames_per_step(env)
    env.close()

    output = args.output or run / "learning_curve.png"
    os.makedirs(output.parent, exist_ok=True)
    draw(run, env_id, final, output, repeat)
    print(f"\nDreamerV2 on {env_id}, {args.episodes} evaluation episodes (mean ± std of the return)")
    print(f"  trained agent:   {final.mean():.1f} ± {final.std():.1f}   {model_path}")
    if best is not None:
        print(f"  best checkpoint: {best.mean():.1f} ± {best.std():.1f}   {best_path}")
    print(f"  learning curve:  {output}")
    film = film_dream(Path(model_path), run, args.seed, args.device)
    if film is not None:
        print(f"  dream and truth: {film}")


if __name__ == "__main__":
    main()
