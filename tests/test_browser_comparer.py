"The run comparer in a real JupyterLab, driven by Chromium: what the page says is what the state says, with mouse and keyboard, light and dark."
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from test_compare import line, write_run

from pseudolabel_nb.widgets.comparer_state import ComparerState

pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install jupyterlab ipywidgets")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
CODE = "from pseudolabel_nb.widgets.comparer import RunComparer\nview = RunComparer('runs', watch=0.5)\nview"


def notebook(*cells: str) -> dict:
    "A notebook of code cells that have not been run."
    return dict(cells=[dict(cell_type="code", id=f"c{k}", metadata={}, source=c, outputs=[], execution_count=None) for k, c in enumerate(cells)], metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python")), nbformat=4, nbformat_minor=5)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab in a folder with runs and a notebook; its address and its folder."
    folder = tmp_path_factory.mktemp("lab")
    for seed in range(5):
        for recipe, f1 in (("supervised", 0.6), ("naive", 0.5), ("class_balanced", 0.65)): write_run(folder / "runs" / f"{recipe}-s{seed}", f1 + 0.01 * seed * (recipe == "naive"), recipe=recipe, seed=seed)
    write_run(folder / "runs" / "<b>odd & bold", recipe="naive", seed=7, finished=False, error="CUDA <i>out of memory</i>")
    (folder / "x.ipynb").write_text(json.dumps(notebook(os.environ.get("COMPARER_CODE", CODE))))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = dict(os.environ, HOME=str(folder), JUPYTER_CONFIG_DIR=str(folder / ".jupyter"), JUPYTER_RUNTIME_DIR=str(folder / ".runtime"), IPYTHONDIR=str(folder / ".ipython"), OMP_NUM_THREADS="1")
    options = ["--no-browser", "--allow-root", "--IdentityProvider.token=", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.expose_app_in_browser=True"]
    with open(folder / "lab.log", "w") as log: server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try: urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=1)
            except OSError: time.sleep(0.5)
            else: break
        else: pytest.fail(f"JupyterLab did not start: {(folder / 'lab.log').read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page(lab, chromium):
    "The notebook, run; `page.errors` holds what the console complained of."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport=dict(width=1280, height=1500))
        page.errors = []
        page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
        page.goto(f"{lab[0]}/lab/tree/x.ipynb")
        page.wait_for_selector(".jp-Notebook .cm-content", timeout=60000)
        page.wait_for_timeout(1000)
        page.click(".jp-Notebook .cm-content")
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector("button:has-text('Pick all found')", timeout=60000)
        yield page
        browser.close()


def shot(page, name: str) -> None:
    "A picture of the page, kept where COMPARER_SHOTS says."
    if folder := os.environ.get("COMPARER_SHOTS"): page.screenshot(path=str(Path(folder) / f"{name}.png"))


def dark(page, on: bool) -> None:
    "Switch the theme."
    page.evaluate("async name => { const app = window.jupyterapp; if (app) await app.commands.execute('apputils:change-theme', {theme: name}); }", "JupyterLab Dark" if on else "JupyterLab Light")
    page.wait_for_timeout(1500)


def test_the_page_says_what_the_state_says(page, lab):
    state = ComparerState(lab[1] / "runs")
    page.fill("input[placeholder^='words']", "class_balanced")
    page.wait_for_selector("text=16 runs, 5 found")
    page.click("button:has-text('Pick all found')")
    page.click("button:has-text('Pick their baselines')")
    page.wait_for_selector("text=10 picked")
    state.change(query="class_balanced")
    state.pick_found()
    state.pick_baselines()
    said = page.inner_text(".jp-OutputArea-output ul")
    assert state.sentences()[0] in said and "5 of 5 positive" in said
    page.click("button:has-text('paired gain')")
    page.wait_for_timeout(800)
    state.change(view="gain")
    page.wait_for_function("code => [...document.querySelectorAll('textarea')].some(t => t.value.trim() === code)", arg=state.code().replace(str(lab[1] / "runs"), "runs"))


def test_names_are_text(page):
    page.fill("input[placeholder^='words']", "odd &")
    page.wait_for_selector("text=16 runs, 1 found")
    assert page.locator("text=<b>odd & bold").count() and not page.locator(".jp-OutputArea-output b:has-text('odd')").count()
    assert page.locator("text=CUDA <i>out of memory</i>").count()


def test_the_keyboard_ticks_and_pages(page):
    page.fill("input[placeholder^='words']", "")
    page.click("button:has-text('Pick none')")
    page.wait_for_selector("text=0 picked")
    page.focus("input[type=checkbox] >> nth=2")
    page.keyboard.press("Space")
    page.wait_for_selector("text=1 picked")
    page.focus("button:has-text('Next')")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=page 2 of 2")


def test_every_control_has_a_tooltip(page):
    controls = page.locator(".jp-OutputArea-output .widget-button, .jp-OutputArea-output .widget-checkbox, .jp-OutputArea-output .widget-dropdown, .jp-OutputArea-output .widget-text, .jp-OutputArea-output .widget-textarea")
    bare = controls.evaluate_all("all => all.filter(e => e.offsetParent && !e.title && !e.querySelector('[title]:not([title=\"\"])')).map(e => e.outerHTML.slice(0, 200))")
    assert controls.count() > 20 and not bare, bare


def test_a_run_that_goes_on_is_seen(page, lab):
    page.fill("input[placeholder^='words']", "")
    write_run(lab[1] / "runs" / "late-s0", recipe="naive", seed=8, finished=False, rounds=1)
    page.wait_for_selector("text=17 runs", timeout=10000)
    with open(lab[1] / "runs" / "late-s0" / "rounds.jsonl", "a") as f: f.write(json.dumps(line(1, 0.7)) + "\n")
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_is_seen(page, width, theme):
    page.set_viewport_size(dict(width=width, height=1500))
    dark(page, theme == "dark")
    page.fill("input[placeholder^='words']", "")
    page.click("button:has-text('Pick all found')")
    for view in ("curves", "paired gain", "ratio and thresholds", "images"):
        page.click(f"button:text-is('{view}')")
        page.wait_for_timeout(1200)
        shot(page, f"{view.split()[0]}-{width}-{theme}")
    wide = page.locator(".jp-OutputArea-output .widget-vbox").first.bounding_box()
    assert wide["x"] + wide["width"] <= width


def test_no_console_errors(page):
    assert page.errors == []
