"""The settings of Sphinx. ``make docs`` builds the site into ``.venv/docs``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "flask-llm-batches"
version = release = version_of(project)
copyright = "2026, the flask-llm-batches maintainers"  # noqa: A001  # Sphinx's name for it

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "reference"]
exclude_patterns = ["_ext"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Owner": "Owner"}
python_use_unqualified_type_names = True
napoleon_use_ivar = True

# Names of other projects have no page here, as their inventories need the network; nor have private names.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!flask_llm_batches\b).*"),
    (r"py:.*", r"flask_llm_batches\.(?!errors|signals|testing)[a-z]\w*\..*"),
]

html_theme = "furo"
html_title = "flask-llm-batches"
html_show_sphinx = False
