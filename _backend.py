"""
Build backend (PEP 517 and 660): setuptools, plus the files that setuptools cannot place.

rl_zoo3 has no plug-in interface. For ``python -m rl_zoo3.train --algo dreamer`` to work, a start-up file and a small hook
module must be at the root of ``site-packages``. No setting of setuptools puts files there (``data_files`` go to the prefix),
and an editable install contains only its own ``.pth``. Therefore this backend adds them to every wheel, editable or not, after
setuptools has written it. Metadata and dependencies are in ``setup.cfg``.
"""

import base64
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks of the backend, used unchanged)
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

ROOT = Path(__file__).resolve().parent
HOOK = "_sb3_dreamer_zoo.py"
CONFIGS = "hyperparams/dreamer.yml", "hyperparams/dreamer_v3.yml"


def startup_files() -> dict[str, bytes]:
    """
    Files at the root of the wheel. Python 3.15 reads ``.start`` (PEP 829) instead of the import line of the ``.pth``.

    :return: name inside the wheel -> content
    """
    return {
        HOOK: (ROOT / HOOK).read_bytes(),
        "sb3_dreamer_zoo.pth": b"import _sb3_dreamer_zoo; _sb3_dreamer_zoo.install()\n",
        "sb3_dreamer_zoo.start": b"_sb3_dreamer_zoo:install\n",
    }


def record_line(name: str, content: bytes) -> str:
    """
    Line of a file in RECORD.

    :param name: name inside the wheel
    :param content: bytes of the file
    :return: the line
    """
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def add_files(wheel: Path, files: dict[str, bytes]) -> None:
    """
    Add files to a wheel and to its RECORD.

    :param wheel: path of the wheel, rewritten in place
    :param files: name inside the wheel -> content
    """
    completed = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(completed, "w", zipfile.ZIP_DEFLATED) as target:
        record = next(info for info in source.infolist() if info.filename.endswith(".dist-info/RECORD"))
        for info in source.infolist():
            if info is not record:
                target.writestr(info, source.read(info), zipfile.ZIP_DEFLATED)
        lines = source.read(record).decode()
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=record.date_time)
            entry.external_attr = 0o644 << 16
            target.writestr(entry, content, zipfile.ZIP_DEFLATED)
            lines += record_line(name, content)
        target.writestr(record, lines, zipfile.ZIP_DEFLATED)
    os.replace(completed, wheel)


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """
    Build a wheel with hook, start-up files and hyperparameters.

    :param wheel_directory: where the wheel is written
    :param config_settings: passed to setuptools
    :param metadata_directory: passed to setuptools
    :return: file name of the wheel
    """
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    configs = {f"sb3_dreamer/{config}": (ROOT / config).read_bytes() for config in CONFIGS}
    add_files(Path(wheel_directory, name), {**startup_files(), **configs})
    return name


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """
    Build an editable wheel with hook and start-up files.

    The hook is copied here too, so that Python still starts cleanly if the checkout is deleted later. The hyperparameters stay
    in the checkout, where they can be edited.

    :param wheel_directory: where the wheel is written
    :param config_settings: passed to setuptools
    :param metadata_directory: passed to setuptools
    :return: file name of the wheel
    """
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    add_files(Path(wheel_directory, name), startup_files())
    return name
