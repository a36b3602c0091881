"The words of the field, one for one thing: those that do not come back."
import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = sorted((ROOT / "pseudolabel_nb").rglob("*.py"))
GONE = {"recipe", "recipes", "Recipe", "Lesson", "divide", "spoken", "surer", "shelf", "lend", "borrow", "Windows",
        "aimed", "pasted", "with_ring", "relabelled", "decided", "drawing", "registering", "Student"}
BRITISH = re.compile(r"\b\w*(labell|colour|centre\b|centred|neighbour|behaviour|quantis|"
                     r"standardis|summaris|recognis|optimis|initialis)\w*",
                     re.I)


def names(tree: ast.AST) -> set[str]:
    "What a module binds: functions, classes, parameters, variables, attributes of self."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
        elif isinstance(node, ast.arg): found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): found.add(node.id)
    return found


@pytest.mark.parametrize("module", PACKAGE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_name_is_one_that_the_field_has_another_word_for(module: Path):
    assert not names(ast.parse(module.read_text(encoding="utf-8"))) & GONE


@pytest.mark.parametrize("folder", ["pseudolabel_nb", "nbs", "tests", "docs", "tools"])
def test_spelling_is_american(folder: str):
    "Lines that name a folder of users, or a stream of numbers, in both spellings say so."
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix not in (".py", ".md", ".ipynb") or path == Path(__file__) or "_modidx" in path.name: continue
        for line in path.read_text(encoding="utf-8").splitlines():
            if '"image/' in line or "base64" in line or "both spellings" in line or "aria-labelledby" in line: continue
            found = BRITISH.search(line)
            assert not found, f"{path.relative_to(ROOT)}: {found[0]}"
