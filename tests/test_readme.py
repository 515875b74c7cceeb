"""Whatever the README tells people to type is run: commands by the tests named below, Python blocks by ``test_docs.py``."""

import re
from pathlib import Path

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


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_every_command_is_run_somewhere() -> None:
    commands = [line.strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert set(commands) == set(RUN_BY), set(commands) ^ set(RUN_BY)
    for command, (file, text) in RUN_BY.items():
        assert text in (ROOT / file).read_text(), f"{command}: {file} does not run it any more"


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
