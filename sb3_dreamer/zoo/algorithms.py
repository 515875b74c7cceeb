"""The table of this package's algorithms in rl_zoo3."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_dreamer.dreamer_v2 import DreamerV2
from sb3_dreamer.dreamer_v3 import DreamerV3
from sb3_dreamer.zoo.hyperparams_opt import (
    convert_dreamer_params,
    convert_dreamer_v3_params,
    sample_dreamer_params,
    sample_dreamer_v3_params,
)

ALGO, ALGO_V3 = "dreamer", "dreamer_v3"


class ZooAlgorithm(NamedTuple):
    """What rl_zoo3 has to know about an algorithm."""

    algorithm_class: type[BaseAlgorithm]
    config: str | Path  # hyperparameter file that is used without --conf-file, see ``presets.default_config``
    sampler: Callable[..., dict[str, Any]] | None = None  # of the hyperparameters of a trial, for -optimize
    converter: Callable[..., dict[str, Any]] | None = None  # from numbers in a study to hyperparameters, for --trial-id


#: Value of ``--algo`` -> algorithm
ALGORITHMS = {
    ALGO: ZooAlgorithm(DreamerV2, "dreamer.yml", sample_dreamer_params, convert_dreamer_params),
    ALGO_V3: ZooAlgorithm(DreamerV3, "dreamer_v3.yml", sample_dreamer_v3_params, convert_dreamer_v3_params),
}
