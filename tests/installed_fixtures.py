"""Fixtures of the tests that need an installed copy of the package (a plugin, so that one session builds one wheel)."""

from pathlib import Path

import pytest

from tests.installed import build_wheel, unpack_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def site_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    return unpack_wheel(wheel, tmp_path_factory.mktemp("installed") / "site-packages")
