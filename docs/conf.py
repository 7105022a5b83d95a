"""Configuration of the site: Sphinx with furo, pages in Markdown (MyST), API reference from the docstrings."""

import ctypes.util
import os
import re
import sys
from pathlib import Path

from docutils import nodes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MPLBACKEND", "Agg")
# MuJoCo without a display
if ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")

import hipi_sb3

project = "hipi_sb3"
author = "hipi_sb3 developers"
release = version = hipi_sb3.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# A page by somebody else may not be there yet.
suppress_warnings = ["toc.empty_glob"]

# Links to headings, checked with the rest.
myst_heading_anchors = 3

# A method that only fills in its base class is described there.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}

html_theme = "furo"
html_title = f"hipi_sb3 {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False


def keep_intervals_together(app, doctree):
    """In tables a number stays on one line with its interval, such as 0.92 [0.87, 0.97]: what is wide scrolls."""
    for text in [text for table in doctree.findall(nodes.table) for text in table.findall(nodes.Text)]:
        joined = re.sub(r"[-+\d.]+ \[[-+\d.]+, [-+\d.]+\]", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
        # The hyphen of a negative number is a place to break a line, too.
        text.parent.replace(text, nodes.Text(re.sub(r"(?<=[\[\xa0])-(?=\d)", "\N{NON-BREAKING HYPHEN}", joined)))


def setup(app):
    """What Sphinx calls."""
    app.connect("doctree-read", keep_intervals_together)
