"""The explorer in a real JupyterLab, in headless Chromium: sliders are moved there, figures are read from the page and
compared with the state in Python."""
import re

import pytest
from browsing import (
    keep_screenshot, notebook, open_notebook, run_notebook, save, shut_down, theme, watched, without_panels)

SETUP = """
import tempfile
import numpy as np
from skimage.filters import gaussian
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.widgets.explorer import PseudoLabelExplorer

data = micrographs(8, 4, 1, size=128)
def said(images, ids):
    return store(
        ((id, np.clip(gaussian(images.mask(images.index(id)).astype(float), 2) * 1.2, 0, 1)[None]) for id in ids),
        tempfile.mkdtemp())
explorer = PseudoLabelExplorer(said(data.train, data.train.ids[2:]), data, validation=said(data.val, data.val.ids))
explorer
"""
SAY = ("print('STATE', [round(t, 3) for t in explorer.state.settings.thresholds], "
       "explorer.state.figures().kept, explorer.strategy.selector)")


def say(page, k: int) -> str:
    "What the cell after the explorer prints, run again."
    page.click(f".jp-CodeCell >> nth={k} >> .cm-content")
    before = page.locator(".jp-CodeCell").nth(k).locator(".jp-InputPrompt").inner_text()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("([k, before]) => { const p = "
                           "document.querySelectorAll('.jp-CodeCell')[k].querySelector('.jp-InputPrompt').innerText;"
                           " return p != before && !p.includes('*') }",
                           arg=[k, before])
    return page.locator(".jp-CodeCell").nth(k).locator(".jp-OutputArea-output").last.inner_text()


def test_explorer_in_jupyterlab(lab, browser):
    address, folder = lab
    notebook(folder / "explorer.ipynb", SETUP, SAY)
    page = watched(browser)
    run_notebook(page, address, "explorer.ipynb")
    view = page.locator(".jp-CodeCell").nth(0).locator(".pseudolabel-live")
    view.locator(".widget-image").first.wait_for(timeout=90_000)
    page.wait_for_function(
        "[...document.querySelectorAll('.jp-CodeCell .widget-image')].some(i => i.naturalWidth == 512)")
    first = view.locator(".widget-image").first.get_attribute("src")
    keep_screenshot(page, "explorer")

    names = view.locator(".widget-slider .widget-label").all_inner_texts()
    handle = view.locator(
        ".widget-slider", has=page.locator(".widget-label", has_text="particle")).locator(".noUi-handle")
    assert "particle" in names
    # keyboard use, as fast as a held key: a thousandth a press, and none is lost
    for _ in range(20): handle.press("ArrowLeft", delay=15)
    page.wait_for_function("src => document.querySelector('.jp-CodeCell .widget-image').src != src", arg=first)
    page.wait_for_timeout(1000)
    shown = view.locator(".widget-slider",
                         has=page.locator(".widget-label", has_text="particle")).locator(".widget-readout").inner_text()
    said = say(page, 1)
    threshold = float(re.search(r"STATE \[[\d.]+, ([\d.]+)\]", said)[1])
    assert threshold == pytest.approx(0.68) and float(shown) == pytest.approx(threshold, abs=5e-4)
    kept = int(re.search(r"\((\d+), (\d+)\)", said)[2])
    assert f"{kept:,} px" in view.inner_text()

    view.get_by_role("button", name="best F1 on validation").click()
    view.get_by_role("button", name="Use these settings").click()
    view.locator("pre", has_text="naive-explored").wait_for()
    said = say(page, 1)
    assert ("ClassThresholds" in said
            and f"keep ≥ {re.search(r', ([0-9.]+)]', said)[1].ljust(5, '0')}" in view.inner_html())
    view.get_by_role("button", name="next").click()
    page.wait_for_timeout(500)
    keep_screenshot(page, "explorer_used")

    for width in (1280, 1920):
        page.set_viewport_size(dict(width=width, height=1100))
        without_panels(page)
        for name in ("light", "dark"):
            theme(page, name)
            page.locator(".jp-CodeCell").nth(0).locator(".jp-OutputArea").scroll_into_view_if_needed()
            keep_screenshot(page, f"explorer-{width}-{name}")
            box = view.bounding_box()
            assert box["x"] + box["width"] <= width
    threshold = re.search(r", ([0-9.]+)\]", say(page, 1))[1]
    page.wait_for_timeout(2000) # the snapshot follows a second after the last change
    save(page)
    shut_down(page)
    assert not page.errors, page.errors

    page = watched(browser)
    open_notebook(page, address, "explorer.ipynb", kernel=False)
    still = page.locator(".jp-CodeCell").nth(0).locator(".pseudolabel-still")
    still.wait_for()
    page.wait_for_timeout(3000)
    assert still.is_visible() and f"keep ≥ {threshold.ljust(5, '0')}" in still.inner_text()
    assert (not page.locator(".pseudolabel-live").count()
            and not page.get_by_text("Error displaying widget").locator("visible=true").count())
    assert not page.get_by_text("Loading widget").locator("visible=true").count()
    keep_screenshot(page, "explorer-reopened")
    shut_down(page)
