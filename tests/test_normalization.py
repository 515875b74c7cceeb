"""Observations in units of their own spread."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.normalization import ObservationNormalizer, RunningScale
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat
from tests.small import IMAGE, LEARN, SMALL, SMALL_POLICY, VECTOR, RandomEnv

FAR = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def normalizer(clip: float = 10.0) -> ObservationNormalizer:
    return ObservationNormalizer(ObservationFormat(FAR), clip)


@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("constant", [0.0, -0.01, 1.0])
@pytest.mark.parametrize("share", [0.003, 0.3])
def test_running_scale_is_the_size_of_what_differs(share: float, constant: float, unit: float) -> None:
    """Neither how rare rewards are, nor a constant that is added to them, nor their unit changes how large they appear."""
    scale, generator = RunningScale(), th.Generator().manual_seed(0)
    for _ in range(200):
        scale.update(unit * ((th.rand(300, generator=generator) < share).float() + constant))
    assert scale.scale.item() == pytest.approx(unit, rel=0.02)


def test_running_scale_of_equal_and_of_missing_rewards() -> None:
    scale = RunningScale()
    scale.update(th.zeros(10))
    assert scale.scale == 1.0
    scale.update(th.tensor([0.0, 0.0, 0.0, 4.0]))
    for _ in range(50):
        scale.update(th.zeros(4))
    before = scale.scale.item()
    assert before == pytest.approx(4.0)
    scale.update(th.tensor([float("nan"), 1.0, 7.0]))
    assert scale.scale.item() == before
    same = RunningScale()
    same.update(th.full((5,), -3.0))
    assert same.scale.item() == pytest.approx(3.0)
    dense = RunningScale()
    generator = th.Generator().manual_seed(0)
    for _ in range(200):
        dense.update(7.0 * th.randn(300, generator=generator) - 50.0)
    assert dense.scale.item() == pytest.approx(7.0, rel=0.02)


def test_statistics_are_those_of_all_steps_whatever_the_pieces() -> None:
    """Also far from zero, where the mean of squares minus the square of the mean would have no digits left."""
    steps = np.random.default_rng(0).normal([1e4, 0.0, -3.0], [0.1, 1.0, 50.0], (200, 3)).astype(np.float32)
    whole, pieces = normalizer(), normalizer()
    whole.update({OBSERVATION_KEY: th.as_tensor(steps)})
    for piece in np.split(steps, [1, 2, 50]):
        pieces.update({OBSERVATION_KEY: th.as_tensor(piece)})
    for one in (whole, pieces):
        np.testing.assert_allclose(one.mean, steps.astype(np.float64).mean(0), rtol=1e-9)
        np.testing.assert_allclose(one.std, steps.astype(np.float64).std(0), rtol=1e-5)


def test_values_before_and_after_the_first_steps() -> None:
    one = normalizer(clip=2.0)
    raw = th.tensor([[1.0, -1.0, 0.5]])
    assert th.equal(one({OBSERVATION_KEY: raw})[OBSERVATION_KEY], raw)
    one.update({OBSERVATION_KEY: th.tensor([[1.0, 10.0, 0.0], [3.0, 30.0, 0.0]])})
    seen = one({OBSERVATION_KEY: th.tensor([[[3.0, 10.0, 0.0], [2.0, 1000.0, 7.0]]])})[OBSERVATION_KEY]
    # a number that never changed has no spread: any other value is as far away as can be said
    assert seen.tolist() == [[pytest.approx([1.0, -1.0, 0.0]), pytest.approx([0.0, 2.0, 2.0])]]


def test_only_numbers_of_a_dict() -> None:
    space = spaces.Dict({"camera": IMAGE, "arm": VECTOR, "class": spaces.Discrete(3), "bits": spaces.MultiBinary(2)})
    one = ObservationNormalizer(ObservationFormat(space))
    assert list(one.shapes) == ["arm"] and one.mean.shape == (3,)
    encoded = {key: th.ones(2, *box.shape) for key, box in ObservationFormat(space).encoded.items()}
    one.update({"arm": th.zeros(2, 3)})
    seen = one(encoded)
    assert all(seen[key] is encoded[key] for key in ("camera", "class", "bits"))
    assert th.equal(seen["arm"], th.full((2, 3), 10.0))


def model(**kwargs: Any) -> DreamerV2:
    policy_kwargs = {**SMALL_POLICY, "normalize_observations": True}
    return DreamerV2("MlpPolicy", RandomEnv(FAR), **{**SMALL, **LEARN, "policy_kwargs": policy_kwargs, "seed": 0, **kwargs})


def test_a_single_number() -> None:
    """A space without axes."""
    space = spaces.Box(-5.0, 5.0, (), np.float32)
    policy_kwargs = {**SMALL_POLICY, "normalize_observations": True}
    trained = DreamerV2("MlpPolicy", RandomEnv(space), **{**SMALL, **LEARN, "policy_kwargs": policy_kwargs}).learn(60)
    statistics = trained.policy.world_model.normalizer
    assert statistics is not None and statistics.count >= 60 and 1.0 < float(statistics.std) < 5.0


def test_collecting_measures_every_arrival_and_files_keep_it(tmp_path: Path) -> None:
    """Episodes of 10 steps begin with an observation that no step arrives at."""
    trained = model()
    trained.learn(64)
    statistics = trained.policy.world_model.normalizer
    assert statistics is not None and statistics.count == 64
    vec_env = trained.get_env()
    assert vec_env is not None
    (env,) = vec_env.get_attr("unwrapped")
    arrivals = np.array([obs for i, obs in enumerate(env.observations) if i % 11])[:64].astype(np.float64)
    np.testing.assert_allclose(statistics.mean, arrivals.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, arrivals.std(0), rtol=1e-6)
    trained.save(tmp_path / "model.zip")
    loaded = DreamerV2.load(tmp_path / "model.zip", device="cpu").policy.world_model.normalizer
    assert loaded is not None
    for name in ("count", "mean", "squares"):
        assert th.equal(getattr(loaded, name), getattr(statistics, name))


def test_the_unit_of_an_observation_does_not_matter() -> None:
    """The same steps in another unit, with the statistics that belong to them, have the same loss."""
    one = model()
    one.learn(40)
    world_model = one.policy.world_model
    batch = one.replay_buffer.sample(4, batch_length=6)
    moved = batch._replace(observations={key: 5.0 + 20.0 * x for key, x in batch.observations.items()})
    noise = th.rand(6, 4, world_model.rssm.latent.size)
    with th.no_grad():
        before, unadapted = (world_model.loss(data, one.model_objective, noise).total for data in (batch, moved))
        assert world_model.normalizer is not None
        world_model.normalizer.mean.mul_(20.0).add_(5.0)
        world_model.normalizer.squares.mul_(400.0)
        after = world_model.loss(moved, one.model_objective, noise).total
    assert after.item() == pytest.approx(before.item(), rel=1e-4)
    assert unadapted.item() > 2 * before.item()


def test_without_numbers_there_is_nothing_to_normalize() -> None:
    policy_kwargs = {**SMALL_POLICY, "normalize_observations": True}
    pictures = DreamerV2("CnnPolicy", RandomEnv(IMAGE), **{**SMALL, "policy_kwargs": policy_kwargs})
    assert pictures.policy.world_model.normalizer is None
