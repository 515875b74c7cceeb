"""Whatever the README tells people to type is run: Python blocks here (shortened), commands by the tests named below."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()

#: Every command of the README, and where it is run: a file, and the text in it that runs it
RUN_BY = {
    "make train": (".ci/run", "make train"),
    "make test": (".ci/run", "make test"),
    "pip install sb3-dreamer": (".ci/run", '-c constraints.txt "$work"/dist/*.whl'),
    'pip install "sb3-dreamer[extra]"': ("Makefile", "extra$(comma)tests"),
    "python -m rl_zoo3.train --algo dreamer --env CartPole-v1": (".ci/run", "-m rl_zoo3.train --algo dreamer"),
    "python -m rl_zoo3.enjoy --algo dreamer --env CartPole-v1 --no-render -n 500": (".ci/run", "-m rl_zoo3.enjoy"),
    "python -m rl_zoo3.train --algo dreamer --env CartPole-v1 -optimize --n-trials 10": ("tests/test_zoo.py", "-optimize"),
    "python -m sb3_dreamer.zoo train --algo dreamer --env CartPole-v1": ("tests/test_zoo.py", "sb3_dreamer.zoo"),
    "python -m tests.golden tests/data/golden/a_atari tests/data/golden/c_proprio": ("tests/test_golden.py", "main("),
}
#: What makes an example short
SHORTENED = {
    "20_000": "120",
    "1_000,": "60,",
    "1e7": "40",
    "learning_starts=1000, train_freq=4": "**SMALL",
    '**preset("CartPole-v1")': "**SMALL",
    '**preset("atari")': "**SMALL",
    "verbose=1": "verbose=0",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_command_is_run_somewhere() -> None:
    commands = [line.strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert set(commands) == set(RUN_BY), set(commands) ^ set(RUN_BY)
    for command, (file, text) in RUN_BY.items():
        assert text in (ROOT / file).read_text(), f"{command}: {file} does not run it any more"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.small import SMALL, SMALL_POLICY  # kept out of the module, so that the commands' test needs no torch

    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"SMALL": {**SMALL, "policy_kwargs": SMALL_POLICY}}
    code = blocks("python")
    assert len(code) == 4
    for block in code:
        for long, short in SHORTENED.items():
            block = block.replace(long, short)
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "dreamer_cartpole.zip").exists()


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
