"""Sphinx configuration: ``make docs``."""

import re
from pathlib import Path

project = "sb3_dreamer"
author = "sb3_dreamer contributors"
release = (Path(__file__).parent.parent / "sb3_dreamer" / "version.txt").read_text().strip()
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx_copybutton"]
myst_heading_anchors = 3
myst_enable_extensions = ["deflist", "dollarmath"]
exclude_patterns = ["_build"]
# Names of this package must lead somewhere; those of others are not looked up
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!sb3_dreamer).*"), ("py:class", r".*\.Self[A-Z]\w*")]
# documented under the name by which it is imported
nitpick_ignore = [
    ("py:func", "sb3_dreamer.dreamer_v2.exchange.import_model"),
    ("py:func", "sb3_dreamer.dream.recording.open_recording"),
]
html_theme = "sphinx_rtd_theme"
html_title = f"sb3_dreamer {release}"
html_theme_options = {"navigation_depth": 3}
autodoc_member_order = "bysource"
# what is beside the prompt of a shell is not copied
copybutton_prompt_text = "$ "


def escape_stars(app, what, name, obj, options, lines):
    """Shapes such as (n, *shape) in docstrings look like the start of an emphasis."""
    lines[:] = [re.sub(r"(?<=[(, ])\*(?=[a-z])", r"\\*", line) for line in lines]


def setup(app):
    app.connect("autodoc-process-docstring", escape_stars)
