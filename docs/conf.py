"""Sphinx's settings: MyST's Markdown, furo's looks. `make docs` fails on a broken link."""

from mqtool import __version__

project = "mqtool"
copyright = "The mqtool founders"  # noqa: A001  # the name that Sphinx reads
release = __version__
extensions = ["myst_parser", "sphinxcontrib.mermaid"]
myst_fence_as_directive = ["mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "mqtool"
html_copy_source = False
# Headings as targets, as GitHub has them; code blocks in the languages of our pages.
myst_heading_anchors = 3
# Files outside docs/ are links to the source, which the site does not carry.
suppress_warnings = ["myst.xref_missing_file"]
