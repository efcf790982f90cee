"""The pages: ``python -m sphinx -W --keep-going -b html docs site``.

What can be generated is (``generated/``, ``api/``, ``notebooks/``, by :mod:`generate`), from
docstrings, ``conf/``, ``results/`` and ``notebooks/``.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generate  # noqa: E402

import cvattn  # noqa: E402

project = "cvattn"
author = "the cvattn authors"
version = release = cvattn.__version__
extensions = [
    "myst_nb",  # pages in Markdown, notebooks as pages
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",  # docstrings in Google's form
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = f"cvattn {version}"
html_static_path: list[str] = []
exclude_patterns = ["README.md"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Notebooks are executed on their own, in .ci/run: here they are shown as they are kept.
nb_execution_mode = "off"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's and Lightning's are theirs
autodoc_typehints = "none"  # docstrings say it in words
napoleon_use_ivar = True
add_module_names = False
suppress_warnings = ["myst.header"]  # parts of pages begin below a heading of theirs

generate.all_pages(HERE)
