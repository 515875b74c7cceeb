"""DreamerV3 as an algorithm of SB3: options, number of updates, sizes, states in the buffer, files."""

import re
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_dreamer import ContextReplayBuffer, DreamerV2, DreamerV3, SequenceReplayBuffer, preset
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v3 import export_model, import_model
from sb3_dreamer.dreamer_v3.networks import MODEL_SIZES
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.replay import StateSizes
from tests.small import BOX, DICT, DISCRETE, IMAGE, VECTOR, random_envs, same_weights, weights
from tests.small_v3 import SIZES
from tests.test_resume import Clockwork, PowerCut, Stop, scramble

SMALL: dict[str, Any] = dict(
    buffer_size=500, batch_size=3, batch_length=6, train_ratio=4.5, imagination_horizon=3, device="cpu", learning_starts=20
)


def model_of(
    observation_space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, n_envs: int = 1, **options: Any
) -> DreamerV3:
    own = options.pop("policy_kwargs", {})
    policy_kwargs = {**SIZES, "image_size": (16, 16), "optimizer_kwargs": dict(warmup=0), **own}
    policy = "MultiInputPolicy" if isinstance(observation_space, spaces.Dict) else "MlpPolicy"
    policy = "CnnPolicy" if observation_space is IMAGE else policy
    options = {**SMALL, "learning_rate": 1e-3, "seed": 1, **options}
    return DreamerV3(policy, random_envs(observation_space, action_space, n_envs), policy_kwargs=policy_kwargs, **options)


#: option: (a value that differs from the default, other options that it needs)
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "learning_rate": (1e-2, {}),
    "buffer_size": (30, {}),
    "learning_starts": (30, {}),
    "batch_size": (4, {}),
    "batch_length": (7, {}),
    "train_ratio": (9.0, {}),
    "gamma": (0.9, {}),
    "imagination_horizon": (4, {}),
    "imagination_last": (3, {}),
    "return_lambda": (0.5, {"policy_kwargs": dict(head_init_scale=1.0)}),
    "tau": (0.5, {}),
    "ent_coef": (0.5, {}),
    "exploration_noise": (0.5, {}),
    "free_nats": (0.0, {}),
    "dynamics_scale": (2.0, {"free_nats": 0.0}),
    "representation_scale": (2.0, {"free_nats": 0.0}),
    "observation_scale": (2.0, {}),
    "reward_scale": (2.0, {}),
    "discount_scale": (2.0, {}),
    "actor_scale": (0.0, {}),  # LaProp does not notice other factors of all gradients of a parameter
    "critic_scale": (2.0, {}),
    "replay_critic_scale": (0.0, {}),
    "critic_target_scale": (0.0, {}),
    "bootstrap_target": (True, {"policy_kwargs": dict(head_init_scale=1.0)}),
    "discount_head_learns_gamma": (False, {}),
    "reward_gradients": (False, {"policy_kwargs": dict(head_init_scale=1.0)}),
    "replay_critic_gradients": (False, {"policy_kwargs": dict(head_init_scale=1.0)}),
    "behavior_gradients": (True, {"policy_kwargs": dict(head_init_scale=1.0)}),
    "replay_buffer_kwargs": (dict(online=False), {}),
    "seed": (2, {}),
}
#: arguments whose effect is not on the weights of a small run on a CPU
OTHERS = (
    "self policy env model_size max_skipped_updates precision cuda_graphs overlap replay_buffer_class policy_kwargs "
    "stats_window_size tensorboard_log verbose device _init_setup_model"
)


def trained(**options: Any) -> dict[str, th.Tensor]:
    return weights(model_of(**options).learn(60))


def test_every_option_is_tested() -> None:
    assert set(OPTIONS) | set(OTHERS.split()) == set(signature(DreamerV3.__init__).parameters)


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, th.Tensor]]:
    return {}


@pytest.mark.parametrize("name", OPTIONS)
def test_option_changes_the_result(name: str, references: dict[str, dict[str, th.Tensor]]) -> None:
    value, needed = OPTIONS[name]
    if str(needed) not in references:
        references[str(needed)] = trained(**needed)
    assert not same_weights(references[str(needed)], trained(**{**needed, name: value}))


def test_defaults_are_those_of_the_objective_and_the_official_code() -> None:
    defaults = {name: parameter.default for name, parameter in signature(DreamerV3).parameters.items()}
    own = Objective()
    assert {name: defaults[name] for name in vars(own)} == vars(own)
    official = dict(learning_rate=4e-5, batch_size=16, batch_length=64, imagination_horizon=15, return_lambda=0.95)
    assert {name: defaults[name] for name in official} == official


# ------------------------------------------------------------------------------------------------------- number of updates


@pytest.mark.parametrize("n_envs", [1, 2, 3])
@pytest.mark.parametrize("train_ratio", [0.7, 4.5, 18.0, 29.0])
def test_train_ratio_is_exact_in_the_long_run(train_ratio: float, n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(n_envs=n_envs, train_ratio=train_ratio)
    done: list[tuple[int, int]] = []

    def train(gradient_steps: int, batch_size: int) -> None:
        done.append((model.num_timesteps, gradient_steps))

    monkeypatch.setattr(model, "train", train)
    model.learn(300)
    first, total = done[0][0], sum(updates for _, updates in done)
    assert done[0][1] == 1 and first > 20  # one update at once, and nothing for the steps before
    passed = model.num_timesteps - first
    assert total - 1 == int(passed * train_ratio / 18 + 1e-9)
    longest = max(after - before for (before, _), (after, _) in pairwise(done)) if len(done) > 1 else 0
    assert longest <= 2 * max(18 / train_ratio, n_envs) + n_envs


def test_fractions_of_updates_are_saved(tmp_path: Path) -> None:
    model = model_of(train_ratio=5.0)
    model.learn(61)
    assert model._steps_owed not in (None, 0.0)
    model.save(tmp_path / "model")
    loaded = DreamerV3.load(tmp_path / "model", random_envs(), device="cpu")
    assert loaded._steps_owed == model._steps_owed and loaded.train_freq == model.train_freq
    other = DreamerV3.load(tmp_path / "model", random_envs(n_envs=4), device="cpu")
    assert other.train_freq.frequency == 1 and model.train_freq.frequency == 3  # type: ignore[union-attr]


def test_updates_of_a_rollout_that_a_callback_ends_remain_due() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 42

    model = model_of()  # 1 update per 4 steps
    model.learn(100, callback=Stop())
    assert model.num_timesteps == 42 and model._n_updates == 5  # at 24, 28, ... 40
    model.learn(2, reset_num_timesteps=False)
    assert model._n_updates == 5 + int((42 - 40 + 4) * 4.5 / 18)


def test_the_actor_collects_before_the_first_update() -> None:
    """As in V3's code there are no random steps; the untrained actor is almost uniform."""
    model = model_of(action_space=BOX, policy_kwargs=dict(actor_init_scale=0.0, actor_min_std=1e-6, actor_max_std=1e-6))
    model.learn(15)
    assert np.abs(model.replay_buffer.actions[: model.replay_buffer.size()]).max() < 1e-4


# ------------------------------------------------------------------------------------------------------------------- sizes


def test_size_is_chosen_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for space in (VECTOR, IMAGE, DICT):
        assert model_of(space).model_size == "1m"
    model = model_of(verbose=1)
    model.learn(10)
    out = capsys.readouterr().out
    assert "Size: 1m of 1m, 12m" in out and "These are vectors on a CPU" in out
    assert re.search(r"Of each step, \d+ bytes are its latent state", out)
    assert "Updates: 1 per 4 environment steps (train_ratio 4.5), each on 3 sequences of 6 steps, after 20 steps" in out
    model.device = th.device("cuda")  # the size belongs to the weights, not to the machine
    model._check_options()
    assert model.model_size == "1m"
    fresh = model_of(IMAGE)
    fresh.device, fresh.model_size = th.device("cuda"), None
    fresh._check_options()
    assert fresh.model_size == "12m"


def test_default_size_has_the_official_number_of_parameters() -> None:
    model = DreamerV3(
        "MlpPolicy", random_envs(spaces.Box(-1, 1, (24,)), spaces.Box(-1, 1, (6,))), device="cpu", buffer_size=100
    )
    assert sum(p.numel() for p in model.policy.everything_optimizer.parameters) == 640_867
    assert model.replay_buffer.state_sizes == (512, 32, 4) and model.learning_starts == 1024


# -------------------------------------------------------------------------------------------------------------- the buffer


def test_states_of_acting_and_of_updates_are_stored() -> None:
    model = model_of(learning_starts=1000)
    seen: list[LatentState] = []
    act = model.policy.act

    def spy(*args: Any, **kwargs: Any) -> Any:
        state = act(*args, **kwargs)
        seen.append(state.latent)
        return state

    model.policy.act = spy  # type: ignore[method-assign]
    model.learn(30)  # episodes of 10 steps, hence of 11 records
    del model.policy.act  # type: ignore[method-assign]
    numbers = np.array([number for number in range(50) if number % 11 != 10][: len(seen)])
    rows, unknown = model.replay_buffer.states.read(np.zeros_like(numbers), numbers)
    stored = model.replay_buffer.state_sizes.to_states(rows, th.from_numpy)
    assert len(seen) >= 30 and not unknown.any()
    for number, state in enumerate(seen):
        assert th.allclose(stored.deterministic[number], state.deterministic[0], atol=5e-4)
        assert th.equal(stored.stochastic[number], state.stochastic[0])

    sample = model.replay_buffer.sample_with_context(3)
    result = model.update(sample.batch)
    model._write_back.add(model.replay_buffer, sample.envs, sample.firsts, result.states)
    last = sample.firsts + len(result.states.deterministic) - 1
    rows, _ = model.replay_buffer.states.read(sample.envs, last)
    after = model.replay_buffer.state_sizes.to_states(rows, th.from_numpy)
    for column, number in enumerate(last):
        later = zip(sample.firsts[column + 1 :], last[column + 1 :], strict=True)
        if not any(first <= number <= end for first, end in later):
            assert th.equal(after.stochastic[column], result.states.stochastic[-1, column])
            assert th.allclose(after.deterministic[column], result.states.deterministic[-1, column], atol=5e-4)


def test_the_whole_loop_writes_back() -> None:
    model = model_of()
    calls: list[int] = []
    write_back = model.replay_buffer.write_back
    model.replay_buffer.write_back = lambda *args: (calls.append(1), write_back(*args))[1]  # type: ignore[method-assign, func-returns-value]
    model.learn(60)
    assert len(calls) == model._n_updates > 5


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("at", [20, 100], ids=["before training", "training"])
def test_resumed_training_is_the_same_training(on_disk: bool, at: int, tmp_path: Path) -> None:
    """To the bit in memory. On the disk, the updates after the checkpoint have replaced states that it saw."""
    options = SMALL | dict(train_ratio=3.6, learning_rate="lin_1e-2", ent_coef="lin_1e-1_1e-3", seed=3)  # 1 update per 5 steps
    options["policy_kwargs"] = {**SIZES, "optimizer_kwargs": dict(warmup=3)}

    def where(name: str) -> dict[str, Any]:
        return {"replay_buffer_kwargs": dict(storage_path=str(tmp_path / name))} if on_disk else {}

    straight = DreamerV3("MlpPolicy", Clockwork(), **options, **where("a")).learn(200)
    stopped = DreamerV3("MlpPolicy", Clockwork(), **options, **where("b"))
    callbacks = [ResumableCheckpointCallback(at, tmp_path / "checkpoints"), Stop(at + 13, PowerCut())]
    with pytest.raises(PowerCut):
        stopped.learn(200, callback=callbacks)
    scramble()
    resumed = DreamerV3.resume(tmp_path / "checkpoints", Clockwork(), device="cpu")
    resumed.learn(200 - at, reset_num_timesteps=False)
    assert resumed.num_timesteps == straight.num_timesteps and resumed._n_updates == straight._n_updates > 30
    assert resumed._steps_owed == straight._steps_owed
    assert straight.replay_buffer.num_records == resumed.replay_buffer.num_records
    assert on_disk or same_weights(weights(straight), weights(resumed))
    optimizers = [model.policy.optimizer.state_dict()["param_groups"] for model in (straight, resumed)]
    assert optimizers[0] == optimizers[1]


@pytest.mark.parametrize("folder", ["a_image_discrete", "b_vector_continuous"])
def test_stored_states_are_the_official_ones(folder: str) -> None:
    """What the official code writes back to its replay, through 16 bits."""
    outputs = np.load(Path(__file__).parent / "data" / "golden_v3" / folder / "outputs.npz")
    h, z = (th.as_tensor(outputs[f"train1/replay/dyn/{name}"]).float() for name in ("deter", "stoch"))
    sizes = StateSizes(h.shape[-1], *z.shape[-2:])
    rows = sizes.to_rows(LatentState(h, z.flatten(-2))).reshape(-1)
    back = sizes.to_states(rows, th.from_numpy)
    assert th.equal(back.stochastic, z.flatten(-2).flatten(0, 1))
    assert (back.deterministic - h.flatten(0, 1)).abs().max() < 2.5e-4 and h.abs().max() <= 1.0


def test_training_without_an_environment() -> None:
    model = model_of()
    model.learn(60)
    before, updates = weights(model), model._n_updates
    model.train_offline(3, log_interval=None)
    assert model._n_updates == updates + 3 and not same_weights(before, weights(model))


# ------------------------------------------------------------------------------------------------------------------- files


def test_export_and_import(tmp_path: Path) -> None:
    model = model_of(DICT, BOX, gamma=0.9)
    model.learn(40)
    export_model(model, tmp_path / "model")
    loaded = import_model(tmp_path / "model", device="cpu")
    assert same_weights(weights(model), weights(loaded)) and loaded.objective == model.objective
    assert loaded.model_size == model.model_size and loaded.train_ratio == model.train_ratio
    from sb3_dreamer.dreamer_v2 import import_model as import_v2

    with pytest.raises(ValueError, match="it is a DreamerV3, not a DreamerV2"):
        import_v2(tmp_path / "model")


def test_models_of_the_other_algorithm_are_refused(tmp_path: Path) -> None:
    model_of().save(tmp_path / "model")
    with pytest.raises(ValueError, match="needs a policy derived from DreamerPolicy"):
        DreamerV2.load(tmp_path / "model")


def test_presets() -> None:
    assert preset("default", "dreamer_v3.yml") == {}
    atari = preset("ALE/Pong-v5", "dreamer_v3.yml")
    assert atari["train_ratio"] == 32 and atari["policy_kwargs"] == dict(image_size=(96, 96))
    with pytest.raises(ValueError, match=r"For an environment without one: 'default'\. Known are"):
        preset("default_pixels", "dreamer_v3.yml")


# ---------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(model_size="2m"), f"Unknown model_size '2m'; known are {list(MODEL_SIZES)}"),
        (dict(policy_kwargs=dict(model_size="1m")), "model_size is an argument of DreamerV3, not of policy_kwargs"),
        (
            dict(policy_kwargs=dict(exploration_class="random")),
            "has no exploration strategies, but exploration_class",
        ),
        (dict(train_ratio=0), "train_ratio must be a number of at least 1e-06, but is 0"),
        (dict(train_ratio="32"), "train_ratio must be a number .* but is '32'"),
        (dict(batch_length=1), "batch_length must be a number of at least 2, but is 1"),
        (dict(batch_size=2.5), "batch_size must be a whole number, but is 2.5"),
        (dict(learning_starts=-1), "learning_starts must be a number of at least 0, but is -1"),
        (dict(imagination_last=1), "imagination_last must be a number of at least 2, but is 1"),
        (dict(gamma=0.0), "gamma must be a number between 1e-06 and 1, but is 0"),
        (dict(observation_scale={"x": 2.0}), "observation_scale names 'x', which is not reconstructed"),
        (dict(replay_buffer_class=SequenceReplayBuffer), "must be derived from ContextReplayBuffer, but SequenceReplayBuffer"),
        (dict(replay_buffer_kwargs=dict(states=(1, 2, 3))), "states is decided by the policy"),
        (dict(buffer_size=6), r"holds 6 records of each, but batch_length=6 needs 7"),
        (dict(cuda_graphs=True), "cuda_graphs=True needs a CUDA device"),
        (dict(precision="float16"), "precision"),
        (dict(max_skipped_updates=0), "max_skipped_updates must be"),
        (dict(exploration_noise=2.0), "exploration_noise must be a number between 0 and 1, but is 2"),
        (dict(ent_coef="cos_1"), "ent_coef must be a number, a function"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        model_of(**options)


def test_action_noise_objects_are_refused() -> None:
    with pytest.raises(TypeError, match="exploration_noise is the amount of noise"):
        model_of().action_noise = 1  # type: ignore[assignment]
    assert issubclass(model_of().replay_buffer_class, ContextReplayBuffer)  # type: ignore[arg-type]
