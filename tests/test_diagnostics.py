"""Early warnings of agents that do not learn."""

import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.distributions import LOG_SQRT_2PI
from sb3_dreamer.dreamer_v2 import diagnostics
from sb3_dreamer.dreamer_v2.diagnostics import PATIENCE, LearningCheck
from tests.small import BOX, DISCRETE, LEARN, SMALL, SMALL_POLICY, VECTOR, RandomEnv

FINE = {"kl": 1.0, "reward_loss": LOG_SQRT_2PI + 0.2, "reward_variance": 1.0, "actor_entropy": 0.5, "actor_grad_norm": 1e-3}


def told(check: LearningCheck, n_updates: int = PATIENCE, progress: float = 0.1, **changes: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check({**FINE, **changes}, n_updates, progress)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(kl=0.001), "the KL of posterior and prior is 0.001 nats"),
        (dict(reward_loss=LOG_SQRT_2PI + 0.495), "the reward head predicts a constant"),
        (dict(actor_entropy=0.01), "the actor's entropy is 0.01 nats with 90% of the run to go"),
        (dict(actor_grad_norm=0.0), "the actor's gradient is 0"),
    ],
)
def test_each_sign_is_told_once(changes: dict[str, Any], word: str) -> None:
    check = LearningCheck(DISCRETE)
    assert told(check) == []
    assert told(check, PATIENCE - 1, **changes) == [], "every young model looks broken"
    (text,) = told(check, **changes)
    assert word in text and text.startswith(f"After {PATIENCE} updates") and "docs/troubleshooting.md" in text
    assert told(check, **changes) == []


def test_what_is_no_fault() -> None:
    assert told(LearningCheck(DISCRETE), progress=0.5, actor_entropy=0.0) == [], "a policy may be sure of itself later"
    assert told(LearningCheck(DISCRETE), reward_variance=0.0, reward_loss=LOG_SQRT_2PI) == [], "there are no rewards"
    assert told(LearningCheck(spaces.Discrete(1)), actor_entropy=0.0) == [], "there is nothing to choose"
    assert told(LearningCheck(BOX), actor_entropy=-3.0) == [] and told(LearningCheck(BOX), actor_entropy=-5.0) != []
    check = LearningCheck(DISCRETE)
    check({}, PATIENCE, 0.0)  # no update since the last log


class Constant(RandomEnv):
    """Shows nothing, and rewards at random."""

    def _observe(self) -> np.ndarray:
        super()._observe()
        return np.zeros(3, np.float32)


def test_an_agent_that_cannot_learn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No observation tells anything: KL and reward head give it away; through ``learn``."""
    monkeypatch.setattr(diagnostics, "PATIENCE", 20)
    options: dict[str, Any] = {**SMALL, **LEARN, "policy_kwargs": SMALL_POLICY, "kl_scale": 10.0, "train_freq": 1}
    model = DreamerV2("MlpPolicy", Constant(VECTOR), **options, learning_rate=1e-2, seed=0)
    with pytest.warns(UserWarning) as caught:
        model.learn(200, log_interval=1)
    texts = [str(warning.message) for warning in caught]
    assert any("the latent state says nothing" in text for text in texts)
    assert any("the reward head predicts a constant" in text for text in texts)
