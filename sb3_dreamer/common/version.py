"""The version of this package."""

from importlib.resources import files

VERSION = files("sb3_dreamer").joinpath("version.txt").read_text().strip()
