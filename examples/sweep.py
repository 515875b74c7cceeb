"""
A search for hyperparameters by several processes that share one study, and that survives the loss of a worker.

    python examples/sweep.py --trials 12 --workers 3                                storage: a journal file
    python examples/sweep.py --trials 12 --workers 3 --postgresql database          storage: a PostgreSQL of its own
    python examples/sweep.py --storage postgresql+psycopg2://user@host/name         storage: one that is there

Each worker is ``python -m sb3_dreamer.zoo train --algo dreamer -optimize``. Workers on other machines take part if they are
given the same ``--storage`` and ``--study-name``. Further arguments go to rl_zoo3. PostgreSQL needs the distribution's package
(``apt-get install postgresql``) and Python's ``psycopg2-binary``; it refuses to run as root, who starts it as the package's
user ``postgres``.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import optuna
from optuna.trial import TrialState


def find_program(name: str) -> str:
    """Debian keeps PostgreSQL's programs out of the path."""
    places = [*sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        sys.exit(f"There is no {name}: install PostgreSQL (apt-get install postgresql), or use --storage.")
    return found


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """
    :param folder: of the database; made if it is not there
    :return: the storage's URL, valid until the block ends
    """
    folder.mkdir(parents=True, exist_ok=True)
    as_user: list[str] = []
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, log = folder / "data", folder / "server.log"
    pg_ctl = [*as_user, find_program("pg_ctl"), "-D", str(data), "-w", "-l", str(log)]
    if not data.exists():
        subprocess.run(
            [*as_user, find_program("initdb"), "-D", str(data), "-U", "dreamer", "-A", "trust"], check=True, cwd=folder
        )
    options = f"-p {port} -h 127.0.0.1 -k {folder.resolve()}"
    subprocess.run([*pg_ctl, "-o", options, "start"], check=True, cwd=folder)
    try:
        yield f"postgresql+psycopg2://dreamer@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*pg_ctl, "-m", "fast", "stop"], check=True, cwd=folder)


def open_study(storage: str, name: str) -> optuna.Study:
    """The study, as rl_zoo3 opens it."""
    kept = storage
    if storage.endswith(".log"):
        kept = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))  # type: ignore[assignment]
    return optuna.create_study(storage=kept, study_name=name, load_if_exists=True, direction="maximize")


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def search(storage: str, options: argparse.Namespace, others: Sequence[str]) -> optuna.Study:
    """
    Start workers until all trials are finished. A worker that dies leaves its trial running for ever; once no worker is left
    such trials are failed, and others take their places.
    """
    study = open_study(storage, options.study_name)
    command = [sys.executable, "-m", "sb3_dreamer.zoo", "train", "--algo", "dreamer", "--env", options.env, "-optimize"]
    command += ["--storage", storage, "--study-name", options.study_name, "--no-optim-plots", *others]
    # workers share the cores: threads of several that wait for one another take ten times as long
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // options.workers))} | os.environ
    killed = not options.kill_one
    while (missing := options.trials - len(finished(study))) > 0:
        total = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) + missing
        workers = [
            subprocess.Popen(
                [*command, "--max-total-trials", str(total), "--seed", str(time.time_ns() % 2**31)], env=environment
            )
            for _ in range(min(options.workers, missing))
        ]
        while any(worker.poll() is None for worker in workers):
            time.sleep(0.05)
            if not killed:
                killed = kill_one(study, workers)
        before = len(finished(study))
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            print(f"Trial {trial.number} was left by a worker that died: failed, another one takes its place.")
            study.tell(trial.number, state=TrialState.FAIL)
        if before == 0 and all(worker.returncode for worker in workers):
            sys.exit("No worker has finished a trial; their errors are above.")
    return study


def kill_one(study: optuna.Study, workers: Sequence[subprocess.Popen]) -> bool:
    """To show what happens: a worker ends in the middle of its trial."""
    alive = [worker for worker in workers if worker.poll() is None]
    running = study.get_trials(states=(TrialState.RUNNING,))
    if len(running) != len(alive) or not any(trial.intermediate_values for trial in running):
        return False
    alive[0].kill()
    return True


def report(study: optuna.Study, path: Path | None) -> None:
    """All trials, the best first, and as a JSON file."""
    print("| trial | state | return | intermediate returns | parameters |\n|---|---|---|---|---|")
    trials = study.get_trials()
    order = sorted(trials, key=lambda t: -t.value if t.state == TrialState.COMPLETE and t.value is not None else float("inf"))
    for trial in order:
        steps = ", ".join(f"{value:.0f}" for value in trial.intermediate_values.values())
        chosen = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in trial.params.items())
        value = f"{trial.value:.1f}" if trial.value is not None else ""
        print(f"| {trial.number} | {trial.state.name.lower()} | {value} | {steps} | {chosen} |")
    numbers = [trial.number for trial in trials]
    assert sorted(numbers) == list(range(len(trials))), "no trial is there twice"
    if path is not None:
        rows = [
            dict(number=t.number, state=t.state.name.lower(), value=t.value, intermediate=[*t.intermediate_values.values()])
            | dict(params=t.params)
            for t in order
        ]
        path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(f"{len(finished(study))} trials finished; best: {study.best_trial.number} with {study.best_value:.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--trials", type=int, default=12, help="trials that are to be finished, pruned ones included")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--study-name", default="dreamer")
    parser.add_argument("--storage", default="sweep.log", help="URL of a database, or a journal file (.log)")
    parser.add_argument("--postgresql", metavar="FOLDER", help="start a PostgreSQL in this folder and use it")
    parser.add_argument(
        "--kill-one", action="store_true", help="kill one worker in the middle, after the first intermediate evaluation"
    )
    parser.add_argument("--result", type=Path, help="JSON file for all trials")
    options, others = parser.parse_known_args(arguments)
    with (
        postgresql(Path(options.postgresql).absolute()) if options.postgresql else contextlib.nullcontext(options.storage)
    ) as url:
        report(search(url, options, others), options.result)


if __name__ == "__main__":
    main()
