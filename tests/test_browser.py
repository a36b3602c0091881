"The explorer in a real JupyterLab, in headless Chromium: sliders are moved there, figures are read from the page and compared with the state in Python."
import json, os, re, socket, subprocess, sys, time
from pathlib import Path
from urllib.request import urlopen

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SETUP = """
import tempfile
import numpy as np
from skimage.filters import gaussian
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.widgets.explorer import PseudoLabelExplorer

data = micrographs(8, 4, 1, size=128)
def said(images, ids):
    return store(((id, np.clip(gaussian(images.mask(images.index(id)).astype(float), 2) * 1.2, 0, 1)[None]) for id in ids), tempfile.mkdtemp())
explorer = PseudoLabelExplorer(said(data.train, data.train.ids[2:]), data, validation=said(data.val, data.val.ids))
explorer
"""
SAY = "print('STATE', [round(t, 3) for t in explorer.state.settings.thresholds], explorer.state.figures().kept, explorer.recipe.selector)"


def notebook(path: Path, *cells: str) -> None:
    "Write a notebook of code cells."
    made = [dict(cell_type="code", id=f"cell{k}", metadata={}, source=source.strip(), outputs=[], execution_count=None) for k, source in enumerate(cells)]
    kernel = dict(name="python3", display_name="python3", language="python")
    path.write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(chromium, root, tmp_path_factory):
    "A JupyterLab in an empty folder: (address, folder)."
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install -e .[lab]")
    folder, home, port = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home"), free_port()
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.expose_app_in_browser=True"]
    variables = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS="1", JUPYTER_CONFIG_DIR=str(home / "config"), JUPYTERLAB_SETTINGS_DIR=str(home / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(home / "workspaces"))
    with open(home / "log", "w") as log: server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=variables, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try: urlopen(f"{address}/api", timeout=2); break
            except OSError: time.sleep(0.5)
        else: pytest.fail(f"JupyterLab did not start:\n{(home / 'log').read_text()[-2000:]}")
        yield address, folder
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser(chromium):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        opened = p.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


def run_all(page, lab, name: str, *cells: str) -> list[str]:
    "Open a notebook of these cells and run them; the list that errors of the page are added to."
    address, folder = lab
    notebook(folder / name, *cells)
    errors = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: errors.append(str(e)))
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.getAttribute('data-status') == 'idle'", timeout=60_000)
    page.wait_for_timeout(2500) # the kernel is said to be idle before it is connected
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    return errors


def say(page, k: int) -> str:
    "What the cell after the explorer prints, run again."
    page.click(f".jp-CodeCell >> nth={k} >> .cm-content")
    before = page.locator(".jp-CodeCell").nth(k).locator(".jp-InputPrompt").inner_text()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("([k, before]) => { const p = document.querySelectorAll('.jp-CodeCell')[k].querySelector('.jp-InputPrompt').innerText; return p != before && !p.includes('*') }", arg=[k, before])
    return page.locator(".jp-CodeCell").nth(k).locator(".jp-OutputArea-output").last.inner_text()


def keep_screenshot(page, name: str) -> None:
    "In the folder PSEUDOLABEL_SCREENSHOTS, where one is named."
    folder = os.environ.get("PSEUDOLABEL_SCREENSHOTS")
    if folder: page.screenshot(path=Path(folder) / f"{name}.png")


def test_explorer_in_jupyterlab(lab, browser):
    page = browser.new_page(viewport=dict(width=1280, height=1500))
    page.set_default_timeout(30_000)
    errors = run_all(page, lab, "explorer.ipynb", SETUP, SAY)
    view = page.locator(".jp-CodeCell").nth(0).locator(".pseudolabel-live")
    view.locator(".widget-image").first.wait_for(timeout=90_000)
    page.wait_for_function("[...document.querySelectorAll('.jp-CodeCell .widget-image')].some(i => i.naturalWidth == 512)")
    first = view.locator(".widget-image").first.get_attribute("src")
    keep_screenshot(page, "explorer")

    names = view.locator(".widget-slider .widget-label").all_inner_texts()
    handle = view.locator(".widget-slider", has=page.locator(".widget-label", has_text="particle")).locator(".noUi-handle")
    assert "particle" in names
    handle.focus()
    for _ in range(20): page.keyboard.press("ArrowLeft") # keyboard use: a thousandth a press
    page.wait_for_function("src => document.querySelector('.jp-CodeCell .widget-image').src != src", arg=first)
    page.wait_for_timeout(1000)
    shown = view.locator(".widget-slider", has=page.locator(".widget-label", has_text="particle")).locator(".widget-readout").inner_text()
    said = say(page, 1)
    threshold = float(re.search(r"STATE \[[\d.]+, ([\d.]+)\]", said)[1])
    assert threshold < 0.7 and float(shown) == pytest.approx(threshold, abs=5e-4)
    kept = int(re.search(r"\((\d+), (\d+)\)", said)[2])
    assert f"{kept:,} px" in view.inner_text()

    view.get_by_role("button", name="best F1 on validation").click()
    view.get_by_role("button", name="Use these settings").click()
    view.locator("pre", has_text="naive-explored").wait_for()
    said = say(page, 1)
    assert "ClassThresholds" in said and f"keep ≥ {re.search(r', ([0-9.]+)]', said)[1].ljust(5, '0')}" in view.inner_html()
    view.get_by_role("button", name="next").click()
    page.wait_for_timeout(500)
    keep_screenshot(page, "explorer_used")
    assert not [e for e in errors if "favicon" not in e], errors
    page.close()
