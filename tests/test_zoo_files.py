"""Run folders from strangers: what RL Zoo writes is read, and nothing in it is run."""

from collections import OrderedDict
from pathlib import Path

import pytest

from sb3_dreamer.dream.zoo_run import find_run, read_yaml

yaml = pytest.importorskip("yaml")


def test_what_rl_zoo_writes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "args.yml"
    content = OrderedDict(algo="dreamer", env="CartPole-v1", n_timesteps=-1, sizes=(64, 64), nested=OrderedDict(a=[1, None]))
    path.write_text(yaml.dump(content))
    assert "python/object" in path.read_text()
    assert read_yaml(path) == dict(content)


@pytest.mark.parametrize("name", ["args.yml", "config.yml"])
@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch MARK']",
        "!!python/object/apply:collections.OrderedDict [[[a, !!python/object/apply:os.system ['touch MARK']]]]",
        "!!python/object/new:subprocess.check_output {args: [['touch', 'MARK']]}",
        "!!python/name:os.system",
        "{unclosed: [",
        "just text",
    ],
)
def test_code_in_a_run_folder_does_not_run(name: str, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "CartPole-v1_1" / "CartPole-v1"
    folder.mkdir(parents=True)
    (folder / "args.yml").write_text("env: CartPole-v1\n")
    (folder / "config.yml").write_text("{}\n")
    (folder / name).write_text(text.replace("MARK", str(tmp_path / "mark")))
    with pytest.raises(ValueError, match=f"{name} is not a file of RL Zoo, or holds Python objects that could run code"):
        find_run(tmp_path / "CartPole-v1_1")
    assert not (tmp_path / "mark").exists()
