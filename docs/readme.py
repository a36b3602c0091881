"""README.md from nbs/index.ipynb: the cells with their stored outputs, pictures written to docs/images/."""
import posixpath
import re
from pathlib import Path

import nbformat
from chapters import alt_text, directives, draws, without_directives
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET, PICTURES = ROOT / "nbs/index.ipynb", ROOT / "README.md", ROOT / "docs/images"
NOTE = "<!-- Written by `make readme` from nbs/index.ipynb: edit that. -->\n\n"

local_link = re.compile(r"(\]\()(?!\w+:|#|/)([^)\s]+)(?=[)\s])")


def readable(cells: list) -> list:
    """The cells without those that are hidden, without directives, with links that start at the root, and with texts
    for the pictures."""
    kept, before = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            before = cell.source
            cell.source = local_link.sub(lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), cell.source)
        elif cell.cell_type == "code":
            says = directives(cell.source)
            if {"hide", "default_exp"} & says.keys(): continue
            cell.metadata["alt"] = alt_text(cell.source, before)
            cell.source = "" if says.get("echo") == "false" else without_directives(cell.source)
            for output in cell.outputs: shorten(output)
        kept.append(cell)
    return kept


def shorten(output) -> None:
    "Leave out HTML where there is text: GitHub shows little of it."
    data = output.get("data", {})
    if "text/plain" in data or "text/markdown" in data: data.pop("text/html", None)


def write_pictures(files: dict[str, bytes]) -> None:
    "Write the notebook's pictures, and remove those it had before."
    for old in PICTURES.glob("index_*"): old.unlink()
    if files: PICTURES.mkdir(parents=True, exist_ok=True)
    for name, data in files.items(): (PICTURES / f"index_{name}").write_bytes(data)


def main() -> None:
    if not SOURCE.exists(): raise SystemExit(f"error: {SOURCE.relative_to(ROOT)} is missing; README.md is made from it")
    notebook = nbformat.read(SOURCE, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells = readable(notebook.cells)
    alts = iter([c.metadata["alt"] for c in notebook.cells if c.cell_type == "code" for o in c.outputs if draws([o])])
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources={"unique_key": "picture"})
    write_pictures(resources["outputs"])
    body = re.sub(r"!\[[^\]]*\]\((picture_[\w.]+)\)", lambda m: f"![{next(alts)}](docs/images/index_{m[1]})", body)
    body = re.sub(r"^[ \t]+$", "", re.sub(r"```python\n\s*```\n", "", body), flags=re.M)
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    TARGET.write_text(NOTE + body + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
