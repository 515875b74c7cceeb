"""Options that may change during training, as in SB3: a number, or a function of the remaining progress (1 to 0)."""

from typing import Any

from stable_baselines3.common.utils import LinearSchedule

from sb3_dreamer.common.options import check_number


def parse_schedule(name: str, value: Any, *words: str) -> Any:
    """
    Parse the zoo's notation of schedules.

    ``lin_3e-4`` falls linearly from 3e-4 to zero at the end of training, ``lin_1_0.1`` goes from 1 to 0.1, and
    ``lin_1_0.1_0.5`` does so within the first half of training.

    :param name: of the option
    :param value: such a string; a number or a schedule is returned unchanged
    :param words: other valid strings, returned unchanged
    :return: a number, or a schedule that can be pickled
    :raises ValueError: for any other string, naming the option
    """
    if not isinstance(value, str) or value in words:
        return value
    kind, *numbers = value.split("_")
    try:
        start, end, share = (float(number) for number in (numbers + ["0", "1"][len(numbers) - 1 :])[:3])
        if kind != "lin" or len(numbers) > 3 or not 0.0 < share <= 1.0:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{name} must be a number, a function of the remaining progress, or a string such as 'lin_3e-4' (falls to zero) "
            f"or 'lin_1_0.1' (from 1 to 0.1), or 'lin_1_0.1_0.5' (within half of the training)"
            f"{''.join(f', or {word!r}' for word in words)}, but is {value!r}."
        ) from None
    return LinearSchedule(start, end, share)


def schedule_value(name: str, schedule: Any, progress_remaining: float, low: float = 0.0, high: float = float("inf")) -> float:
    """
    Current value of an option that may be a schedule.

    :param name: of the option
    :param schedule: a number or a function of the remaining progress
    :param progress_remaining: 1 at the start of training, 0 at its end
    :param low: smallest value allowed
    :param high: largest value allowed
    :return: the value
    :raises ValueError: if it is not a number or out of range, naming the option
    """
    # SB3 overshoots the end of training by up to a rollout
    value = schedule(max(progress_remaining, 0.0)) if callable(schedule) else schedule
    check_number(name, value, low, high)
    return float(value)
