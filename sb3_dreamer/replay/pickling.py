"""What a replay buffer is pickled as: its records, or, if these are on the disk, where they end there."""

import warnings
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.utils import get_device

from sb3_dreamer.common.files import StorageError
from sb3_dreamer.replay.disk_storage import DiskStorage
from sb3_dreamer.replay.storage import RamStorage

if TYPE_CHECKING:
    from sb3_dreamer.replay.buffer import SequenceReplayBuffer

PICKLE_FORMAT = 2


def state_of(buffer: "SequenceReplayBuffer") -> dict[str, Any]:
    """
    :param buffer: to be pickled
    :return: its attributes, but for format and storage, which are made anew; and the rows in use, or how many the folder has
    """
    if isinstance(buffer._storage, DiskStorage):
        buffer._storage.flush()
        records: Any = {"written": buffer._written.tolist(), "newest": buffer._storage.newest()}
    else:
        records = buffer._storage.pack(buffer._rows().tolist())
    attributes = {name: value for name, value in buffer.__dict__.items() if name not in ("_format", "_storage")}
    attributes["device"] = str(buffer.device)
    return {
        "format": PICKLE_FORMAT,
        "package_version": files("sb3_dreamer").joinpath("version.txt").read_text().strip(),
        "attributes": attributes,
        "records": records,
    }


def restore(buffer: "SequenceReplayBuffer", state: dict[str, Any]) -> None:
    """
    Of a folder that has gone on since, the newer records are out of sight; the next one that is added takes their place. Until
    then nothing has been lost.

    :param buffer: without attributes
    :param state: of :func:`state_of`
    :raises ValueError: if another version made it
    :raises StorageError: if the folder cannot be used, or has lost what it had then
    """
    if state.get("format") != PICKLE_FORMAT:
        raise ValueError(
            f"This replay buffer has format {state.get('format')} (sb3_dreamer {state.get('package_version')}), "
            f"expected format {PICKLE_FORMAT}."
        )
    buffer.__dict__.update({"storage_compression": None, **state["attributes"]})
    buffer.device = get_device(buffer.device)  # the CPU, if it was saved on a GPU that is not here
    buffer._starting = np.ones(buffer.n_envs, dtype=bool)  # whoever goes on with it has reset the environments
    if buffer.storage_path is not None and not Path(buffer.storage_path, "format.json").exists():
        raise StorageError(f"The records of this replay buffer are in {buffer.storage_path}, but there is no such buffer.")
    held = buffer.num_records
    buffer._make_storage(resume=True)
    if isinstance(buffer._storage, RamStorage):
        buffer._storage.unpack(state["records"])
        return
    buffer._storage.hide(state["records"]["written"], state["records"].get("newest"))
    buffer._start_counting()
    buffer._take_over_counts()
    if buffer.num_records < held:
        warnings.warn(
            f"The replay buffer in {buffer.storage_path} has {buffer.num_records} of the {held} records that it had when this "
            "file was written: later ones have overwritten the others."
        )
