"""The curriculum stepper in a real JupyterLab, in headless Chromium: two rounds are trained there by clicks, and what
the page says is compared with the run folder."""
import re

import pytest
from browsing import (chromium_browser, jupyterlab, keep_screenshot, notebook, open_notebook, run_cells, save,
                      shut_down, theme, watched, without_panels)

from pseudolabel_nb.runs.run import open_run
from pseudolabel_nb.widgets.stepper_pictures import Watch
from pseudolabel_nb.widgets.stepper_state import StepperState

pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install -e .[lab]")
BEGIN = """
import pseudolabel_nb as pnb
data = pnb.micrographs(24, 8, 4, size=128)
settings = pnb.Settings(steps=360, teacher_share=0.6, crop=64, evaluations=3, checkpoint_every=20, gate=0.5,
                        network_options=dict(widths=(8, 16)))
run = pnb.begin(data, pnb.strategy("curriculum", schedule__start=0.8, schedule__stop=0.5), "runs/curriculum-s0",
                labeled_ratio=0.34, settings=settings, device="cpu")
"""
SHOW = "stepper = pnb.CurriculumStepper(run, lambda run: pnb.rounds(run, data), data=data)\nstepper"
USABLE = "print('the notebook is', 'usable', stepper.state.activity)"


@pytest.fixture(scope="module")
def place(tmp_path_factory, chromium):
    "JupyterLab's address, its folder, and a browser."
    folder = tmp_path_factory.mktemp("lab")
    notebook(folder / "stepper.ipynb", BEGIN, SHOW, USABLE)
    with jupyterlab(folder, tmp_path_factory.mktemp("home")) as address, chromium_browser(chromium) as browser:
        yield address, folder, browser


@pytest.fixture(scope="module")
def page(place):
    "The notebook, its first two cells run."
    address, _, browser = place
    page = watched(browser, 1280, 2300)
    open_notebook(page, address, "stepper.ipynb")
    without_panels(page)
    run_cells(page)
    page.locator(".pseudolabel-live").get_by_role("button", name="Step").wait_for(timeout=120_000)
    yield page
    shut_down(page)


def click(page, name: str) -> None:
    page.locator(".pseudolabel-live").get_by_role("button", name=name, exact=True).click()


def standing(page) -> str: return page.locator(".pseudolabel-live [role=status]").inner_text()


def until(page, text: str) -> None:
    page.wait_for_function("t => document.querySelector('.pseudolabel-live [role=status]').innerText.includes(t)",
                           arg=text, timeout=180_000)


def text(page) -> str: return page.locator(".pseudolabel-live").inner_text()


def test_two_rounds_are_stepped_while_the_notebook_stays_usable(page, place):
    until(page, "0 of 4 rounds done")
    click(page, "▶ Step")
    until(page, "trains one round")
    page.locator(".jp-CodeCell").nth(2).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.locator("text=the notebook is usable round").wait_for()
    until(page, "1 of 4 rounds done, the first teacher among them; waiting")
    for n in (2, 3):
        click(page, "▶ Step")
        until(page, f"{n} of 4 rounds done, the first teacher among them; waiting")
    run = open_run(place[1] / "runs" / "curriculum-s0")
    r = run.records()[2]
    said = text(page)
    assert (f"F1 {r.f1:.3f} (precision {r.precision:.3f}, recall {r.recall:.3f}" in said and f"{r.kept[1]:,} px" in said
            and f"{r.gain:+.3f} [{r.gain_low:+.3f}, {r.gain_high:+.3f}]" in said)
    assert "0.800 for all → [0.650 for all] → threshold 0.5 to come" in said and "Diagnosis of round 2" in said
    change = Watch(run).change(r, run.records()[1])
    assert change.text(1) in said
    assert page.locator(".pseudolabel-live img.widget-image").count() == 2
    page.wait_for_function(
        "[...document.querySelectorAll('.pseudolabel-live img.widget-image')].every(i => i.naturalWidth == 384)")


def test_back_with_the_keyboard_and_a_click(page, place):
    records = open_run(place[1] / "runs" / "curriculum-s0").records()
    handle = page.locator(
        ".pseudolabel-live .widget-slider", has=page.locator(".widget-label", has_text="round")).locator(".noUi-handle")
    before = page.locator(".pseudolabel-live img.widget-image").first.get_attribute("src")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("src => document.querySelector('.pseudolabel-live img.widget-image').src != src", arg=before)
    assert f"F1 {records[1].f1:.3f} (precision" in text(page) and "Diagnosis of round 1" in text(page)
    click(page, "◀ Back")
    page.locator(".pseudolabel-live", has_text="Diagnosis of round 0").wait_for()
    click(page, "Next ▶")
    page.locator(".pseudolabel-live", has_text="Diagnosis of round 1").wait_for()


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("name", ["light", "dark"])
def test_it_fits_and_is_seen(page, width, name):
    page.set_viewport_size(dict(width=width, height=2000))
    theme(page, name)
    if not page.locator(".pseudolabel-live input[type=number]").first.is_visible():
        page.locator(".pseudolabel-live .jupyter-widget-Collapse-header").click()
    page.wait_for_timeout(700)
    page.locator(".pseudolabel-live").evaluate("e => e.scrollIntoView()")
    keep_screenshot(page, f"stepper-{width}-{name}")
    box = page.locator(".pseudolabel-live").bounding_box()
    assert box["x"] + box["width"] <= width
    wide = page.locator(".pseudolabel-live").evaluate(
        "e => [...e.querySelectorAll('*')].filter(c => c.getBoundingClientRect().right > "
        "e.getBoundingClientRect().right + 2 && !c.closest('[style*=\"overflow-x\"]')).map(c => "
        "c.className + ' ' + c.innerText?.slice(0, 40))")
    assert not wide, wide
    theme(page, "light")


def test_every_control_has_a_tooltip(page):
    controls = page.locator(
        ".pseudolabel-live .widget-button, .pseudolabel-live .widget-dropdown, "
        ".pseudolabel-live .widget-text, .pseudolabel-live .widget-slider")
    bare = controls.evaluate_all(
        "all => all.filter(e => e.offsetParent && !e.title && !e.closest('[title]:not([title=\"\"])') && "
        "!e.querySelector('[title]:not([title=\"\"])')).map(e => e.outerHTML.slice(0, 200))")
    assert controls.count() > 12 and not bare, bare


def test_a_branch_is_made_stepped_and_stopped(page, place):
    field = page.locator(
        ".pseudolabel-live .widget-text", has=page.locator("[title^='schedule.stop']")).locator("input")
    field.fill("0.35")
    field.press("Tab")
    page.locator(".pseudolabel-live li", has_text="threshold 0.35").wait_for()
    said = page.locator(".pseudolabel-live li").first.inner_text()
    state = StepperState(place[1] / "runs" / "curriculum-s0")
    state.change(round=1)
    assert state.planned({"schedule.stop": 0.35}).schedule.stop == 0.35 and re.match(
        r"round 2: threshold 0.575, which keeps \d+\.\d\d% foreground", said)
    click(page, "Branch")
    until(page, "2 of 4 rounds done")
    new = open_run(place[1] / "runs" / "curriculum-s0-after-1")
    assert new.records() == state.run.records()[:2] and new.origin["changes"] == {"schedule.stop": 0.35}
    click(page, "▶▶ Run all")
    until(page, "trains all rounds (round 2:")
    click(page, "■ Stop")
    until(page, "stopped")
    done = len(new.records())
    click(page, "▶ Step")
    until(page,
          f"{done + 1} of 4 rounds done, the first teacher among them; {'waiting' if done == 2 else 'all are done'}")
    last = new.records()[-1]
    assert last.thresholds == ((0.575,) * 2, (0.35,) * 2)[last.round - 2]
    page.locator(".pseudolabel-live", has_text=f"F1 {last.f1:.3f} (precision").filter(
        has_text=f"Diagnosis of round {last.round}").wait_for()
    keep_screenshot(page, "stepper-branch")


def test_an_error_is_shown_with_its_remedy(page):
    field = page.locator(
        ".pseudolabel-live .widget-text", has=page.locator("[title^='Where the branch']")).locator("input")
    field.fill("../elsewhere")
    field.press("Tab")
    page.wait_for_timeout(300)
    click(page, "Branch")
    alert = page.locator(".pseudolabel-live [role=alert]")
    alert.wait_for()
    assert "expected the name of a folder beside this run" in alert.inner_text()


def test_opened_again_it_stands_where_it_stood(page, place):
    "Without a kernel the snapshot, with a new kernel the run as it was left."
    address, _, browser = place
    page.wait_for_timeout(1500)
    save(page)
    page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown() }")
    again = watched(browser, 1280, 2000)
    open_notebook(again, address, "stepper.ipynb", kernel=False)
    again.wait_for_timeout(1500)
    still = again.locator(".pseudolabel-still")
    assert "of 4 rounds done" in still.inner_text() and still.locator("img").count() == 2
    assert not again.get_by_text("model not found").filter(visible=True).count()
    keep_screenshot(again, "stepper-reopened")
    open_notebook(again, address, "stepper.ipynb")
    run_cells(again)
    until(again, "3 of 4 rounds done")
    # which JupyterLab says while there is no kernel
    assert not [e for e in again.errors if "model not found" not in e], again.errors
    shut_down(again)


def test_no_console_errors(page): assert page.errors == []
