"""Full checkpoints: everything that training needs to resume as if it had not stopped."""

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.files import Lock, StorageError, atomic_file, sync_folder
from sb3_dreamer.ranks.distributed import gather, rank
from sb3_dreamer.ranks.rank_files import file_of_rank, is_of_rank

#: Names that rl_zoo3's ``--trained-agent`` looks for, too
MODEL, BUFFER, NORMALIZE = "model.zip", "replay_buffer.pkl", "vecnormalize.pkl"
RANDOM, CONTENTS, RUN = "random.json", "contents.json", "run.json"
NAME = re.compile(r"step_(\d{12})")


class Checkpoint:
    """
    One checkpoint, a folder ``step_...``, as this rank sees it: its files have the same names on every rank.

    :param path: of the folder
    """

    def __init__(self, path: Path) -> None:
        self.path, self.model, self.buffer = path, path / MODEL, path / BUFFER
        self._own_statistics, self._random = file_of_rank(path / NORMALIZE), file_of_rank(path / RANDOM)

    @classmethod
    def newest(cls, folder: str | Path) -> "Checkpoint":
        """
        The newest checkpoint that is not damaged; a warning names those that are.

        :param folder: of all checkpoints, or of one
        :return: the checkpoint
        :raises FileNotFoundError: if there is none
        :raises ValueError: if all are damaged, or the one that was named
        """
        folder = Path(folder)
        found = [folder] if NAME.fullmatch(folder.name) else _named_as_checkpoints(folder)
        if not found:
            raise FileNotFoundError(f"There is no checkpoint in {folder}, which should hold folders named step_...")
        for path in reversed(found[1:]):
            try:
                return cls(path)._checked()
            except ValueError as error:
                warnings.warn(f"{error} Trying the checkpoint before it.")
        return cls(found[0])._checked()

    def _checked(self) -> "Checkpoint":
        """Itself, if all files are what was written."""
        try:
            wrong = [name for name, wanted in self._contents().items() if _digest(self.path / name) != wanted]
        except (OSError, ValueError, TypeError) as error:  # missing, of another kind, or on a disk that fails
            raise ValueError(f"The checkpoint {self.path} is damaged: {error}.") from error
        if wrong:
            raise ValueError(f"The checkpoint {self.path} is damaged: {wrong[0]} is not what was written.")
        return self

    def _contents(self) -> dict[str, str]:
        contents = json.loads((self.path / CONTENTS).read_text())
        if not isinstance(contents, dict) or MODEL not in contents:
            raise ValueError(f"{CONTENTS} names no {MODEL}")
        return contents

    @property
    def run(self) -> str | None:
        """The run that wrote it, the same before and after it was resumed; None if that is not known."""
        try:
            return str(json.loads((self.path / RUN).read_text())["run"])
        except (OSError, ValueError, TypeError, KeyError):  # of an older version, or damaged
            return None

    @property
    def statistics(self) -> Path:
        """This rank's statistics of ``VecNormalize``, or those of rank 0 if it has none."""
        return self._own_statistics if self._own_statistics.exists() else self.path / NORMALIZE

    def write(self, algorithm: OffPolicyAlgorithm) -> None:
        """
        Write this rank's files: rank 0 the model, and every rank its buffer, statistics and random states.

        :param algorithm: in training
        """
        if rank() == 0:
            (self.path / RUN).write_text(json.dumps({"run": algorithm.run_id}))  # type: ignore[attr-defined]
        algorithm.save(self.model)
        algorithm.save_replay_buffer(self.buffer)
        normalize = algorithm.get_vec_normalize_env()
        if normalize is not None:
            normalize.save(str(self._own_statistics))
        with atomic_file(self._random) as file:
            file.write(json.dumps(random_states(algorithm)).encode())

    def restore_normalization(self, normalize: VecNormalize | None) -> None:
        """
        Give the environment's ``VecNormalize`` the statistics that it had.

        :param normalize: of the environment
        :raises ValueError: if the checkpoint was made with a ``VecNormalize`` and the environment has none, or vice versa
        """
        has_file = (self.path / NORMALIZE).exists()
        if has_file != (normalize is not None):
            said = ("with", "without") if has_file else ("without", "with")
            raise ValueError(
                f"{self.path} was made {said[0]} VecNormalize, but the environment comes {said[1]}: wrap it as before."
            )
        if normalize is not None:
            saved = VecNormalize.load(str(self.statistics), normalize.venv)
            for name in {"obs_rms", "ret_rms", "returns", "clip_obs", "clip_reward", "gamma", "epsilon"} & set(vars(saved)):
                setattr(normalize, name, getattr(saved, name))

    def restore_random_states(self, algorithm: OffPolicyAlgorithm) -> None:
        """
        Continue all sequences of random numbers. A rank that the checkpoint does not know keeps those of its seed.

        :param algorithm: that resumes
        """
        if not self._random.exists():
            return
        states = json.loads(self._random.read_text())
        th.set_rng_state(th.tensor(states["torch"], dtype=th.uint8))
        if "cuda" in states and algorithm.device.type == "cuda":
            th.cuda.set_rng_state(th.tensor(states["cuda"], dtype=th.uint8), algorithm.device)
        name, keys, *rest = states["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        version, internal, gauss = states["python"]
        random.setstate((version, tuple(internal), gauss))
        algorithm.replay_buffer.random_state = states["buffer"]  # type: ignore[union-attr]
        algorithm.action_space.np_random.bit_generator.state = states["action_space"]


def random_states(algorithm: OffPolicyAlgorithm) -> dict[str, Any]:
    """
    The states of everything that random numbers are drawn from, except the environment's.

    :param algorithm: in training
    :return: values for JSON
    """
    name, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {
        "torch": th.get_rng_state().tolist(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
        "buffer": algorithm.replay_buffer.random_state,  # type: ignore[union-attr]
        "action_space": algorithm.action_space.np_random.bit_generator.state,
    }
    if algorithm.device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(algorithm.device).tolist()
    return states


def checkpoints(folder: str | Path) -> list[Path]:
    """
    All complete checkpoints of a folder.

    :param folder: of :func:`save_checkpoint`
    :return: their folders, the newest last
    """
    return [path for path in _named_as_checkpoints(folder) if (path / CONTENTS).exists()]


def _named_as_checkpoints(folder: str | Path) -> list[Path]:
    return sorted(path for path in Path(folder).glob("step_*") if NAME.fullmatch(path.name))


def claim(folder: str | Path) -> Lock | None:
    """
    Keep other runs out of a folder of checkpoints.

    :param folder: created if it does not exist
    :return: to be released at the end of the run; None where folders cannot be locked
    :raises StorageError: if another run writes there
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        return None
    try:
        return Lock(os.open(folder, os.O_RDONLY))
    except BlockingIOError as error:
        raise StorageError(f"Another run writes its checkpoints to {folder}: each run needs its own folder.") from error


def save_checkpoint(algorithm: OffPolicyAlgorithm, folder: str | Path, keep: int | None = None) -> Path:
    """
    Write one checkpoint; a kill leaves either all of it or nothing. All ranks write together, into a folder that they share.

    :param algorithm: in training
    :param folder: of all checkpoints
    :param keep: number of latest checkpoints of this run to keep, those of others stay; None keeps all
    :return: its own folder, ``step_...``
    """
    folder = Path(folder)
    target = folder / f"step_{algorithm.num_timesteps:012d}"
    hidden = folder / f".{target.name}.tmp"
    try:
        contents = _write_hidden(algorithm, hidden)
        if rank() > 0:
            return target
        with atomic_file(hidden / CONTENTS) as file:
            file.write(json.dumps(contents).encode())
        own = [path for path in checkpoints(folder) if Checkpoint(path).run == Checkpoint(hidden).run]
        if target.exists() and target not in own:
            _put_aside(target)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(hidden, target)
    except BaseException:
        if rank() == 0:
            shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync_folder(folder)
    for old in sorted({*own, target})[:-keep] if keep is not None else []:
        shutil.rmtree(old)
    return target


def _write_hidden(algorithm: OffPolicyAlgorithm, hidden: Path) -> dict[str, str]:
    """Write the files of all ranks to a hidden folder; returns their digests."""
    if rank() == 0:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
    gather(None)  # the folder is there
    if not hidden.is_dir():
        raise FileNotFoundError(f"Rank {rank()} does not see rank 0's {hidden}: all ranks must share the folder.")
    Checkpoint(hidden).write(algorithm)
    names = [path.name for path in sorted(hidden.iterdir()) if not path.name.startswith(".")]
    own = {name: _digest(hidden / name) for name in names if is_of_rank(name) == rank()}
    return {name: value for part in gather(own) for name, value in part.items()}


def set_aside(folder: str | Path, num_timesteps: int) -> None:
    """
    Rename checkpoints of later steps than the one at which a run begins. They belong to another run, or to one that resumed
    from an older checkpoint, and neither ``keep`` nor ``resume`` may take them for the newest. Nothing is deleted.

    :param folder: of all checkpoints
    :param num_timesteps: at which the run begins
    """
    later = [path for path in checkpoints(folder) if int(path.name.removeprefix("step_")) > num_timesteps]
    for path in later:
        _put_aside(path)
    if later:
        warnings.warn(
            f"{folder} has checkpoints of another run, later than step {num_timesteps} at which this one begins: "
            f"{', '.join(path.name for path in later)} were renamed to aside..._step_..."
        )


def _put_aside(path: Path) -> None:
    """Rename a checkpoint so that nobody takes it for one of this run."""
    names = (path.with_name(f"aside{number}_{path.name}") for number in itertools.count(1))
    os.replace(path, next(name for name in names if not name.exists()))


def _digest(path: Path) -> str:
    """SHA-256 of a file."""
    result = hashlib.sha256()
    with open(path, "rb") as file:
        while content := file.read(1 << 22):
            result.update(content)
    return result.hexdigest()
