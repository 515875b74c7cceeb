"""Tasks without a place: cues to answer, dials to set, memories to keep, rewards to weigh, moments to hit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from benchmarks.tasks.task import Task, choices_of, one_hot, unit_box


class Cues(Task):
    """
    A fresh random cue in every step; the action that it names pays 1, of an action with parts the share that is right.

    :param action_space: Discrete, MultiDiscrete or MultiBinary; the cue is one-hot, part by part
    :param length: steps per episode
    :param delay: the action must answer the cue of so many steps ago; the first steps pay nothing
    :param luck: probability with which a right answer pays, and a wrong one does not
    :param late: pay the sum of the episode in its last step, and observe the share of the episode that is over
    :param fatal: an answer that is not right ends the episode
    :param ends: whether the last step terminates the episode; otherwise it is truncated
    """

    def __init__(
        self,
        action_space: spaces.Space,
        length: int = 20,
        delay: int = 0,
        luck: float = 1.0,
        late: bool = False,
        fatal: bool = False,
        ends: bool = False,
    ) -> None:
        self.choices = choices_of(action_space)
        super().__init__(unit_box(sum(self.choices) + late), action_space, length, ends)
        self.delay, self.luck, self.late, self.fatal = delay, luck, late, fatal
        self.cues: list[np.ndarray] = []
        self.earned = 0.0

    def _begin(self) -> None:
        self.cues, self.earned = [self._draw()], 0.0

    def _draw(self) -> np.ndarray:
        return self.np_random.integers(self.choices)

    def _advance(self, action: Any) -> tuple[float, bool]:
        right = float(np.mean(action == self.cues[-1 - self.delay])) if self.time >= self.delay else 0.0
        self.cues.append(self._draw())
        if self.luck < 1.0:
            reward = float(self.np_random.random() < self.luck * right + (1.0 - self.luck) * (1.0 - right))
        else:
            reward = right
        self.earned += reward
        if self.late:
            reward = self.earned if self.time == self.length - 1 else 0.0
        return reward, self.fatal and right < 1.0

    def _observe(self) -> np.ndarray:
        parts = [one_hot(cue, count) for cue, count in zip(self.cues[-1], self.choices, strict=True)]
        return np.concatenate([*parts, np.full(int(self.late), self.time / self.length, np.float32)])

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        parts = np.split(observation, np.cumsum(self.choices))[: len(self.choices)]
        seen = [*(memory or []), [int(part.argmax()) for part in parts]][-1 - self.delay :]
        return (seen[0][0] if isinstance(self.action_space, spaces.Discrete) else np.array(seen[0])), seen


class Dials(Task):
    """
    Continuous dials to be set to what is shown; a step pays 1 for the right setting, 0 from a quarter of the range away.

    Without ``speed`` an action is the setting itself, and every step shows a new target in the units of the actions. With it,
    actions turn the dials, ``speed`` of their way for 1; the target stays for an episode, and dials and target are observed,
    both in [0, 1].

    :param low: lowest action of each dial
    :param high: highest action of each dial
    :param speed: share of a dial's way for an action of 1, None for actions that are settings
    :param length: steps per episode
    """

    def __init__(self, low: Sequence[float], high: Sequence[float], speed: float | None = None, length: int = 20) -> None:
        self.low, self.high, self.speed = np.array(low, np.float32), np.array(high, np.float32), speed
        actions = spaces.Box(self.low, self.high, dtype=np.float32)
        super().__init__(actions if speed is None else unit_box(2 * len(low)), actions, length)
        self.dials = self.target = np.zeros(len(low))  # in [0, 1]

    def _begin(self) -> None:
        self.dials, self.target = self.np_random.random((2, len(self.low)))

    def _advance(self, action: Any) -> tuple[float, bool]:
        action = np.clip(np.asarray(action, np.float64), self.low, self.high)
        self.dials = (action - self.low) / (self.high - self.low) if self.speed is None else self.dials + self.speed * action
        self.dials = np.clip(self.dials, 0.0, 1.0)
        reward = np.maximum(0.0, 1.0 - 4.0 * np.abs(self.dials - self.target)).mean()
        if self.speed is None:
            self.target = self.np_random.random(len(self.low))
        return float(reward), False

    def _observe(self) -> np.ndarray:
        if self.speed is not None:
            return np.concatenate([self.dials, self.target]).astype(np.float32)
        return (self.low + self.target * (self.high - self.low)).astype(np.float32).clip(self.low, self.high)

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        if self.speed is None:
            return observation, memory
        dials, target = np.split(observation, 2)
        return np.clip((target - dials) / self.speed, self.low, self.high), memory


class Recall(Task):
    """
    A cue at the start, left or right, a corridor without it, and a junction where the cued side must be taken.

    The observation tells the cue (one-hot, in the first place only), corridor and junction, but not how far it is. The turn
    terminates the episode with 1 for the cued side, else -1.

    :param gap: steps from the cue to the junction
    :param walking: a third action goes forward, without it nothing moves, and every step before the turn costs 0.01;
        otherwise the corridor is passed whatever is done
    """

    sides = 2

    def __init__(self, gap: int, walking: bool = False) -> None:
        super().__init__(unit_box(self.sides + 2), spaces.Discrete(self.sides + walking), 4 * gap if walking else gap + 1)
        self.gap, self.walking, self.cue, self.place = gap, walking, 0, 0

    def _begin(self) -> None:
        self.cue, self.place = int(self.np_random.integers(self.sides)), 0

    def _advance(self, action: Any) -> tuple[float, bool]:
        turned = int(action) < self.sides
        if self.place == self.gap and turned:
            return (1.0 if int(action) == self.cue else -1.0), True
        if self.place < self.gap and not (self.walking and turned):
            self.place += 1
        return -0.01 * self.walking, False

    def _observe(self) -> np.ndarray:
        return one_hot(self.cue if self.place == 0 else self.sides + (self.place == self.gap), self.sides + 2)

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        seen = int(observation.argmax())
        cue = seen if seen < self.sides else memory
        return (self.sides if self.walking and seen < self.sides + 1 else cue), cue


class Choice(Task):
    """
    The first action chooses one of several streams of rewards, all later actions do nothing.

    The observation tells step and choice, both one-hot. The end of the streams terminates the episode.

    :param streams: rewards of each choice, all of one length
    """

    def __init__(self, streams: Sequence[Sequence[float]]) -> None:
        self.streams = np.array(streams, np.float64)
        options, length = self.streams.shape
        super().__init__(unit_box(length + 1 + options), spaces.Discrete(options), length, ends=True)
        self.chosen: int | None = None

    def _begin(self) -> None:
        self.chosen = None

    def _advance(self, action: Any) -> tuple[float, bool]:
        self.chosen = int(action) if self.chosen is None else self.chosen
        return float(self.streams[self.chosen, self.time]), False

    def _observe(self) -> np.ndarray:
        options = len(self.streams)
        chosen = np.zeros(options, np.float32) if self.chosen is None else one_hot(self.chosen, options)
        return np.concatenate([one_hot(self.time, self.length + 1), chosen])

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        return int(self.streams.sum(axis=1).argmax()), memory


class Timer(Task):
    """
    Press at the right moment, without a clock: the observation is 1 at the start and after a press, else 0.

    Once: a press terminates the episode and pays 1 in step ``wait`` (counted from 0), a third less for each step of distance.
    Press in a rhythm: a press pays 1 on the ``wait``-th step after the last press (or the start), and 0 otherwise.

    :param wait: steps to let pass
    :param again: how often a perfect player presses; None for the task with one press
    """

    def __init__(self, wait: int, again: int | None = None) -> None:
        super().__init__(unit_box(1), spaces.Discrete(2), 2 * wait if again is None else wait * again)
        self.wait, self.again, self.since = wait, again, 0

    def _begin(self) -> None:
        self.since = 0

    def _advance(self, action: Any) -> tuple[float, bool]:
        self.since += 1
        if not int(action):
            return 0.0, False
        passed, self.since = self.since, 0
        if self.again is None:
            return max(0.0, 1.0 - abs(passed - 1 - self.wait) / 3.0), True
        return float(passed == self.wait), False

    def _observe(self) -> np.ndarray:
        return np.array([self.since == 0], np.float32)

    def rule(self, observation: np.ndarray, memory: Any) -> tuple[Any, Any]:
        since = 1 if observation[0] > 0.5 else memory + 1
        return int(since == (self.wait + 1 if self.again is None else self.wait)), since
