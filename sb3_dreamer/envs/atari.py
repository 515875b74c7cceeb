"""
The Atari protocol of DreamerV2 (arXiv 2010.02193, after Machado et al. 2018, arXiv 1709.06009).

The parts of the protocol, and where each of them happens:

=======================  ==================================================================================
sticky actions, 0.25     in the ALE, once per emulator frame, as in the released code (not once per step)
action repeat, 4         here; the observation is the maximum over the last two frames, against flicker
64x64 gray               here; the ALE's own gray, area interpolation, the same bytes as ``cv2.INTER_AREA``
1 to 30 no-ops           here, after each reset; emulator frames, not agent steps
one game is one episode  no terminal at a lost life, no FIRE at the start: the agent must learn to press it
108,000 frames           in the ALE: 27,000 steps, 30 minutes of play; reported as truncation
action set               the env's own; see :func:`make_dreamer_atari_env`
reward                   the true score, so that ``Monitor`` reports it; the learner applies the tanh
=======================  ==================================================================================
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_dreamer.common.preprocessing import resize_images

#: Emulator frames of one game: 30 minutes at 60 frames a second (Machado et al. 2018, Table 6)
MAX_FRAMES = 108_000
#: Wrappers that implement parts of the protocol; others are detected by their base class
_OTHER_PREPROCESSING = {
    "AtariPreprocessing",
    "AtariWrapper",
    "DreamerAtariWrapper",
    "EpisodicLifeEnv",
    "FireResetEnv",
    "FrameStackObservation",
    "MaxAndSkipEnv",
    "MaxAndSkipObservation",
    "NoopResetEnv",
    "RepeatAction",
    "StickyActionEnv",
}


def check_protocol(repeat_action_probability: float, **integers: tuple[int, int]) -> None:
    """
    Check the numbers of the protocol.

    :param repeat_action_probability: in [0, 1)
    :param integers: values and their minimums by name
    :raises ValueError: naming option, value and range
    """
    for name, (value, minimum) in integers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise ValueError(f"{name} should be an integer of at least {minimum}, but {value!r} was given.")
    if not isinstance(repeat_action_probability, int | float | np.number) or not 0 <= repeat_action_probability < 1:
        raise ValueError(f"repeat_action_probability should be in [0, 1), but {repeat_action_probability!r} was given.")


def _atari_game(env: Any) -> Any:
    """The ``ale_py.AtariEnv`` inside an env (``Any``, as ale_py is imported lazily), if the protocol can be applied to it."""
    game = getattr(env, "unwrapped", env)
    if not all(hasattr(game, name) for name in ("ale", "load_game", "_frameskip")):
        raise TypeError(f"DreamerAtariWrapper needs an Atari game of ale-py, such as 'ALE/Pong-v5', but was given {env}.")
    wrapper = env
    while isinstance(wrapper, gym.Wrapper):
        transforms = isinstance(wrapper, (gym.ActionWrapper, gym.ObservationWrapper, gym.RewardWrapper))
        if transforms or type(wrapper).__name__ in _OTHER_PREPROCESSING:
            raise ValueError(
                f"DreamerAtariWrapper does the whole preprocessing, but {type(wrapper).__name__} is already inside the given "
                f"env {env}: remove it (or, if it is not part of the preprocessing, put it outside)."
            )
        wrapper = wrapper.env
    if not isinstance(game.action_space, spaces.Discrete):
        raise ValueError(f"DreamerV2's Atari actions are discrete, but {env} was made with continuous=True.")
    if game.get_action_meanings()[0] != "NOOP":
        raise ValueError(f"Action 0 of {env} should be NOOP, but the actions are {game.get_action_meanings()}.")
    return game


class DreamerAtariWrapper(gym.Wrapper[np.ndarray, Any, Any, Any], gym.utils.EzPickle):
    """
    The Atari protocol of DreamerV2 around one game of ale-py; see the table at the top of this module.

    The wrapper inspects the given game and *adjusts it to* the arguments below, so that nothing is applied twice:
    ``ALE/Pong-v5`` (repeats 4 times and is sticky by itself), the same with ``frameskip=1``, and ``PongNoFrameskip-v4``
    (neither) all end in the same protocol. :attr:`protocol` returns the current settings and what was changed; ``print(env)``
    shows them in one line. With ``frameskip=1`` only public settings of the ALE are changed. A game that repeats actions
    itself shows only its last frame, so its repetition is switched off.

    ``Monitor`` may be inside (as in rl_zoo3 and SB3's ``make_atari_env``) or outside. Inside, its episode length counts
    emulator frames, no-ops included. The ALE enforces the frame limit, so both see it.

    Two things differ from the released code. The limit counts frames, including up to 30 no-ops, where the code counts 27,000
    steps. If a game ends before the last repeat, the observation is the final frame, where the code shows that of the step
    before.

    :param env: an Atari game of ale-py, in any of the forms above
    :param action_repeat: emulator frames per step. Paper and code: 4
    :param repeat_action_probability: stickiness, in [0, 1): the probability that a frame repeats the previous frame's action
        instead of the new one. Replaces the setting of the game. Paper and code: 0.25
    :param noop_max: upper bound of the number of no-ops after a reset, uniform from 1; 0 for none. Code: 30
    :param max_frames: emulator frames until an episode is truncated. ``None`` keeps the game's limit (108,000 in all ids that
        ale-py registers), or sets 108,000 if it has none. Paper and code: 108,000
    :param image_size: height and width of the observation in pixels. Paper and code: 64
    :param verbose: 1 prints the protocol
    :raises TypeError: if ``env`` is not an Atari game
    :raises ValueError: if an argument is out of range, or if the game or another wrapper contradicts the protocol
    """

    def __init__(
        self,
        env: gym.Env,
        action_repeat: int = 4,
        repeat_action_probability: float = 0.25,
        noop_max: int = 30,
        max_frames: int | None = None,
        image_size: int = 64,
        verbose: int = 0,
    ) -> None:
        # An emulator cannot be pickled: copies are constructed from these arguments, with the game's original settings
        gym.utils.EzPickle.__init__(
            self, env, action_repeat, repeat_action_probability, noop_max, max_frames, image_size, verbose
        )
        self._game = _atari_game(env)
        gym.Wrapper.__init__(self, env)
        check_protocol(
            repeat_action_probability,
            action_repeat=(action_repeat, 1),
            noop_max=(noop_max, 0),
            max_frames=(MAX_FRAMES if max_frames is None else max_frames, 1),
            image_size=(image_size, 1),
        )
        self.action_repeat = action_repeat
        self.noop_max = noop_max
        self._changes: list[str] = []
        self._take_over_frame_skip()
        self._bring_ale_to(repeat_action_probability, max_frames)

        height, width = self._game.ale.getScreenDims()
        self.observation_space = spaces.Box(low=0, high=255, shape=(image_size, image_size, 1), dtype=np.uint8)
        self._frame = np.zeros((height, width), dtype=np.uint8)
        self._previous_frame = np.zeros((height, width), dtype=np.uint8)
        self._image_size = (image_size, image_size)
        if verbose >= 1:
            print(self)

    def _take_over_frame_skip(self) -> None:
        """Let the wrapper repeat actions, not the game: the observation is the maximum over two frames."""
        skip = self._game._frameskip  # ale-py has no public name for it; gymnasium's AtariPreprocessing reads the same
        if isinstance(skip, tuple):
            raise ValueError(
                f"{self._game_id} skips a random number of frames, {skip}, but DreamerV2 repeats every action "
                f"{self.action_repeat} times. Use an id such as 'ALE/Pong-v5', or make the game with frameskip=1."
            )
        if skip not in (1, self.action_repeat):
            raise ValueError(
                f"{self._game_id} was made with frameskip={skip}, but action_repeat={self.action_repeat} was given. "
                "Make the game with frameskip=1, because DreamerAtariWrapper repeats the actions."
            )
        if skip != 1:
            self._game._frameskip = 1
            self._changes.append(f"frameskip {skip} -> 1 (the wrapper repeats; what is inside counts frames)")

    def _bring_ale_to(self, repeat_action_probability: float, max_frames: int | None) -> None:
        """Set stickiness and frame limit in the ALE, which reads them only when a game is loaded."""
        ale, changes = self._game.ale, []
        sticky, limit = ale.getFloat("repeat_action_probability"), ale.getInt("max_num_frames_per_episode")
        if not np.isclose(sticky, repeat_action_probability):  # the ALE stores a float32
            ale.setFloat("repeat_action_probability", float(repeat_action_probability))
            changes.append(f"repeat_action_probability {sticky:g} -> {repeat_action_probability:g}")
        new_limit = int(max_frames) if max_frames is not None else (limit if limit > 0 else MAX_FRAMES)
        if limit != new_limit:
            ale.setInt("max_num_frames_per_episode", new_limit)
            changes.append(f"max_num_frames_per_episode {limit or None} -> {new_limit}")
        if changes:  # loading takes 0.1 s
            self._game.load_game()
        self._changes += changes

    @property
    def _game_id(self) -> str:
        return self.env.spec.id if self.env.spec is not None else self._game._game

    @property
    def protocol(self) -> dict[str, Any]:
        """The current settings, read back from the emulator where possible; ``changes`` lists changes to the given env."""
        ale = self._game.ale
        return {
            "env_id": self._game_id,
            "n_actions": int(self._game.action_space.n),
            "action_set": "full" if self._game.action_space.n == len(ale.getLegalActionSet()) else "minimal",
            "frames_per_step": self.action_repeat * int(self._game._frameskip),
            "max_over_frames": min(2, self.action_repeat),
            "repeat_action_probability": round(ale.getFloat("repeat_action_probability"), 6),
            "noop_max": self.noop_max,
            "max_frames": ale.getInt("max_num_frames_per_episode"),
            "observation_shape": self.observation_space.shape,
            "changes": tuple(self._changes),
        }

    def __str__(self) -> str:
        p = self.protocol
        return (
            f"<DreamerAtariWrapper {p['env_id']}: {p['n_actions']} actions ({p['action_set']} set), "
            f"{p['frames_per_step']} frames per step, maximum over the last {p['max_over_frames']}, "
            f"sticky {p['repeat_action_probability']:g} per frame, up to {p['noop_max']} no-ops, "
            f"at most {p['max_frames']} frames, observation {p['observation_shape']}; "
            f"changed in the given env: {', '.join(p['changes']) or 'nothing'}>"
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a game and let up to ``noop_max`` frames pass; a seed is for stickiness and the number of no-ops."""
        _, info = self.env.reset(seed=seed, options=options)
        noops = int(self.np_random.integers(1, self.noop_max + 1)) if self.noop_max > 0 else 0
        for _ in range(noops):
            _, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                _, info = self.env.reset(options=options)  # no seed: the next attempt must differ
        self._game.ale.getScreenGrayscale(self._frame)
        return self._observation(), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Repeat one action; the reward is the sum of the frames' scores, the info that of the last frame."""
        score = 0.0
        for frame in range(self.action_repeat):
            _, reward, terminated, truncated, info = self.env.step(action)
            score += float(reward)
            if terminated or truncated:
                break
            if frame == self.action_repeat - 2:
                self._game.ale.getScreenGrayscale(self._previous_frame)
        self._game.ale.getScreenGrayscale(self._frame)
        if 0 < frame == self.action_repeat - 1:
            np.maximum(self._frame, self._previous_frame, out=self._frame)
        return self._observation(), score, terminated, truncated, info

    def _observation(self) -> np.ndarray:
        """The current frame, resized, as (image_size, image_size, 1) uint8."""
        return resize_images(self._frame.copy(), self._image_size)[:, :, None]


def rom_name(env_id: str) -> str:
    """
    Name of a game in ale-py.

    :param env_id: of an Atari game in gymnasium
    :return: such as ``"ms_pacman"``
    :raises ValueError: for any other id
    """
    import ale_py

    gym.register_envs(ale_py)
    try:
        game = gym.spec(env_id.removeprefix("ale_py:")).kwargs.get("game")
    except (gym.error.Error, TypeError, AttributeError):
        game = None
    if not isinstance(game, str):
        raise ValueError(f"The id of an Atari game is needed, such as 'ALE/Pong-v5', but {env_id!r} was given.")
    return game


def make_dreamer_atari_env(
    env_id: str | Callable[..., gym.Env],
    n_envs: int = 1,
    seed: int | None = None,
    start_index: int = 0,
    monitor_dir: str | None = None,
    full_action_space: bool = False,
    wrapper_kwargs: dict[str, Any] | None = None,
    env_kwargs: dict[str, Any] | None = None,
    vec_env_cls: type[DummyVecEnv] | type[SubprocVecEnv] | None = None,
    vec_env_kwargs: dict[str, Any] | None = None,
    monitor_kwargs: dict[str, Any] | None = None,
) -> VecEnv:
    """
    Create a ``VecEnv`` of games with ``Monitor`` and the paper's protocol, like SB3's ``make_atari_env``.

    The paper uses all 18 actions, and so did its code until September 2021 (``all_actions=True``). Since then the released
    code uses the game's own set (Pong: 6), which is the default here too.

    :param env_id: such as ``"ALE/Pong-v5"`` or ``"PongNoFrameskip-v4"``, or a callable that returns the game
    :param n_envs: number of games. Paper: 1
    :param seed: seed of the first game; each further game adds 1
    :param start_index: index of the first game
    :param monitor_dir: folder for the monitor files; ``None`` writes none
    :param full_action_space: use all 18 actions of the console instead of the game's own set
    :param wrapper_kwargs: arguments of :class:`DreamerAtariWrapper`
    :param env_kwargs: arguments of the game, such as ``mode`` and ``difficulty``
    :param vec_env_cls: ``DummyVecEnv`` (default) or ``SubprocVecEnv``
    :param vec_env_kwargs: arguments of that class
    :param monitor_kwargs: arguments of ``Monitor``
    :return: the games, with channels last; DreamerV2 transposes the images
    :raises ValueError: if the id is not that of an Atari game
    """
    env_kwargs = dict(env_kwargs or {})
    if full_action_space:
        env_kwargs["full_action_space"] = True
    if isinstance(env_id, str):
        # The prefix imports ale_py, which registers the games, also in subprocesses
        spec = gym.registry.get(env_id)
        if spec is not None and str(spec.entry_point).startswith("gymnasium.envs."):
            rom_name(env_id)  # raises the error for an id that is not a game's
        env_kwargs.setdefault("frameskip", 1)
        env_id = env_id if ":" in env_id else f"ale_py:{env_id}"
    return make_vec_env(
        env_id,
        n_envs=n_envs,
        seed=seed,
        start_index=start_index,
        monitor_dir=monitor_dir,
        wrapper_class=DreamerAtariWrapper,
        env_kwargs=env_kwargs,
        vec_env_cls=vec_env_cls,
        vec_env_kwargs=vec_env_kwargs,
        monitor_kwargs=monitor_kwargs,
        wrapper_kwargs=wrapper_kwargs,
    )
