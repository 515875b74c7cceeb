"""Shortcuts never replace code that they do not know: overridden methods, patches and hooks are used in training."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.behavior.actors import CategoricalActor
from sb3_dreamer.common.capabilities import declares
from sb3_dreamer.common.distributions import OneHotCategorical, UnitNormal
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.layers import LayerNormGRUCell
from sb3_dreamer.common.one_hot import OneHotFeatures, accepts_one_hot, features_for
from sb3_dreamer.world_model.latents import SPARSE_SIZE, CategoricalLatent
from sb3_dreamer.world_model.rssm import RSSM
from tests.golden_loader import SpacesOnly
from tests.small import DISCRETE, IMAGE, VECTOR, layers, random_model

#: A one-hot state that is large enough for sums of rows
LARGE = dict(stochastic_size=32, stochastic_classes=32)


class Declared:
    """Declares a shortcut for its method."""

    is_fast = True

    def method(self) -> int:
        return 1


class Overriding(Declared):
    def method(self) -> int:
        return 2


class DeclaredAgain(Declared):
    is_fast = True

    def method(self) -> int:
        return 3


class SwitchedOff(Declared):
    is_fast = False


class ByInstance(Declared):
    def __init__(self, unimix: float) -> None:
        self.unimix = unimix

    @property
    def is_fast(self) -> bool:  # type: ignore[override]
        return self.unimix == 0.0


def test_who_declares() -> None:
    assert declares(Declared(), "is_fast", "method") and declares(DeclaredAgain(), "is_fast", "method")
    for silent in (Overriding(), SwitchedOff(), object(), len, ByInstance(0.1)):
        assert not declares(silent, "is_fast", "method")
    assert declares(ByInstance(0.0), "is_fast", "method") and not declares(Declared(), "is_fast", "method", "other")
    patched = Declared()
    patched.method = lambda: 4  # type: ignore[method-assign]
    assert not declares(patched, "is_fast", "method")


# -------------------------------------------------------------------------------------------------------- the fast scan

Calls = list[str]


def spied(method: Callable[..., Any], calls: Calls) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(method.__name__)
        return method(*args, **kwargs)

    return call


def overridden(cls: type, *names: str) -> Callable[[Any, Calls], None]:
    """The object gets a subclass that overrides these methods."""

    def change(obj: Any, calls: Calls) -> None:
        obj.__class__ = type("Changed", (cls,), {name: spied(getattr(cls, name), calls) for name in names})

    return change


def patched(name: str) -> Callable[[Any, Calls], None]:
    return lambda obj, calls: setattr(obj, name, spied(getattr(obj, name), calls))


def forward_hook(module: nn.Module, calls: Calls) -> None:
    module.register_forward_hook(lambda *_: calls.append("hook"))


def forward_pre_hook(module: nn.Module, calls: Calls) -> None:
    module.register_forward_pre_hook(lambda *_: calls.append("hook"))


def backward_hook(module: nn.Module, calls: Calls) -> None:
    module.register_full_backward_hook(lambda *_: calls.append("hook"))


def backward_pre_hook(module: nn.Module, calls: Calls) -> None:
    module.register_full_backward_pre_hook(lambda *_: calls.append("hook"))


HOOKS = (forward_hook, forward_pre_hook, backward_hook, backward_pre_hook)
#: Part of the RSSM ("" is itself), and how it is changed
CHANGES: list[tuple[str, Callable[[Any, Calls], None]]] = [
    *(("", overridden(RSSM, name)) for name in ("_scan", "transition", "posterior", "advance")),
    *(("", patched(name)) for name in ("_scan", "transition", "posterior", "advance")),
    *(("latent", overridden(CategoricalLatent, name)) for name in ("sample", "distribution")),
    ("latent", patched("sample")),
    ("cell", overridden(LayerNormGRUCell, "forward")),
    ("cell", patched("forward")),
    ("posterior_output", overridden(nn.Linear, "forward")),
    ("activation", overridden(nn.ELU, "forward")),
    *((name, hook) for name in ("cell", "cell.linear", "cell.norm", "posterior_output", "activation") for hook in HOOKS),
    *((name, hook) for name in ("input", "input_norm", "posterior_hidden", "posterior_norm") for hook in HOOKS),
]


def part(rssm: Any, name: str) -> Any:
    for step in name.split(".") if name else ():
        rssm = getattr(rssm, step)
    return rssm


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name, change", CHANGES)
def test_changed_parts_are_used_in_training(name: str, change: Callable[[Any, Calls], None]) -> None:
    """In every step of the sequences, by an update as it is; the result is the same, since the changes only watch."""
    model, other = (random_model(seed=1, learning_starts=1000).learn(40) for _ in range(2))
    rssm = model.policy.world_model.rssm
    calls: Calls = []
    assert rssm.uses_fast_scan
    change(part(rssm, name), calls)
    assert not rssm.uses_fast_scan
    batch = model.replay_buffer.sample(2)
    calls.clear()
    noise = rssm.latent.draw_noise(th.empty(*batch.rewards.shape, rssm.latent.parameter_size))
    losses = [agent.policy.world_model.loss(batch, agent.model_objective, noise) for agent in (model, other)]
    for loss in losses:
        loss.total.backward()
    assert len(calls) >= (1 if "_scan" in calls else len(batch.rewards))
    th.testing.assert_close(losses[0].total, losses[1].total)
    pairs = zip(rssm.parameters(), other.policy.world_model.rssm.parameters(), strict=True)
    th.testing.assert_close(*zip(*((a.grad, b.grad) for a, b in pairs), strict=True))


def test_latent_that_switches_the_scan_off() -> None:
    model = random_model(seed=1)
    rssm = model.policy.world_model.rssm
    rssm.latent.__class__ = type("Mixed", (CategoricalLatent,), {"fast_scan": False})
    assert not rssm.uses_fast_scan


@pytest.fixture
def global_hook() -> Iterator[Calls]:
    calls: Calls = []
    handle = register_module_forward_hook(lambda module, *_: calls.append(type(module).__name__))
    yield calls
    handle.remove()


def test_global_hooks_see_every_layer(global_hook: Calls) -> None:
    model = random_model(seed=1, learning_starts=1000).learn(40)
    global_hook.clear()
    model.policy.world_model.loss(model.replay_buffer.sample(2), model.model_objective)
    assert not model.policy.world_model.rssm.uses_fast_scan
    assert global_hook.count("LayerNormGRUCell") == model.batch_length


@pytest.mark.parametrize("name, space", [("default", VECTOR), ("default_pixels", IMAGE), ("atari", IMAGE)])
def test_presets_take_the_fast_scan(name: str, space: Any) -> None:
    options = preset(name) | dict(device="cpu", buffer_size=100, n_envs=None, learning_starts=10)
    del options["n_envs"]
    model = DreamerV2("MlpPolicy" if space is VECTOR else "CnnPolicy", SpacesOnly(space, DISCRETE), **options)
    assert model.policy.world_model.rssm.uses_fast_scan


# ------------------------------------------------------------------------------------------------------ one-hot features


class OwnActor(CategoricalActor):
    """Looks at its input, as code that knows nothing of one-hot features would."""

    def forward(self, features: Any) -> OneHotCategorical:
        assert isinstance(features, th.Tensor)
        return super().forward(features * 1.0)


class OwnHead(nn.Module):
    """Not one of ours."""

    def __init__(self, features_size: int) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(features_size, 1), 0

    def forward(self, features: Any) -> UnitNormal:
        assert isinstance(features, th.Tensor)
        self.seen += 1
        return UnitNormal(self.layer(features).squeeze(-1))


def large_model() -> DreamerV2:
    model = random_model(seed=1, policy_kwargs=LARGE, learning_starts=1000).learn(40)
    assert model.policy.world_model.rssm.latent.size >= SPARSE_SIZE
    return model


def spied_forward(module: nn.Module, seen: list[type]) -> None:
    """Note the inputs of a method of the class, so that nothing is patched on the instance."""
    cls = type(module)

    def forward(self: nn.Module, features: Any) -> Any:
        seen.append(type(features))
        return cls.forward(self, features)

    module.__class__ = type("Spied", (cls,), {"forward": forward, "accepts_one_hot": True})


def test_our_networks_see_one_hot_features() -> None:
    model = large_model()
    behavior, world_model = model.policy.behavior, model.policy.world_model
    for module in (
        behavior.actor,
        behavior.critic,
        behavior.critic_target,
        world_model.reward_head,
        world_model.discount_head,
    ):
        assert module is not None and accepts_one_hot(module)
        seen: list[type] = []
        spied_forward(module, seen)
        model.update(model.replay_buffer.sample(2))
        assert OneHotFeatures in seen, module


def test_other_actors_see_tensors() -> None:
    model = large_model()
    actor = model.policy.behavior.actor
    actor.__class__ = OwnActor
    assert not accepts_one_hot(actor)
    model.update(model.replay_buffer.sample(2))
    model.predict(VECTOR.sample())


@pytest.mark.parametrize("name", ["reward_head", "discount_head", "critic", "critic_target"])
def test_other_heads_see_tensors(name: str) -> None:
    model = large_model()
    room: Any = model.policy.behavior if "critic" in name else model.policy.world_model
    head = OwnHead(model.policy.world_model.rssm.features_size)
    setattr(room, name, head)
    if room is model.policy.world_model:
        model.update(model.replay_buffer.sample(2))
    else:  # without the critics' optimizer, which holds the former parameters
        rssm = model.policy.world_model.rssm
        with th.no_grad():
            start = rssm.imagine_step(rssm.initial_state(2), th.zeros(2, rssm.action_size))
            path = model.policy.world_model.imagine(room.actor, start, th.ones(2), 3, 0.9)
        assert path.one_hot is not None
        room.critic_loss(path, room.lambda_returns(path, 0.9).returns)
    assert head.seen > 0


def test_hooks_see_tensors() -> None:
    model = large_model()
    modules: list[Any] = [model.policy.behavior.actor, model.policy.world_model.reward_head.trunk[0]]  # type: ignore[union-attr, index]
    for module in modules:
        seen: list[type] = []
        handle = module.register_forward_hook(lambda _module, inputs, _output, seen=seen: seen.append(type(inputs[0])))
        model.update(model.replay_buffer.sample(2))
        assert set(seen) == {th.Tensor}
        handle.remove()


def test_hook_on_the_input_layer_sees_imagined_steps() -> None:
    model = large_model()
    calls: Calls = []
    forward_hook(model.policy.world_model.rssm.get_submodule("input"), calls)
    model.update(model.replay_buffer.sample(2))
    assert len(calls) == model.batch_length + model.imagination_horizon


def test_latents_with_other_samples_are_not_one_hot() -> None:
    latent = CategoricalLatent(32, 32)
    sample = latent.sample(th.randn(2, 1024))
    assert latent.places(sample) is not None
    latent.__class__ = type("Softened", (CategoricalLatent,), {"sample": lambda self, *args: sample + 0.1})
    assert latent.places(sample) is None


def test_form_of_features() -> None:
    sample = CategoricalLatent(32, 32).sample(th.randn(2, 1024))
    places = CategoricalLatent(32, 32).places(sample)
    assert places is not None
    features, head = OneHotFeatures(places, th.randn(2, 5), sample), ScalarHead(1029, layers(4), UnitNormal)
    assert features_for(head, features) is features
    dense = features_for(lambda x: x, features)
    assert isinstance(dense, th.Tensor) and features_for(head, dense) is dense
    th.testing.assert_close(head(features).mean, head(dense).mean)
