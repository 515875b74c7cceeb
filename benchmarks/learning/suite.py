"""The benchmark's tasks and agents, read from ``suite.yaml``, and the hyperparameters that each run is given."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sb3_dreamer.presets import default_config

OURS, RANDOM = "dreamer", "random"
SUITE = Path(__file__).with_name("suite.yaml")


@dataclass(frozen=True)
class Task:
    """
    One environment with its budgets.

    :param name: registered id
    :param steps: DreamerV2's budget, in steps of the environment
    :param section: of ``dreamer.yml``
    :param threshold: mean return that counts as learned; None where scores are reported only
    :param baselines: algorithms of rl_zoo3, each with None, a section of its file, or a dict
        with ``section``, its own ``factor``, and options that replace the section's
    :param seeds: of every agent
    :param action_repeat: environment steps during one step of DreamerV2, where the section has a wrapper for it
    :param factor: a baseline gets so many times the steps
    :param evaluations: within ``steps``; baselines are evaluated after the same steps, and go on
    :param episodes: of each evaluation
    """

    name: str
    steps: int
    section: str
    threshold: float | None = None
    baselines: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    action_repeat: int = 1
    factor: int = 5
    evaluations: int = 20
    episodes: int = 20

    @property
    def agents(self) -> list[str]:
        """Random actions, DreamerV2 and its baselines."""
        return [RANDOM, OURS, *self.baselines]

    def budget(self, agent: str) -> int:
        """
        :param agent: one of :attr:`agents`
        :return: environment steps
        """
        return self.steps if agent in (OURS, RANDOM) else self.steps * self.times(agent)

    def times(self, agent: str) -> int:
        """
        :param agent: one of :attr:`baselines`
        :return: how many times DreamerV2's steps it gets
        """
        return int(self._given(agent).get("factor", self.factor))

    def _given(self, agent: str) -> dict[str, Any]:
        given = self.baselines[agent] or {}
        return {"section": given} if isinstance(given, str) else dict(given)

    def hyperparameters(self, agent: str) -> dict[str, Any] | None:
        """
        :param agent: one of :attr:`agents`
        :return: what the run's own file must say, or None if rl_zoo3's file has a section for the task
        """
        if agent == OURS:
            return dict(sections(default_config())[self.section])
        options = self._given(agent)
        options.pop("factor", None)
        if not options:
            return None
        chosen = dict(sections(zoo_file(agent))[options.pop("section")])
        chosen.pop("env_wrapper", None)  # of the environment that the section is for
        return chosen | options


def sections(path: Path) -> dict[str, Any]:
    """
    :param path: of a hyperparameter file
    :return: its sections
    """
    return yaml.safe_load(path.read_text())


def zoo_file(algorithm: str) -> Path:
    """
    :param algorithm: of rl_zoo3
    :return: its hyperparameter file
    """
    spec = find_spec("rl_zoo3")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "hyperparams" / f"{algorithm}.yml"


def load_suite(path: Path = SUITE) -> dict[str, Task]:
    """
    :param path: of the YAML file
    :return: the tasks by name
    """
    content = yaml.safe_load(path.read_text())
    common = {key: content[key] for key in ("seeds", "evaluations", "episodes", "factor")}
    return {name: Task(name, **{**common, **options}) for name, options in content["tasks"].items()}
