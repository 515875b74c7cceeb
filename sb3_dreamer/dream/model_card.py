"""A README in the format of the Hugging Face Hub, for sharing a model."""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np

from sb3_dreamer.common.version import VERSION
from sb3_dreamer.dream.zoo_run import ZooRun, read_yaml
from sb3_dreamer.dreamer_v2.dreamer_v2 import DreamerV2
from sb3_dreamer.dreamer_v3.dreamer_v3 import DreamerV3

#: Name of the algorithm to its paper, and to the value of ``--algo``
PAPERS = {"DreamerV2": "https://arxiv.org/abs/2010.02193", "DreamerV3": "https://arxiv.org/abs/2301.04104"}
ALGOS = {"DreamerV2": "dreamer", "DreamerV3": "dreamer_v3"}
PACKAGES = ("stable_baselines3", "rl_zoo3", "gymnasium", "torch", "numpy")
TEMPLATE = """---
{metadata}
---

# {name} on {run.env_id}

A trained [{name}]({paper}) agent and its world model, for
[sb3-dreamer](https://github.com/sb3-dreamer/sb3-dreamer) with Stable-Baselines3 and RL Baselines3 Zoo.

| evaluation | result |
|---|---|
| mean return, {episodes} episodes of {run.env_id} | {mean:.2f} ± {std:.2f} |
| actions | {actions} |
| environment steps of the training | {model.num_timesteps:,} |
| updates | {model._n_updates:,} |

## Use

```python
import gymnasium as gym
from sb3_dreamer import {name}

model = {name}.load("{path.name}")
```

In RL Zoo, with this folder as `logs/{algo}/{run.folder.name}`:

```bash
pip install sb3-dreamer
python -m rl_zoo3.enjoy --algo {algo} --env {run.env_id} -f logs
python -m sb3_dreamer.dream play logs/{algo}/{run.folder.name}/{path.name}
```

The agent has a memory: pass the state that `predict` returns to its next call.

## Training

```bash
{command}
```

```yaml
{hyperparams}
```

Versions: {versions}.
"""


def write_card(model: DreamerV2 | DreamerV3, run: ZooRun, model_path: Path, episodes: int = 20, seed: int = 1_000_000) -> Path:
    """
    Evaluate a trained model and write ``README.md`` beside it.

    :param model: the agent
    :param run: in which it was trained
    :param model_path: of its zip file
    :param episodes: number of evaluation episodes
    :param seed: of the evaluation environments, far from the training's
    :return: the path of the card
    """
    env = run.make_env(min(episodes, 10), seed)
    returns = run.evaluate(model, env, episodes)
    env.close()
    path = run.folder / "README.md"
    path.write_text(_card_text(model, run, model_path, returns), encoding="utf-8")
    return path


def _card_text(model: DreamerV2 | DreamerV3, run: ZooRun, model_path: Path, returns: np.ndarray) -> str:
    """The whole README, from the returns of evaluation episodes."""
    import yaml

    saved = next(run.folder.glob("*/args.yml")).parent
    command = saved / "command.txt"
    hyperparams = json.loads(json.dumps(read_yaml(saved / "config.yml"), default=str))
    versions = {"sb3-dreamer": VERSION, "Python": platform.python_version()}
    versions |= {name: version(name) for name in PACKAGES}
    name = type(model).__name__
    return TEMPLATE.format(
        model=model,
        name=name,
        paper=PAPERS[name],
        algo=ALGOS[name],
        run=run,
        path=model_path,
        metadata=_metadata(name, run.env_id, returns),
        episodes=len(returns),
        mean=returns.mean(),
        std=returns.std(),
        actions="most probable" if run.deterministic else "sampled",
        command=(
            re.sub(r"^\S*python\S*", "python", command.read_text().strip())
            if command.exists()
            else _train_command(ALGOS[name], run)
        ),
        hyperparams=yaml.safe_dump(hyperparams, sort_keys=False, default_flow_style=False).strip(),
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
    )


def _train_command(algo: str, run: ZooRun) -> str:
    """The command that repeats a run, as far as its saved arguments tell."""
    arguments = run.arguments
    steps = f" -n {arguments['n_timesteps']}" if arguments.get("n_timesteps", -1) > 0 else ""
    return f"python -m rl_zoo3.train --algo {algo} --env {run.env_id} --seed {arguments['seed']}{steps}"


def _metadata(name: str, env_id: str, returns: np.ndarray) -> str:
    """The YAML block that the Hub reads, with the returns of evaluation episodes."""
    from huggingface_hub import EvalResult, ModelCardData

    result = EvalResult(
        task_type="reinforcement-learning",
        task_name="reinforcement-learning",
        dataset_type=env_id,
        dataset_name=env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{returns.mean():.2f} +/- {returns.std():.2f}",
        verified=False,
    )
    tags = [env_id, "deep-reinforcement-learning", "reinforcement-learning", "stable-baselines3", "dreamer", "world-model"]
    card = ModelCardData(library_name="stable-baselines3", tags=tags, model_name=name, eval_results=[result])
    return card.to_yaml()
