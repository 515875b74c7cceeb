"""
Every kind of observation with every kind of action, latent state and actor gradient.

Each cell is a model that learns for three updates, after which everything must be finite, every trainable tensor must have
had a gradient, and a saved and loaded model must predict the same to the bit.
"""

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_dreamer import DreamerV2
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from tests.small import ACTIONS, OBSERVATIONS, random_envs, row, samples, small_model

N_ENVS, UPDATES = 2, 3
OBSERVATION_KINDS = (
    "image",
    "float image",
    "vector",
    "matrix",
    "bytes",
    "discrete from -2",
    "multi-discrete matrix",
    "multi-binary",
    "dict",
)
ACTION_KINDS = ("discrete", "multi-discrete", "multi-binary", "asymmetric")
LATENTS: dict[str, dict[str, Any]] = {
    "categorical": dict(latent="categorical"),
    "gaussian": dict(latent="gaussian", stochastic_classes=None),
}
#: REINFORCE, gradients through the dynamics, and both
REINFORCE_WEIGHTS = (1.0, 0.0, 0.5)
CELLS = list(product(OBSERVATION_KINDS, ACTION_KINDS, LATENTS, REINFORCE_WEIGHTS))


def make_cell(observations: str, actions: str, latent: str, reinforce_weight: float) -> DreamerV2:
    env = random_envs(OBSERVATIONS[observations], ACTIONS[actions], N_ENVS, length=4)
    sizes = dict(deterministic_size=8, hidden_size=8, stochastic_size=3, stochastic_classes=3, net_arch=[8], image_size=None)
    kwargs = {**sizes, **LATENTS[latent], "normalize_images": not observations.startswith("float image")}
    options: dict[str, Any] = dict(reinforce_weight=reinforce_weight, batch_size=3, batch_length=4, seed=0)
    # without the entropy bonus, so that the actor's gradient is that of the returns
    return small_model(env, policy_kwargs=kwargs, learning_starts=1000, ent_coef=0.0, **options)


def watch_gradients(policy: DreamerPolicy) -> dict[str, float]:
    """Largest absolute gradient of every trainable tensor at all steps of the optimizers that train it, by name."""
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    largest: dict[str, float] = {}

    def hook(optimizer: th.optim.Optimizer, *_: Any) -> None:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            size = 0.0 if parameter.grad is None else parameter.grad.abs().max().item()
            largest[names[id(parameter)]] = max(largest.get(names[id(parameter)], 0.0), size)

    for optimizer in policy.optimizers.values():
        optimizer.optimizer.register_step_pre_hook(hook)
    return largest


def predictions(model: DreamerV2, observations: Any) -> list[np.ndarray]:
    """Actions and states of two steps with memory."""
    action, state = model.predict(observations, deterministic=True)
    following, final = model.predict(observations, state, np.array([False, True, False]), deterministic=True)
    return [action, following, *(state or ()), *(final or ())]


@pytest.mark.parametrize("cell", CELLS, ids=["-".join(map(str, cell)) for cell in CELLS])
def test_cell(cell: tuple[str, str, str, float]) -> None:
    model = make_cell(*cell)
    model.learn(6 * N_ENVS, log_interval=None)  # random steps, to the end of an episode and on; no training
    gradients = watch_gradients(model.policy)
    metrics = []
    for _ in range(UPDATES):
        model.train(1, model.batch_size)
        metrics.append(model._metrics.pop())
    assert model._n_updates == UPDATES
    for name, value in (item for update in metrics for item in update.items()):
        assert np.isfinite(value), f"{name} is {value}"
    assert all(bool(th.isfinite(parameter).all()) for parameter in model.policy.parameters())

    targets = {name for name, _ in model.policy.named_parameters() if ".critic_target." in name}
    assert set(gradients) == {name for name, _ in model.policy.named_parameters()} - targets
    still = [name for name, size in gradients.items() if not size > 0.0]
    assert not still, f"no gradient for {still}"  # none may be without one, in no cell

    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = DreamerV2.load(file, device="cpu")
    observations = samples(OBSERVATIONS[cell[0]], 3)
    for ours, theirs in zip(predictions(model, observations), predictions(loaded, observations), strict=True):
        assert np.array_equal(ours, theirs) and np.isfinite(ours).all()
    action = model.predict(row(observations, 0))[0]
    assert ACTIONS[cell[1]].contains(action)


def test_the_matrix_is_large_enough() -> None:
    assert len(set(CELLS)) >= 60
