"""What the types of the package show as the last line of a cell: a card each, with names that are text, and without
colors that vanish on a dark page."""
import re
import tempfile
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import discs
from IPython.lib.pretty import pretty
from written_runs import write_run

import pseudolabel_nb as pnb
from pseudolabel_nb.diagnostics.advice import rank_strategies
from pseudolabel_nb.diagnostics.findings import Diagnosis, Finding, Remedy
from pseudolabel_nb.experiments.plan import Plan, Step
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.measures.ranking import rank
from pseudolabel_nb.runs.compare import compare
from pseudolabel_nb.strategies.selection import Context, Rule, apply

WICKED = "<script>alert('1')</script> & \"co\""


def predictions():
    return store([(f"{k}{WICKED}", np.random.default_rng(k).random((1, 16, 24)).astype("float32")) for k in range(3)],
                 tempfile.mkdtemp(), teacher=WICKED)


def images():
    return pnb.from_arrays([np.zeros((16, 24))] * 3, [np.eye(16, 24, dtype="uint8")] * 3,
                           ids=[f"{k}{WICKED}" for k in range(3)], name=WICKED)


def a_run(folder, **more):
    return write_run(folder / WICKED.replace("/", "_"), strategy=WICKED, error=WICKED, finished=False, **more)


def shown(folder) -> dict:
    "One of each, made with names that would break a careless page."
    p, some = predictions(), images()
    rule = Rule((0.7, 0.6), p.ids, warning=WICKED)
    run = pnb.open_run(a_run(folder))
    finding = Finding(WICKED, "severe", 1.0, WICKED, WICKED, Remedy("limited", {}, WICKED))
    return dict(
        run=run, record=run.records()[-1], data=pnb.Data(WICKED, some, notes=(WICKED,), classes=("background", WICKED)),
        images=some, predictions=p, rule=rule, selection=apply(rule, p.probs(0)),
        pseudo_images=pnb.PseudoImages(some, p, rule), strategy=pnb.strategy("naive", about=WICKED),
        supervised=pnb.strategy("supervised"), teacher=pnb.Teacher(members=3), method=pnb.SelfTraining(weight=0.5),
        ratio=pnb.diagnose_pseudo_labels([np.eye(4)], [np.eye(4)], verbose=False),
        diagnosis=Diagnosis((finding,), (), ((WICKED, WICKED),), WICKED),
        advice=rank_strategies([finding], subject=WICKED),
        plan=Plan(folder, 3.0, (Step(WICKED, 1, WICKED),), "runs", 1, 1.0),
        ranking=rank({WICKED: [0.1, 0.2], "b": [0.1, 0.3]}), comparison=compare(folder))


KINDS = ["run", "record", "data", "images", "predictions", "rule", "selection", "pseudo_images", "strategy",
         "supervised", "teacher", "method", "ratio", "diagnosis", "advice", "plan", "ranking", "comparison"]


@pytest.fixture(scope="module")
def all_shown(tmp_path_factory):
    return shown(tmp_path_factory.mktemp("cards"))


class Nesting(HTMLParser):
    "Checks that every element that is opened is closed, in order."
    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "br"): self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag: self.wrong.append(tag)


def test_all_are_looked_at(all_shown): assert list(all_shown) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_a_card(all_shown, kind):
    page, text = all_shown[kind]._repr_html_(), pretty(all_shown[kind])
    nesting = Nesting()
    nesting.feed(page)
    assert page.startswith("<div style=") and "border-radius:6px" in page
    assert not nesting.open and not nesting.wrong
    raw = "<script" in page or "alert('1')" in re.sub(r"<[^>]*>", "", page) # quotes are escaped as well
    assert not raw
    colors = re.findall(r"[;\"' ]color:\s*([^;\"']*)", page)
    assert set(colors) <= {"inherit"} # text takes the color of the page
    assert len(page) < 60_000 and "object at 0x" not in text and len(text) < 6000


@pytest.mark.parametrize("kind", ["run", "record", "data", "images", "predictions", "strategy", "diagnosis"])
def test_the_card_says_what_the_text_says(all_shown, kind):
    "The numbers of the plain text are on the card."
    thing = all_shown[kind]
    page = re.sub(r"<[^>]*>", " ", thing._repr_html_())
    for number in re.findall(r"\d\.\d{3}\b", str(thing)): assert number in page, number


def test_a_run_that_was_just_begun(tmp_path):
    "Nothing but an empty folder: still a card."
    (tmp_path / "run").mkdir()
    page = pnb.Run(tmp_path / "run")._repr_html_()
    assert "new" in page and "round" not in page


def test_a_supervised_strategy_says_labels_only(all_shown):
    assert "labels only" in all_shown["supervised"]._repr_html_()


def test_masks_are_drawn_small():
    from pseudolabel_nb.cards import mask_image
    page = mask_image(np.zeros((4096, 2048), np.uint8))
    width, height = map(int, re.search(r"width:(\d+)px;height:(\d+)px", page).groups())
    assert max(width, height) <= 128 and height == 2 * width and len(page) < 3000


def test_context_is_text_too(): assert "Context(" in pretty(Context())


def test_discs_show(): assert "5 images" in discs(5, 0)._repr_html_()
