"""Observations outside of their space are refused by name, before anything is stored."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from sb3_dreamer.replay import SequenceReplayBuffer
from sb3_dreamer.replay.records import RecordFormat
from tests.small import DISCRETE, OBSERVATIONS, RandomEnv, random_envs, samples, small_model

MIXED = OBSERVATIONS["dict"]

#: key, values for two environments, what the error says of them
BAD_VALUES: dict[str, tuple[str, Any, str]] = {
    "no class": ("discrete from -2", [0, 1], r"of environment 1 is 1, expected a class of its space, integers from -2 to 0"),
    "half a class": ("discrete from -2", [-0.5, 0], r"of environment 0 is -0.5, expected a class"),
    "no classes": ("multi-discrete", [[1, 2], [2, 0]], r"of environment 1 is 2 at index 0, .* from \[0, 0\] to \[1, 2\]"),
    "no bit": (
        "multi-binary matrix",
        [[[0, 1, 0]] * 2, [[1, 1, 3]] * 2],
        r"of environment 1 is 3 at index \(0, 2\), expected 0 or 1",
    ),
    "nan": ("vector", [[0.0, np.nan, 0.0]] * 2, r"of environment 0 is nan at index 1, expected a finite float32"),
    "inf": ("number", [0.0, -np.inf], r"of environment 1 is -inf, expected a finite float32"),
    "floats for bytes": ("bytes", np.zeros((2, 6)), r"has dtype float64, expected uint8, as its space says"),
    "floats for pixels": ("image", np.zeros((2, 1, 12, 10)), r"has dtype float64, expected uint8, the dtype of images"),
    "text": ("multi-discrete", [["a", "b"]] * 2, r"has shape \(2, 2\) and dtype <U1, expected numbers of shape \(2, 2\)"),
    "a row too many": ("number", np.zeros(3), r"has shape \(3,\), expected .* for each of 2 environments"),
    "another shape": ("vector", np.zeros((2, 4)), r"has shape \(2, 4\) .* expected numbers of shape \(2, 3\)"),
}


def mixed_model() -> DreamerV2:
    return small_model(random_envs(MIXED, n_envs=2), policy_kwargs=dict(image_size=None))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", BAD_VALUES)
def test_bad_values_are_refused_by_name_and_nothing_is_written(case: str, first: bool) -> None:
    key, values, message = BAD_VALUES[case]
    model = mixed_model()
    assert model.env is not None
    buffer, good = model.replay_buffer, model.env.reset()
    assert isinstance(good, dict)
    bad = {**good, key: np.asarray(values)}
    step: Any = (np.array([0, 1]), np.zeros(2), np.zeros(2), [{}, {}])
    if not first:
        buffer.add(good, good, *step)
    written = buffer.num_records
    assert written == (0 if first else 4)
    for name, pair in (("next_obs", (good, bad)), ("obs", (bad, good))):
        if name == "next_obs" or first:  # where no episode begins, the first one is not read
            with pytest.raises(ValueError, match=f"^{name} '{key}' {message}"):
                buffer.add(*pair, *step)
    assert buffer.num_records == written
    buffer.add(good, good, *step)
    assert buffer.num_records == (4 if first else 6)  # as if nothing had happened: a start record and an arrival each


def test_an_environment_that_leaves_its_space_stops_the_training() -> None:
    class Faulty(RandomEnv):
        def _observe(self) -> Any:
            return 4 if self.steps == 5 else super()._observe()

    model = small_model(Faulty(spaces.Discrete(4)))
    with pytest.raises(ValueError, match=r"next_obs 'observation' of environment 0 is 4, .* integers from 0 to 3"):
        model.learn(20)
    assert model.replay_buffer.size() == 5 and model.num_timesteps == 5


def test_observations_of_predict_are_checked() -> None:
    model, obs = mixed_model(), samples(MIXED, 2)
    with pytest.raises(ValueError, match="'multi-binary matrix' of environment 0 is 2"):
        model.predict(obs | {"multi-binary matrix": np.full((2, 2, 3), 2)})
    with pytest.raises(
        ValueError, match=r"Unexpected observation shape \(2, 4\) of 'vector': expected \(3,\) or \(n_envs, 3\)"
    ):
        model.predict(obs | {"vector": np.zeros((2, 4))})
    with pytest.raises(ValueError, match=r"all keys .* have a batch axis of one length or none"):
        model.predict(obs | {"vector": np.zeros(3)})
    with pytest.raises(ValueError, match=r"all keys .* have a batch axis of one length or none"):
        model.predict(obs | {"vector": np.zeros((3, 3))})


def test_a_buffer_of_other_classes_does_not_fit() -> None:
    """Five inputs either way, but other ones."""
    same, shifted = OBSERVATIONS["multi-discrete"], OBSERVATIONS["multi-discrete from 1 and -1"]
    expected = RecordFormat(same, DISCRETE, 1, None)
    SequenceReplayBuffer(10, same, DISCRETE, image_size=None).format.check_compatible(expected)
    for space in (shifted, spaces.MultiDiscrete([3, 2])):
        buffer = SequenceReplayBuffer(10, space, DISCRETE, image_size=None)
        with pytest.raises(
            ValueError, match=r"observations: buffer has .*classes .*expected .*classes \[2, 3\] from \[0, 0\]"
        ):
            buffer.format.check_compatible(expected)
