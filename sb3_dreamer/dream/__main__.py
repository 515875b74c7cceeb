"""``python -m sb3_dreamer.dream play|video|inspect|card model.zip``: look into a trained world model."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_dreamer.common.options import check_number, whole_number
from sb3_dreamer.dream.drawing import safe_name, save_film
from sb3_dreamer.dream.env import DreamEnv, idle_action, key_table
from sb3_dreamer.dream.inspection import draw_page, inspect
from sb3_dreamer.dream.model_card import write_card
from sb3_dreamer.dream.plots import prediction_frames
from sb3_dreamer.dream.recording import NO_EXPERIENCE, Recording, open_recording
from sb3_dreamer.dream.rollout import open_loop
from sb3_dreamer.dream.window import WINDOW, check_display
from sb3_dreamer.dream.zoo_run import BUFFER, ZooRun, find_model, find_run, make_plain_env
from sb3_dreamer.dreamer_v2.dreamer_v2 import DreamerV2
from sb3_dreamer.saving.checkpoint import NORMALIZE

#: What ends a command with one line instead of a traceback
PROBLEMS = (ValueError, FileNotFoundError, ImportError, RuntimeError, gym.error.Error)


class Opened(NamedTuple):
    """A model and its experience."""

    model: DreamerV2
    path: Path
    run: ZooRun | None
    recording: Recording


def open_model(args: argparse.Namespace) -> Opened:
    """
    :param args: of the command line
    :return: the model, and experience from the first of: ``--replay-buffer``, ``--env``, the buffer beside the model, the
        environment of the zoo's run
    :raises FileNotFoundError: if there is no model or buffer
    :raises ValueError: if there is no experience
    """
    path = find_model(args.model)
    run = find_run(path)
    model = DreamerV2.load(path, device=args.device)
    env: VecEnv | gym.Env | None = None
    source: Any = args.replay_buffer
    if args.env is not None:
        if source is not None:
            raise ValueError("Either --env or --replay-buffer says where experience comes from, not both.")
        own = run is not None and run.env_id == args.env
        env = run.make_env(seed=args.seed) if own else make_plain_env(args.env)  # type: ignore[union-attr]
        source = env
    elif run is not None:
        env = run.make_env(seed=args.seed) if run.stats_path is not None or (source or run.buffer) is None else None
        source = source or run.buffer or env
    elif source is None and (path.parent / BUFFER).exists():
        source = path.parent / BUFFER
    if source is None:
        raise ValueError(NO_EXPERIENCE.format("there is none beside it") + " Here: --env ID or --replay-buffer FILE.")
    normalize = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    if args.vec_normalize is not None or (normalize is None and model.behind_vec_normalize):
        beside = path.parent if run is None or run.stats_path is None else Path(run.stats_path)
        found = find_statistics(args.vec_normalize or beside / NORMALIZE)
        if env is not None:
            venv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])  # type: ignore[list-item, return-value]
            found.set_venv(venv if normalize is None else normalize.venv)
            source = found if source is env else source
        normalize = found
    recording = open_recording(model, source, normalize, args.steps, args.seed)
    return Opened(model, path, run, recording)


def find_statistics(path: Path) -> VecNormalize:
    """
    :param path: of a file that ``VecNormalize.save`` wrote
    :return: the statistics, without an environment
    :raises FileNotFoundError: if there is none
    :raises ValueError: if it is something else
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"The model was trained behind VecNormalize, but there is no {path}: --vec-normalize FILE names what "
            "VecNormalize.save() has written."
        )
    found = load_from_pkl(path)
    if not isinstance(found, VecNormalize):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a VecNormalize.")
    found.training = False
    return found


def play(args: argparse.Namespace) -> None:
    """
    :param args: of the command line
    :raises RuntimeError: without a display
    """
    check_display()
    opened = open_model(args)
    env = DreamEnv(
        opened.model,
        opened.recording.buffer,
        args.horizon,
        args.context,
        start_at_reset=args.at_reset,
        termination=args.termination,
        vec_normalize=opened.recording.vec_normalize,
        render_mode="rgb_array",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium's, of plots that are not drawn here
        from gymnasium.utils.play import play as play_env
    print(f"Dreams of {opened.path}, each of at most {env.horizon} steps. Escape ends them. Keys:")
    for name, action in key_table(env.action_space).values():
        print(f"  {name:>12}  {action}")
    env.reset(seed=args.seed)
    picture = env.render()
    assert picture is not None
    zoom = max(1.0, WINDOW / picture.shape[0])
    play_env(env, fps=args.fps, zoom=zoom, seed=args.seed, noop=idle_action(env.action_space), wait_on_player=args.wait)


def video(args: argparse.Namespace) -> None:
    """
    :param args: of the command line
    """
    opened = open_model(args)
    options = args.sequences, args.context, args.horizon, args.keys
    loop = open_loop(opened.model, opened.recording, *options, seed=args.seed)
    for key in loop.truth:
        target = args.output or opened.path.parent / "dream.gif"
        if len(loop.truth) > 1:
            target = target.with_name(f"{target.stem}_{safe_name(key)}{target.suffix}")
        save_film(prediction_frames(loop, key), target, args.fps)
        error = loop.error(key)
        better = int((error.model < error.copy_last).sum())
        print(
            f"{target}: {loop.context} frames seen, {len(error.model)} dreamt; mean error {error.model.mean():.4g}, of a copy "
            f"of the last frame {error.copy_last.mean():.4g} (the model is better in {better} of {len(error.model)} steps)"
        )


def inspect_model(args: argparse.Namespace) -> None:
    """
    :param args: of the command line
    """
    opened = open_model(args)
    found = inspect(opened.model, opened.recording, args.context, args.horizon, args.sequences, args.seed)
    target = args.output or opened.path.parent / "inspection.png"
    name = opened.path.stem if opened.run is None else opened.run.env_id
    trained = f"{opened.model.num_timesteps:,} steps, {opened.model._n_updates:,} updates"
    draw_page(found, target, f"World model of {name} after {trained}; looked at {found.n_steps:,} recorded steps")
    print(f"parameters: {', '.join(f'{part} {count:,}' for part, count in found.parameters.items())}")
    print(f"KL(posterior, prior): {found.kl.sum():.3g} nats, of single variables {found.kl.min():.3g} to {found.kl.max():.3g}")
    if found.perplexity is not None and found.usage is not None:
        print(f"codes in use: {found.perplexity.mean():.1f} of {found.usage.shape[1]} per variable")
    print(f"rewards: error {found.rewards.error:.3g}, of a constant {found.rewards.spread:.3g} (after reward_transform)")
    for key in found.loop.truth:
        error = found.loop.error(key)
        print(f"{key}: error after 1 step {error.model[0]:.3g}, after {len(error.model)} {error.model[-1]:.3g}")
    print(target)


def card(args: argparse.Namespace) -> None:
    """
    :param args: of the command line
    :raises ValueError: if RL Zoo did not train the model
    """
    path = find_model(args.model)
    run = find_run(path)
    if run is None:
        raise ValueError(f"A card needs a run of RL Zoo (args.yml, config.yml), but there is none beside {path}.")
    print(write_card(DreamerV2.load(path, device=args.device), run, path, args.episodes, args.seed))


def positive(text: str) -> int:
    """
    :param text: of the command line
    :return: a whole number above 0
    :raises ValueError: for anything else
    """
    return whole_number("the number", int(text), 1)


def fps(text: str) -> float:
    """
    :param text: of the command line
    :return: a number above 0
    :raises ValueError: for anything else
    """
    check_number("the number", float(text), 1e-3)
    return float(text)


def parser() -> argparse.ArgumentParser:
    """:return: of the command line"""
    whole = argparse.ArgumentParser("python -m sb3_dreamer.dream", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)
    each = {"play": play, "video": video, "inspect": inspect_model, "card": card}
    helps = {
        "play": "play the dream with the keyboard",
        "video": "a GIF (or MP4) of truth, model and error",
        "inspect": "one page: parameters, KL, codes, rewards, error against horizon",
        "card": "a README in the format of the Hugging Face Hub",
    }
    for name, function in each.items():
        command = commands.add_parser(name, help=helps[name], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(function=function)
        command.add_argument("model", type=Path, help="zip file of a model, or the folder of a run of RL Zoo")
        command.add_argument("--device", default="auto", help="PyTorch device")
        command.add_argument("--seed", type=int, default=1_000_000 if name == "card" else 0, help="of everything random")
        if name == "card":
            command.add_argument("--episodes", type=positive, default=20, help="to evaluate")
            continue
        command.add_argument("--env", help="id of an environment in which the agent plays first")
        command.add_argument("--replay-buffer", type=Path, help="a saved buffer (default: replay_buffer.pkl beside the model)")
        command.add_argument("--vec-normalize", type=Path, help=f"saved statistics (default: {NORMALIZE} beside the model)")
        command.add_argument("--steps", type=positive, default=1000, help="to play in the environment")
        command.add_argument("--context", type=int, default=5, help="frames that the model sees")
        command.add_argument("--horizon", type=int, help="steps that it dreams (default: as long as its training's sequences)")
        if name == "play":
            command.add_argument("--at-reset", action="store_true", help="begin where episodes begin")
            command.add_argument("--termination", default="threshold", help="threshold, sample or never")
            command.add_argument("--fps", type=positive, default=8, help="steps per second")
            command.add_argument("--wait", action="store_true", help="wait for a key at every step")
            continue
        command.add_argument("--sequences", type=int, default=64 if name == "inspect" else 3, help="to look at")
        command.add_argument("-o", "--output", type=Path, help="file to write (default: beside the model)")
        if name == "video":
            command.add_argument("--keys", nargs="+", help="of a Dict observation (default: all that are reconstructed)")
            command.add_argument("--fps", type=fps, default=6.0, help="frames per second")
    return whole


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: of the command line; None takes those of the process
    """
    args = parser().parse_args(arguments)
    try:
        args.function(args)
    except PROBLEMS as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
