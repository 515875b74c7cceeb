"""
The algorithms of this package in RL Baselines3 Zoo: DreamerV2 as ``--algo dreamer``, DreamerV3 as ``--algo dreamer_v3``.

After ``pip install sb3-dreamer`` nothing has to be done: the start-up hook ``_sb3_dreamer_zoo`` calls ``extend`` when
rl_zoo3 is imported. Without the hook, ``python -m sb3_dreamer.zoo train ...`` and, in a script, ``register()`` do the same.
An entry that rl_zoo3 already has is never replaced: should it ship its own ``dreamer`` one day, that one wins.
"""

import functools
import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dreamer import presets
from sb3_dreamer.zoo.algorithms import ALGO, ALGORITHMS, ZooAlgorithm

__all__ = ["ALGO", "default_config", "extend", "register", "register_algorithm"]

#: Default folders of rl_zoo3: of `enjoy`, and of `train`
PRETRAINED, OWN_LOGS = "rl-trained-agents", "logs"


def default_config(algo: str = ALGO) -> str:
    """
    Find the hyperparameter file that is used when no ``--conf-file`` is given.

    :param algo: name of one of our algorithms in rl_zoo3
    :return: path of the file
    """
    return str(presets.default_config(ALGORITHMS[algo].config))


def register() -> None:
    """Add our algorithms to rl_zoo3. Calling it again changes nothing."""
    for name in _EXTENSIONS:
        extend(importlib.import_module(name))


def register_algorithm(name: str, algorithm_class: type[BaseAlgorithm], config: str | Path, **optimization: Any) -> None:
    """
    Add another algorithm to rl_zoo3, under the same conventions as ``dreamer``.

    :param name: value of ``--algo``
    :param algorithm_class: the algorithm
    :param config: its hyperparameter file
    :param optimization: ``sampler`` for ``-optimize`` and ``converter`` for ``--trial-id``, as in rl_zoo3
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if rl_zoo3 has another algorithm of this name
    """
    algorithm = ZooAlgorithm(algorithm_class, presets.default_config(Path(config).absolute()), **optimization)
    known = importlib.import_module("rl_zoo3.utils").ALGOS.get(name, algorithm_class)
    if known is not algorithm_class:
        raise ValueError(f"rl_zoo3 has another algorithm {name!r} already: {known}.")
    ALGORITHMS[name] = algorithm
    register()


def extend(module: ModuleType) -> None:
    """
    Add our part to one module of rl_zoo3. Doing it again changes nothing.

    :param module: ``rl_zoo3.utils``, ``rl_zoo3.hyperparams_opt`` or ``rl_zoo3.exp_manager``
    """
    _EXTENSIONS[module.__name__](module)


def _extend_utils(module: Any) -> None:
    """
    Add the algorithms, and look for their agents in ``logs`` too: without ``-f``, rl_zoo3's ``enjoy`` looks in a collection of
    pretrained agents, which has none of ours, and would try to download one that does not exist.
    """
    for name, algorithm in ALGORITHMS.items():
        module.ALGOS.setdefault(name, algorithm.algorithm_class)
    get_model_path = module.get_model_path
    if hasattr(get_model_path, "_knows_sb3_dreamer"):
        return

    @functools.wraps(get_model_path)
    def wrapper(exp_id: int, folder: str, algo: str, *args: Any, **kwargs: Any) -> Any:
        collected, own = os.path.join(folder, algo), os.path.join(OWN_LOGS, algo)
        if algo in ALGORITHMS and folder == PRETRAINED and not os.path.isdir(collected) and os.path.isdir(own):
            print(f"There is no {collected}, taking the latest of your own runs in {own}")
            folder = OWN_LOGS
        return get_model_path(exp_id, folder, algo, *args, **kwargs)

    wrapper._knows_sb3_dreamer = True  # type: ignore[attr-defined]
    module.get_model_path = wrapper


def _extend_optimization(module: Any) -> None:
    for name, algorithm in ALGORITHMS.items():
        if algorithm.sampler is not None:
            module.HYPERPARAMS_SAMPLER.setdefault(name, algorithm.sampler)
        if algorithm.converter is not None:
            module.HYPERPARAMS_CONVERTER.setdefault(name, algorithm.converter)


def _extend_manager(module: Any) -> None:
    from sb3_dreamer.envs import register_envs

    register_envs()  # so that no --gym-packages is needed for what dreamer.yml plays
    init = module.ExperimentManager.__init__
    if hasattr(init, "_knows_sb3_dreamer"):
        return
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.algo in ALGORITHMS:
            from sb3_dreamer.zoo.ranks import adopt  # imports the module that is being extended

            adopt(self, signature.bind(self, *args, **kwargs).arguments)

    wrapper._knows_sb3_dreamer = True  # type: ignore[attr-defined]
    module.ExperimentManager.__init__ = wrapper


_EXTENSIONS: dict[str, Callable[[Any], None]] = {
    "rl_zoo3.utils": _extend_utils,
    "rl_zoo3.hyperparams_opt": _extend_optimization,
    "rl_zoo3.exp_manager": _extend_manager,
}
