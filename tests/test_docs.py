"What the page and README builders do to a notebook's text; `make docs` itself is the test of the rest."
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import build
import chapters
import readme
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PICTURE = new_output("display_data", data={"image/png": "iVBORw0KGgo="})


@pytest.mark.parametrize(("cell", "before", "expected"), [
    ("#| fig-alt: Recall falls\nplot()", "Anything.", "Recall falls"),
    ("plot()", "## Curve\n\nOne thing.\n\nThe **curve** of `f` [falls](x.ipynb):", "The curve of f falls"),
    ("plot()", "", "Figure drawn by the code above"),
])
def test_a_picture_has_a_text(cell, before, expected):
    assert chapters.alt_text(cell, before) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("[site](https://x.org){target=\"_blank\"}", "[site](https://x.org)"),
    ("## Heading {.unnumbered}", "## Heading"),
    ("::: {.callout-note}\nCareful.\n:::", ":::{note}\nCareful.\n:::"),
    ("::: {.lead}\nText.\n:::\n", "Text.\n"),
    ("```python\n::: {.lead}\n```", "```python\n::: {.lead}\n```"),
    ("`f`$_{i}$ and {braces}", "`f`$_{i}$ and {braces}"),
    ("[masks](00_masks.ipynb)", "[masks](masks.ipynb)"),
    ("[`f`](/measures/metrics.html#f)", "[`f`](../measures/metrics.ipynb#f)"),
    ("[`g`](/measures/metrics.html#g)", "[`g`](../measures/metrics.ipynb)"),
    ("[changes](../../CHANGELOG.md), [licence](../../LICENSE)", "[changes](../changelog.md), licence"),
])
def test_markdown_becomes_what_myst_reads(text, expected):
    assert build.markdown(text, "data/sources", {"measures/metrics": {"f"}}) == expected


def test_sections_stand_in_their_order_and_unknown_ones_last():
    pages = ["core", "index", "zoo/a", "data/masks", "data/images", "tutorials/first"]
    assert list(build.contents(pages)) == ["tutorials", "data", "core", "zoo"]
    assert build.contents(pages)["data"] == ["data/masks", "data/images"]


def test_the_readme_holds_outputs_pictures_and_links_from_the_root(tmp_path, monkeypatch):
    import nbformat
    cells = [new_markdown_cell("# Title\n\n> Why"), new_markdown_cell("See [core](00_core.ipynb) and [changes](../CHANGELOG.md)."), new_code_cell("#| hide\nsecret()"),
             new_code_cell("print(3)", outputs=[new_output("stream", text="3\n")]), new_code_cell("#| fig-alt: A curve\nplot()", outputs=[PICTURE])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "index.ipynb")
    for name, path in {"SOURCE": "index.ipynb", "TARGET": "README.md", "PICTURES": "docs/images"}.items(): monkeypatch.setattr(readme, name, tmp_path / path)
    readme.main()
    text = (tmp_path / "README.md").read_text()
    assert "[core](nbs/00_core.ipynb) and [changes](CHANGELOG.md)" in text
    assert "secret" not in text
    assert "#|" not in text
    assert "    3\n" in text
    assert "![A curve](docs/images/index_picture_3_0.png)" in text
    assert [p.name for p in (tmp_path / "docs/images").iterdir()] == ["index_picture_3_0.png"]
