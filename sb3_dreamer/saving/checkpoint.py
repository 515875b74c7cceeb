"""Full checkpoints: everything that training needs to go on as if it had not stopped."""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.files import atomic_file, sync_folder
from sb3_dreamer.ranks.distributed import gather, rank
from sb3_dreamer.ranks.rank_files import file_of_rank, is_of_rank

if TYPE_CHECKING:
    from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm

#: Names that rl_zoo3's ``--trained-agent`` looks for, too
MODEL, BUFFER, NORMALIZE = "model.zip", "replay_buffer.pkl", "vecnormalize.pkl"
RANDOM, CONTENTS = "random.json", "contents.json"
NAME = re.compile(r"step_(\d{12})")


def save_checkpoint(algorithm: "SequenceOffPolicyAlgorithm", folder: str | Path, keep: int | None = None) -> Path:
    """
    Write one checkpoint; it is there as a whole or not at all. Several ranks do so together, in a folder that all of them see:
    rank 0 writes the model, and every rank its own buffer and random states.

    :param algorithm: in training
    :param folder: of all checkpoints
    :param keep: older checkpoints are deleted until so many are left; None keeps all
    :return: its own folder, ``step_...``
    """
    folder = Path(folder)
    target = folder / f"step_{algorithm.num_timesteps:012d}"
    hidden = folder / f".{target.name}.tmp"
    if rank() == 0:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
    gather(None)  # the folder is there
    try:
        if not hidden.is_dir():
            raise FileNotFoundError(f"Rank {rank()} does not see rank 0's {hidden}: all ranks must share the folder.")
        write_parts(algorithm, hidden)
        names = [path.name for path in sorted(hidden.iterdir()) if not path.name.startswith(".")]
        digests = {name: digest(hidden / name) for name in names if is_of_rank(name) == rank()}
        contents = {name: value for part in gather(digests) for name, value in part.items()}
        if rank() > 0:
            return target
        with atomic_file(hidden / CONTENTS) as file:
            file.write(json.dumps(contents).encode())
        shutil.rmtree(target, ignore_errors=True)
        os.replace(hidden, target)
    except BaseException:
        if rank() == 0:
            shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync_folder(folder)
    for old in checkpoints(folder)[:-keep] if keep is not None else []:
        shutil.rmtree(old)
    return target


def write_parts(algorithm: "SequenceOffPolicyAlgorithm", folder: Path) -> None:
    """
    What one rank has to write.

    :param algorithm: in training
    :param folder: of one checkpoint
    """
    algorithm.save(folder / MODEL)
    algorithm.save_replay_buffer(folder / BUFFER)
    normalize = algorithm.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(file_of_rank(folder / NORMALIZE)))
    with atomic_file(file_of_rank(folder / RANDOM)) as file:
        file.write(json.dumps(random_states(algorithm)).encode())


def checkpoints(folder: str | Path) -> list[Path]:
    """
    :param folder: of :func:`save_checkpoint`
    :return: all checkpoints in it, the newest last
    """
    found = [path for path in Path(folder).glob("step_*") if NAME.fullmatch(path.name) and (path / CONTENTS).exists()]
    return sorted(found)


def check_checkpoint(path: Path) -> None:
    """
    Compare all files of a checkpoint with what was written.

    :param path: of the checkpoint
    :raises ValueError: naming the file that is missing or damaged
    """
    contents = json.loads((path / CONTENTS).read_text())
    for name, wanted in contents.items():
        file = path / name
        if not file.exists() or digest(file) != wanted:
            raise ValueError(f"The checkpoint {path} is damaged: {name} is not what was written.")


def find_checkpoint(folder: str | Path) -> Path:
    """
    :param folder: of all checkpoints, or of one
    :return: the newest that is not damaged; a warning names those that are
    :raises FileNotFoundError: if there is none
    :raises ValueError: if all are damaged, or the one that was named
    """
    folder = Path(folder)
    found = [folder] if (folder / CONTENTS).exists() else checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"There is no checkpoint in {folder}, which should hold folders named step_...")
    while len(found) > 1:
        try:
            check_checkpoint(found[-1])
            return found[-1]
        except ValueError as error:
            warnings.warn(f"{error} Looking at the one before it.")
            found.pop()
    check_checkpoint(found[0])
    return found[0]


def set_aside(folder: str | Path, num_timesteps: int) -> None:
    """
    Rename the checkpoints of steps that a run which begins has not reached yet: they are of another run, or of one that went
    on from an older checkpoint, and neither ``keep`` nor ``resume`` may take them for its newest. Nothing is deleted.

    :param folder: of all checkpoints
    :param num_timesteps: at which the run begins
    """
    later = [path for path in checkpoints(folder) if int(path.name.removeprefix("step_")) > num_timesteps]
    for path in later:
        number = itertools.count(1)
        os.replace(path, next(name for n in number if not (name := path.with_name(f"aside{n}_{path.name}")).exists()))
    if later:
        warnings.warn(
            f"{folder} has checkpoints of another run, which are later than step {num_timesteps} at which this one begins: "
            f"{', '.join(path.name for path in later)} were renamed to aside..._step_..."
        )


def digest(path: Path) -> str:
    """
    :param path: of a file
    :return: SHA-256 of its content
    """
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(1 << 22):
            result.update(content)
    return result.hexdigest()


def random_states(algorithm: "SequenceOffPolicyAlgorithm") -> dict[str, Any]:
    """
    Everything that random numbers are drawn from, but for the environment.

    :param algorithm: in training
    :return: values for JSON
    """
    name, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "torch": th.get_rng_state().tolist(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
        "buffer": algorithm.replay_buffer.random_state,
        "action_space": algorithm.action_space.np_random.bit_generator.state,
    }
    if algorithm.device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(algorithm.device).tolist()
    return states


def restore_random_states(algorithm: "SequenceOffPolicyAlgorithm", path: Path) -> None:
    """
    :param algorithm: that goes on
    :param path: of a checkpoint; a rank that it does not know keeps the random states of its seed
    """
    file = file_of_rank(path / RANDOM)
    if not file.exists():
        return
    states = json.loads(file.read_text())
    th.set_rng_state(th.tensor(states["torch"], dtype=th.uint8))
    if "cuda" in states and algorithm.device.type == "cuda":
        th.cuda.set_rng_state(th.tensor(states["cuda"], dtype=th.uint8), algorithm.device)
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm.replay_buffer.random_state = states["buffer"]
    algorithm.action_space.np_random.bit_generator.state = states["action_space"]


def statistics_file(path: Path) -> Path:
    """
    :param path: of a checkpoint
    :return: this rank's statistics of ``VecNormalize``, or those of rank 0 where it has none
    """
    own = file_of_rank(path / NORMALIZE)
    return own if own.exists() else path / NORMALIZE


def restore_normalization(path: Path, normalize: VecNormalize | None) -> None:
    """
    Give the environment's ``VecNormalize`` the statistics that it had.

    :param path: of a checkpoint
    :param normalize: of the environment
    :raises ValueError: if only one of them is there
    """
    has_file = (path / NORMALIZE).exists()
    if has_file != (normalize is not None):
        said = ("with", "without") if has_file else ("without", "with")
        raise ValueError(f"{path} was made {said[0]} VecNormalize, but the environment comes {said[1]}: wrap it as before.")
    if normalize is not None:
        saved = VecNormalize.load(str(statistics_file(path)), normalize.venv)
        for name in {"obs_rms", "ret_rms", "returns", "clip_obs", "clip_reward", "gamma", "epsilon"} & set(vars(saved)):
            setattr(normalize, name, getattr(saved, name))
