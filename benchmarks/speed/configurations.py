"""The sizes that are timed, and agents and batches of these sizes without any environment worth the name."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dreamer import DreamerV2
from sb3_dreamer.world_model import scan


class Configuration(NamedTuple):
    """One size of network, batch and observation; everything else is a default of V2's code for Atari."""

    name: str
    image_channels: int  # of 64 x 64 pictures; 0: a vector
    vector_size: int  # 0: a picture
    actions: int  # discrete
    batch_size: int
    batch_length: int
    horizon: int
    deterministic_size: int
    hidden_size: int
    stochastic_size: int
    stochastic_classes: int
    layers: int  # of every head, and of the vector encoder and decoder
    units: int
    cnn_depth: int


_SMALL = dict(actions=2, batch_size=16, batch_length=16, horizon=15, deterministic_size=128, hidden_size=128)
_SMALL |= dict(stochastic_size=8, stochastic_classes=8, layers=2, units=128, cnn_depth=8)

CONFIGURATIONS = {
    configuration.name: configuration
    for configuration in (
        Configuration("cartpole", image_channels=0, vector_size=4, **_SMALL),  # type: ignore[arg-type]
        Configuration("pixel-small", image_channels=1, vector_size=0, **_SMALL),  # type: ignore[arg-type]
        Configuration("atari", 1, 0, 6, 16, 16, 15, 600, 600, 32, 32, 4, 400, 48),
        Configuration("atari-gpu", 1, 0, 6, 50, 50, 15, 600, 600, 32, 32, 4, 400, 48),
    )
}


class FakeEnv(gym.Env[np.ndarray, np.int64]):
    """
    Random observations at no cost, episodes of 1,000 steps.

    :param configuration: kind of observation and number of actions
    """

    def __init__(self, configuration: Configuration) -> None:
        channels, size = configuration.image_channels, configuration.vector_size
        self.observation_space: Any = (
            spaces.Box(0, 255, (64, 64, channels), np.uint8) if channels else spaces.Box(-1.0, 1.0, (size,), np.float32)
        )
        self.action_space: Any = spaces.Discrete(configuration.actions)
        self._pool = [self.observation_space.sample() for _ in range(8)]
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._pool[0], {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._pool[self._steps % 8], float(action), False, self._steps == 1000, {}


def make_model(
    configuration: Configuration,
    n_envs: int = 1,
    device: str = "cpu",
    env: VecEnv | None = None,
    compiled: bool = False,
    **options: Any,
) -> DreamerV2:
    """
    :param configuration: sizes
    :param n_envs: number of environments
    :param device: as in SB3
    :param env: in place of fake ones
    :param compiled: heads, imagined steps and those of the scan through ``torch.compile``; the scan's for all models of the
        process, unless ``torch.compiler.set_stance`` says "force_eager"
    :param options: more constructor arguments
    :return: an agent with V2's losses
    """
    c = configuration
    heads = [c.units] * c.layers
    policy_kwargs: dict[str, Any] = dict(
        deterministic_size=c.deterministic_size,
        hidden_size=c.hidden_size,
        stochastic_size=c.stochastic_size,
        stochastic_classes=c.stochastic_classes,
        net_arch=heads,
        cnn_depth=c.cnn_depth,
        use_discount_head=True,
    )
    env = DummyVecEnv([lambda: FakeEnv(c)] * n_envs) if env is None else env
    arguments: dict[str, Any] = dict(
        batch_size=c.batch_size,
        batch_length=c.batch_length,
        imagination_horizon=c.horizon,
        buffer_size=5_000,
        learning_starts=1_500,
        seed=0,
    )
    policy = "CnnPolicy" if c.image_channels else "MlpPolicy"
    model = DreamerV2(policy, env, device=device, policy_kwargs=policy_kwargs, **(arguments | options))
    if compiled:
        world_model, behavior = model.policy.world_model, model.policy.behavior
        th._dynamo.config.recompile_limit = 64  # heads differ in shapes, and run with and without gradients
        scan.step, scan.step_back = th.compile(scan.step), th.compile(scan.step_back)
        world_model.rssm.imagine_step = th.compile(world_model.rssm.imagine_step)  # type: ignore[method-assign]
        for head in (world_model.reward_head, behavior.actor, behavior.critic, behavior.critic_target):
            head.trunk.compile()  # type: ignore[union-attr, operator]  # in place: another class would be given dense features
    return model


def fill(model: DreamerV2, steps: int = 1_500) -> None:
    """
    Random steps into the replay buffer.

    :param model: without data
    :param steps: of all environments together, at most ``learning_starts``
    """
    model.learn(steps, log_interval=10**9)
    th.manual_seed(0)
