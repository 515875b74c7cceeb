"""The wheel holds everything, and the start-up hook costs nothing, breaks nothing and leaves nothing behind."""

import base64
import configparser
import csv
import hashlib
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import sb3_dreamer
from tests.installed import ROOT, run_python

pytest_plugins = ["tests.installed_fixtures"]  # fixtures: wheel, site_folder

STARTUP_FILES = {"_sb3_dreamer_zoo.py", "sb3_dreamer_zoo.pth", "sb3_dreamer_zoo.start"}


def test_version_is_in_one_place() -> None:
    assert sb3_dreamer.__version__ == (ROOT / "sb3_dreamer" / "version.txt").read_text().strip()
    assert f"Release {sb3_dreamer.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_direct_dependency_is_pinned() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    for extra in ("extra", "envs", "tests", "docs"):
        lines += config["options.extras_require"][extra].splitlines()

    def name(requirement: str) -> str:
        return re.split(r"[<>=;\[ ]", requirement)[0].lower().replace("_", "-")

    wanted = {name(line) for line in lines if line and not line.startswith("#")} - {"sb3-dreamer"}  # an extra within an extra
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert wanted <= {name(line) for line in pins}
    assert all("==" in line for line in pins)


def test_wheel_holds_code_data_and_startup_files(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record_name = next(name for name in names if name.endswith(".dist-info/RECORD"))
        record = {row[0]: row[1:] for row in csv.reader(archive.read(record_name).decode().splitlines())}
        assert set(record) == names
        for name, (digest, size) in record.items():
            if name != record_name:
                content = archive.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={expected}", str(len(content))), name
        for name in ("dreamer.yml", "dreamer_v3.yml"):
            assert archive.read(f"sb3_dreamer/hyperparams/{name}") == (ROOT / "hyperparams" / name).read_bytes()
    assert {name for name in names if "/" not in name} == STARTUP_FILES
    assert {"sb3_dreamer/py.typed", "sb3_dreamer/version.txt", "sb3_dreamer/zoo/__main__.py"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_dreamer").rglob("*.py")}
    assert sources == {name for name in names if name.startswith("sb3_dreamer/") and name.endswith(".py")}


def test_starting_python_imports_nothing_of_ours_and_costs_nothing(site_folder: Path) -> None:
    code = f"""
        import sys, time
        import os, warnings  # `site`, left out here, has imported these
        before = set(sys.modules)
        sys.path.append({str(site_folder)!r})
        start = time.perf_counter()
        import _sb3_dreamer_zoo; _sb3_dreamer_zoo.install()
        elapsed = time.perf_counter() - start
        assert set(sys.modules) - before == {{"_sb3_dreamer_zoo"}}, set(sys.modules) - before
        finder = sys.meta_path[0]
        start = time.perf_counter()
        for _ in range(1000):
            assert finder.find_spec("numpy") is None
        per_import = (time.perf_counter() - start) / 1000
        print(elapsed, per_import)
    """
    times = [run_python("-I", "-S", "-c", textwrap.dedent(code)).split() for _ in range(5)]
    assert min(float(elapsed) for elapsed, _ in times) < 2e-3
    assert min(float(per_import) for _, per_import in times) < 2e-5


def test_startup_lines_name_the_hook(site_folder: Path) -> None:
    assert (site_folder / "sb3_dreamer_zoo.pth").read_text() == "import _sb3_dreamer_zoo; _sb3_dreamer_zoo.install()\n"
    assert (site_folder / "sb3_dreamer_zoo.start").read_text() == "_sb3_dreamer_zoo:install\n"


def test_package_needs_sb3_alone() -> None:
    code = """
        import sys
        import sb3_dreamer
        sb3_dreamer.preset("atari")
        heavy = {"rl_zoo3", "optuna", "ale_py", "cv2", "matplotlib.pyplot"} & set(sys.modules)
        # SB3 itself imports these where they are installed
        import subprocess
        sb3 = subprocess.run([sys.executable, "-c", "import stable_baselines3, sys; print(*sys.modules)"],
                             capture_output=True, text=True, check=True).stdout.split()
        assert not heavy - set(sb3), heavy
    """
    run_python("-c", textwrap.dedent(code), cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_pip_installs_and_uninstalls_cleanly(tmp_path: Path, editable: bool) -> None:
    """A real environment that sees this one's packages, so that nothing has to be downloaded."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    # the one that comes with a venv can be too old to build without `wheel`; Python 3.12 has none
    subprocess.run([*pip, "uninstall", "-q", "-y", "setuptools"], check=True, stderr=subprocess.DEVNULL)
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", purelib], text=True).strip())
    ours = subprocess.check_output([sys.executable, "-c", purelib], text=True).strip()
    (site / "borrowed.pth").write_text(f"{ours}\n")  # appends the folder, but does not run the .pth files in it

    def files() -> set[str]:
        return {str(path) for path in site.rglob("*") if "__pycache__" not in path.parts}

    before = files()
    target = ["-e", str(ROOT)] if editable else [str(ROOT)]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--ignore-installed", *target], check=True)
    assert {site / name for name in STARTUP_FILES} <= {Path(name) for name in files()}
    code = "from rl_zoo3 import ALGOS; from sb3_dreamer.zoo import default_config; print(ALGOS['dreamer'], default_config())"
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    out = subprocess.check_output([python, "-c", code], text=True, cwd=tmp_path, env=environ)
    assert "DreamerV2" in out and str(ROOT if editable else site) in out
    subprocess.run([*pip, "uninstall", "-q", "-y", "sb3-dreamer"], check=True)
    assert files() == before
