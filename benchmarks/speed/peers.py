"""
The same update in sheeprl's DreamerV2: round by round, ours and theirs, on the same machine under the same load.

sheeprl has its own environment (:func:`environment`) and its own process (:class:`Peer`), so that neither package can
change how the other one runs.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch as th

import sb3_dreamer
from benchmarks.speed.configurations import Configuration

PEER = "sheeprl==0.8.4"
DIRECTORY = Path(__file__).parents[2] / ".venv-peers"  # unless SB3_DREAMER_PEERS names another one
WORKER = Path(__file__).with_name("peer_sheeprl.py")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")

Times = tuple[float, float]  # wall and CPU seconds


def environment(directory: Path | None = None) -> Path:
    """
    The virtual environment of the peer, made first where it is missing: torch in our version, and sheeprl.

    :param directory: of the environment; None: ``SB3_DREAMER_PEERS`` where that is set, else ``.venv-peers`` of this
        repository
    :return: its Python
    """
    directory = Path(directory or os.environ.get("SB3_DREAMER_PEERS") or DIRECTORY).absolute()
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = [f"torch=={th.__version__.split('+')[0]}", PEER]
    if python.exists() and _has(python, wanted):
        return python
    for command in (
        [sys.executable, "-m", "venv", str(directory)],
        [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *wanted],
    ):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-10:])
            raise RuntimeError(f"Could not install {' and '.join(wanted)} into {directory}:\n{last}")
    return python


def _has(python: Path, wanted: list[str]) -> bool:
    """
    :param python: of an environment
    :param wanted: requirements, all of them ``name==version``
    :return: whether they are installed there, whatever the local part of their versions (``+cpu``)
    """
    script = "import importlib.metadata as m, sys; print(*(f'{n}=={m.version(n)}'.split('+')[0] for n in sys.argv[1:]))"
    names = [requirement.split("==")[0] for requirement in wanted]
    done = subprocess.run([str(python), "-I", "-c", script, *names], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.split() == wanted


class Peer:
    """
    A process that holds an agent of sheeprl and updates it when asked to.

    :param configuration: sizes
    :param threads: of the process
    :param directory: see :func:`environment`
    """

    parameters: int  # trained ones; set once the process has started, as are the versions
    version: str
    torch: str

    def __init__(self, configuration: Configuration, threads: int = 1, directory: Path | None = None) -> None:
        self.configuration = configuration
        self.threads = threads
        self.directory = directory
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the process and wait until its agent is built."""
        variables = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(self.threads))}
        argument = json.dumps({**self.configuration._asdict(), "threads": self.threads})
        command = [str(environment(self.directory)), "-I", str(WORKER), argument]  # -I: nothing of our own environment
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=variables
        )
        try:
            ready = self._read()
        except BaseException:
            self.close()
            raise
        self.parameters, self.version, self.torch = ready["parameters"], ready["version"], ready["torch"]

    def update(self) -> Times:
        """
        Make one update of world model, actor and critic.

        :return: wall and CPU seconds of it
        """
        reply = self._ask("update")
        return reply["wall"], reply["cpu"]

    def memory(self) -> float:
        """
        :return: largest resident size of the process so far, in MiB
        """
        return self._ask("memory")["peak_rss_mb"]

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            process.communicate(timeout=10)  # closes its stdin, upon which it ends
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        self._errors.close()

    def _ask(self, question: str) -> dict[str, Any]:
        """
        :param question: a line for the process
        :return: its answer
        """
        if self._process is None or self._process.stdin is None:
            raise RuntimeError("The peer is not running: use it in a with statement")
        try:
            print(question, file=self._process.stdin, flush=True)
        except OSError:
            pass  # it is dead, which is what reading will find
        return self._read()

    def _read(self) -> dict[str, Any]:
        """
        :return: the next line of the process
        """
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = "\n".join(self._errors.read().splitlines()[-15:])
        raise RuntimeError(f"The process of {PEER} ended with exit status {code}:\n{last}")

    def __enter__(self) -> "Peer":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def interleave(ours: Callable[[], Times], peer: Peer, rounds: int, warmups: int = 2) -> list[tuple[Times, Times]]:
    """
    Take turns, so that what else the machine does falls on both.

    :param ours: makes one update of our agent and tells its wall and CPU seconds
    :param peer: started
    :param rounds: that count, of one update each
    :param warmups: rounds before them
    :return: wall and CPU seconds of ours and of theirs, of every round
    """
    pairs = [(ours(), peer.update()) for _ in range(warmups + rounds)]
    return pairs[warmups:]


def compare(configuration: Configuration, ours: Callable[[], Times], threads: int, rounds: int) -> dict[str, Any]:
    """
    Time an update of both.

    :param configuration: sizes of both agents
    :param ours: see :func:`interleave`
    :param threads: of the peer, and of torch in this process while it is timed
    :param rounds: see :func:`interleave`
    :return: medians over the rounds; the ratios, ours by theirs, are taken within each round
    """
    before = th.get_num_threads()
    th.set_num_threads(threads)
    try:
        with Peer(configuration, threads) as peer:
            pairs = interleave(ours, peer, rounds)
            memory = peer.memory()
    finally:
        th.set_num_threads(before)
    return {
        "configuration": configuration.name,
        "threads": threads,
        "rounds": rounds,
        "ours_wall_seconds": median(mine[0] for mine, _ in pairs),
        "ours_cpu_seconds": median(mine[1] for mine, _ in pairs),
        "peer_wall_seconds": median(theirs[0] for _, theirs in pairs),
        "peer_cpu_seconds": median(theirs[1] for _, theirs in pairs),
        "wall_ratio": median(mine[0] / theirs[0] for mine, theirs in pairs),
        "cpu_ratio": median(mine[1] / theirs[1] for mine, theirs in pairs),
        "peer_parameters": peer.parameters,
        "peer_peak_rss_mb": memory,
        "versions": {
            "sb3_dreamer": sb3_dreamer.__version__,
            "torch": th.__version__,
            "sheeprl": peer.version,
            "peer_torch": peer.torch,
        },
    }
