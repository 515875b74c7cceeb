"""torchrun itself: rl_zoo3's command, a script of one's own, a rank that is killed and the restart that goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sb3_dreamer import DreamerV2
from sb3_dreamer.saving.checkpoint import checkpoints
from tests.installed import ROOT
from tests.ranks import free_port
from tests.test_zoo import TINY


def torchrun(folder: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    """Two ranks, and what they and the launcher say."""
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        f"--master-port={free_port()}",
        f"--max-restarts={restarts}",
    ]
    command = [sys.executable, *launcher, *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(command, cwd=folder, env=environ, **pipes)  # type: ignore[call-overload]


def test_zoo_command(tmp_path: Path) -> None:
    """One run, one log folder, one voice."""
    (tmp_path / "tiny.yml").write_text(TINY)
    zoo = ["-m", "sb3_dreamer.zoo", "train", "--algo", "dreamer", "--env", "CartPole-v1", "-conf", "tiny.yml", "-f", "logs"]
    process = torchrun(tmp_path, *zoo, "--eval-freq", "100", "--save-freq", "160", "--save-replay-buffer")
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    assert output.count("Saving to logs") == 1 and output.count("Updates: 1 per 40 environment steps") == 1
    (run,) = (tmp_path / "logs" / "dreamer").iterdir()
    names = {path.name for path in run.iterdir()}
    assert {"0.monitor.csv", "CartPole-v1.zip", "replay_buffer.pkl", "replay_buffer.rank1.pkl", "checkpoints"} < names
    assert "best_model.zip" in names and not {"1.monitor.csv", "CartPole-v1_2"} & names
    model = DreamerV2.load(run / "CartPole-v1.zip")
    assert model.num_timesteps == 200 and model._n_updates == 3
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_000000000160", "step_000000000200"]


def child(of: int) -> dict[int, int]:
    """Process ids by rank of what torchrun has started."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            variables = dict(part.split("=", 1) for part in (entry / "environ").read_text().split("\0") if "=" in part)
        except (OSError, IndexError):
            continue
        if status[1] == str(of) and "RANK" in variables:
            found[int(variables["RANK"])] = int(entry.name)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found through /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_and_the_restart(victim: int, tmp_path: Path) -> None:
    """In mid-training: the other rank says what happened, and after the restart both go on from the checkpoint to the end."""
    script = [str(ROOT / "examples" / "distributed.py"), "--steps", "2000", "--save-every", "200", "--folder", "run"]
    process = torchrun(tmp_path, *script, restarts=1)
    until = time.monotonic() + 300
    reached = 0
    while reached < 1200 and time.monotonic() < until:  # training begins at 1,000
        time.sleep(0.1)
        reached = max([int(path.name.removeprefix("step_")) for path in checkpoints(tmp_path / "run" / "checkpoints")] + [0])
    time.sleep(0.3)
    killed = time.monotonic()
    os.kill(child(process.pid)[victim], signal.SIGKILL)
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    survivor = 1 - victim
    assert f"RankError: Rank {survivor} of 2 stops: rank {victim} has ended without a message (killed?)" in output, output
    assert f"Going on from step {reached}" in output and 1200 <= reached < 2000, output
    assert DreamerV2.load(tmp_path / "run" / "final").num_timesteps == 2000
    print(f"killed at step {reached}, finished {time.monotonic() - killed:.0f} s later")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found through /proc")
def test_a_frozen_rank_0(tmp_path: Path) -> None:
    """The launcher holds the store; the other rank ends after the timeout, and the launcher ends the frozen one."""
    script = [str(ROOT / "examples" / "distributed.py"), "--steps", "100000", "--save-every", "200", "--folder", "run"]
    os.environ["SB3_DREAMER_TIMEOUT"] = "5"
    try:
        process = torchrun(tmp_path, *script)
    finally:
        del os.environ["SB3_DREAMER_TIMEOUT"]
    until = time.monotonic() + 120
    while not checkpoints(tmp_path / "run" / "checkpoints") and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(child(process.pid)[0], signal.SIGSTOP)
    output = process.communicate(timeout=120)[0]
    assert (
        process.returncode != 0 and "RankError: Rank 1 of 2 stops: rank 0 has sent no sign of life for 5 s" in output
    ), output
