"Sphinx's settings; docs/build.py lays out what they apply to."
import re
import sys
from configparser import ConfigParser
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from formulas import mathml

_config = ConfigParser(delimiters=["="], interpolation=None)
_config.read(ROOT / "settings.ini", encoding="utf-8")

project = _config["DEFAULT"]["lib_name"]
author = _config["DEFAULT"]["author"]
copyright = author
version = release = re.search(
    r'^__version__ = "(.+)"$', (ROOT / project / "__init__.py").read_text(encoding="utf-8"), re.M)[1]

extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_mime_priority_overrides = [("html", "text/html", 0)]  # the static form of a widget, which needs no kernel
nb_ipywidgets_js = {}
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 5

html_theme = "pydata_sphinx_theme"
html_title = project
html_favicon = "_static/mark.svg"
html_context = {"default_mode": "auto"}  # without it the theme complains on the console
html_static_path = ["_static"]
html_css_files = ["house.css"]
templates_path = ["_templates"]
html_sidebars = {"**": ["sections"]}
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # a browser refuses to fetch pages for it where they are opened as files
html_theme_options = {
    "logo": {"text": project},
    "navbar_center": [],
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def _mathml(node, as_block: bool) -> str:
    "The formula as MathML; a command docutils does not know is a warning that names the page."
    source = node.astext()
    try: return mathml(source, as_block)
    except MathError as e:
        logging.getLogger(__name__).warning("%s in the formula %s", e, source, location=node)
        return f"<code>{escape(source)}</code>"


def _inline(self, node):
    self.body.append(_mathml(node, False))
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(f'<div class="math" tabindex="0" role="group" aria-label="formula">{_mathml(node, True)}</div>')
    raise nodes.SkipNode


def setup(app):
    "Formulas as MathML, which browsers draw themselves: pages need no network."
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))


html_math_renderer = "mathml"
