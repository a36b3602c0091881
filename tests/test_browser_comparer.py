"""The run comparer in a real JupyterLab, driven by Chromium: what the page says is what the state says, with mouse and
keyboard, light and dark."""
import json

import numpy as np
import pytest
from browsing import (
    keep_screenshot, notebook, open_notebook, run_notebook, save, shut_down, theme, watched, without_panels)
from written_runs import line, write_run

from pseudolabel_nb.core import random_stream
from pseudolabel_nb.widgets.comparer_state import ComparerState

CODE = """
import os
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.widgets.comparer import RunComparer
os.chdir({folder!r})
view = RunComparer('runs', watch=0.5, data=micrographs(6, 2, 2, size=64), oracle=True)
view
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A folder with runs, two of which keep what their teachers said of three images."
    from pseudolabel_nb.data.synthetic import micrographs
    from pseudolabel_nb.inference.predictions import store
    folder, data = tmp_path_factory.mktemp("comparer"), micrographs(6, 2, 2, size=64)
    for seed in range(5):
        for strategy, f1 in (("supervised", 0.6), ("naive", 0.5), ("class_balanced", 0.65)):
            write_run(folder / "runs" / f"{strategy}-s{seed}", f1 + 0.01 * seed * (strategy == "naive"),
                      strategy=strategy, seed=seed)
    write_run(
        folder / "runs" / "<b>odd & bold", strategy="naive", seed=7, finished=False, error="CUDA <i>out of memory</i>")
    for strategy, spread in (("naive", 2.0), ("class_balanced", 0.5)):
        noise = {i: random_stream(i, strategy).standard_normal((1, 64, 64)) for i in (3, 4, 5)}
        store([(data.train.ids[i], np.clip(data.train.mask(i)[None] * 0.8 + 0.1 * spread * noise[i], 0, 1))
               for i in noise],
              folder / "runs" / f"{strategy}-s0" / "predictions" / "round-3", teacher="checkpoints/round-2.safetensors")
    return folder


@pytest.fixture(scope="module")
def page(lab, browser, folder):
    "The notebook, run; `page.errors` holds what the console complained of."
    notebook(lab[1] / "comparer.ipynb", CODE.format(folder=str(folder)))
    page = watched(browser)
    run_notebook(page, lab[0], "comparer.ipynb")
    without_panels(page)
    page.wait_for_selector("button:has-text('Pick all found')")
    yield page
    page.close()


def test_the_page_says_what_the_state_says(page, folder):
    state = ComparerState(folder / "runs")
    page.fill("input[placeholder^='words']", "class_balanced")
    page.wait_for_selector(".pseudolabel-live >> text=16 runs, 5 found")
    page.click("button:has-text('Pick all found')")
    page.click("button:has-text('Pick their baselines')")
    page.wait_for_selector(".pseudolabel-live >> text=10 picked")
    state.change(query="class_balanced")
    state.pick_found()
    state.pick_baselines()
    said = page.inner_text(".pseudolabel-live ul")
    assert state.sentences()[0] in said and "5 of 5 positive" in said
    page.click("button:has-text('paired gain')")
    page.wait_for_timeout(800)
    state.change(view="gain")
    code = state.code().replace(str(folder / "runs"), "runs")
    page.wait_for_function(
        "code => [...document.querySelectorAll('textarea')].some(t => t.value.trim() === code)", arg=code)


def test_names_are_text(page):
    page.fill("input[placeholder^='words']", "odd &")
    page.wait_for_selector(".pseudolabel-live >> text=16 runs, 1 found")
    assert page.locator("text=<b>odd & bold").count() and not page.locator(
        ".jp-OutputArea-output b:has-text('odd')").count()
    assert page.locator("text=CUDA <i>out of memory</i>").count()


def test_the_keyboard_ticks_and_pages(page):
    page.fill("input[placeholder^='words']", "")
    page.click("button:has-text('Pick none')")
    page.wait_for_selector(".pseudolabel-live >> text=0 picked")
    page.focus("input[type=checkbox] >> nth=2")
    page.keyboard.press("Space")
    page.wait_for_selector(".pseudolabel-live >> text=1 picked")
    page.focus("button:has-text('Next')")
    page.keyboard.press("Enter")
    page.wait_for_selector(".pseudolabel-live >> text=page 2 of 2")


def test_every_control_has_a_tooltip(page):
    controls = page.locator(
        ".jp-OutputArea-output .widget-button, .jp-OutputArea-output .widget-checkbox, .jp-OutputArea-output "
        ".widget-dropdown, .jp-OutputArea-output .widget-text, .jp-OutputArea-output .widget-textarea")
    bare = controls.evaluate_all(
        "all => all.filter(e => e.offsetParent && !e.title && "
        "!e.querySelector('[title]:not([title=\"\"])')).map(e => e.outerHTML.slice(0, 200))")
    assert controls.count() > 20 and not bare, bare


def test_a_run_that_goes_on_is_seen(page, folder):
    page.fill("input[placeholder^='words']", "")
    write_run(folder / "runs" / "late-s0", strategy="naive", seed=8, finished=False, rounds=1)
    page.wait_for_selector(".pseudolabel-live >> text=17 runs", timeout=10000)
    with open(folder / "runs" / "late-s0" / "rounds.jsonl", "a") as f: f.write(json.dumps(line(1, 0.7)) + "\n")
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("name", ["light", "dark"])
def test_it_fits_and_is_seen(page, width, name):
    page.set_viewport_size(dict(width=width, height=1250))
    theme(page, name)
    page.fill("input[placeholder^='words']", "")
    page.click("button:has-text('Pick all found')")
    for view in ("curves", "paired gain", "ratio and thresholds", "images"):
        page.click(f"button:text-is('{view}')")
        page.wait_for_timeout(700)
        keep_screenshot(page, f"comparer-{view.split()[0]}-{width}-{name}")
    right = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.pseudolabel-live *')].filter(e => "
        "e.offsetParent).map(e => e.getBoundingClientRect().right))")
    # nothing beyond the edge
    assert right <= page.locator(
        ".jp-OutputArea-output:has(.pseudolabel-live)").bounding_box()["x"] + width and right <= width


def test_columns_stand_below_their_heads(page):
    "Every row has its cells where the head has its words."
    lefts = page.evaluate(
        "[...document.querySelectorAll('.pseudolabel-live .widget-html div[style*=grid]')].filter(e => "
        "e.offsetParent).map(r => [...r.children].map(c => Math.round(c.getBoundingClientRect().left)).join())")
    assert len(lefts) > 5 and len(set(lefts)) == 1


def test_the_images_view_marks_errors(page, folder):
    page.fill("input[placeholder^='words']", "")
    page.click("button:text-is('images')")
    page.wait_for_function("document.querySelector('.pseudolabel-live img.widget-image')?.naturalWidth > 300")
    shown = page.locator(".pseudolabel-live select").locator("option:checked").all_inner_texts()
    shown = [text.replace("\xa0", " ") for text in shown]
    assert "train_0003 (watched)" in shown


def test_reopened_without_a_kernel_it_shows_the_last_state(page, lab, browser):
    page.click("button:text-is('paired gain')")
    page.locator(".pseudolabel-live input[type=checkbox]:visible").nth(1).uncheck() # live
    page.fill("input[placeholder^='words']", "supervised")
    page.wait_for_selector(".pseudolabel-live >> text=17 runs, 5 found")
    page.wait_for_timeout(2500)
    save(page)
    page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
    assert page.errors == []
    again = watched(browser)
    open_notebook(again, lab[0], "comparer.ipynb", kernel=False)
    still = again.locator(".pseudolabel-still")
    still.wait_for()
    again.wait_for_timeout(3000)
    assert (still.is_visible() and "17 runs, 5 found" in still.inner_text()
            and still.locator("img").evaluate("i => i.naturalWidth") > 300)
    assert (not again.locator(".pseudolabel-live").count()
            and not again.get_by_text("Error displaying widget").locator("visible=true").count())
    keep_screenshot(again, "comparer-reopened")
    shut_down(again)
