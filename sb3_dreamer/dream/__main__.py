"""``python -m sb3_dreamer.dream play|video|inspect|card model.zip``: watch, play and examine a trained world model."""

import argparse
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

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
from sb3_dreamer.dream.zoo_run import BUFFER, ZooRun, find_model, find_run, load_model, make_plain_env
from sb3_dreamer.dreamer_v2.dreamer_v2 import DreamerV2
from sb3_dreamer.dreamer_v3.dreamer_v3 import DreamerV3
from sb3_dreamer.saving.checkpoint import NORMALIZE

#: Errors that end a command with one line instead of a traceback
PROBLEMS = (ValueError, FileNotFoundError, ImportError, RuntimeError, gym.error.Error)


class Opened(NamedTuple):
    """A model and its experience, as the command line names them."""

    model: DreamerV2 | DreamerV3
    path: Path
    run: ZooRun | None
    recording: Recording


def _open_model(args: argparse.Namespace) -> Opened:
    """
    Open a model with experience from the first of ``--replay-buffer``, ``--env``, the buffer beside the model and the
    environment of RL Zoo's run.
    """
    path = find_model(args.model)
    run = find_run(path)
    model = load_model(path, args.device)
    env, buffer = _find_experience(args, path, run)
    statistics = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    if args.vec_normalize is not None or (statistics is None and model.behind_vec_normalize):
        beside = Path(getattr(run, "stats_path", None) or path.parent)
        statistics = _load_statistics(args.vec_normalize or beside / NORMALIZE, env)
        env = None if env is None else statistics
    recording = open_recording(model, buffer or env, statistics, args.steps, args.seed)
    return Opened(model, path, run, recording)


def _find_experience(args: argparse.Namespace, path: Path, run: ZooRun | None) -> tuple[VecEnv | gym.Env | None, Path | None]:
    """The environment, if experience or statistics are needed from it, and the file of the buffer, if there is one."""
    if args.env is not None and args.replay_buffer is not None:
        raise ValueError("Either --env or --replay-buffer says where experience comes from, not both.")
    if args.env is not None:
        return _make_env(args, run), None
    buffer, beside = args.replay_buffer, path.parent / BUFFER
    if buffer is None and beside.exists():
        buffer = beside
    if run is not None and (run.stats_path is not None or buffer is None):
        return run.make_env(seed=args.seed), buffer
    if buffer is None:
        raise ValueError(NO_EXPERIENCE.format("there is none beside it") + " Here: --env ID or --replay-buffer FILE.")
    return None, buffer


def _make_env(args: argparse.Namespace, run: ZooRun | None) -> VecEnv | gym.Env:
    if run is not None and run.env_id == args.env:
        return run.make_env(seed=args.seed)
    return make_plain_env(args.env)


def _load_statistics(path: Path, env: VecEnv | gym.Env | None) -> VecNormalize:
    """Read what ``VecNormalize.save`` wrote, and put it around an environment in the place of its own statistics."""
    if not path.is_file():
        raise FileNotFoundError(
            f"The model was trained behind VecNormalize, but there is no {path}: --vec-normalize FILE names what "
            "VecNormalize.save() has written."
        )
    found = load_from_pkl(path)
    if not isinstance(found, VecNormalize):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a VecNormalize.")
    found.training = False
    if env is not None:
        venv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        own = unwrap_vec_normalize(venv)
        found.set_venv(venv if own is None else own.venv)
    return found


def _play(args: argparse.Namespace) -> None:
    """Play dreams with the keyboard."""
    check_display()
    opened = _open_model(args)
    env = DreamEnv(
        opened.model,
        opened.recording.buffer,
        horizon=args.horizon,
        context=args.context,
        start_at_reset=args.at_reset,
        termination=args.termination,
        vec_normalize=opened.recording.vec_normalize,
        render_mode="rgb_array",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gymnasium warns of missing plot libraries, which are not needed here
        from gymnasium.utils.play import play as play_env
    print(f"Dreams of {opened.path}, each of at most {env.horizon} steps. Escape ends them. Keys:")
    for name, action in key_table(env.action_space).values():
        print(f"  {name:>12}  {action}")
    env.reset(seed=args.seed)
    image = env.render()
    assert image is not None
    zoom = max(1.0, WINDOW / image.shape[0])
    play_env(env, fps=args.fps, zoom=zoom, seed=args.seed, noop=idle_action(env.action_space), wait_on_player=args.wait)


def _video(args: argparse.Namespace) -> None:
    """Film truth, model and error."""
    opened = _open_model(args)
    options = args.sequences, args.context, args.horizon, args.keys
    loop = open_loop(opened.model, opened.recording, *options, seed=args.seed)
    for key in loop.truth:
        target = args.output or opened.path.parent / "dream.gif"
        if len(loop.truth) > 1:
            target = target.with_name(f"{target.stem}_{safe_name(key)}{target.suffix}")
        save_film(prediction_frames(loop, key), target, args.fps)
        print(f"{target}: {loop.summary(key)}")


def _inspect(args: argparse.Namespace) -> None:
    """Print the findings about a world model, and draw them on one page."""
    opened = _open_model(args)
    found = inspect(opened.model, opened.recording, args.context, args.horizon, args.sequences, args.seed)
    target = args.output or opened.path.parent / "inspection.png"
    name = opened.path.stem if opened.run is None else opened.run.env_id
    trained = f"{opened.model.num_timesteps:,} steps, {opened.model._n_updates:,} updates"
    draw_page(found, target, f"World model of {name} after {trained}, on {found.n_steps:,} recorded steps")
    print(f"parameters: {', '.join(f'{part} {count:,}' for part, count in found.parameters.items())}")
    print(f"KL(posterior, prior): {found.kl.sum():.3g} nats, of single variables {found.kl.min():.3g} to {found.kl.max():.3g}")
    if found.perplexity is not None and found.usage is not None:
        print(f"codes in use: {found.perplexity.mean():.1f} of {found.usage.shape[1]} per variable")
    print(f"rewards: error {found.rewards.error:.3g}, of a constant {found.rewards.spread:.3g} (after reward_transform)")
    for key in found.loop.truth:
        error = found.loop.error(key)
        print(f"{key}: error after 1 step {error.model[0]:.3g}, after {len(error.model)} {error.model[-1]:.3g}")
    print(target)


def _card(args: argparse.Namespace) -> None:
    """Write the card of a model that RL Zoo has trained."""
    path = find_model(args.model)
    run = find_run(path)
    if run is None:
        raise ValueError(f"A card needs a run of RL Zoo (args.yml, config.yml), but there is none beside {path}.")
    print(write_card(load_model(path, args.device), run, path, args.episodes, args.seed))


def _positive(text: str) -> int:
    return whole_number("the number", int(text), 1)


def _positive_float(text: str) -> float:
    check_number("the number", float(text), 1e-3)
    return float(text)


def _parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("python -m sb3_dreamer.dream", description=__doc__)
    commands = whole.add_subparsers(dest="command", required=True)
    for name, (function, text) in {
        "play": (_play, "play the dream with the keyboard"),
        "video": (_video, "a GIF (or MP4) of truth, model and error"),
        "inspect": (_inspect, "one page: parameters, KL, codes, rewards, error against horizon"),
        "card": (_card, "a README in the format of the Hugging Face Hub"),
    }.items():
        command = commands.add_parser(name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(function=function)
        add = command.add_argument
        add("model", type=Path, help="zip file of a model, or the folder of a run of RL Zoo")
        add("--device", default="auto", help="PyTorch device")
        add("--seed", type=int, default=1_000_000 if name == "card" else 0, help="of everything random")
        if name == "card":
            add("--episodes", type=_positive, default=20, help="number of evaluation episodes")
            continue
        add("--env", help="id of an environment in which the agent plays first")
        add("--replay-buffer", type=Path, help="a saved buffer (default: replay_buffer.pkl beside the model)")
        add("--vec-normalize", type=Path, help=f"saved statistics (default: {NORMALIZE} beside the model)")
        add("--steps", type=_positive, default=1000, help="to play in the environment")
        add("--context", type=int, default=5, help="frames that the model sees")
        add("--horizon", type=int, help="steps that it dreams (default: as long as its training's sequences)")
        if name == "play":
            add("--at-reset", action="store_true", help="begin where episodes begin")
            add("--termination", default="threshold", help="threshold, sample or never")
            add("--fps", type=_positive, default=8, help="steps per second")
            add("--wait", action="store_true", help="wait for a key at every step")
            continue
        add("--sequences", type=int, default=64 if name == "inspect" else 3, help="number of recorded sequences")
        add("-o", "--output", type=Path, help="file to write (default: beside the model)")
        if name == "video":
            add("--keys", nargs="+", help="of a Dict observation (default: all that are reconstructed)")
            add("--fps", type=_positive_float, default=6.0, help="frames per second")
    return whole


def main(arguments: list[str] | None = None) -> None:
    """
    Run one command.

    :param arguments: of the command line; None takes those of the process
    """
    args = _parser().parse_args(arguments)
    try:
        args.function(args)
    except PROBLEMS as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
