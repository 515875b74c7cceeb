"""Many Atari games in C++ threads of ale-py, as a ``VecEnv`` with the protocol of :mod:`sb3_dreamer.envs.atari`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_dreamer.envs.atari import MAX_FRAMES, check_protocol, rom_name


class AtariVecEnv(VecEnv):
    """
    Copies of one Atari game, stepped by C++ threads: no Python code per game, no processes.

    Protocol and observations equal those of :class:`~sb3_dreamer.envs.atari.DreamerAtariWrapper` byte for byte, with two
    exceptions. The last observation of an episode, and the frame numbers in its infos, lack the frames since the last full
    step. And the same seed gives other random numbers for stickiness and no-ops.

    There are no Python environments inside to wrap, call or render: count episodes with SB3's ``VecMonitor``, and use
    :func:`~sb3_dreamer.envs.make_dreamer_atari_env` for videos.

    :param env_id: such as ``"ALE/Pong-v5"`` or ``"PongNoFrameskip-v4"``; only the name of the game is used
    :param n_envs: number of games
    :param seed: seed of the first game; each further game adds 1. None: seeded by the system
    :param action_repeat: emulator frames per step. Paper and code: 4
    :param repeat_action_probability: stickiness per emulator frame, in [0, 1). Paper and code: 0.25
    :param noop_max: upper bound of the number of no-ops after a reset; 0 for none. Code: 30
    :param max_frames: emulator frames until an episode is truncated. Paper and code: 108,000
    :param image_size: height and width of the observation in pixels. Paper and code: 64
    :param full_action_space: use all 18 actions of the console instead of the game's own set
    :param num_threads: C++ threads; 0: one per game, at most one per core
    :raises ValueError: if the id is not that of an Atari game, and for numbers out of range
    """

    def __init__(
        self,
        env_id: str,
        n_envs: int = 1,
        seed: int | None = None,
        action_repeat: int = 4,
        repeat_action_probability: float = 0.25,
        noop_max: int = 30,
        max_frames: int = MAX_FRAMES,
        image_size: int = 64,
        full_action_space: bool = False,
        num_threads: int = 0,
    ) -> None:
        check_protocol(
            repeat_action_probability,
            n_envs=(n_envs, 1),
            action_repeat=(action_repeat, 1),
            noop_max=(noop_max, 0),
            max_frames=(max_frames, 1),
            image_size=(image_size, 1),
            num_threads=(num_threads, 0),
        )
        from ale_py.vector_env import AtariVectorEnv

        self.games: Any = AtariVectorEnv(
            rom_name(env_id),
            int(n_envs),
            num_threads=int(num_threads),
            max_num_frames_per_episode=int(max_frames),
            repeat_action_probability=float(repeat_action_probability),
            full_action_space=full_action_space,
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            img_height=int(image_size),
            img_width=int(image_size),
            frameskip=int(action_repeat),
            noop_max=int(noop_max),
            stack_num=1,
            maxpool=action_repeat > 1,
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.env_id, self.render_mode = env_id, None
        action_space: Any = self.games.single_action_space
        self._n_actions = int(action_space.n)
        observation_space = spaces.Box(0, 255, (image_size, image_size, 1), np.uint8)
        super().__init__(int(n_envs), observation_space, spaces.Discrete(self._n_actions))
        if seed is not None:
            self.seed(seed)

    def reset(self) -> VecEnvObs:
        """Restart all games; observations are (n_envs, size, size, 1) uint8."""
        seeds = None if self._seeds[0] is None else np.array([int(seed) % 2**31 for seed in self._seeds], dtype=np.int32)  # type: ignore[arg-type]
        observations, infos = self.games.reset(seed=seeds)
        self.reset_infos = [self._info(infos, index) for index in range(self.num_envs)]
        self._last = [dict(info) for info in self.reset_infos]
        self._reset_seeds()
        self._reset_options()
        return _channel_last(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Start a step in the threads; raises a ``ValueError`` unless there is one existing action per game."""
        chosen = np.asarray(actions)
        whole = chosen.dtype.kind in "iu"
        if not whole or chosen.shape != (self.num_envs,) or chosen.min() < 0 or chosen.max() >= self._n_actions:
            raise ValueError(
                f"{self.env_id} needs {self.num_envs} actions from 0 to {self._n_actions - 1}, but was given {actions}."
            )
        self._actions = chosen.astype(np.int32)  # kept alive, as the threads may still read it
        self.games.send(self._actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        Wait for the threads.

        :return: observations (n_envs, size, size, 1), after the end of an episode the first of the next one; scores; whether
            episodes ended; infos, at the end of an episode with ``terminal_observation`` and ``TimeLimit.truncated``
        """
        observations, rewards, terminated, truncated, infos = self.games.recv()
        dones = terminated | truncated
        fresh = [self._info(infos, index) for index in range(self.num_envs)]
        before, self._last = self._last, fresh
        each = [dict(info) for info in fresh]
        for index in np.flatnonzero(dones).tolist():
            # The games return infos of the new episode; for the ended one, those of the step before are the latest
            each[index] = before[index] | ({"lives": 0} if terminated[index] else {})
            each[index]["terminal_observation"] = _channel_last(infos["final_obs"][index : index + 1])[0].copy()
            each[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            self.reset_infos[index] = dict(fresh[index])
        return _channel_last(observations), rewards.astype(np.float32), dones, each

    @staticmethod
    def _info(infos: dict[str, np.ndarray], index: int) -> dict[str, Any]:
        return {name: int(infos[name][index]) for name in ("lives", "frame_number", "episode_frame_number")}

    def close(self) -> None:
        self.games.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise NotImplementedError(f"The games of AtariVecEnv have no attribute {attr_name!r}: pass it to the constructor.")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(f"The games of AtariVecEnv have no method {method_name!r}: use make_dreamer_atari_env.")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


def _channel_last(observations: np.ndarray) -> np.ndarray:
    """(n, 1, size, size) to (n, size, size, 1)."""
    return observations[:, 0, :, :, None]
