"""Models for exchange with strangers: weights as safetensors, everything else as plain JSON, no code."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch import nn

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.files import atomic_file
from sb3_dreamer.common.options import Option, limit
from sb3_dreamer.common.version import VERSION
from sb3_dreamer.ranks.heartbeat import first_line

FORMAT, SUFFIX = "1", "safetensors"
#: Bytes of a header; bounds of a space of images take some millions
LARGEST_HEADER = 1 << 24
#: Written by files of the first version, which knew one algorithm
FIRST_ALGORITHM = "DreamerV2"

SomeAlgorithm = TypeVar("SomeAlgorithm", bound=SequenceOffPolicyAlgorithm)


def policies_of(algorithm_class: type[SequenceOffPolicyAlgorithm]) -> dict[str, Any]:
    """Policies of an algorithm that can be named in a file, by name."""
    return {cls.__name__: cls for cls in (*algorithm_class.policy_aliases.values(), algorithm_class.base_policy_class)}


def export_model(model: SequenceOffPolicyAlgorithm, path: str | Path) -> None:
    """
    Write the weights, the sizes of the networks and the options of training, without optimizers and buffer.

    :param model: any
    :param path: of the file, ``.safetensors``
    :raises ValueError: naming an option that is code, such as a custom encoder class
    """
    policy_class = type(model.policy)
    policies, names = policies_of(type(model)), exported_arguments(type(model))
    if policies.get(policy_class.__name__) is not policy_class:
        raise ValueError(f"export_model writes the policies {sorted(policies)}, but this one is {policy_class.__name__}.")
    arguments = {name: to_json(name, getattr(model, name)) for name in names - {"train_freq"}}
    if "train_freq" in names:
        frequency = model.train_freq
        arguments["train_freq"] = [frequency.frequency, frequency.unit.value]  # type: ignore[union-attr]
    policy_kwargs = {name: to_json(f"policy_kwargs['{name}']", value) for name, value in model.policy_kwargs.items()}
    content = {
        "format": FORMAT,
        "algorithm": type(model).__name__,
        "sb3_dreamer": VERSION,
        "policy": policy_class.__name__,
        "arguments": json.dumps(arguments),
        "policy_kwargs": json.dumps(policy_kwargs),
        "observation_space": json.dumps(space_to_json(model.observation_space)),
        "action_space": json.dumps(space_to_json(model.action_space)),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.policy.state_dict().items()}
    with atomic_file(path, SUFFIX) as file:
        file.write(save(tensors, metadata=content))


def import_as(
    algorithm_class: type[SomeAlgorithm],
    path: str | Path,
    env: GymEnv | None = None,
    device: th.device | str = "auto",
    **kwargs: Any,
) -> SomeAlgorithm:
    """
    Read a file of :func:`export_model`. Nothing in it is executed, whoever wrote it.

    :param algorithm_class: of the model
    :param path: of the file; the suffix may be left out
    :param env: to continue training in, with new optimizers; None to predict
    :param device: to load to
    :param kwargs: constructor arguments to change
    :return: the model
    :raises ValueError: if the file is damaged, of another kind or version, says what :func:`export_model` never writes, or
        does not fit the environment
    """
    path = Path(path)
    path = Path(f"{path}.{SUFFIX}") if path.suffix == "" and not path.exists() else path
    content, tensors = _read(path)
    try:
        options = _options_of(algorithm_class, content, tensors)
        make: Any = algorithm_class
        model = make(device=device, env=None, _init_setup_model=False, **{**options.arguments, **kwargs})
        model.observation_space, model.action_space, model.n_envs = *options.spaces, 1
        _check_weights(model, tensors)
    except Exception as error:  # whatever a stranger's values lead to
        raise ValueError(f"{path} is not a model of sb3_dreamer: {type(error).__name__}: {first_line(error)}") from error
    if env is not None:
        wrapped = model._wrap_env(env, model.verbose)
        check_for_correct_spaces(wrapped, *options.spaces)
        model.env, model.n_envs, model._vec_normalize_env = wrapped, wrapped.num_envs, unwrap_vec_normalize(wrapped)
    model._setup_model()
    model._place_given = "storage_path" in (kwargs.get("replay_buffer_kwargs") or {})
    model.policy.load_state_dict(tensors)
    return model


def exported_arguments(algorithm_class: type[SequenceOffPolicyAlgorithm]) -> set[str]:
    """Names of the constructor arguments that belong to an agent, not to a machine or a run."""
    names = set(inspect.signature(algorithm_class).parameters)
    return {name for name in names if algorithm_class.options.get(name, Option()).is_exported}


class _Options(NamedTuple):
    """What a file says besides the weights."""

    arguments: dict[str, Any]
    spaces: tuple[spaces.Space, spaces.Space]  # of observations and actions


def _options_of(
    algorithm_class: type[SequenceOffPolicyAlgorithm], content: dict[str, str], tensors: dict[str, th.Tensor]
) -> _Options:
    """Options of a model, with no size that is larger than all its weights together."""
    algorithm = content.get("algorithm", FIRST_ALGORITHM)
    if algorithm != algorithm_class.__name__:
        raise ValueError(f"it is a {algorithm}, not a {algorithm_class.__name__}: import it with the function of that one")
    room = sum(tensor.numel() for tensor in tensors.values())
    names = ("arguments", "policy_kwargs", "observation_space", "action_space")
    read = {name: json.loads(content[name]) for name in names}
    unknown = set(read["arguments"]) - exported_arguments(algorithm_class)
    if unknown:
        raise ValueError(f"it sets {sorted(unknown)}, which belong to a machine or a run, not to an agent")
    for name in names[1:]:
        _limit_sizes(name, read[name], room, len(tensors))
    arguments = {**from_json(read["arguments"]), "policy_kwargs": from_json(read["policy_kwargs"])}
    arguments["policy"] = policies_of(algorithm_class)[content["policy"]]
    return _Options(arguments, (space_from_json(read["observation_space"]), space_from_json(read["action_space"])))


def _limit_sizes(name: str, value: Any, room: int, layers: int) -> None:
    """Refuse sizes that are larger than all weights, and more layers than there are tensors."""
    if isinstance(value, dict):
        for key, part in value.items():
            _limit_sizes(f"{name}['{key}']", part, room, layers)
    elif isinstance(value, list):
        is_layers = name.startswith("policy_kwargs")
        limit(f"the length of {name}", len(value), layers if is_layers else room)
        for part in value:
            _limit_sizes(name, part, room, layers)
    elif isinstance(value, int):
        limit(name, abs(value), max(room, 1000))


def _check_weights(model: Any, tensors: dict[str, th.Tensor]) -> None:
    """Refuse weights that do not fit the options, before memory is taken for networks of other sizes, or are not finite."""
    arguments = model._policy_arguments()
    with th.device("meta"):
        policy = model.policy_class(model.observation_space, model.action_space, lambda _: 0.0, **arguments)
    expected = {name: value.shape for name, value in policy.state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    for name in sorted(set(expected) | set(found)):
        if expected.get(name) != found.get(name):
            shapes = [tuple(one[name]) if name in one else "none" for one in (found, expected)]
            raise ValueError(f"the weights do not fit its own options: {name} has shape {shapes[0]}, expected {shapes[1]}")
        if not th.isfinite(tensors[name]).all():
            raise ValueError(f"the weights {name} are not finite")


def _read(path: Path) -> tuple[dict[str, str], dict[str, th.Tensor]]:
    try:
        with open(path, "rb") as start:
            limit("the size of its header", int.from_bytes(start.read(8), "little"), LARGEST_HEADER)
        with safe_open(path, framework="pt") as file:
            content = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}.") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} has format {content.get('format')!r}, expected {FORMAT!r}: not a model of this sb3_dreamer.")
    return content, tensors


def to_json(name: str, value: Any) -> Any:
    """
    Convert an option to values for JSON: schedules to the text that makes them, classes of ``torch.nn`` to names.

    :param name: of the option, for the error's text
    :param value: of the option
    :return: for JSON
    :raises ValueError: if the value is code
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    while isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        return float(value.val)
    if isinstance(value, LinearSchedule):
        return f"lin_{value.start}_{value.end}_{value.end_fraction}"
    name_of_class = getattr(value, "__name__", "")
    if inspect.isclass(value) and getattr(nn, name_of_class, None) is value:
        return {"torch.nn": name_of_class}
    if isinstance(value, Mapping):
        return {key: to_json(f"{name}['{key}']", part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(f"{name}[{index}]", part) for index, part in enumerate(value)]
    raise ValueError(f"export_model cannot write {name}={value!r}: it is code. Use save() for recipients who trust you.")


def from_json(value: Any) -> Any:
    """
    Invert :func:`to_json`.

    :param value: from JSON
    :return: with classes in place of their names
    :raises KeyError: if a name is not a module class of ``torch.nn``
    """
    if isinstance(value, dict):
        if set(value) == {"torch.nn"}:
            found = getattr(nn, str(value["torch.nn"]), None)
            if not (isinstance(found, type) and issubclass(found, nn.Module)):
                raise KeyError(value["torch.nn"])
            return found
        return {key: from_json(part) for key, part in value.items()}
    return [from_json(part) for part in value] if isinstance(value, list) else value


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """Convert a space that the agent supports to values for JSON."""
    if isinstance(space, spaces.Dict):
        return {"Dict": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Box):
        bounds = [array.astype(np.float64).astype(str).tolist() for array in (space.low, space.high)]  # infinity is no JSON
        return {"Box": {"bounds": bounds, "dtype": str(space.dtype), "shape": list(space.shape)}}
    if isinstance(space, spaces.Discrete):
        return {"Discrete": {"n": int(space.n), "start": int(space.start)}}
    if isinstance(space, spaces.MultiDiscrete):
        return {"MultiDiscrete": {"nvec": space.nvec.tolist(), "start": space.start.tolist()}}
    assert isinstance(space, spaces.MultiBinary), space
    return {"MultiBinary": {"n": space.n if isinstance(space.n, int) else list(space.n)}}  # type: ignore[arg-type]


def space_from_json(value: dict[str, Any]) -> spaces.Space:
    """Invert :func:`space_to_json`; a ``KeyError`` if the value is not a space."""
    ((kind, content),) = value.items()
    if kind == "Dict":
        return spaces.Dict([(key, space_from_json(part)) for key, part in content])
    if kind == "Box":
        shape, dtype = tuple(content["shape"]), np.dtype(content["dtype"])
        if dtype.kind not in "biuf":
            raise KeyError(str(dtype))
        low, high = (np.array(bound, dtype=np.float64).reshape(shape).astype(dtype) for bound in content["bounds"])
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(content["n"], start=content["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(content["nvec"]), start=np.array(content["start"]))
    if kind == "MultiBinary":
        return spaces.MultiBinary(content["n"] if isinstance(content["n"], int) else tuple(content["n"]))
    raise KeyError(kind)
