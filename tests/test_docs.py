"What the page and README builders do to a notebook's text; `make docs` itself is the test of the rest."
import json
import re
import sys
from xml.etree import ElementTree

import pytest
from conftest import ROOT

sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tools")]
import build
import chapters
import check_docs
import readme
import tables
from docutils.utils.math import MathError
from formulas import mathml
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
    ("[changes](../../CHANGELOG.md), [license](../../LICENSE)", "[changes](../changelog.md), license"),
])
def test_markdown_becomes_what_myst_reads(text, expected):
    assert build.markdown(text, "data/sources", {"measures/metrics": {"f"}}) == expected


def test_sections_stand_in_their_order_and_unknown_ones_last():
    pages = ["core", "index", "zoo/a", "data/masks", "data/images", "tutorials/first"]
    assert list(build.contents(pages)) == ["tutorials", "data", "core", "zoo"]
    assert build.contents(pages)["data"] == ["data/masks", "data/images"]


def test_the_readme_holds_outputs_pictures_and_links_from_the_root(tmp_path, monkeypatch):
    import nbformat
    cells = [new_markdown_cell("# Title\n\n> Why"),
             new_markdown_cell("See [core](00_core.ipynb) and [changes](../CHANGELOG.md)."),
             new_code_cell("#| hide\nsecret()"), new_code_cell("print(3)", outputs=[new_output("stream", text="3\n")]),
             new_code_cell("#| fig-alt: A curve\nplot()", outputs=[PICTURE])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "index.ipynb")
    for name, path in {"SOURCE": "index.ipynb", "TARGET": "README.md", "PICTURES": "docs/images"}.items():
        monkeypatch.setattr(readme, name, tmp_path / path)
    readme.main()
    text = (tmp_path / "README.md").read_text()
    assert "[core](nbs/00_core.ipynb) and [changes](CHANGELOG.md)" in text
    assert "secret" not in text
    assert "#|" not in text
    assert "    3\n" in text
    assert "![A curve](docs/images/index_picture_3_0.png)" in text
    assert [p.name for p in (tmp_path / "docs/images").iterdir()] == ["index_picture_3_0.png"]


# Pages that are no notebooks

def prose_of(path) -> str:
    return "\n".join(
        "".join(c["source"])
        for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown")


FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$([^$\n]+?)\$(?!\w)", re.S)


def test_the_formulas_are_such_as_the_pages_can_show():
    wrong = []
    for path in (ROOT / "nbs").rglob("*.ipynb"):
        text = re.sub(r"```.*?```|`[^`]*`", "", prose_of(path), flags=re.S)
        for block, inline in FORMULA.findall(text):
            try: mathml(block or inline, as_block=bool(block))
            except MathError as e: wrong.append(f"{path.stem}: {e} in {block or inline}")
    assert not wrong


@pytest.mark.parametrize(("formula", "expected"), [
    (r"\bar p_k", "msub(mover(mi mo) mi)"),
    (r"\sum_k^n", "munderover(mo mi mi)"),
])
def test_an_index_stands_where_it_belongs(formula, expected):
    said = lambda e: e.tag.rpartition("}")[2] + (f"({' '.join(map(said, e))})" if len(e) else "")
    assert said(ElementTree.fromstring(mathml(formula, True))[0]) == expected


CITED = re.compile(
    r"([A-Z]\w+(?:-[A-Z]\w+)?)(?: (?:and|&) [A-Z][\w-]+| et al\.|(?:, "
    r"[A-Z]\w+)+ and [A-Z]\w+)?,? \(?((?:19|20)\d\d)\b(?!-)")
NO_CITATION = {"Bowl", "Challenge", "January", "February", "March", "April", "May", "June", "July", "August",
               "September", "October", "November", "December"}


def cited(text: str) -> set[str]:
    "The sources that a text names, as `Author year`; code is left out."
    text = re.sub(r"```.*?```|`[^`]*`|\(http[^)]*\)", "", text, flags=re.S).replace("\n", " ")
    return {f"{author} {year}" for author, year in CITED.findall(text) if author not in NO_CITATION}


def in_bibliography() -> dict[str, str]:
    return dict(
        re.findall(
            r"^- \*\*([^*]+)\*\*: (.+)$", (ROOT / "docs/pages/bibliography.md").read_text(encoding="utf-8"), re.M))


def test_citations_are_seen():
    assert (cited("so says Lee 2013 (Benjamini and Hochberg 1995; Mogstad, Romano, Shaikh and "
                  "Wilhelm 2024), Hesterberg (2015), Cascante-Bonilla 2021, `Zou 2018`")
            == {"Lee 2013", "Benjamini 1995", "Mogstad 2024", "Hesterberg 2015", "Cascante-Bonilla 2021"})


def test_every_source_that_a_chapter_names_is_in_the_bibliography_and_every_one_there_is_named():
    named = {source: path.stem
             for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
             for source in cited(prose_of(path))}
    known = in_bibliography()
    missing = {s: p for s, p in named.items() if s not in known}
    assert not missing, f"add to docs/pages/bibliography.md: {missing}"
    assert not known.keys() - named.keys() - {"Data Science Bowl 2018"}, (
        f"named by no chapter: {known.keys() - named.keys()}")


def test_the_bibliography_links_to_what_it_says():
    for source, entry in in_bibliography().items():
        for said, address in re.findall(r"\[(?:doi|arXiv):([^\]]+)\]\(([^)]+)\)", entry):
            assert address in (f"https://doi.org/{said}", f"https://arxiv.org/abs/{said}"), source
        for number in re.findall(r"arXiv:(\S+?)\]", entry): assert re.fullmatch(r"\d{4}\.\d{4,5}", number), source


def test_the_glossary_is_in_order_and_its_terms_exist():
    text = (ROOT / "docs/pages/glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^([A-Za-z]\S.*)\n  \S", text.split(":::{glossary}")[1], re.M)
    assert len(terms) > 30
    assert terms == sorted(terms, key=str.lower)
    assert {re.sub(r".*<(.*)>", r"\1", t) for t in re.findall(r"\{term\}`([^`]+)`", text)} <= set(terms)


def test_the_table_of_dependencies_is_that_of_settings_ini():
    import configparser
    config = configparser.ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini")
    names = lambda text: [re.split(r"[ ~<>=;]", line.strip())[0] for line in text.splitlines() if line.strip()]
    base, extras = (ROOT / "docs/pages/dependencies.md").read_text(encoding="utf-8").split("| extra |")
    rows = re.findall(r"^\| (\w[\w-]*) \| ([^|]+) \|$", base, re.M)[1:]
    assert [name for name, _ in rows] == names(config["DEFAULT"]["requirements"])
    assert f"brings {len(rows)} libraries ({len(rows) - 1} from Python 3.11 on" in base
    table = dict(re.findall(r"^\| (\w+) \| ([^|]+) \| [^|]+ \|$", extras, re.M))
    wanted = {extra: ", ".join(names(config["extras"][extra]))
              for extra in config["extras"] if extra not in config.defaults()}
    assert {**table, "dev": wanted["dev"]} == wanted
    versions = re.findall(r"Python :: (3\.\d+)$", config["DEFAULT"]["classifiers"], re.M)
    assert set(versions) == set(re.findall(r"\b3\.1\d\b", extras.split("## Python")[1]))


def test_every_registered_strategy_is_in_the_table_with_when_and_price():
    from pseudolabel_nb.strategies.strategy import shipped, strategies
    table = tables.strategy_table()
    for name, made in strategies.items(): assert f"`{name}`" in table or f"| [{name}](" in table and made.about in table
    assert all(shipped[name].when for name in shipped if name != "supervised")


def test_every_command_has_its_help_on_a_page():
    page = tables.command_pages()
    for command in tables.commands(): assert f"## {command}\n\n```text\nusage: {command}" in page


# Links, workflows

def test_broken_and_malformed_links_are_found():
    pages = {"a.html": {
                 "links": ["b.html#x", "b.html#y", "c.html", "#top", "https://x.org/a", "mailto:a@b.c", "http:/x"],
                 "ids": ["top"]},
             "b.html": {"links": ["./", "a.html"], "ids": ["x"]}}
    assert check_docs.broken_links(pages, {"a.html", "b.html", "index.html"}) == {"a.html": ["b.html#y", "c.html"]}
    assert check_docs.outside_links(pages) == (["http:/x", "https://x.org/a"], ["http:/x"])


BAD = """<!doctype html><html lang="en"><head><title>Bad</title><link rel="icon" href="data:,"></head>
<body><main><h1>Bad</h1><p style="color: #bbb; background: #fff">Pale</p>
<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="><div style="width: 600px">Wide</div></main>
<script>console.error("said on purpose")</script></body></html>"""
GOOD = BAD.replace("#bbb", "#222").replace("<img ", '<img alt="A dot" ').replace("600px", "300px").replace(
    'console.error("said on purpose")', "")


@pytest.mark.parametrize(("text", "wrong"), [(BAD, True), (GOOD, False)], ids=["bad", "good"])
def test_what_is_wrong_with_a_page_is_seen(browser, tmp_path, monkeypatch, text, wrong):
    pytest.importorskip(
        "axe_playwright_python", reason="needs axe-playwright-python: pip install axe-playwright-python")
    (tmp_path / "index.html").write_text(text, encoding="utf-8")
    monkeypatch.setattr(check_docs, "HTML", tmp_path)
    seen = check_docs.look_at_all(["index.html"], browser)["index.html"]
    assert {kind for kind in ("axe", "console", "silent", "wider") if seen[kind]} == (
        {"axe", "console", "silent", "wider"} if wrong else set())
    if wrong: assert {"color-contrast", "image-alt"} <= set(re.findall(r": ([\w-]+) \(", " ".join(seen["axe"])))


WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_is_one(path):
    import yaml
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["name"] == path.stem
    assert workflow[True], "`on` is missing" # YAML reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["runs-on"] and job["steps"], name
        assert set([job["needs"]] if "needs" in job else []) <= workflow["jobs"].keys()
        for step in job["steps"]: assert ("run" in step) != ("uses" in step), step
        for step in job["steps"]:
            assert re.fullmatch(
                r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step.get("uses", "a/b@v1.0.0")), f"{step['uses']}: pin the version"


def test_workflows_run_what_make_has():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = {t for path in WORKFLOWS for line in re.findall(
                r"\bmake ([\w -]+)$", path.read_text(), re.M) for t in line.split()}
    assert {"test", "docs", "check-docs"} <= used <= targets
    assert {p.stem for p in WORKFLOWS} == {"test", "docs", "release"}


def test_there_is_no_badge():
    assert not re.search(r"badge|shields", (ROOT / "README.md").read_text(encoding="utf-8"), re.I)


def test_the_picture_of_the_house_shows_every_layer():
    floors = {re.sub(r"[()]", "", name)
              for line in re.search(
                  r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1].splitlines()
              for name in re.findall(r'[(\w)]+', line)}
    drawn = set(re.findall(r"<text[^>]*>(\w+)</text>", (ROOT / "docs/images/house.svg").read_text()))
    assert floors - {"arguments", "inputs", "cards"} <= drawn
    assert "<title" in (ROOT / "docs/images/house.svg").read_text()


def test_it_is_seen_when_a_page_has_come_or_gone(tmp_path, monkeypatch):
    "What pages link to is remembered by Sphinx; then it must begin anew."
    for name, folder in {"SOURCE": "source", "PROCESSED": "processed"}.items():
        monkeypatch.setattr(build, name, tmp_path / folder)
    assert build.write({"a.md": "1", "b.md": "1"})
    assert not build.write({"a.md": "2", "b.md": "1"})
    assert build.write({"a.md": "2"})
    assert not (tmp_path / "source/b.md").exists()
