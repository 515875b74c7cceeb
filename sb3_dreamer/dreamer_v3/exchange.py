"""Models for exchange with strangers, see :mod:`sb3_dreamer.algorithm.exchange`."""

from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv

from sb3_dreamer.algorithm.exchange import export_model, import_as
from sb3_dreamer.dreamer_v3.dreamer_v3 import DreamerV3

__all__ = ["export_model", "import_model"]


def import_model(path: str | Path, env: GymEnv | None = None, device: th.device | str = "auto", **kwargs: Any) -> DreamerV3:
    """
    Read a file of :func:`export_model`. Nothing in it is executed, whoever wrote it.

    :param path: of the file; the suffix may be left out
    :param env: to continue training in, with new optimizers; None to predict
    :param device: to load to
    :param kwargs: constructor arguments to change
    :return: the model
    :raises ValueError: if the file is damaged, of another kind or version, says what :func:`export_model` never writes, or
        does not fit the environment
    """
    return import_as(DreamerV3, path, env, device, **kwargs)
