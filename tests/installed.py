"""An installed copy of the package for tests, made from a wheel: subprocesses use it as an environment would."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_wheel(folder: Path) -> Path:
    """
    :param folder: scratch folder
    :return: wheel of the working tree, built from a copy (setuptools leaves files behind) and without network
    """
    source, dist = folder / "source", folder / "dist"
    source.mkdir()
    dist.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, source)
    for name in ("sb3_dreamer", "hyperparams"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = "import sys, _backend; _backend.build_wheel(sys.argv[1])"
    environ = {**os.environ, "PYTHONPATH": str(source)}
    subprocess.run([sys.executable, "-c", command, str(dist)], cwd=source, env=environ, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    return wheel


def unpack_wheel(wheel: Path, folder: Path) -> Path:
    """
    :param wheel: the wheel
    :param folder: new folder
    :return: the folder, which is what ``pip install --no-deps --target`` makes of a pure Python wheel
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_python(*arguments: str, cwd: Path | None = None, environ: dict[str, str] | None = None) -> str:
    """
    Run this Python in a subprocess.

    :param arguments: of the interpreter
    :param cwd: working folder
    :param environ: added to the environment
    :return: both outputs, for comparison
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}"
    return done.stdout


def with_hook(site_folder: Path, code: str) -> str:
    """
    :param site_folder: copy of the package
    :param code: Python code
    :return: the same, run as by an interpreter in whose environment the copy is installed
    """
    # The environment's own copy of the hook, if there is one, is taken out first, so that this one is tested.
    return f"""
import site, sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "SB3DreamerZooFinder"]
sys.modules.pop("_sb3_dreamer_zoo", None)
sys.path.insert(0, {str(site_folder)!r})
site.addsitedir({str(site_folder)!r})
import _sb3_dreamer_zoo
assert _sb3_dreamer_zoo.__file__.startswith({str(site_folder)!r})
{code}
"""
