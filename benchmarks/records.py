"""Results as JSON files under ``benchmarks/results``: one line per result, one result per identity."""

import json
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch as th

import sb3_dreamer

FOLDER = Path(__file__).with_name("results")
Result = dict[str, Any]
_writing = threading.Lock()


def provenance() -> dict[str, str]:
    """
    :return: versions, commit and date of a result
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "sb3_dreamer": sb3_dreamer.__version__,
        "commit": commit.stdout.strip(),
        "torch": th.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def load(path: Path) -> list[Result]:
    """
    :param path: JSON file, which need not exist yet
    :return: all results in it
    """
    return json.loads(path.read_text()) if path.exists() else []


def record(result: Result, path: Path, identity: Sequence[str], order: Callable[[Result], Any] | None = None) -> list[Result]:
    """
    Add a result, with its provenance, in place of an older one of the same identity.

    :param result: what was measured
    :param path: JSON file
    :param identity: keys whose values tell results apart
    :param order: by which the file is sorted; None: by the identity
    :return: all results in the file
    """

    def who(entry: Result) -> list[Any]:
        return [entry.get(key) for key in identity]

    entry = {**result, **provenance()}
    with _writing:  # threads may record into one file
        others = [old for old in load(path) if who(old) != who(result)]
        results = sorted([*others, entry], key=order or who)
        path.parent.mkdir(exist_ok=True)
        path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in results) + "\n]\n")
    return results


def known(path: Path, **identity: Any) -> bool:
    """
    :param path: JSON file
    :param identity: of a result
    :return: whether it is there
    """
    return any(all(result.get(key) == value for key, value in identity.items()) for result in load(path))
