"""What all proofs share: comparisons of arrays, one row each, and the arrays that nothing was compared with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch as th

FORWARD, GRADIENT, METRIC, CHANGE = 1e-5, 1e-4, 1e-4, 5e-3
#: Files with results
RESULTS = ("outputs", "grads", "after")


@dataclass
class Row:
    """Result of one comparison."""

    name: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


class Proof(ABC):
    """
    Compares every array of one folder.

    :param arrays: of the folder, by file and name
    """

    def __init__(self, arrays: dict[str, dict[str, np.ndarray]]):
        self._arrays = arrays
        self.rows: list[Row] = []
        self.missing: list[str] = []  # what we have and the folder has not
        self.skipped: list[str] = []  # what cannot be compared on this device
        self._left = {(file, name) for file in RESULTS for name in arrays.get(file, {})}

    @abstractmethod
    def run(self) -> list[Row]:
        """All comparisons; one row per array."""

    @property
    def not_compared(self) -> list[str]:
        """Arrays of the folder that no comparison looked at."""
        return sorted(f"{file}: {name}" for file, name in self._left)

    def compare(
        self, name: str, ours: th.Tensor | np.ndarray | float, tolerance: float, file: str = "outputs", size: float = 0.0
    ) -> None:
        """
        Add a row.

        :param name: of the array in the file
        :param ours: in the official layout
        :param tolerance: largest relative error
        :param file: of the folder
        :param size: of the numbers that a scalar is the mean of; where they cancel, its error is relative to them
        """
        if name not in self._arrays[file]:
            self.missing.append(f"{file}: {name}")
            return
        self._left.discard((file, name))
        reference = np.asarray(self._arrays[file][name], dtype=np.float64)
        self.add(f"{name}" if file == "outputs" else f"{file}: {name}", ours, reference, tolerance, size)

    def skip(self, name: str) -> None:
        """Leave an output out by name."""
        self._left.discard(("outputs", name))
        self.skipped.append(name)

    def add(
        self, name: str, ours: th.Tensor | np.ndarray | float, reference: np.ndarray, tolerance: float, size: float = 0.0
    ) -> None:
        if isinstance(ours, th.Tensor):
            ours = ours.detach().cpu().numpy()
        ours = np.asarray(ours, dtype=np.float64)
        if ours.shape != reference.shape:
            raise ValueError(f"{name}: our shape {ours.shape} is not the reference's {reference.shape}")
        scale = max(float(np.abs(reference).max()), size) or 1.0
        error = float(np.abs(ours - reference).max()) / scale
        self.rows.append(Row(name, error if np.isfinite(error) else np.inf, tolerance))


def batch_major(x: th.Tensor) -> np.ndarray:
    """(T, B, ...) to (B, T, ...)."""
    return x.detach().cpu().numpy().swapaxes(0, 1)
