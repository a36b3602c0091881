"""How a notebook's cells become a page: the processor that nbdev runs last, and what it shares with the README.

nbdev has by then put a call of `show_doc` for every exported definition right after the cell that defines it. Here it
becomes a heading with the signature, read from the module, and the definition itself follows, folded. (nbdev would run
the notebook's cells for that, all those with an import in them.) Hidden cells and imports go; a picture gets its text
for those who cannot see it.
"""
import ast
import re
from importlib import import_module
from pathlib import Path

from fastcore.nbio import mk_cell
from nbdev.doclinks import NbdevLookup
from nbdev.process import Processor
from nbdev.showdoc import show_doc

directive = re.compile(r"^[ \t]*#\|[ \t]*([\w-]+)[ \t]*:?[ \t]*(.*)$\n?", re.M)
heading = re.compile(r"^(#+)\s", re.M)
fence = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
markup = re.compile(r"!?\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?|[*`>#]")


def directives(source: str) -> dict[str, str]:
    "The `#| name: value` lines of a code cell."
    return dict(directive.findall(source))


def without_directives(source: str) -> str:
    return directive.sub("", source).strip("\n")


def alt_text(source: str, before: str) -> str:
    "The cell's `#| fig-alt:`; without one, the last sentences of the markdown before it."
    if given := directives(source).get("fig-alt"): return given.strip("\"'")
    paragraphs = [
        p for p in fence.sub("", before).split("\n\n") if p.strip() and "|" not in p and not p.startswith("#")]
    plain = " ".join(markup.sub(r"\1", paragraphs[-1]).split()) if paragraphs else ""
    while len(plain) > 200 and (cut := re.search(r"[.;]\s+(?=\S)", plain)): plain = plain[cut.end():]
    return plain.rstrip(":") or "Figure drawn by the code above"


def draws(outputs: list) -> bool:
    "Is there a picture among a cell's outputs?"
    return any(kind.startswith("image/") for o in outputs for kind in o.get("data", {}))


class Chapter(Processor):
    "Reads as a chapter: definitions folded under their signatures, nothing of the machinery."
    def begin(self):
        cells, before, level, names = [], "", 1, vars(module_of(self.nb.path_))
        for cell in self.nb.cells:
            if cell.cell_type == "markdown":
                before = cell.source
                level = ([len(h) for h in heading.findall(fence.sub("", before))] or [level])[-1]
                cells.append(cell)
            elif cell.cell_type != "code": cells.append(cell)
            elif "show_doc(" in cell.source: insert_documentation(cells, documentation(cell.source, names, level + 1))
            elif kept := code_cell(cell, before): cells.append(kept)
        self.nb.cells = cells


def module_of(notebook: str | Path):
    "The module that a notebook exports, or the package if it exports none."
    named = re.search(r"#\| *default_exp:? +([\w.]+)", Path(notebook).read_text(encoding="utf-8"))
    return import_module(f"pseudolabel_nb.{named[1]}" if named else "pseudolabel_nb")


def documentation(call: str, names: dict, level: int) -> str:
    """What `show_doc` says, as markdown under a heading of `level`: without its rule, the link to the source (which
    follows anyway) and where types come from, with the names linked."""
    # the notebook's own call
    text = eval(without_directives(call), {**names, "show_doc": show_doc})._repr_markdown_()  # noqa: S307
    text = re.sub(r"\A---\s*(\[source\]\([^)]*\)\S*.*\n+)?", "", text)
    text = re.sub(r"\b(pseudolabel_nb(\.\w+)+|collections\.abc|typing|pathlib)\.(?=[A-Z])", "",
                  text).replace("numpy.", "np.").replace("\n)->None:", "\n):")
    return re.sub(
        r"^#+ (.*)$", lambda m: "#" * min(level, 6) + f" `{m[1]}`", NbdevLookup().linkify(text), count=1, flags=re.M)


def insert_documentation(cells: list, text: str) -> None:
    "Put it before the definition it follows, and before its neighbors there (nbdev adds them last first)."
    new, at = mk_cell(text, "markdown"), len(cells)
    if cells and getattr(cells[-1], "defines", False):
        at, new.documents = at - 1, cells[-1].id
        while at and getattr(cells[at - 1], "documents", None) == new.documents: at -= 1
    cells.insert(at, new)


def code_cell(cell, before: str):
    "The cell as the reader should have it, or None if it is machinery."
    says = cell.directives_
    if {"hide", "default_exp"} & says.keys() or says.get("include") == "false": return None
    exported = {"export", "exports", "exporti"} & says.keys()
    if exported and only_imports(cell.source): return None
    said = "".join(f"#| {k}: {v}\n" for k, v in says.items())
    cell.source = without_directives(cell.source)
    tags = ["hide-input"] * bool(exported) + ["remove-input"] * (says.get("echo") == "false") + ["remove-output"] * (
        says.get("output") == "false")
    picture = {"image": {"alt": alt_text(said, before)}} if draws(cell.get("outputs", [])) else {}
    prompt = f"Source of {', '.join(defined(cell.source))}" if exported else ""
    cell.metadata = {"tags": tags, "mystnb": {"code_prompt_show": prompt, "code_prompt_hide": prompt, **picture}}
    cell.defines = bool(exported)
    return cell


def defined(source: str) -> list[str]:
    "The names that a cell defines at its top level."
    names = []
    for node in ast.parse(source).body:
        if hasattr(node, "name"): names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            names.append(ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target))
    return names


def only_imports(source: str) -> bool:
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)
