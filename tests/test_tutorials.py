"""The tutorials as a set: found from the home page, in one order, none of them long.

That each runs is nbdev-test's to say."""
import csv
import re

import nbformat
import pytest
from conftest import ROOT

TUTORIALS = sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))
TIMES = ROOT / "nbs/benchmarks/results/tutorials.csv"


def text_of(path) -> str:
    "All Markdown of a notebook."
    return "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")


def code_of(path) -> str:
    "All code of a notebook."
    return "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_linked_from_the_home_page(path):
    assert f"(tutorials/{path.name})" in text_of(ROOT / "nbs/index.ipynb"), (
        f"add {path.name} to the table of nbs/index.ipynb")


def test_numbers_are_an_order():
    assert [int(p.name[:2]) for p in TUTORIALS] == list(range(len(TUTORIALS)))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_exports_nothing(path):
    assert not re.search(r"^#\| *(export|default_exp)", code_of(path), re.M)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_writes_into_a_folder_of_its_own(path):
    "Whoever opens it in JupyterLab finds nothing new beside it afterwards."
    code = code_of(path)
    if "chdir" in code: assert "TemporaryDirectory" in code
    assert not re.search(r"[\"'(](/root|/home|/work|/tmp)\b", code)


def test_measured_times_are_short():
    "Only tutorials that are there have a row; `python nbs/benchmarks/tutorials.py` measures."
    with open(TIMES, newline="") as f:
        times = {row["tutorial"]: float(row["cpu_seconds"])
                 for row in csv.DictReader(line for line in f if not line.startswith("#"))}
    assert times and times.keys() <= {p.stem for p in TUTORIALS}
    assert max(times.values()) < 180
