"The study's runs see what they may see, are done once, and go on where they stopped."
import argparse

import numpy as np
import pytest
from conftest import discs, tool_module
from PIL import Image

import pseudolabel_nb as pnb
from pseudolabel_nb.data.images import Data

TINY = dict(batch_size=2, crop=16, network_options=dict(widths=(4, 8)), evaluations=1, gate=0.5)


@pytest.fixture(scope="module")
def tool():
    "nbs/benchmarks/study.py as a module."
    with tool_module("study") as made: yield made


@pytest.fixture()
def data():
    return Data("discs", discs(20, 0), discs(10, 1), discs(6, 2))


@pytest.mark.parametrize("ratio,n", [(0.05, 1), (0.2, 4), (1.0, 5)])
def test_a_run_sees_as_many_validation_images_as_labels_and_at_most_half(tool, data, ratio, n):
    "What chooses and what scores have no image in common, and together they are all."
    seen = tool.own_validation(data, ratio, 3, "design")
    assert len(seen.val) == n and not set(seen.val.ids) & set(seen.test.ids)
    assert sorted(seen.val.ids + seen.test.ids) == sorted(data.val.ids)


def test_the_test_set_is_scored_in_its_own_phase_only(tool, data):
    design, test = (tool.own_validation(data, 0.2, 3, phase) for phase in ("design", "test"))
    assert test.test is data.test and test.val.ids == design.val.ids
    assert set(design.test.ids) <= set(data.val.ids)


def test_validation_images_are_nested_and_drawn_by_seed(tool, data):
    ids = {(r, s): set(tool.own_validation(data, r, s, "design").val.ids) for r in (0.1, 0.2) for s in range(5)}
    assert all(ids[0.1, s] < ids[0.2, s] for s in range(5))
    assert len({frozenset(ids[0.2, s]) for s in range(5)}) > 1


def test_sets_are_described_by_what_is_in_them(tool, tiny, tmp_path):
    "F1 of calling every pixel foreground: 2π / (1 + π)."
    tool.describe(argparse.Namespace(data=tmp_path, datasets=["small"]), tmp_path / "sets.csv")
    rows = tool.read_rows(tmp_path / "sets.csv")
    ratio = float(np.mean([discs(4, 2).mask(i).mean() for i in range(4)]))
    assert [(r["split"], r["images"]) for r in rows] == [("train", "20"), ("val", "8"), ("test", "4")]
    assert float(rows[2]["foreground"]) == pytest.approx(ratio, abs=1e-4) and float(
        rows[2]["f1_all_foreground"]) == pytest.approx(2 * ratio / (1 + ratio), abs=1e-4)


def test_numbers(tool):
    assert tool.numbers("0-4") == [0, 1, 2, 3, 4] and tool.numbers("100-101,7") == [100, 101, 7]


def test_rows_are_replaced_not_repeated(tool, tmp_path):
    "One row a run, in a fixed order, whatever came first."
    path = tmp_path / "results.csv"
    row = dict(dataset="b", strategy="supervised", labeled_ratio=0.05, seed=1, phase="design", steps=10, precision=0.5,
               recall=0.5, f1=0.5, best_round=0, threshold=0.5, labeled=1, chosen_on=1, scored_on=4, seconds=3.2)
    for change in (dict(), dict(dataset="a"), dict(seed=0), dict(f1=0.25)): tool.add_row(row | change, path)
    rows = tool.read_rows(path)
    assert [(r["dataset"], r["seed"], r["f1"]) for r in rows] == [
        ("a", "1", "0.5000"), ("b", "0", "0.5000"), ("b", "1", "0.2500")]
    cell = tool.Cell("vnc_mito", "supervised", 0.05, 1)
    assert tool.key_of({**rows[0], "dataset": "vnc_mito", "steps": str(cell.steps)}) == cell.key


def test_gains_by_hand(tool):
    "Supervised 0.6, method 0.7, all labels 0.8 on the mean of two seeds: gain 0.1, half of the way."
    row = lambda strategy, f1, ratio="0.05", seed="0", phase="design": dict(
        dataset="a", strategy=strategy, labeled_ratio=ratio, seed=seed, phase=phase, f1=str(f1))
    rows = tool.compared(
        [row("supervised", 0.6), row("best", 0.7), row("supervised", 0.75, "1.0"), row("supervised", 0.85, "1.0", "1"),
         row("best", 0.9, seed="1"), row("best", 0.9, phase="test")])
    told = [(r["f1_supervised"], r["f1_full"], r["gain"], r["gap_closed"]) for r in rows]
    assert told[1] == ("0.6000", "0.8000", "0.1000", "0.5000")
    assert told[4] == ("", "0.8000", "", "") and told[5] == ("", "", "", "")


@pytest.fixture()
def tiny(tool, tmp_path, monkeypatch):
    "A small data set on disk, and settings for it."
    for split, images in (("train", discs(20, 0)), ("val", discs(8, 1)), ("test", discs(4, 2))):
        for kind in ("images", "masks"): (tmp_path / "small" / split / kind).mkdir(parents=True)
        for i in range(len(images)):
            x = images.image(i)[0]
            Image.fromarray(np.uint8(255 * (x - x.min()) / np.ptp(x))).save(
                tmp_path / "small" / split / "images" / f"{split}{i}.png")
            Image.fromarray(255 * images.mask(i)).save(tmp_path / "small" / split / "masks" / f"{split}{i}.png")
    monkeypatch.setattr(tool, "STEPS", dict(small=24)) # short runs have half of them
    monkeypatch.setattr(tool, "BASE", TINY)
    return tmp_path


def test_a_run_and_its_row(tool, tiny):
    "Two arms that begin alike share the first teacher, and a run that has its folder is not trained again."
    cells = [tool.Cell("small", name, 0.2, 1) for name in ("short naive", "short class_balanced")]
    first, _ = (tool.do(c, tiny, tiny / "work", "cpu") for c in cells)
    assert (first["labeled"], first["chosen_on"], first["scored_on"], first["steps"]) == (4, 4, 4, 12)
    folders = [tool.begun(c, tiny, tiny / "work", "cpu")[0].folder for c in cells]
    a, b = ((f / "checkpoints" / "round-0.safetensors").read_bytes() for f in folders)
    assert a == b
    trained = [{m["round"] for m in pnb.open_run(f).metrics()} for f in folders]
    assert 0 in trained[0] and trained[1] and 0 not in trained[1] # the second did not train it again
    assert not (folders[0] / "predictions").exists()
    before = (folders[0] / "rounds.jsonl").read_bytes()
    assert (
        tool.do(cells[0], tiny, tiny / "work", "cpu") == first and (folders[0] / "rounds.jsonl").read_bytes() == before)


def test_arms_are_strategies_that_can_run(tool):
    "Every arm's changes and settings fit, before hours are spent."
    from pseudolabel_nb.strategies.strategy import changed
    for name, arm in tool.ARMS.items():
        made = changed(pnb.strategy(arm.strategy), arm.changes)
        settings = pnb.Settings(**tool.BASE | arm.settings)
        assert (made.rounds >= 1 or made.selector is None) and settings.steps and arm.steps > 0, name


def test_committed_rows_are_of_known_arms(tool):
    "A row whose arm was renamed would be done twice."
    rows = tool.read_rows()
    assert {r["strategy"] for r in rows} <= set(tool.ARMS)
    assert len({tool.key_of(r) for r in rows}) == len(rows)
    for r in rows:
        assert r["phase"] in ("design", "test") and 0 <= float(r["f1"]) <= 1
        assert int(r["seed"]) >= 100 or r["phase"] == "design" # the test set is for fresh seeds
