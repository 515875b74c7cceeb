"""Early warnings of agents that do not learn."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm import diagnostics
from sb3_dreamer.algorithm.diagnostics import (
    PATIENCE,
    SHORT_PATIENCE,
    LearningCheck,
    NonFiniteError,
    UpdateGuard,
    first_non_finite,
)
from sb3_dreamer.common.distributions import LOG_SQRT_2PI
from sb3_dreamer.common.optimization import DreamerAdam
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
    assert told(check, PATIENCE - 1, progress=0.04, **changes) == [], "every young model looks broken"
    assert told(check, SHORT_PATIENCE - 1, **changes) == []
    (text,) = told(check, **changes)
    assert word in text and text.startswith(f"After {PATIENCE} updates") and "docs/troubleshooting.md" in text
    assert told(check, **changes) == []


def test_short_runs_are_told_in_their_first_tenth() -> None:
    (text,) = told(LearningCheck(DISCRETE), SHORT_PATIENCE, progress=0.06, kl=0.001)
    assert text.startswith(f"After {SHORT_PATIENCE} updates the KL")


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_the_share_of_rewards_in_the_loss(scale: float) -> None:
    """What is left of the loss without the constants of densities is compared, whatever a key's kind and factor."""
    space = spaces.Dict({"vector": VECTOR, "class": spaces.Discrete(3), "ignored": VECTOR})
    options: dict[str, Any] = {**SMALL, "policy_kwargs": {**SMALL_POLICY, "decoder_keys": ["vector", "class"]}}
    model = DreamerV2("MultiInputPolicy", RandomEnv(space), **options, reward_scale=scale, observation_scale={"vector": 3.0})
    size = VECTOR.shape[0]
    losses: dict[str, Any] = dict(
        reward_loss=LOG_SQRT_2PI + 0.5, model_loss=scale * (LOG_SQRT_2PI + 0.5) + 3.0 * size * LOG_SQRT_2PI + 1.5
    )
    model._record_training()
    assert model._check_learning.weights is not None
    share = model._check_learning.weights.reward_share(losses)
    assert share is not None and share == pytest.approx(scale * 0.5 / (scale * 0.5 + 1.5), rel=1e-4)
    (text,) = told(model._check_learning, **losses)
    assert f"Rewards are {100.0 * share:.2g} % of the world model's loss." in text


def test_what_is_no_fault() -> None:
    assert told(LearningCheck(DISCRETE), progress=0.5, actor_entropy=0.0) == [], "a policy may be sure of itself later"
    assert told(LearningCheck(DISCRETE), reward_variance=0.0, reward_loss=LOG_SQRT_2PI) == [], "there are no rewards"
    assert told(LearningCheck(spaces.Discrete(1)), actor_entropy=0.0) == [], "there is nothing to choose"
    (text,) = told(LearningCheck(BOX), actor_entropy=-5.0, actor_grad_norm=0.1)
    assert "has stopped exploring" in text
    dims = BOX.shape[0]
    assert told(LearningCheck(BOX), actor_entropy=-1.5 * dims, actor_grad_norm=0.1) == [], "the edge may be the right place"
    assert told(LearningCheck(BOX), actor_entropy=-0.9 * dims) == [], "the smallest scale, in the middle"
    (text,) = told(LearningCheck(BOX), progress=0.9, actor_entropy=-1.5 * dims)
    assert "at the edge of the Box" in text and "0.001" in text and "tanh_normal" in text
    assert told(LearningCheck(BOX, squashed=True), actor_entropy=-3.0 * dims) == [], "the slope of tanh, at good actions"
    stuck, edge = told(LearningCheck(BOX, squashed=True), actor_entropy=-6.5 * dims)
    assert "has stopped exploring" in stuck and "at the edge of the Box" in edge
    check = LearningCheck(DISCRETE)
    check({}, PATIENCE, 0.0)  # no update since the last log


@pytest.mark.parametrize("distribution, warns", [("tanh_normal", False), ("truncated_normal", True)])
def test_the_actor_decides_what_a_low_entropy_is(distribution: str, warns: bool) -> None:
    policy_kwargs = {**SMALL_POLICY, "actor_distribution": distribution}
    model = DreamerV2("MlpPolicy", RandomEnv(VECTOR, BOX), **{**SMALL, "policy_kwargs": policy_kwargs})
    assert bool(told(model._check_learning, actor_entropy=-3.0 * BOX.shape[0])) == warns


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
    assert any("the latent state carries no information" in text for text in texts)
    assert any("the reward head predicts a constant" in text for text in texts)


# ------------------------------------------------------------------------------------------------------ numerical guards


def trained(**options: Any) -> DreamerV2:
    options = {**SMALL, **LEARN, "policy_kwargs": SMALL_POLICY, "seed": 0, **options}
    return DreamerV2("MlpPolicy", RandomEnv(VECTOR), **options).learn(40)


def state_of(model: DreamerV2) -> list[th.Tensor]:
    optimizers = [part.optimizer for part in model.policy.optimizers.values()]
    moments = [x for o in optimizers for s in o.state.values() for x in s.values()]
    return [x.detach().clone() for x in [*model.policy.parameters(), *moments] if isinstance(x, th.Tensor)]


@pytest.mark.parametrize("optimizer", ["adam", "graph-safe", "rmsprop"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_changes_nothing(value: float, optimizer: str) -> None:
    policy_kwargs = {**SMALL_POLICY, **({"optimizer_class": th.optim.RMSprop} if optimizer == "rmsprop" else {})}
    model = trained(policy_kwargs=policy_kwargs, reward_norm_momentum=0.9)
    if optimizer == "graph-safe":
        for part in model.policy.optimizers.values():
            assert isinstance(part.optimizer, DreamerAdam)
            part.optimizer.make_graph_safe()
    batch = model.replay_buffer.sample(4)
    model._n_updates = 1  # no update of the target critic
    before = state_of(model)
    result = model.update(batch._replace(observations={key: x * value for key, x in batch.observations.items()}))
    assert result.metrics["skipped_updates"] == 1.0
    for a, b in zip(before, state_of(model), strict=True):
        assert a.equal(b) or (optimizer == "graph-safe" and a.ndim == 0 and b == a + 1), "it counts attempts"
    assert th.isfinite(model.policy.behavior.reward_normalizer.magnitude)
    assert model.update(batch).metrics["skipped_updates"] == 0.0
    assert not all(a.equal(b) for a, b in zip(before, state_of(model), strict=True))


def test_training_stops_by_itself_and_leaves_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(max_skipped_updates=3)
    before = [p.detach().clone() for p in model.policy.parameters()]
    sample = model.replay_buffer.sample

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        batch = sample(*args, **kwargs)
        return batch._replace(rewards=batch.rewards + float("nan"))

    monkeypatch.setattr(model.replay_buffer, "sample", poisoned)
    with pytest.raises(NonFiniteError, match=r"3 updates in a row were skipped.*train/reward_loss = nan"):
        model.learn(200, reset_num_timesteps=False)
    changed = [name for (name, p), b in zip(model.policy.named_parameters(), before, strict=True) if not p.equal(b)]
    assert not [name for name in changed if name.startswith("world_model")]
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    model.save(tmp_path / "model.zip")
    DreamerV2.load(tmp_path / "model.zip")


def test_updates_of_the_exploration_count_too() -> None:
    options = dict(exploration_class="plan2explore", exploration_kwargs=dict(ensemble_size=2))
    model = trained(max_skipped_updates=2, policy_kwargs=options)
    assert model.policy.exploration is not None
    with th.no_grad():
        next(model.policy.exploration.parameters()).fill_(float("nan"))
    assert model.update(model.replay_buffer.sample(4)).metrics["skipped_updates"] == 1.0
    with pytest.raises(NonFiniteError, match="2 updates in a row were skipped"):
        model.learn(200, reset_num_timesteps=False)


def test_a_single_bad_update_is_forgiven() -> None:
    guard, policy = UpdateGuard(2), th.nn.Linear(1, 1)
    bad, good = ({"kl": th.tensor(float("nan")), "skipped_updates": th.tensor(x)} for x in (1.0, 0.0))
    for metrics in (bad, good, bad, good):
        guard(metrics, policy)
    guard(bad, policy)
    with pytest.raises(NonFiniteError, match="train/kl = nan"):
        guard(bad, policy)
    never = UpdateGuard(None)
    for _ in range(10):
        never(bad, policy)
    policy.weight.grad = th.full((1, 1), float("inf"))
    assert first_non_finite({"kl": th.tensor(1.0)}, policy) == "the gradient of weight"
