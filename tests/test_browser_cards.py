"The cards in a real JupyterLab: light and dark, text of the page's own color, tables that Jupyter does not stripe."
from browsing import keep_screenshot, notebook, run_notebook, shut_down, theme, watched, without_panels

CELLS = ("""
import tempfile
import numpy as np
import torch
import pseudolabel_nb as pnb
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.runs.run import RoundRecord
from pseudolabel_nb.strategies.selection import Context, apply
data = pnb.micrographs(8, 4, 1, size=64)
p = store(((id, np.clip(0.1 + 0.8 * data.train.mask(i), 0, 1)[None]) for i, id in enumerate(data.train.ids)),
          tempfile.mkdtemp(), teacher="checkpoints/round-1.safetensors")
RoundRecord(1, 500, 0.66, 0.7, 0.62, 0.40, True, "checkpoints/round-1.safetensors", 25.0, 0.041, 0.05, -0.01, 0.11,
            0.93, (0.8, 0.6), 24, (90_000, 3_700), 3_700/93_700, "reasonable")""",
         "data", "data.train", "p", "made = pnb.strategy('class_balanced', method__weight=0.5)\nmade",
         "rule = made.selector_at(1).fit([p], Context(labeled=2))\nrule",
         "apply(rule, torch.stack([p.probs(k) for k in range(3)]))",
         "pnb.diagnose_pseudo_labels([data.train.mask(0) * 0], [data.train.mask(1)], verbose=False)")


def test_cards_light_and_dark(lab, browser):
    notebook(lab[1] / "cards.ipynb", *CELLS)
    page = watched(browser, 1280, 2000)
    run_notebook(page, lab[0], "cards.ipynb")
    without_panels(page)
    cards = page.locator(".jp-OutputArea-output div[style*='border-radius']")
    assert cards.count() == len(CELLS)
    COLORS = {}
    for name in ("light", "dark"):
        theme(page, name)
        keep_screenshot(page, f"cards-{name}")
        COLORS[name] = set(
            page.evaluate(
                "[...document.querySelectorAll('.jp-OutputArea-output div[style*=border-radius] td, "
                ".jp-OutputArea-output div[style*=border-radius] code')].map(e => getComputedStyle(e).color)"))
        ground = set(page.evaluate("[...document.querySelectorAll('.jp-OutputArea-output div[style*=border-radius] "
                                   "tr')].map(e => getComputedStyle(e).backgroundColor)"))
        assert ground == {"rgba(0, 0, 0, 0)"}
    assert len(COLORS["light"]) == len(COLORS["dark"]) == 1 and COLORS["light"] != COLORS["dark"]
    assert page.errors == []
    shut_down(page)
