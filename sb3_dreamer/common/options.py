"""Checks of constructor arguments, with one clear error for an impossible value."""

import math
from typing import Any

import numpy as np


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """
    Check an option that must be a number; strings from YAML and NaN are refused.

    :param name: of the option
    :param value: as given
    :param low: smallest value allowed
    :param high: largest value allowed
    :raises ValueError: naming option, value and range
    """
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (number and low <= value <= high and math.isfinite(value)):
        limits = f"of at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be a number {limits}, but is {value!r}.")


def whole_number(name: str, value: Any, low: float) -> int:
    """
    Check an option that counts something; floats such as 16.0 are accepted.

    :param name: of the option
    :param value: as given
    :param low: smallest value allowed
    :return: the number
    :raises ValueError: naming option and value
    """
    check_number(name, value, low)
    if value != int(value):
        raise ValueError(f"{name} must be a whole number, but is {value!r}.")
    return int(value)
