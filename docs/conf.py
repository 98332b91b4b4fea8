"""Sphinx: pages in Markdown, API from docstrings, reference pages generated from the package at every build."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

from maskmed_zoo import __version__  # noqa: E402

generate.main()

project = "maskmed-zoo"
author = "The maskmed-zoo authors"
copyright = author
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "reference/generated", "images"]
default_role = "code"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "model_config, model_post_init"}
html_theme = "furo"
html_title = f"maskmed-zoo {__version__}"
