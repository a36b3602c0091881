"""The report as a reader gets it: one file that loads nothing, says what the run folders say, and lets no name be more
than a name."""
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError, write_json, write_text
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.experiments import report
from pseudolabel_nb.experiments.report import write_report
from pseudolabel_nb.strategies.strategy import strategies

WICKED = "<script>alert('$\\frac$')</script>&amp;\"**"
SETTINGS = pnb.Settings(steps=8, batch_size=2, crop=16, network_options=dict(widths=(4, 8)), evaluations=2)


def noise(n: int, seed: int) -> pnb.ImageSet:
    rng = np.random.default_rng(seed)
    return from_arrays(rng.standard_normal((n, 16, 16)).astype("float32"),
                       (rng.random((n, 16, 16)) < 0.2).astype("uint8"), ids=[f"<b>{seed}-{k}.png" for k in range(n)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two strategies, one of them with a wicked name, over two seeds; one that failed, one that was only begun, one
    that is damaged, and one of a tuning."""
    folder = tmp_path_factory.mktemp("sweep <i>")
    data = pnb.Data("noise", noise(8, 0), noise(4, 1), noise(5, 2))
    for seed in (0, 1):
        for k, strategy in enumerate(
            (strategies["supervised"], replace(strategies["naive"], name=WICKED, rounds=1, about=""))
        ):
            pnb.run(data, strategy, folder / "runs" / f"{k}-s{seed}", labeled_ratio=0.5, seed=seed, settings=SETTINGS,
                    device="cpu")
    pnb.begin(data, "limited", folder / "runs" / "begun", 0.5, 0, SETTINGS, "cpu")
    pnb.begin(data, "limited", folder / "tuning" / "not-counted", 0.5, 0, replace(SETTINGS, learning_rate=0.1), "cpu")
    shutil.copytree(folder / "runs" / "0-s0", folder / "runs" / "died")
    shutil.copytree(folder / "runs" / "0-s0", folder / "runs" / "broken")
    (folder / "runs" / "died" / "result.json").unlink()
    write_json(
        folder / "runs" / "died" / "error.json", dict(error="<img src=x> is nan\nand more", when="2025-01-31 12:00"))
    write_text(folder / "runs" / "broken" / "rounds.jsonl", "{\n")
    return folder


@pytest.fixture(scope="module")
def page(runs) -> Path:
    return write_report(runs, runs / "a report")


class Page(HTMLParser):
    "Every tag with its attributes, the text, and what is not closed."
    EMPTY = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.wrong, self.said = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY: self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY and (not self.open or self.open.pop() != tag): self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        if self.open and self.open[-1] != "style": self.said.append(data)


def text(page: Path) -> str: return " ".join(" ".join(Page(page.read_text()).said).split())


def test_it_is_one_file_that_loads_nothing(page):
    html = page.read_text()
    read = Page(html)
    assert not read.wrong and not read.open
    assert ("script" not in {tag for tag, _ in read.tags} and "link" not in {tag for tag, _ in read.tags}
            and "iframe" not in {tag for tag, _ in read.tags})
    assert not [a for _, attributes in read.tags for a in attributes if a.startswith("on")]
    sources = [a[k] for _, a in read.tags for k in ("src", "href", "srcset", "data", "action", "poster") if k in a]
    assert sources and all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert not re.search(r"https?://|@import|url\(|//cdn", re.sub(r"base64,[^\"]*", "", html))
    assert ("meta", {"charset": "utf-8"}) in read.tags


def test_every_picture_is_one_and_has_a_text(page):
    pictures = [a for tag, a in Page(page.read_text()).tags if tag == "img"]
    assert len(pictures) >= 5
    assert all(
        len(a.get("alt", "")) > 20 and a["alt"] != "No description has been provided for this image" for a in pictures)
    assert all(base64.b64decode(a["src"].partition(",")[2]).startswith(b"\x89PNG") for a in pictures)


def test_names_are_text(page):
    html = page.read_text()
    assert "<script" not in html and "<i>" not in html and "<b>" not in html and "<img src=x>" not in html
    assert WICKED in text(page) and "<b>2-" in text(page) and "sweep <i>" in text(page)


def test_it_says_what_the_runs_say(page, runs):
    said = text(page)
    f1 = {name: json.loads((runs / "runs" / name / "result.json").read_text())["f1"]
          for name in ("0-s0", "0-s1", "1-s0", "1-s1")}
    gain = 100 * np.mean([f1["1-s0"] - f1["0-s0"], f1["1-s1"] - f1["0-s1"]])
    assert f"{gain:+.1f} F1 [" in said and "2 seeds" in said
    assert "7 runs" not in said and re.search(r"6 runs: .*1 damaged", said)
    assert "not-counted" not in said
    for name, status in (("died", "failed"), ("begun", "new"), ("broken", "damaged")):
        assert re.search(rf"\b{name} {status}\b", said)
    assert "<img src=x> is nan" in said and "and more" not in said
    assert str(runs) not in page.read_text()


def test_the_notebook_goes_on_elsewhere(page, runs, tmp_path):
    "Runs and report are moved together, a cell is added, and all is run again."
    from nbclient import NotebookClient
    shutil.move(shutil.copytree(runs, tmp_path / "copy"), tmp_path / "moved")
    notebook = nbformat.read(tmp_path / "moved" / "a report" / "report.ipynb", as_version=4)
    assert not [o
                for c in notebook.cells
                for o in c.get("outputs", []) if o.output_type == "error" or o.get("name") == "stderr"]
    notebook.cells = [*[c for c in notebook.cells if c.cell_type == "code"][:3],
                      nbformat.v4.new_code_cell("print(len(pairs), sorted(set(pairs['strategy']))[1])")]
    NotebookClient(notebook, resources=dict(metadata=dict(path=str(tmp_path / "moved" / "a report")))).execute()
    assert notebook.cells[-1].outputs[0].text.strip() == "4 supervised"


@pytest.mark.parametrize("which, parts", [
    (["0-s0"],
     ["1 run: 1 finished", "No strategy can be compared", "Every run is finished", "No run has pseudo-labels yet"]),
    (["0-s0", "1-s0"], ["with one seed, which is no evidence", "One seed is no evidence", "Every run is finished"]),
    (["begun"], ["1 run: 1 new", "No strategy can be compared", "has been evaluated yet"]),
])
def test_it_has_something_to_say_of_few_runs(runs, tmp_path, which, parts):
    for name in which: shutil.copytree(runs / "runs" / name, tmp_path / "few" / name)
    one = write_report(tmp_path / "few" if len(which) > 1 else tmp_path / "few" / which[0], tmp_path / "out")
    assert one == tmp_path / "out" / "report.html" and sorted(p.name for p in one.parent.iterdir()) == [
        "report.html", "report.ipynb"]
    for part in parts: assert part in text(one)
    assert "Traceback" not in text(one)


def test_slips_are_one_line(runs, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for folder, out, part in ((tmp_path / "nothing", None, "no such folder"),
                              (tmp_path / "empty", None, "found no run"), (runs, tmp_path / "file", "is a file")):
        with pytest.raises(UserError, match=part) as error: write_report(folder, out)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "nbconvert" else True)
    with pytest.raises(UserError, match=r"nbconvert, which is not installed.*pip install 'pseudolabel_nb\[report\]'"):
        write_report(runs)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_report_that_cannot_be_written_leaves_the_old_one(page, runs, monkeypatch):
    before = page.read_bytes()
    monkeypatch.setattr(report, "_execute", lambda notebook, where: 1 / 0)
    with pytest.raises(ZeroDivisionError): write_report(runs, page.parent)
    assert page.read_bytes() == before and len(list(page.parent.iterdir())) == 2


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_ends_it_and_its_kernel(runs, tmp_path):
    import psutil
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from "
            "pseudolabel_nb.experiments.report import write_report; write_report(*sys.argv[1:])")
    writing = psutil.Popen([sys.executable, "-c", code, runs, tmp_path / "out"], stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not (kernels := [
                   c for c in writing.children() if "ipykernel_launcher" in c.cmdline()]) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    writing.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in writing.communicate(timeout=30)[1] and writing.returncode
    assert kernels and psutil.wait_procs(kernels, timeout=10)[1] == []
    assert not list((tmp_path / "out").iterdir())


def test_the_packaged_notebook_is_that_of_the_chapter():
    sys.path.insert(0, str(ROOT / "tools"))
    try: import report_template
    finally: sys.path.pop(0)
    made = report_template.packaged(json.loads(report_template.SOURCE.read_text(encoding="utf-8")))
    assert json.loads(report_template.TARGET.read_text(encoding="utf-8")) == made, "run python tools/report_template.py"
    assert not any("made_up" in "".join(c["source"]) for c in made["cells"])


@pytest.mark.parametrize("width, scheme", [(1200, "light"), (390, "dark")])
def test_a_browser_shows_it(page, browser, width, scheme):
    shown = browser.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
    asked, wrong = [], []
    shown.on("request", lambda r: asked.append(r.url))
    shown.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    shown.on("dialog", lambda d: wrong.append(d.message))
    shown.goto(page.as_uri())
    assert shown.evaluate("document.documentElement.scrollWidth") <= width # tables scroll, the page does not
    assert shown.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.alt)")
    ground, COLORS = (
        sum(map(int, re.findall(r"\d+", shown.evaluate(f"getComputedStyle(document.body).{what}"))))
        for what in ("backgroundColor", "color"))
    shown.close()
    assert not wrong and [u for u in asked if not u.startswith("data:")] == [page.as_uri()]
    assert (ground > COLORS) == (scheme == "light") and abs(ground - COLORS) > 450
