"""Sphinx configuration: ``make docs``."""

from pathlib import Path

project = "sb3_dreamer"
author = "sb3_dreamer contributors"
release = (Path(__file__).parent.parent / "sb3_dreamer" / "version.txt").read_text().strip()
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
# Shapes such as (n, *shape) in docstrings look like the start of an emphasis
suppress_warnings = ["docutils"]
html_theme = "sphinx_rtd_theme"
autodoc_member_order = "bysource"
