"""Tutorials in a real JupyterLab: opened as a reader opens them, run from the first cell to the last, without an error
in a cell or in the console."""
import json
import os
import shutil

import pytest
from browsing import ROOT, keep_screenshot, open_notebook, run_cells, save, shut_down, watched, without_panels

SHORT = ("01_your_own_data", "03_from_your_scripts") # under 20 s each; PSEUDOLABEL_TUTORIALS=all runs every one
EVERY = sorted(p.stem for p in (ROOT / "nbs/tutorials").glob("*.ipynb"))


def cells(path) -> list[dict]:
    "The code cells of a notebook as it was saved."
    return [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.fixture(scope="module")
def copied(lab):
    "A copy of the tutorials, without their outputs, in the folder of the lab."
    for part in ("tutorials", "benchmarks/results"):
        shutil.copytree(ROOT / "nbs" / part, lab[1] / part, ignore=shutil.ignore_patterns(".*"))
    for path in (lab[1] / "tutorials").glob("*.ipynb"):
        made = json.loads(path.read_text())
        for cell in made["cells"]:
            if cell["cell_type"] == "code": cell.update(outputs=[], execution_count=None)
        path.write_text(json.dumps(made))
    return lab[1] / "tutorials"


@pytest.mark.parametrize("name", EVERY if os.environ.get("PSEUDOLABEL_TUTORIALS") == "all" else SHORT)
def test_a_tutorial_runs(lab, browser, copied, name):
    page = watched(browser)
    open_notebook(page, lab[0], f"tutorials/{name}.ipynb")
    without_panels(page)
    run_cells(page)
    save(page)
    page.wait_for_timeout(1000)
    keep_screenshot(page, f"tutorial-{name}")
    done = cells(copied / f"{name}.ipynb")
    wrong = [f"{o['ename']}: {o['evalue']}" for c in done for o in c["outputs"] if o["output_type"] == "error"]
    assert not wrong and all(c["execution_count"] for c in done if "".join(c["source"]).strip()), wrong
    assert any(c["outputs"] for c in done)
    assert page.errors == []
    shut_down(page)


def test_an_error_in_a_cell_is_seen(lab, browser, copied):
    "What the test above looks for is there when a cell fails."
    made = json.loads((copied / f"{SHORT[0]}.ipynb").read_text())
    made["cells"] = [dict(cell_type="code", id="wrong", metadata={}, source="1/0", outputs=[], execution_count=None)]
    (copied / "wrong.ipynb").write_text(json.dumps(made))
    page = watched(browser)
    open_notebook(page, lab[0], "tutorials/wrong.ipynb")
    run_cells(page)
    save(page)
    page.wait_for_timeout(500)
    assert [o["ename"] for c in cells(copied / "wrong.ipynb") for o in c["outputs"]] == ["ZeroDivisionError"]
    shut_down(page)
