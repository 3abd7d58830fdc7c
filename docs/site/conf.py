"""Sphinx's settings; `build.py` lays out what it reads."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import components
from sphinx.application import Sphinx

import rlalign

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(package / "src") for package in components.packages()]

project = "rlalign"
release = tomllib.loads((ROOT / "core/pyproject.toml").read_text())["project"]["version"]
copyright = "the authors of rlalign"
extensions = ["myst_parser", "sphinx.ext.autodoc", "links"]
suppress_warnings = [
    "toc.not_included",  # pages of components and folders: other pages lead to them
    "myst.header",  # READMEs of packages have ### below their title
]
myst_heading_anchors = 4

vars(rlalign).update({name: getattr(rlalign, name) for name in rlalign.__all__})  # autodoc asks for no others
# Docstrings are plain text with `code` in it.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = f"rlalign {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", one_sidebar_a_folder, priority=400)  # before the theme asks for it


def one_sidebar_a_folder(
    app: Sphinx, page: str, template: str, context: dict[str, Any], document: Any
) -> None:
    """Pages outside the tree, such as those of components, share a sidebar: making it is a third of all the work."""
    if not any(page in below for below in app.env.toctree_includes.values()):
        folder = page.rpartition("/")[0]
        if folder not in sidebars:
            sidebars[folder] = context["toctree"](
                collapse=False, titles_only=True, maxdepth=-1, includehidden=True
            )
        context["toctree"] = lambda **asked: sidebars[folder]


sidebars: dict[str, Any] = {}
