"The dashboard as a Voilà page: it opens, its sliders move, its tabs change, and the console has nothing to say."
import json
import shutil

import pytest
from browsing import ROOT, keep_screenshot, voila, watched


@pytest.fixture(scope="module")
def address(tmp_path_factory, chromium):
    "The page, served from a folder of its own: nothing is written into the repository."
    pytest.importorskip("voila", reason="needs Voilà: pip install -e .[lab]")
    folder = tmp_path_factory.mktemp("voila")
    page = folder / "08_page.ipynb"
    shutil.copy(ROOT / "nbs/widgets/08_page.ipynb", page)
    stored = json.loads(page.read_text())
    stored["metadata"].setdefault("kernelspec", dict(name="python3", display_name="python3", language="python"))
    page.write_text(json.dumps(stored))
    with voila(page, folder / "home") as started: yield started


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_dashboard_as_a_page(address, browser, theme):
    page = watched(browser, 1280, 1250)
    # icons of Voilà's template, which no page of ours uses
    page.route(
        "https://cdn.jsdelivr.net/npm/@fortawesome/**", lambda route: route.fulfill(body="", content_type="text/css"))
    page.goto(f"{address}/?theme={theme}")
    page.locator(".pseudolabel-live .widget-image:visible").first.wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('.pseudolabel-live .widget-image')].some(i => i.naturalWidth >= 512)")
    assert (not page.locator(".pseudolabel-still").first.is_visible()
            and not page.locator(".jp-CodeCell .cm-content").count())
    if theme == "dark": # looked at; the rest is the same
        keep_screenshot(page, "voila-explorer-dark")
        assert page.errors == [], page.errors
        return page.close()
    before = page.locator(".widget-image:visible").first.get_attribute("src")
    slider = page.locator(".widget-slider", has=page.locator(".widget-label", has_text="particle"))
    slider.locator(".noUi-handle").focus()
    page.keyboard.press("Home")
    page.wait_for_function(
        "src => [...document.querySelectorAll('.widget-image')].find(i => i.offsetParent).src != src", arg=before)
    page.wait_for_timeout(1000)
    value = float(slider.locator(".widget-readout").inner_text())
    assert value == 0.001 and "ignored" in page.locator(".pseudolabel-live").first.inner_text()
    keep_screenshot(page, f"voila-explorer-{theme}")
    page.get_by_role("tab", name="Its rounds").click()
    page.locator(".pseudolabel-live [role=status]:visible").first.wait_for()
    page.wait_for_timeout(500)
    keep_screenshot(page, f"voila-stepper-{theme}")
    page.get_by_role("tab", name="Compare runs").click()
    page.get_by_role("button", name="Pick all found").click()
    page.get_by_text("2 runs, 2 found, 2 picked").first.wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('.widget-image')].some(i => i.offsetParent && i.naturalWidth > 300)")
    page.wait_for_timeout(500)
    keep_screenshot(page, f"voila-comparer-{theme}")
    assert page.errors == [], page.errors
    page.close()
