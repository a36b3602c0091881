"""Every notebook as a page: nbdev runs `show_doc` and links names (nbs/ → _proc/), this file lays the pages out (→
_docs/source), Sphinx draws them (→ _docs/html).

The outputs stored in the notebooks are shown; nothing is trained. A new notebook appears by itself, in its folder's
section, in the order of the numbers.
"""
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

from tables import command_pages, strategy_table

ROOT = Path(__file__).resolve().parents[1]
PROCESSED, SOURCE, HTML = ROOT / "_proc", ROOT / "_docs/source", ROOT / "_docs/html"

# Sections in the order of the sidebar; a folder (or a notebook beside index) that is not named here comes last, under
# its own name.
SECTIONS = {
    "tutorials": ("Tutorials", "How to use it, from the first run to your own data."),
    "strategies": ("Strategies",
                   ("Which pseudo-labels are trusted: the parts of a strategy, a notebook for each "
                    "strategy. [Which one?](#which-one) A table below the list tells.")),
    "diagnostics": ("Diagnostics", "What is wrong with pseudo-labels, and what to try next."),
    "training": ("Training", "Losses, augmentation, the one loop, and rounds."),
    "experiments": ("Experiments", "Sweeps, action plans and reports."),
    "widgets": ("Widgets", "Looking at predictions, thresholds and rounds."),
    "data": ("Data formats", "Images and masks of many layouts, splits that are honest, and the built-in micrographs."),
    "commands": ("Command line", "What every command can be told, as its `--help` says it."),
    "benchmarks": ("Benchmarks", "What was measured, and how to measure it again."),
    "inference": ("Inference", "Predicting large images and many of them, once, to disk."),
    "runs": ("Runs", "The folder that explains itself, and how runs are compared."),
    "measures": ("Measures", "Metrics, priors and statistics: pure functions on arrays."),
    "models": ("Models", "Networks and their checkpoints."),
    "core": ("Core", "What all the others stand on: errors, registries, files, random streams, progress."),
}
# Notebooks beside index, by the section they belong to
BESIDE = {"cli": "commands", "arguments": "commands", "inputs": "commands", "cards": "core"}
QUARTO_CALLOUT = re.compile(r"^(:{3,}) *\{\.callout-(\w+)[^}]*\}", re.M)
QUARTO_DIV = re.compile(r"^:{3,} *(\{\.(?!callout)[^}]*\})? *$\n?", re.M)
QUARTO_ATTRIBUTES = re.compile(r"(?<=[)\]])\{[^}\n]*\}|(?<=\S)[ \t]+\{[.#][^}\n]*\}[ \t]*$", re.M)
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\((?:\.\./)+([\w./-]+)\)")
LINK = re.compile(r"\]\(([^)\s:]+?)\.(ipynb|html)(?:#([^)\s]*))?\)")
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)
# where names stay as they are: code, roles such as {term}, links
PLAIN = re.compile(r"(^```.*?^```[ \t]*$|\{\w+\}`[^`]+`|\[[^\]]*\]\([^)]*\))", re.M | re.S)
# what follows the list of chapters on a section's first page
MADE = {"strategies": strategy_table, "commands": command_pages}


def process() -> None:
    "nbs/ → _proc/ with nbdev; the relative path matters, it leaves out paths with a hidden folder in them."
    from nbdev.serve import proc_nbs
    os.chdir(ROOT)
    proc_nbs(path="nbs", n_workers=2, force="--force" in sys.argv)


def page_name(path: Path) -> str:
    "Its place among the pages, without number and suffix: data/00_masks.ipynb → data/masks."
    return path.with_name(re.sub(r"^\d+[a-z]?_", "", path.stem)).as_posix()


def read_pages() -> dict[str, object]:
    "The processed notebooks by page name, in the order of their numbers."
    from fastcore.nbio import read_nb
    pages = {}
    for path in sorted(PROCESSED.rglob("*.ipynb")):
        name = page_name(path.relative_to(PROCESSED))
        if name in pages: raise SystemExit(f"error: two notebooks want the page {name}; rename one of them")
        pages[name] = read_nb(path)
    return pages


def front_matter(notebook) -> dict[str, str]:
    "Title and description, which nbdev has put into a raw first cell; the cell is taken out."
    import yaml
    if not notebook.cells or notebook.cells[0].cell_type != "raw": return {}
    return yaml.safe_load(notebook.cells.pop(0).source.strip().strip("-")) or {}


def slug(name: str) -> str:
    "The anchor MyST gives a heading that is one name."
    return re.sub(r"[^\w-]", "", name.lower())


def anchors(notebook) -> set[str]:
    "The anchors of the definitions on a page."
    return {slug(m) for cell in notebook.cells if cell.cell_type == "markdown" for m in re.findall(
                r"^#+ `([\w.]+)`$", cell.source, re.M)}


def markdown(text: str, page: str, known: dict[str, set[str]]) -> str:
    """Markdown as MyST reads it: Quarto's own syntax translated or taken away, links pointing at pages; code is left
    alone."""
    parts = FENCE.split(text)
    return "".join(part if i % 2 else prose(part, page, known) for i, part in enumerate(parts))


def prose(text: str, page: str, known: dict[str, set[str]]) -> str:
    text = QUARTO_DIV.sub("", text) if not QUARTO_CALLOUT.search(text) else QUARTO_CALLOUT.sub(r"\1{\2}", text)
    text = QUARTO_ATTRIBUTES.sub("", text)
    text = re.sub(r"<!-- WARNING: THIS FILE WAS AUTOGENERATED.*?-->\n?", "", text)
    text = OUTSIDE.sub(lambda m: outside(m, page), text)
    return LINK.sub(lambda m: link(m, page, known), text)


def outside(match: re.Match, page: str) -> str:
    "A link to a file beside nbs/: the changelog is a page too, of others only the text stays."
    target = os.path.normpath(PurePosixPath("nbs", page).parent / match[0].split("](")[1].rstrip(")"))
    if target.startswith("nbs/"): return match[0]
    up = "../" * page.count("/")
    return f"[{match[2]}]({up}changelog.md)" if match[3] == "CHANGELOG.md" else match[2]


def link(match: re.Match, page: str, known: dict[str, set[str]]) -> str:
    "One link to a notebook, or to a page as nbdev links it (from the root), as MyST resolves it."
    target, anchor = match[1], slug(match[3] or "")
    here = PurePosixPath(page).parent
    full = (
        PurePosixPath(target.lstrip("/")) if target.startswith("/") else PurePosixPath(os.path.normpath(here / target)))
    name = page_name(Path(f"{full}.ipynb"))
    relative = os.path.relpath(name, here)
    return f"]({relative}.ipynb{'#' + anchor if anchor in known.get(name, ()) else ''})"


def lay_out(page: str, notebook, about: dict, known: dict[str, set[str]]) -> str:
    "The notebook as Sphinx gets it: a title, a subtitle, cells."
    from fastcore.nbio import mk_cell, nb2str
    for cell in notebook.cells:
        if cell.cell_type == "markdown": cell.source = markdown(cell.source, page, known)
    if "title" in about:
        subtitle = (
            f"\n\n{{.subtitle}}\n{markdown(about['description'], page, known)}" if about.get("description") else "")
        notebook.cells.insert(0, mk_cell(f"# {about['title']}{subtitle}", "markdown"))
    notebook.cells = [c for c in notebook.cells if c.source.strip()]
    for i, cell in enumerate(notebook.cells): cell.id = f"cell-{i}"
    notebook.metadata.pop("widgets", None)
    return nb2str(notebook)


def toctree(entries: list[str]) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *entries, "```", ""])


def section_page(folder: str, pages: list[str], about: dict[str, dict]) -> str:
    "A section's first page: what it is about, and its chapters with their subtitles."
    title, intro = SECTIONS.get(folder, (folder.capitalize(), ""))
    paths = [os.path.relpath(p, folder) for p in pages]
    rows = [f"- [{about[p].get('title', p)}]({path}.ipynb): {about[p].get('description', '')}"
            for p, path in zip(pages, paths)]
    made = MADE[folder]() if folder in MADE else ""
    return "\n".join([f"# {title}", "", intro, "", *rows, "", made, toctree(paths)])


def written_pages(known: dict[str, set[str]]) -> dict[str, str]:
    """The pages that are no notebooks, by name, in the order of the sidebar; links to notebooks, written from where the
    file lies, point at pages."""
    files = {name: ROOT / f"docs/pages/{name}.md" for name in ("glossary", "bibliography", "dependencies")}
    files |= {name: ROOT / f"{name.upper()}.md" for name in ("contributing", "changelog")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    here = {name: re.sub(r"\]\((?:\.\./\.\./)?(?:nbs|docs/pages|docs)/", "](", text) for name, text in texts.items()}
    return {name: linkify(markdown(text, name, known), name, known) for name, text in here.items()}


def linkify(text: str, page: str, known: dict[str, set[str]]) -> str:
    "Names of the package in the prose as links to where they are documented, as nbdev does it in notebooks."
    from nbdev.doclinks import NbdevLookup
    lookup = NbdevLookup()
    parts = PLAIN.split(text)
    return "".join(part if i % 2 else LINK.sub(lambda m: link(m, page, known), lookup.linkify(part))
                   for i, part in enumerate(parts))


def contents(pages: dict) -> dict[str, list[str]]:
    """section → its pages, in the order of `SECTIONS`; a notebook beside index that `BESIDE` does not place is a
    section of its own."""
    groups: dict[str, list[str]] = {}
    for page in pages:
        if page != "index": groups.setdefault(BESIDE.get(page, page.split("/")[0]), []).append(page)
    order = list(SECTIONS)
    return dict(sorted(groups.items(), key=lambda g: order.index(g[0]) if g[0] in order else len(order)))


def stage() -> dict[str, str]:
    "_proc/ as Sphinx's source files: name → text."
    from fastcore.nbio import mk_cell
    pages = read_pages()
    about = {page: front_matter(notebook) for page, notebook in pages.items()}
    known = {page: anchors(notebook) for page, notebook in pages.items()}
    sections, texts = contents(pages), written_pages(known)
    entries = ([f"{SECTIONS.get(s, (s.capitalize(),))[0]} <{s if s in pages else s + '/index'}>" for s in sections]
               + list(texts))
    if "index" in pages: pages["index"].cells.append(mk_cell(toctree(entries), "markdown"))
    files = {f"{page}.ipynb": lay_out(page, notebook, about[page], known) for page, notebook in pages.items()}
    files |= {f"{s}/index.md": section_page(s, members, about) for s, members in sections.items() if s not in pages}
    files |= {f"{page}.md": text for page, text in texts.items()}
    return files if "index" in pages else {"index.md": "# pseudolabel_nb\n\n" + toctree(entries), **files}


def write(files: dict[str, str]) -> bool:
    """Write what changed, remove what went, and bring along what notebooks refer to (pictures, tables).

    Has a page come or gone?"""
    before = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*") if p.suffix in (".ipynb", ".md")}
    others = {p.relative_to(PROCESSED).as_posix(): p
              for p in PROCESSED.rglob("*") if p.is_file() and p.suffix not in (".ipynb", "", ".txt")}
    others |= {f"images/{p.name}": p for p in (ROOT / "docs/images").glob("*.svg")}
    for old in [p
                for p in SOURCE.rglob("*")
                if p.is_file() and p.relative_to(SOURCE).as_posix() not in files.keys() | others.keys()]:
        old.unlink()
    for name, text in files.items():
        path = SOURCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text: path.write_text(text, encoding="utf-8")
    for name, path in others.items():
        (SOURCE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, SOURCE / name)
    return before != files.keys()


def main() -> int:
    from sphinx.cmd.build import main as sphinx
    process()
    anew = write(stage())  # what pages link to is remembered from the last time, also that it was not there
    if anew: shutil.rmtree(HTML, ignore_errors=True)
    failed = sphinx(
        [*["-E"] * anew, "-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs"), str(SOURCE), str(HTML)])
    if not failed: print(f"Written: {(HTML / 'index.html').relative_to(ROOT)}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
