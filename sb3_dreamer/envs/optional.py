"""Packages that only some environments need: imported when such an environment is made."""

import importlib
from typing import Any


def optional_import(module: str, needed_by: str, extra: str = "envs") -> Any:
    """
    Import a module of a package that need not be installed.

    :param module: such as ``"minatar.gym"``
    :param needed_by: who asks, for the error's text
    :param extra: extra of this package that installs it
    :return: the module (typed ``Any``: none of these packages has types)
    :raises ImportError: if it is missing, saying how to install it
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise  # something else is missing, inside of an installed package
        raise ImportError(
            f'{needed_by} needs the package {error.name}, which is not installed: pip install "sb3-dreamer[{extra}]"'
        ) from error
