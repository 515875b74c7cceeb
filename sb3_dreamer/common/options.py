"""Constructor arguments: what is known of each by name, and checks with one clear error for an impossible value."""

import math
from typing import Any, NamedTuple

import numpy as np


class Option(NamedTuple):
    """How a constructor argument is treated by whoever handles arguments by name; see the table of each algorithm."""

    least: int | None = None  # a whole number that is at least this
    is_schedule: bool = False  # may be a function of the remaining progress, or a string that describes one
    words: tuple[str, ...] = ()  # strings that mean something else
    is_exported: bool = True  # belongs to the agent, not to a machine or a run
    may_differ: bool = False  # between the ranks of one run


COUNT, SCHEDULE = Option(least=1), Option(is_schedule=True)
OF_A_RUN, OF_A_MACHINE = Option(is_exported=False, may_differ=True), Option(is_exported=False)


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


def limit(name: str, value: int, most: int) -> int:
    """
    Check a size that a file claims, before memory is taken for it.

    :param name: of the size
    :param value: as claimed
    :param most: largest value that the rest of the file leaves room for
    :return: the value
    :raises ValueError: naming size, value and bound
    """
    if value > most:
        raise ValueError(f"{name} is {value}, more than the {most} that such a file may have.")
    return value


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
