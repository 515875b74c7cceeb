"""
Updates and acting from recordings, in 16 bit, and beside each other.

A CUDA graph repeats kernels with the same addresses and the same Python numbers. :class:`TapeRecorder` does so on the CPU,
operation by operation, so that whatever would be frozen in a graph is frozen here too.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm.engine import Engine, EngineOptions
from sb3_dreamer.algorithm.graphs import WARM_UP, RecordedFunction, tensors_of
from sb3_dreamer.common.observations import OBSERVATION_KEY
from sb3_dreamer.common.optimization import DreamerAdam
from sb3_dreamer.common.precision import full
from sb3_dreamer.dreamer_v2.policies import DreamerPolicy
from sb3_dreamer.dreamer_v2.update import UpdateNoise, training_update
from sb3_dreamer.world_model.latents import CategoricalLatent, GaussianLatent
from tests.small import ACTIONS, BOX, DISCRETE, IMAGE, LEARN, OBSERVATIONS, SMALL, SMALL_POLICY, VECTOR, RandomEnv, policy_for

needs_cuda = pytest.mark.skipif(not th.cuda.is_available(), reason="there is no CUDA device")


class TapeRecorder(TorchDispatchMode):
    """A CUDA graph's rules on the CPU: tensors by address, everything else as it was, no value read or given by Python."""

    FORBIDDEN = {
        "_local_scalar_dense": "waits for a value",
        "nonzero": "has an output whose size depends on values",
        "lift_fresh": "copies Python numbers to the device",
    }

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, Any]] = []

    def warm_up(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> Any:
        with self:
            return function()

    @th.no_grad()
    def replay(self) -> None:
        for operation, args, kwargs, outputs in self.tape:
            again = operation(*args, **kwargs)
            for old, new in zip(flat(outputs), flat(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} {self.FORBIDDEN[name]}"
        outputs = func(*args, **(kwargs or {}))
        self.tape.append((func, args, kwargs or {}, outputs))
        return outputs


def flat(tree: Any) -> list[th.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, th.Tensor)]


def undo_first_run(policy: DreamerPolicy) -> Callable[[], None]:
    """A tape computes while it is recorded and a CUDA graph does not: brings policy and random numbers back."""
    optimizers = [part.optimizer for part in policy.optimizers.values()]
    tensors = [*policy.state_dict().values(), *(x for o in optimizers for s in o.state.values() for x in s.values())]
    before, generator = [x.clone() for x in tensors], th.get_rng_state()

    def undo() -> None:
        with th.no_grad():
            th._foreach_copy_(tensors, before)
        th.set_rng_state(generator)

    return undo


class PolicyRecorder(TapeRecorder):
    """For functions that change a policy."""

    def __init__(self, policy: DreamerPolicy):
        super().__init__()
        self.policy = policy

    def record(self, function: Callable[[], Any]) -> Any:
        undo = undo_first_run(self.policy)
        result = super().record(function)
        undo()
        return result


def recording_engine(model: DreamerV2, **options: Any) -> Engine:
    scheduled = [name for name in ("ent_coef", "reinforce_weight") if callable(getattr(model, name))]
    make = partial(PolicyRecorder, model.policy)
    return Engine(model.policy, training_update, EngineOptions(**options), scheduled, callable(model.exploration_noise), make)


def update_of(model: DreamerV2) -> RecordedFunction:
    graphed = model.engine._graphed
    assert graphed is not None
    return graphed._recorded


def collected(space: Any = VECTOR, action_space: Any = DISCRETE, **kwargs: Any) -> DreamerV2:
    """Some steps in the buffer, no update yet."""
    policy_kwargs = {**SMALL_POLICY, **kwargs.pop("policy_kwargs", {})}
    kwargs = {**SMALL, "learning_starts": 1000, "policy_kwargs": policy_kwargs, "seed": 0, **kwargs}
    model = DreamerV2(policy_for(space), RandomEnv(*copy.deepcopy((space, action_space))), **kwargs)
    return model.learn(48)


#: Everything that an update can be made of
CASES: dict[str, dict[str, Any]] = {
    "vector": {},
    "picture, schedules": dict(
        space=IMAGE, ent_coef="lin_1e-1_1e-3", learning_rate="lin_1e-2", actor_learning_rate="lin_1e-2"
    ),
    "box, mixture": dict(action_space=BOX, reinforce_weight="lin_0.75_0.25", max_grad_norm=None),
    "box, dynamics": dict(action_space=BOX, policy_kwargs=dict(actor_distribution="tanh_normal", use_discount_head=False)),
    "everything": dict(space=OBSERVATIONS["dict"], action_space=ACTIONS["multi-discrete"], reward_norm_momentum=0.9),
    "gaussian, free nats": dict(
        policy_kwargs=dict(latent="gaussian", stochastic_classes=None, layer_norm=True), kl_balance=None, free_nats=0.1
    ),
    "plan2explore": dict(policy_kwargs=dict(exploration_class="plan2explore", normalize_observations=True)),
    "normalized": dict(reward_transform="normalize", normalize_returns=True, policy_kwargs=dict(head_init_scale=0.0)),
    "model loss": dict(policy_kwargs=dict(exploration_class="model_loss"), reward_transform="symlog"),
}


@pytest.mark.parametrize("name", CASES)
def test_repeated_update_is_the_update(name: str) -> None:
    """To the bit, while rates and schedules move; the recording is made at the fourth update."""
    model = collected(**CASES[name])
    plain = copy.copy(model)
    plain.policy = copy.deepcopy(model.policy)
    model._engine, plain._engine = recording_engine(model, cuda_graphs=True), recording_engine(plain, cuda_graphs=True)
    batches = [model.replay_buffer.sample(4, batch_length=6) for _ in range(WARM_UP + 5)]  # 8: all weights are exact
    for step, batch in enumerate(batches):
        results = []
        for agent, noise in ((model, None), (plain, UpdateNoise())):  # given noise is never recorded
            agent._current_progress_remaining = 1.0 - step / len(batches)
            agent._update_learning_rates()
            th.manual_seed(step)
            results.append(agent.update(batch, noise))
        for key, value in results[0].metrics.items():
            assert th.equal(value, results[1].metrics[key]), (step, key)
        for (key, a), b in zip(model.policy.state_dict().items(), plain.policy.state_dict().values(), strict=True):
            assert th.equal(a, b), (step, key)
    recorder: Any = update_of(model)._recorder
    assert len(recorder.tape) > 300 and update_of(plain)._recorder is None


def test_a_frozen_number_would_be_found() -> None:
    """What the tape is for: a learning rate that only Python knows stays what it was."""
    weight = th.ones(1, requires_grad=True)
    optimizer, rate = DreamerAdam([weight], weight_decay=0.0), {"now": 1.0}
    recorded = RecordedFunction(TapeRecorder)

    def step(gradient: th.Tensor) -> th.Tensor:
        return gradient * rate["now"]

    for now in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        rate["now"] = now
        last = recorded(step, th.ones(1), None)
    assert last.item() == WARM_UP + 1.0
    with pytest.raises(AssertionError, match="waits for a value"), TapeRecorder():
        float(weight.detach())
    with pytest.raises(AssertionError, match="copies Python numbers"), TapeRecorder():
        th.tensor([1.0])
    optimizer.make_graph_safe()
    assert optimizer.graph_safe


def test_other_options_and_shapes_are_recorded_anew() -> None:
    model = collected()
    model._engine = recording_engine(model, cuda_graphs=True)
    recorded = update_of(model)
    long, short = (model.replay_buffer.sample(4, batch_length=length) for length in (6, 5))
    cases: list[tuple[Any, dict[str, Any], int]] = [
        *[(long, {}, calls) for calls in (1, 2, 3, 4, 5)],
        (short, {}, 1),
        (short, {}, 2),
        (short, {"ent_coef": 0.5}, 1),
        (short, {"observation_scale": {"observation": 2.0}}, 1),
        (short, {}, 2),
    ]
    for batch, changes, expected in cases:
        vars(model).update(changes)
        model.update(batch)
        assert recorded._calls == expected
    parameters = model.get_parameters()
    model.set_parameters(parameters)
    assert recorded._calls == 0, "the optimizers have other tensors now"


@pytest.mark.parametrize(
    "options",
    [
        dict(action_space=DISCRETE),
        dict(action_space=BOX),
        dict(
            action_space=BOX, policy_kwargs=dict(actor_distribution="tanh_normal", latent="gaussian", stochastic_classes=None)
        ),
        dict(action_space=ACTIONS["multi-discrete"]),
    ],
    ids=["discrete", "box", "gaussian", "multi-discrete"],
)
def test_recorded_acting_is_acting(options: dict[str, Any]) -> None:
    model = collected(IMAGE, **options)
    engine = recording_engine(model, cuda_graphs=True)
    engine._acting._act._make_recorder = ActingRecorder  # type: ignore[union-attr]
    states = [model.policy.initial_state(2)] * 2
    starts = th.tensor([True, False])
    for step in range(WARM_UP + 4):
        pictures = {OBSERVATION_KEY: th.randint(256, (2, 1, 64, 64), dtype=th.uint8)}
        acts: list[Any] = [engine.act, model.policy.act]
        for which, act in enumerate(acts):
            th.manual_seed(step)
            states[which] = act(pictures, states[which], starts)
        assert all(th.equal(a, b) for a, b in zip(tensors_of(states[0]), tensors_of(states[1]), strict=True))


class ActingRecorder(TapeRecorder):
    """Acting changes nothing but the random numbers."""

    def record(self, function: Callable[[], Any]) -> Any:
        generator = th.get_rng_state()
        result = super().record(function)
        th.set_rng_state(generator)
        return result


def test_training_with_everything_on_ends_where_plain_training_does() -> None:
    """Through ``learn``: also the first, shorter batches, target updates, and statistics of observations."""
    options: dict[str, Any] = dict(policy_kwargs=dict(normalize_observations=True), target_update_interval=2)
    models = [collected(**options) for _ in range(2)]
    models[0]._engine = recording_engine(models[0], cuda_graphs=True)
    models[0]._engine._acting._act._make_recorder = ActingRecorder  # type: ignore[union-attr]
    for model in models:
        model.set_random_seed(1)
        model.learning_starts = 0
        model.learn(96, reset_num_timesteps=False)
    assert models[0]._n_updates == models[1]._n_updates == 12
    for (key, a), b in zip(models[0].policy.state_dict().items(), models[1].policy.state_dict().values(), strict=True):
        th.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=key)


# ------------------------------------------------------------------------------------------------------------ overlap


def test_overlap_acts_one_update_late() -> None:
    model = collected(policy_kwargs=dict(normalize_observations=True))
    engine = model._engine = recording_engine(model, overlap=True)
    acting, trained = engine.collector, model.policy
    assert acting is not trained
    batch, weights = model.replay_buffer.sample(4, batch_length=6), []
    for _ in range(3):
        engine.before_updates()
        weights.append([p.detach().clone() for p in trained.parameters()])
        assert all(th.equal(a, b) for a, b in zip(acting.parameters(), weights[-1], strict=True))
        model.update(batch)
        assert all(th.equal(a, b) for a, b in zip(acting.parameters(), weights[-1], strict=True)), "not touched by an update"
    assert not all(th.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))


def test_overlap_takes_statistics_while_acting() -> None:
    model = collected(policy_kwargs=dict(normalize_observations=True), learning_starts=1000)
    counted = model.policy.world_model.normalizer.count.item()  # type: ignore[union-attr]
    engine = model._engine = recording_engine(model, overlap=True)
    model.learn(16, reset_num_timesteps=False)
    counts = [policy.world_model.normalizer.count.item() for policy in (engine.collector, model.policy)]  # type: ignore[union-attr]
    assert counts == [counted + 16, counted]
    engine.before_updates()
    assert model.policy.world_model.normalizer.count.item() == counted + 16  # type: ignore[union-attr]
    loaded = collected(policy_kwargs=dict(normalize_observations=True), seed=1)
    model.set_parameters(loaded.get_parameters())
    for policy in (engine.collector, model.policy):
        assert policy.world_model.normalizer.mean.equal(loaded.policy.world_model.normalizer.mean)  # type: ignore[union-attr]


# ---------------------------------------------------------------------------------------------------------- precision


def test_noise_is_never_drawn_in_sixteen_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uniform numbers have 256 values in bfloat16, 0 among them: a class of probability 1 would lose now and then."""
    drawn: list[th.dtype] = []
    for owner in (CategoricalLatent, GaussianLatent):
        inner = owner.draw_noise

        def draw_noise(self: Any, like: th.Tensor, generator: Any = None, inner: Any = inner) -> th.Tensor:
            noise = inner(self, like, generator)
            drawn.append(noise.dtype)
            return noise

        monkeypatch.setattr(owner, "draw_noise", draw_noise)
    for name in CASES:
        model = collected(**CASES[name], precision="bfloat16")
        model.update(model.replay_buffer.sample(4, batch_length=6))
    assert len(drawn) >= len(CASES) and set(drawn) == {th.float32}


@pytest.mark.parametrize("name", CASES)
def test_sixteen_bit_gradients_point_the_same_way(name: str) -> None:
    """Products in bfloat16 have three digits; states, losses and parameters stay in float32."""
    model = collected(**CASES[name])
    batch = model.replay_buffer.sample(4, batch_length=6)
    gradients, losses = {}, {}
    for precision in ("float32", "bfloat16"):
        agent = copy.copy(model)
        agent.policy, agent.precision = copy.deepcopy(model.policy), precision
        th.manual_seed(0)
        result = agent.update(batch)
        assert {x.dtype for x in tensors_of(result.model_loss.states)} == {th.float32}
        assert {value.dtype for value in result.metrics.values()} == {th.float32}
        assert {p.dtype for p in agent.policy.parameters()} == {th.float32}
        optimizer = agent.policy.world_model_optimizer
        gradients[precision] = th.cat([p.grad.flatten() for p in optimizer.parameters if p.grad is not None])
        losses[precision] = result.model_loss.total.item()
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.005)
    similarity = th.cosine_similarity(gradients["float32"], gradients["bfloat16"], dim=0).item()
    assert 0.97 < similarity < 1.0 - 1e-9, "products were computed in bfloat16"


def test_casts_do_not_outlive_an_update() -> None:
    """Autocast remembers casts of parameters: an update must see those of the parameters before it, not older ones."""
    model = collected(precision="bfloat16")
    batch = model.replay_buffer.sample(4, batch_length=6)
    with th.autocast("cpu", dtype=th.bfloat16):  # the surroundings of an update, held open
        head = model.policy.world_model.reward_head
        features = th.randn(5, model.policy.world_model.rssm.features_size)
        before = head(features).mean
        loss = model.policy.world_model.loss(batch, model.model_objective)
        for group in model.policy.world_model_optimizer.optimizer.param_groups:
            group["lr"] = 0.1
        model.policy.world_model_optimizer.step(loss.total, None)
        after = head(features).mean
    with th.autocast("cpu", dtype=th.bfloat16):
        assert th.equal(after, head(features).mean) and not th.equal(after, before)


def test_full_precision_keeps_what_is_full() -> None:
    for dtype in (th.float32, th.float64, th.int64):
        x = th.ones(2, dtype=dtype)
        assert full(x) is x
    assert full(th.ones(2, dtype=th.bfloat16)).dtype == th.float32


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(precision="float16"), r"precision must be one of \['float32', 'bfloat16'\], but is 'float16'"),
        (dict(cuda_graphs=True), "cuda_graphs=True needs a CUDA device, but the policy is on 'cpu'"),
        (dict(overlap=True), "overlap=True needs a CUDA device"),
        (dict(cuda_graphs=1), "cuda_graphs must be True or False, but is 1"),
        (dict(overlap="yes"), "overlap must be True or False, but is 'yes'"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DreamerV2("MlpPolicy", RandomEnv(VECTOR), **{**SMALL, "policy_kwargs": SMALL_POLICY, **options})


def test_other_optimizers_cannot_be_recorded() -> None:
    model = collected(policy_kwargs=dict(optimizer_class=th.optim.RMSprop))
    with pytest.raises(ValueError, match=r"that can be recorded \(DreamerAdam, LaProp\), but optimizer_class is RMSprop"):
        recording_engine(model, cuda_graphs=True)


def test_model_of_a_gpu_can_be_used_without_one(tmp_path: Path) -> None:
    model = collected()
    model.cuda_graphs = model.overlap = True
    model.save(tmp_path / "model.zip")
    loaded = DreamerV2.load(tmp_path / "model.zip", RandomEnv(VECTOR), device="cpu")
    assert loaded.predict(np.zeros(3, np.float32))[0].shape == ()
    with pytest.raises(ValueError, match="cuda_graphs=True needs a CUDA device"):
        loaded.learn(20)
    DreamerV2.load(tmp_path / "model.zip", RandomEnv(VECTOR), device="cpu", cuda_graphs=False, overlap=False).learn(20)


# ----------------------------------------------------------------------------------------------------------- on a GPU


def trained_weights(model: DreamerV2) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@needs_cuda
@pytest.mark.parametrize("name, precision", [*((name, "float32") for name in CASES), (next(iter(CASES)), "bfloat16")])
def test_cuda_graph_is_the_update(name: str, precision: str) -> None:
    model = collected(**CASES[name], device="cuda", precision=precision)
    plain = copy.copy(model)
    plain.policy = copy.deepcopy(model.policy)
    model.cuda_graphs = plain.cuda_graphs = True
    before = trained_weights(model)
    batches = [model.replay_buffer.sample(4, batch_length=6) for _ in range(WARM_UP + 4)]
    for step, batch in enumerate(batches):
        for agent, noise in ((model, None), (plain, UpdateNoise())):
            th.manual_seed(step)
            agent.update(batch, noise)
    for (key, a), b in zip(model.policy.state_dict().items(), plain.policy.state_dict().values(), strict=True):
        th.testing.assert_close(a, b, rtol=1e-2, atol=1e-3, msg=key)
    moved, expected = (trained_weights(agent) - before for agent in (model, plain))
    assert th.cosine_similarity(moved, expected, dim=0) > 0.95, "a few updates move weights by little more than the tolerance"


@needs_cuda
@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "picture"])
def test_training_on_a_gpu_with_everything_on(space: Any) -> None:
    policy_kwargs = {**SMALL_POLICY, "normalize_observations": True}
    options: dict[str, Any] = {**SMALL, **LEARN, "policy_kwargs": policy_kwargs, "device": "cuda", "seed": 0}
    everything: dict[str, Any] = dict(precision="bfloat16", cuda_graphs=True, overlap=True)
    model = DreamerV2(policy_for(space), RandomEnv(space), **options, **everything).learn(200)
    assert model._n_updates > 20
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
