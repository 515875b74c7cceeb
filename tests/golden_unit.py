"""Small pieces of the official code: one file of arrays, and comparisons with them."""

from pathlib import Path

import numpy as np
import torch as th

from tests.golden_rows import Row

FORWARD, GRADIENT = 1e-5, 1e-4


class Unit:
    """
    The file of one folder, which remembers what was read.

    :param folder: its name in ``tests/data``, or a path
    :param collects: keep errors that are too large as rows, instead of raising
    """

    def __init__(self, folder: str | Path = "golden", collects: bool = False) -> None:
        self.path = Path(__file__).parent / "data" / folder / "unit" if isinstance(folder, str) else folder
        self.rows: list[Row] = []
        self.collects = collects
        with np.load(self.path / "unit.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.read: set[str] = set()

    def __call__(self, name: str, gradient: bool = False) -> th.Tensor:
        self.read.add(name)
        return th.as_tensor(self.arrays[name].copy()).requires_grad_(gradient)

    def error(self, name: str, ours: th.Tensor) -> float:
        """Largest absolute error, relative to the largest absolute reference value."""
        reference = self(name).double()
        assert ours.shape == reference.shape, f"{name}: {tuple(ours.shape)} is not {tuple(reference.shape)}"
        error = (ours.detach().double() - reference).abs().max() / (reference.abs().max() or 1.0)
        return error.item()

    def compare(self, name: str, ours: th.Tensor, tolerance: float = FORWARD) -> None:
        error = self.error(name, ours)
        self.rows.append(Row(name, error, tolerance))
        assert error <= tolerance or self.collects, f"{name}: {error:.1e} is more than {tolerance:.0e}"

    def compare_gradients(self, value: th.Tensor, gradients: dict[str, th.Tensor], tolerance: float = GRADIENT) -> None:
        """Gradients of a scalar; names to what it is differentiated by."""
        found = th.autograd.grad(value, list(gradients.values()), allow_unused=True, retain_graph=True)
        for (name, tensor), gradient in zip(gradients.items(), found, strict=True):
            self.compare(name, th.zeros_like(tensor) if gradient is None else gradient, tolerance)
