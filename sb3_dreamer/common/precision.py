"""Mixed precision: matrix products may be 16-bit, everything sensitive stays in full precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch as th

#: Types of matrix products and convolutions, by the option's value
PRECISIONS: dict[str, th.dtype] = {"float32": th.float32, "bfloat16": th.bfloat16}


def check_precision(precision: Any) -> None:
    """
    Check the option ``precision``.

    :param precision: as given by the user
    :raises ValueError: naming the possible values
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {list(PRECISIONS)}, but is {precision!r}.")


def autocast(precision: str, device: th.device) -> th.autocast:
    """
    Context in which PyTorch's linear layers and convolutions compute in the given precision.

    It surrounds forward passes and losses, not optimizers. Parameters keep their type.

    :param precision: key of ``PRECISIONS``
    :param device: of the networks
    :return: the context
    """
    reduced = precision != "float32"
    return th.autocast(device.type, dtype=PRECISIONS[precision] if reduced else None, enabled=reduced)


@contextmanager
def outside_autocast(device: th.device) -> Iterator[None]:
    """
    Context for backward passes and optimizer steps.

    A backward pass uses the types of its forward pass by itself. After a step, autocast's cache of cast parameters is stale
    and must be cleared.

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
    Cast 16-bit tensors to float32: network outputs, before they parameterize a distribution or become a state.

    :param x: any tensor
    :return: float32 if it was 16-bit, otherwise unchanged
    """
    return x.float() if x.dtype in (th.bfloat16, th.float16) else x


def cast_once(weight: th.Tensor) -> th.Tensor:
    """
    Cast a part of a weight that is used many times: autocast caches casts of parameters, but not of their parts.

    :param weight: float32
    :return: in the current type of matrix products
    """
    kind = weight.device.type
    return weight.to(th.get_autocast_dtype(kind)) if th.is_autocast_enabled(kind) else weight
