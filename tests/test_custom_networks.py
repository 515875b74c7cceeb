"""Every network can be replaced: by a decoder class, or by the class attributes of the builder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer import DreamerV2
from sb3_dreamer.behavior.actor_critic import ActorCritic
from sb3_dreamer.common.distributions import UnitNormal
from sb3_dreamer.dreamer_v2 import export_model
from sb3_dreamer.dreamer_v2.networks import NetworkBuilder
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.world_model.decoders import DreamerDecoder
from sb3_dreamer.world_model.latents import CategoricalLatent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.world_model import WorldModel
from tests.small import DICT, LEARN, VECTOR, random_model, same_weights, samples, weights

CALLS: list[str] = []


class PlainDecoder(nn.Module):
    """One linear layer per key."""

    def __init__(self, observation_spaces: dict[str, spaces.Box], features_size: int, bias: bool = True, **given: Any):
        super().__init__()
        self.given = given
        self.keys = list(observation_spaces)
        sizes = [space.shape[0] for space in observation_spaces.values()]
        self.layers = nn.ModuleList(nn.Linear(features_size, size, bias) for size in sizes)

    def forward(self, features: th.Tensor) -> dict[str, UnitNormal]:
        CALLS.append("decoder")
        return {key: UnitNormal(layer(features), 1) for key, layer in zip(self.keys, self.layers, strict=True)}


class ForgetfulDecoder(PlainDecoder):
    def forward(self, features: th.Tensor) -> dict[str, UnitNormal]:
        return {key: value for key, value in super().forward(features).items() if key != "leg"}


class OwnDecoder(DreamerDecoder):
    def forward(self, features: th.Tensor) -> dict[str, Any]:
        CALLS.append("decoder")
        return super().forward(features)


class OwnRSSM(RSSM):
    """Overrides a step of acting and imagination, which the scan does not replace."""

    def prior(self, deterministic: th.Tensor) -> th.Tensor:
        CALLS.append("rssm")
        return super().prior(deterministic)


class SlowRSSM(OwnRSSM):
    """Overrides a formula that the scan replaces."""

    def posterior(self, hidden: th.Tensor) -> th.Tensor:
        CALLS.append("posterior")
        return super().posterior(hidden)


class OwnWorldModel(WorldModel):
    def embed(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        CALLS.append("world model")
        return super().embed(observations)


class OwnActorCritic(ActorCritic):
    def critic_loss(self, *args: Any) -> Any:
        CALLS.append("critic")
        return super().critic_loss(*args)


class Builder(NetworkBuilder):
    world_model_class, rssm_class, actor_critic_class = OwnWorldModel, OwnRSSM, OwnActorCritic


class SlowBuilder(Builder):
    rssm_class = SlowRSSM


class OwnPolicy(DreamerPolicy):
    builder_class = Builder


class SlowPolicy(DreamerPolicy):
    builder_class = SlowBuilder


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def predicted(model: DreamerV2, space: spaces.Space) -> list[np.ndarray]:
    action, state = model.predict(samples(space, 3), deterministic=True)
    return [action, *(state or ())]


def reloaded(model: DreamerV2, folder: Path) -> DreamerV2:
    model.save(folder / "model.zip")
    return DreamerV2.load(folder / "model.zip", device="cpu")


@pytest.mark.parametrize("latent", ["categorical", "gaussian"])
@pytest.mark.parametrize("policy", [OwnPolicy, SlowPolicy])
def test_classes_of_the_builder_are_used(policy: type[DreamerPolicy], latent: str, tmp_path: Path) -> None:
    """In updates, in acting, and after loading."""
    gaussian = dict(latent="gaussian", stochastic_classes=None)
    kwargs = dict(exploration_class="plan2explore") | (gaussian if latent == "gaussian" else {})
    model = random_model(policy=policy, policy_kwargs=kwargs, seed=1, **LEARN).learn(24)
    world_model, is_slow = model.policy.world_model, policy is SlowPolicy
    assert type(world_model) is OwnWorldModel and type(world_model.rssm) is (SlowRSSM if is_slow else OwnRSSM)
    assert {type(behavior) for behavior in model.policy.behaviors} == {OwnActorCritic} and len(model.policy.behaviors) == 2
    assert world_model.rssm.uses_fast_scan == (latent == "categorical" and not is_slow)
    model.train(1, 2)
    assert {"rssm", "world model", "critic"} <= set(CALLS) and CALLS.count("critic") >= 2
    CALLS.clear()
    predicted(model, VECTOR)
    assert set(CALLS) == ({"world model", "posterior"} if is_slow else {"world model"})
    other = reloaded(model, tmp_path)
    assert type(other.policy) is policy and type(other.policy.world_model.rssm) is type(world_model.rssm)
    assert same_weights(weights(model), weights(other))
    assert all(np.array_equal(*pair) for pair in zip(predicted(model, VECTOR), predicted(other, VECTOR), strict=True))
    with pytest.raises(ValueError, match=f"but this one is {policy.__name__}"):
        export_model(model, tmp_path / "model.safetensors")


def test_overridden_classes_learn_the_same() -> None:
    """They only watch; the one with autograd's scan to rounding."""
    plain, own, slow = (
        random_model(policy=policy, seed=1, **LEARN).learn(40) for policy in (DreamerPolicy, OwnPolicy, SlowPolicy)
    )
    assert isinstance(plain.policy.world_model.rssm.latent, CategoricalLatent) and CALLS.count("posterior") > 0
    assert same_weights(weights(plain), weights(own))
    for name, value in weights(slow).items():
        th.testing.assert_close(value, weights(plain)[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cls, kwargs", [(PlainDecoder, dict(bias=False)), (OwnDecoder, dict(net_arch=[12]))])
def test_custom_decoder(cls: type[nn.Module], kwargs: dict[str, Any], tmp_path: Path) -> None:
    options = dict(decoder_class=cls, decoder_kwargs=kwargs, decoder_keys=["arm"])
    model = random_model(DICT, policy_kwargs=options, seed=1, **LEARN).learn(24)
    decoder, before = model.policy.world_model.decoder, weights(model)
    assert type(decoder) is cls and "decoder" in CALLS and model.policy.world_model.decoder_keys == ["arm"]
    if isinstance(decoder, PlainDecoder):
        assert decoder.layers[0].bias is None  # type: ignore[union-attr]
        assert set(decoder.given) == {"cnn_depth", "net_arch", "activation_fn", "layer_norm", "likelihoods"}
        assert list(decoder.given["likelihoods"]) == ["arm"]
    else:
        assert decoder.trunk[0].out_features == 12  # type: ignore[union-attr, index]
    model.train(1, 2)
    moved = [name for name, value in weights(model).items() if ".decoder." in name and not th.equal(value, before[name])]
    assert len(moved) == len(list(decoder.parameters()))
    other = reloaded(model, tmp_path)
    assert type(other.policy.world_model.decoder) is cls and same_weights(weights(model), weights(other))
    with pytest.raises(ValueError, match=r"export_model cannot write policy_kwargs\['decoder_class'\]=.*it is code"):
        export_model(model, tmp_path / "model.safetensors")


def test_decoder_that_leaves_a_key_out() -> None:
    model = random_model(DICT, policy_kwargs=dict(decoder_class=ForgetfulDecoder), **LEARN)
    with pytest.raises(
        ValueError, match=r"The decoder ForgetfulDecoder must predict the keys \['arm', 'leg'\], but .*'arm'\]"
    ):
        model.learn(24)
