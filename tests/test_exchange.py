"""Models to give away: nothing in a file can run, and everything that an agent is comes back."""

import base64
import json
import pickle
import re
import resource
import time
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors.torch import load, save
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from torch import nn

from sb3_dreamer import DreamerV2, preset
from sb3_dreamer.algorithm.exchange import space_from_json, space_to_json
from sb3_dreamer.dreamer_v2 import MlpPolicy, export_model, import_model
from tests.small import ACTIONS, BOX, DISCRETE, IMAGE, OBSERVATIONS, SMALL, SMALL_POLICY, VECTOR, RandomEnv, policy_for

SPECIAL = {"float image", "float image channel first"}


def model_of(space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, **options: Any) -> DreamerV2:
    options = {**SMALL, "policy_kwargs": SMALL_POLICY, "seed": 0, **options}
    return DreamerV2(policy_for(space), RandomEnv(space, action_space), **options)


@pytest.mark.parametrize(
    "space, action_space, options",
    [
        (VECTOR, DISCRETE, {}),
        (IMAGE, BOX, dict(learning_rate="lin_1e-3", ent_coef="lin_1_0.1", kl_balance=None, train_freq=(2, "episode"))),
        (OBSERVATIONS["dict"], ACTIONS["multi-binary"], dict(observation_scale={"vector": 2.0})),
        (
            VECTOR,
            DISCRETE,
            dict(policy_kwargs={**SMALL_POLICY, "activation_fn": {"reward": nn.Tanh}, "normalize_observations": True}),
        ),
    ],
    ids=["vector", "image", "dict", "classes"],
)
def test_everything_comes_back(space: Any, action_space: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(space, action_space, **options)
    model.learn(12)
    export_model(model, tmp_path / "agent")
    loaded = import_model(tmp_path / "agent.safetensors")
    for (name, a), b in zip(model.policy.state_dict().items(), loaded.policy.state_dict().values(), strict=True):
        assert a.equal(b) and a.dtype == b.dtype, name
    observation = space.sample()
    ours, theirs = (m.predict(observation, deterministic=True)[0] for m in (model, loaded))
    np.testing.assert_array_equal(ours, theirs)
    assert loaded.model_objective == model.model_objective and loaded.train_freq == model.train_freq
    loaded._current_progress_remaining = model._current_progress_remaining
    assert loaded.behavior_objective == model.behavior_objective
    assert [loaded.lr_schedule(p) for p in (1.0, 0.3)] == [model.lr_schedule(p) for p in (1.0, 0.3)]
    again = import_model(tmp_path / "agent.safetensors", RandomEnv(space, action_space), gamma=0.5)
    assert again.gamma == 0.5
    again.learn(60)


def test_schedules_come_back(tmp_path: Path) -> None:
    """As RL Zoo makes them of a number and of text, and those that end early."""
    rates = dict(learning_rate=FloatSchedule(3e-4), actor_learning_rate=ConstantSchedule(1e-4))
    model = model_of(VECTOR, spaces.Discrete(3), **rates, critic_learning_rate="lin_1e-3_1e-4_0.5", ent_coef="lin_1e-2")
    export_model(model, tmp_path / "agent")
    loaded = import_model(tmp_path / "agent.safetensors")
    for progress in (1.0, 0.6, 0.3, 0.0):
        assert loaded._set_learning_rates(progress) == model._set_learning_rates(progress)
    assert loaded.ent_coef(0.5) == model.ent_coef(0.5)  # type: ignore[operator]


def test_several_environments_and_their_seed(tmp_path: Path) -> None:
    export_model(model_of(VECTOR, spaces.Discrete(3)), tmp_path / "agent")
    first = []
    for _ in range(2):
        model = import_model(tmp_path / "agent.safetensors", make_vec_env(lambda: RandomEnv(VECTOR), 3), seed=5)
        model.learn(9)
        assert model.n_envs == 3 and model.num_timesteps >= 9
        first.append(model.replay_buffer.observations[0])  # type: ignore[index]
    np.testing.assert_array_equal(first[0], first[1])
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        import_model(tmp_path / "agent.safetensors", RandomEnv(spaces.Box(-1.0, 1.0, (7,), np.float32)))


@pytest.mark.parametrize("name", [*OBSERVATIONS, *(f"action {name}" for name in ACTIONS)])
def test_spaces_come_back(name: str) -> None:
    space = ACTIONS[name.removeprefix("action ")] if name.startswith("action ") else OBSERVATIONS[name]
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


def test_presets_can_be_given_away(tmp_path: Path) -> None:
    model = DreamerV2("MlpPolicy", gym.make("CartPole-v1"), **preset("default"))
    export_model(model, tmp_path / "agent.safetensors")
    assert import_model(tmp_path / "agent.safetensors").policy.world_model.normalizer is not None


class Own(nn.Tanh):
    """Code of a user."""


class OwnPolicy(MlpPolicy):
    """Code of a user."""


def test_code_is_refused_by_name(tmp_path: Path) -> None:
    model = model_of(policy_kwargs={**SMALL_POLICY, "activation_fn": {"actor": Own}})
    with pytest.raises(ValueError, match=r"cannot write policy_kwargs\['activation_fn'\]\['actor'\]=.*it is code"):
        export_model(model, tmp_path / "agent")
    with pytest.raises(ValueError, match=r"cannot write ent_coef=.*it is code"):
        export_model(model_of(ent_coef=lambda progress: 0.1 * progress), tmp_path / "agent")
    with pytest.raises(ValueError, match="but this one is OwnPolicy"):
        export_model(DreamerV2(OwnPolicy, RandomEnv(VECTOR), **{**SMALL, "policy_kwargs": SMALL_POLICY}), tmp_path / "agent")
    assert list(tmp_path.iterdir()) == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    export_model(model_of(), path)
    whole = path.read_bytes()
    for part in range(20):
        path.write_bytes(whole[: len(whole) * part // 20])
        with pytest.raises(ValueError, match=str(path)):
            import_model(path)
    path.write_bytes(save({"weight": th.ones(2)}))
    with pytest.raises(ValueError, match="has format None, expected '1'"):
        import_model(path)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    for key in ("policy", "arguments", "observation_space"):
        path.write_bytes(save(load(whole), metadata={k: v for k, v in header.items() if k != key}))
        with pytest.raises(ValueError, match="is not a model of sb3_dreamer"):
            import_model(path)
    wider = json.dumps({**json.loads(header["policy_kwargs"]), "deterministic_size": 17})
    path.write_bytes(save(load(whole), metadata={**header, "policy_kwargs": wider}))
    with pytest.raises(ValueError, match="do not fit its own options"):
        import_model(path)
    with pytest.raises(FileNotFoundError):
        import_model(tmp_path / "missing.safetensors")


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def hostile_files(header: dict[str, str]) -> dict[str, dict[str, str]]:
    """Metadata by what is wrong with it."""

    def changed(part: str, **values: Any) -> dict[str, str]:
        return {**header, part: json.dumps({**json.loads(header[part]), **values})}

    deep = "[" * 100_000 + "]" * 100_000
    return {
        "writes elsewhere": changed("arguments", replay_buffer_kwargs={"storage_path": "victim"}),
        "logs elsewhere": changed("arguments", tensorboard_log="victim"),
        "another device": changed("arguments", device="cuda:7"),
        "unknown argument": changed("arguments", _init_setup_model=True),
        "many layers": changed("policy_kwargs", net_arch=[4] * 200_000),
        "wide": changed("policy_kwargs", hidden_size=1_000_000),
        "deep json": {**header, "policy_kwargs": deep},
        "not a dict": {**header, "arguments": "[1]"},
        "large module": changed("policy_kwargs", activation_fn={"torch.nn": "Transformer"}),
        "unknown policy kwarg": changed("policy_kwargs", storage_path="victim"),
        "many classes": {**header, "action_space": json.dumps({"Discrete": {"n": 10**12, "start": 0}})},
        "many actions": {**header, "action_space": json.dumps({"MultiBinary": {"n": 10**10}})},
        "objects": {**header, "observation_space": '{"Box": {"bounds": [["0"], ["1"]], "dtype": "O", "shape": [1]}}'},
        "text": {**header, "observation_space": '{"Box": {"bounds": [["0"], ["1"]], "dtype": "U99999999", "shape": [1]}}'},
        "huge box": {
            **header,
            "observation_space": '{"Box": {"bounds": [["0"], ["1"]], "dtype": "float32", "shape": [999999]}}',
        },
        "digits": {**header, "policy_kwargs": '{"hidden_size": ' + "9" * 100_000 + "}"},
    }


def test_strangers_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One ValueError for each, within a second and 100 MB, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "agent.safetensors"
    export_model(model_of(), path)
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    cases = {name: save(load(whole), metadata=metadata) for name, metadata in hostile_files(header).items()}
    for value in (float("nan"), float("inf")):
        tensors = load(whole)
        next(iter(tensors.values())).view(-1)[0] = value
        cases[f"a weight is {value}"] = save(tensors, metadata=header)
    cases["large header"] = (90 << 20).to_bytes(8, "little") + b"{"
    for name, content in cases.items():
        path.write_bytes(content)
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        with pytest.raises(ValueError, match=re.escape(str(path))):
            import_model(path, RandomEnv(VECTOR))
        assert time.process_time() - started < 1.0, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, name
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.safetensors"]
    path.write_bytes(whole)
    import_model(path, RandomEnv(VECTOR), tensorboard_log=None)


def test_a_model_file_with_endless_options_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    model_of().save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("data", "w", force_zip64=True) as file:
        for _ in range(600):
            file.write(bytes(1 << 20))
    started = time.process_time()
    with pytest.raises(ValueError, match="the size of its part 'data' is 629145600, more than"):
        DreamerV2.load(path)
    assert time.process_time() - started < 1.0


def test_hostile_pickles_do_not_run(tmp_path: Path) -> None:
    """Neither in an exported model nor in a buffer's folder is there a place that is unpickled."""
    mark, path = tmp_path / "mark", tmp_path / "agent.safetensors"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb works"
    mark.unlink()
    export_model(model_of(), path)
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    tensors, text = load(path.read_bytes()), base64.b64encode(cloudpickle.dumps(Bomb(mark))).decode()
    hostile: list[Any] = [{":type:": "x", ":serialized:": text}, {"torch.nn": "Module.__init__"}, {"torch.nn": "functional"}]
    for key in ("arguments", "policy_kwargs", "observation_space"):
        for value in hostile:
            for metadata in (value, {**json.loads(header[key]), "ent_coef": value}):
                path.write_bytes(save(tensors, metadata={**header, key: json.dumps(metadata)}))
                with pytest.raises((ValueError, TypeError)):
                    import_model(path)
    path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(ValueError, match="is not a complete safetensors file"):
        import_model(path)
    folder = tmp_path / "replay"
    storage = dict(storage_path=str(folder))
    model_of(replay_buffer_kwargs=storage).learn(12).replay_buffer.storage.flush()  # type: ignore[attr-defined]
    for name in ("flushed.bin", "format.json", "entries.bin"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
        with nullcontext() if name == "flushed.bin" else pytest.raises(ValueError, match="is damaged"):
            model_of(replay_buffer_kwargs={**storage, "storage_resume": True})
        (folder / name).write_bytes(content)
    assert not mark.exists()
