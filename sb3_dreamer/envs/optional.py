"""Lazy imports of packages that only some environments need."""

import importlib
from typing import Any


def optional_import(module: str, needed_by: str, extra: str = "envs") -> Any:
    """
    Import a module of an optional package.

    :param module: such as ``"minatar.gym"``
    :param needed_by: name for the error message
    :param extra: extra of sb3-dreamer that installs the package
    :return: the module (``Any``: none of these packages has type hints)
    :raises ImportError: if the package is missing, with the command that installs it
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # the package is installed, but a dependency of it is missing
        raise ImportError(
            f'{needed_by} needs the package {error.name}, which is not installed: pip install "sb3-dreamer[{extra}]"'
        ) from error
