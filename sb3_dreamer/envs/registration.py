"""
Gymnasium ids for environments whose packages do not register any.

``import sb3_dreamer.envs`` registers them; in rl_zoo3, ``--algo dreamer`` does. A package is imported only when its
environment is made, so the ids exist whether or not it is installed.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import gymnasium as gym

from sb3_dreamer.envs.dmc import TASKS
from sb3_dreamer.envs.minatar import GAMES as MINATAR_GAMES
from sb3_dreamer.envs.procgen import GAMES as PROCGEN_GAMES


def _specifications() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, entry point and arguments of each environment."""
    for game, version in product(MINATAR_GAMES, (0, 1)):
        arguments = {"game": game, "use_minimal_action_set": version == 1}
        env_id = f"MinAtar/{game.title().replace('_', '')}-v{version}"
        yield env_id, "sb3_dreamer.envs.minatar:make_minatar_env", arguments
    for name, reward in (("CrafterReward-v1", True), ("CrafterNoReward-v1", False)):
        yield name, "sb3_dreamer.envs.crafter:CrafterEnv", {"reward": reward}
    for domain, tasks in TASKS.items():
        for task in tasks.split():
            for kind in ("dmc_proprio", "dmc_vision"):  # one task; two ids because they have two sets of hyperparameters
                yield f"{kind}/{domain}-{task}-v0", "sb3_dreamer.envs.dmc:make_dmc_env", {"domain": domain, "task": task}
    for game in PROCGEN_GAMES:
        yield f"procgen-{game}-v0", "sb3_dreamer.envs.procgen:ProcgenEnv", {"game": game}


def register_envs() -> None:
    """Add the ids to gymnasium's registry, except those that exist already."""
    for env_id, entry_point, arguments in _specifications():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=entry_point, kwargs=arguments)
