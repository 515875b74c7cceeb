"""Matrix products in 16 bit, everything that is sensitive in full precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

#: Types of matrix products and convolutions, by the name that users give
PRECISIONS: dict[str, th.dtype] = {"float32": th.float32, "bfloat16": th.bfloat16}


def check_precision(precision: Any) -> None:
    """
    :param precision: as given by the user
    :raises ValueError: naming what is possible
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, but is {precision!r}.")


def autocast(precision: str, device: th.device) -> th.autocast:
    """
    Where a network is called and its loss is formed, but not around optimizers.

    :param precision: key of ``PRECISIONS``
    :param device: of the networks
    :return: context in which PyTorch's linear layers and convolutions compute in this precision; parameters stay as they are
    """
    reduced = precision != "float32"
    return th.autocast(device.type, dtype=PRECISIONS[precision] if reduced else None, enabled=reduced)


@contextmanager
def outside_autocast(device: th.device) -> Iterator[None]:
    """
    For backward passes and optimizers: the former repeat the types of the forward pass by themselves, and after the latter the
    casts that autocast remembers are those of old parameters.

    :param device: of the networks
    """
    if not th.is_autocast_enabled(device.type):
        yield
        return
    with th.autocast(device.type, enabled=False):
        yield
    th.clear_autocast_cache()


def full(x: th.Tensor) -> th.Tensor:
    """
    Back to full precision: what networks put out is cast before it parameterizes a distribution or becomes a state.

    :param x: any tensor
    :return: float32 instead of a 16-bit type, everything else unchanged
    """
    return x.float() if x.dtype in (th.bfloat16, th.float16) else x


def cast_once(weight: th.Tensor) -> th.Tensor:
    """
    A part of a weight that is used many times: autocast remembers the casts of parameters, but not of parts of them.

    :param weight: float32
    :return: in the type of matrix products
    """
    kind = weight.device.type
    return weight.to(th.get_autocast_dtype(kind)) if th.is_autocast_enabled(kind) else weight
