"""Diagnosis: each pathology is found at every strength and nothing else is; runs are only read; hidden labels stay
hidden; pages are safe to open."""
import hashlib
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.diagnostics.calibration import promise_errors
from pseudolabel_nb.diagnostics.cases import constructed, pathologies, troubles
from pseudolabel_nb.diagnostics.ceiling import fit_curve
from pseudolabel_nb.diagnostics.diagnosis import diagnose, examinations, examine, known_of
from pseudolabel_nb.diagnostics.findings import Diagnosis, Finding, Remedy
from pseudolabel_nb.diagnostics.gather import ask
from pseudolabel_nb.diagnostics.known import DiagnosisInputs
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.measures.calibration import (
    calibrate, calibrations, expected_quality, promised, ratio_threshold, reliability, true_quality)
from pseudolabel_nb.measures.metrics import binary_histogram
from pseudolabel_nb.measures.shift import agreement, estimate_shift
from pseudolabel_nb.runs.run import open_run, teacher_of
from pseudolabel_nb.strategies.selection import Rule, apply
from pseudolabel_nb.strategies.strategy import strategy
from pseudolabel_nb.training.rounds import finish, rounds, run
from pseudolabel_nb.runs.settings import Settings

QUICK = ["class ratio", "dilution", "confidence filter", "calibration", "drift"]


# ---- constructed cases

@pytest.mark.parametrize("strength", [0.05, 0.5, 1])
@pytest.mark.parametrize("name", pathologies)
def test_pathology_is_found_and_nothing_else(name, strength):
    assert troubles(examine(constructed(name, strength, seed=1000 + int(10 * strength)), only=QUICK)) == {name}


def test_clean_cases_raise_nothing_in_any_examination():
    for seed in range(6):
        d = examine(constructed("clean", 0, seed))
        assert not d.alarms, str(d)
        assert {name for name, _ in d.left_out} == {"where to look", "ceiling"}


def test_stronger_is_never_less_severe():
    for name in ("too few", "too many", "diluted", "miscalibrated"):
        ranks = [max(f.rank for f in examine(constructed(name, s, seed=5), only=QUICK).findings) for s in (0, 0.5, 1)]
        assert ranks == sorted(ranks), name


def test_order_of_images_does_not_matter():
    k, order = constructed("too few", 0.5), np.random.default_rng(0).permutation(24)
    turned = replace(k, kept=k.kept[order], pixels=k.pixels[order], truth=k.truth[order], kept_groups=(),
                     pixel_groups=(), real_groups=())
    a, b = (examine(x, only=QUICK[:4]).findings
            for x in (replace(k, kept_groups=(), pixel_groups=(), real_groups=()), turned))
    assert [(f.topic, f.severity, round(f.value, 9)) for f in a] == [
        (f.topic, f.severity, round(f.value, 9)) for f in b]


def test_every_remedy_can_be_typed():
    for name in pathologies:
        for f in examine(constructed(name, 1)).findings:
            if f.remedy: assert strategy(f.remedy.strategy, **f.remedy.changes).name == f.remedy.strategy
    call = Remedy("limited", {"selector__ratio": 2.0, "start": "restart"}).call
    # our own text
    assert eval(call, {"strategy": strategy}) == strategy("limited", selector__ratio=2.0, start="restart") # noqa: S307


def test_mission_rules():
    "Under half: class-balanced; over twice: a higher threshold; 12 to 1: limited."
    remedy = lambda name, topic: next(
        f.remedy for f in examine(constructed(name, 0.5), only=QUICK).findings if f.topic == topic)
    assert remedy("too few", "class ratio").strategy == "class_balanced"
    assert remedy("too many", "class ratio").changes["selector__threshold"] > 0.7
    assert remedy("diluted", "dilution").strategy == "limited"


# ---- measures

@pytest.mark.parametrize("method", calibrations)
def test_calibration_keeps_order_and_stays_inside(method):
    hist = constructed("miscalibrated", 0).validation.sum(0)
    p = calibrate(hist, method)
    assert ((p > 0) & (p < 1)).all() and (np.diff(p) >= -1e-12).all()
    if method != "none": assert reliability(hist, probs=p).ece < 0.5 * reliability(hist).ece


def test_promise_of_the_truth_is_the_truth():
    hist = constructed("clean", 0).truth.sum(0)
    rate = np.divide(hist[1], hist.sum(0), out=np.zeros(1024), where=hist.sum(0) > 0)
    for t in ((0.5, 0.5), (0.7, 0.9), (0.6, 0.3)):
        np.testing.assert_allclose(promised(hist.sum(0), rate, t), true_quality(hist, t))
    precision, recall, f1 = true_quality(hist, (0.7, 0.7))[:3]
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))


def test_expected_quality_covers_the_truth():
    "Nine in ten intervals or more hold the truth, where images are alike."
    held = []
    for seed in range(20):
        k = constructed("miscalibrated", 0.5, seed)
        e, truth = expected_quality(k.validation, k.pixels, (0.7, 0.7), n=100), true_quality(k.truth.sum(0), (0.7, 0.7))
        held += [e.low[n] <= t <= e.high[n] for n, t in zip(("precision", "recall", "f1"), truth)]
    assert np.mean(held) >= 0.9


def test_ratio_threshold_meets_the_ratio():
    pixels = constructed("clean", 0).pixels.sum(0)
    for r in (0.01, 0.04, 0.2):
        k = int(np.searchsorted(np.maximum(0, (np.arange(1024) * 64 - 0.5) / 65535), ratio_threshold(pixels, r) - 1e-9))
        assert abs(pixels[k:].sum() / pixels.sum() - r) < 0.02


def test_shift_estimates_follow_a_shift():
    clean = constructed("clean", 0)
    y = clean.truth
    heavier = np.stack([y[:, 0], 3 * y[:, 1]], 1).sum(1) # three times as much foreground that looks the same
    truth = 3 * y[:, 1].sum() / (y[:, 0].sum() + 3 * y[:, 1].sum())
    found = estimate_shift(clean.validation, heavier, n=20)
    assert not agreement(found).apart and abs(agreement(found).ratio / truth - 1) < 0.1


def test_promise_errors_of_one_image_say_nothing():
    errors = promise_errors(constructed("miscalibrated", 1).validation[:1])
    assert (errors[:, 1:] == (-1, 1)).all()


def test_learning_curve_of_noise_stays_inside():
    curve = fit_curve([(n, s) for n, s in zip((4, 8, 16), (0.9, 0.2, 0.6))], draws=20)
    for n in (1, 4, 1000): assert all(0 <= x <= 1 for x in curve.at(n))


# ---- what is diagnosed

@pytest.fixture(scope="module")
def data():
    return micrographs(n_train=24, n_val=8, n_test=4, size=64)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    "A run of a few steps, two rounds."
    s = Settings(steps=24, crop=64, evaluations=1, checkpoint_every=1000)
    return run(data, strategy("limited", rounds=2, selector__threshold=0.5),
               tmp_path_factory.mktemp("runs") / "naive <b>&", labeled_ratio=0.25, settings=s, device="cpu")


def _fingerprint(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_run_is_only_read(finished, data):
    before = _fingerprint(finished.folder)
    d = diagnose(finished, data, oracle=True)
    assert _fingerprint(finished.folder) == before
    assert {name for name, _ in d.left_out} <= {"ceiling", "expected quality", "prior", "calibration"}
    assert len(d.frame()) == len(d.findings) and d.subject == finished.name


def test_rule_is_the_one_of_the_run(finished, data):
    "What is refitted keeps what the round kept, to the resolution of the histograms."
    k, _ = known_of(finished, data)
    np.testing.assert_allclose(k.kept.sum(0), finished.records()[-1].kept, rtol=0.02, atol=200)
    assert k.thresholds == finished.records()[-1].thresholds and len(k.rounds) == 2
    earlier, _ = known_of(finished, data, round=1) # of which some images are kept only
    assert len(earlier.predictions) < len(k.predictions)
    np.testing.assert_allclose(earlier.kept.sum(0), finished.records()[1].kept, rtol=1e-6)


def test_the_refitted_rule_is_told_the_decision_of_the_rounds_teacher(finished, data, decisions):
    known_of(finished, data) # of the last round, of which all predictions are kept
    assert decisions == [teacher_of(finished.records(), 2).threshold] and decisions != [0.5]


def test_run_without_its_images(finished):
    d = diagnose(finished.folder)
    assert "class ratio" in {f.topic for f in d.findings} and "calibration" in {name for name, _ in d.left_out}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_round(finished, data, number):
    d = diagnose(finished, data, round=number)
    assert ("dilution" in {f.topic for f in d.findings}) == (number > 0)


def test_hidden_labels_stay_hidden(finished, data):
    "Without oracle=True no mask of an unlabeled image is read."
    labeled = set(finished.split["labeled"])
    def refuse(): raise AssertionError("a hidden label was read")
    guarded = replace(
        data,
        train=type(data.train)(
            [i if i.id in labeled else replace(i, read_mask=refuse) for i in data.train.items], name="guarded"))
    assert diagnose(finished, guarded).findings
    with pytest.raises(AssertionError, match="hidden label"): diagnose(finished, guarded, oracle=True)


@pytest.mark.parametrize("split", ["train", "val"])
def test_other_masks_than_the_run_had_are_refused(finished, data, split, tmp_path):
    "By a diagnosis, by the rounds to come and by the score."
    again = open_run(shutil.copytree(finished.folder, tmp_path / "again"))
    (again.folder / "result.json").unlink() # what is scored is not scored again
    one = finished.split["labeled" if split == "train" else "val"][0]
    images = getattr(data, split)
    other = replace(
        data,
        **{split: images._with(
               [replace(i, read_mask=lambda i=i: 1 - i.read_mask()) if i.id == one else i for i in images.items])})
    for use in (diagnose, lambda run, data: list(rounds(run, data)), finish):
        with pytest.raises(UserError, match="begun"): use(again, other)
        use(again, data)


def test_supervised_run_asks_about_some_images(data, tmp_path):
    done = run(data, "supervised", tmp_path / "s", labeled_ratio=0.25,
               settings=Settings(steps=8, crop=64, evaluations=1), device="cpu")
    k, _ = known_of(done, data, limit=5)
    assert k.kept is None and 3 <= len(k.pixels) <= 5 and k.predictions.folder.exists()
    folder = k.predictions.folder
    del k
    assert not folder.exists() # the temporary answers go with the result


def test_record_selection_masks_agree(finished):
    record = finished.records()[-1]
    d = diagnose(record)
    assert d.about("class ratio")[0].value == pytest.approx(record.ratio_pseudo / record.ratio_labeled)
    assert "dilution" in dict(d.left_out) # its line does not say how many images are labeled
    probs = np.stack([np.full((8, 8), 0.2), np.full((8, 8), 0.8)])
    import torch
    selection = apply(Rule((0.7, 0.7)), torch.tensor(probs))
    real = [np.eye(8, dtype=np.uint8)]
    assert str(diagnose(selection, real=real)).splitlines()[1:] == str(
        diagnose(selection.target, real=real)).splitlines()[1:]


def test_three_classes(tmp_path):
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (32, 32)).astype(np.uint8) for _ in range(6)]
    images = from_arrays(rng.normal(size=(6, 32, 32)), masks, n_classes=3)
    probs = [np.stack([0.1 + 0.7 * (m == c) for c in (1, 2)]) for m in masks]
    said = store(zip(images.ids, probs), tmp_path / "p", n_classes=3)
    from pseudolabel_nb.data.images import Data
    d = diagnose(said, Data("three", train=images, val=images, classes=("ground", "cells", "dirt")), validation=said,
                 oracle=True, real=[(m > 0).astype(np.uint8) for m in masks])
    assert "for cells" in str(d) and "for dirt" in str(d)
    assert d.about("expected quality")[0].value > 0.95


def test_page_escapes_names_and_fetches_nothing(finished, data, tmp_path):
    page = diagnose(finished, data).page(tmp_path / "d.html").read_text()
    assert "naive &lt;b&gt;&amp;" in page and "naive <b>" not in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page) and "<script" not in page
    assert page.count("<img") == page.count(' alt="') >= 5


def test_errors_name_the_way_out(finished, data, tmp_path):
    for make, said in ((lambda: diagnose(tmp_path), "is no run folder"),
                       (lambda: diagnose(finished, data, round=7), "expected 0 to 2"),
                       (lambda: diagnose(finished, micrographs(n_train=2, n_val=1, n_test=1, size=64)),
                        "open the data it was begun with"),
                       (lambda: diagnose([np.zeros((2, 2))], real=[np.zeros((2, 2))], oracle=True), "leave them out"),
                       (lambda: ask(open_run(finished.folder), ["checkpoints/gone.safetensors"], data.val, "x"),
                        "restore it")):
        with pytest.raises(UserError, match=said) as e: make()
        assert "\n" not in str(e.value)


def test_text_is_readable_and_sorted():
    d = Diagnosis((Finding("a", "ok", 1.0, "1", "Fine."), Finding("b", "severe", 2.0, "2", "Bad.", Remedy("limited"))),
                  subject="x")
    assert d.worst == "severe" and str(d).index("Bad.") < str(d).index("Fine.") and max(
        map(len, str(d).splitlines())) <= 120
    assert Diagnosis(()).verdict == "Nothing could be examined." and set(examinations) >= set(QUICK)
    assert (
        examine(DiagnosisInputs()).worst == "ok" and len(examine(DiagnosisInputs()).left_out) == len(examinations) + 1)


def test_command_on_a_run(finished, capsys, tmp_path):
    from pseudolabel_nb.cli import diagnose as command
    assert command([str(finished.folder), "--html", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert ("does not say where its images are" in said and "class ratio" in said
            and (tmp_path / "page.html").stat().st_size > 10_000)
    assert command(
        [str(finished.folder), "--data-dir", str(tmp_path / "gone")]) == 2 and "gone" in capsys.readouterr().err
    assert (command([str(finished.folder), "--device", "abacus"]) == 2
            and "device 'abacus' cannot be used" in capsys.readouterr().err)


def test_histogram_of_the_whole_is_the_sum():
    rng = np.random.default_rng(0)
    p, y = rng.random(5000), rng.integers(0, 2, 5000)
    fine = binary_histogram(p, y, 65536)
    assert (fine.reshape(2, 1024, 64).sum(2) == binary_histogram(p, y)).all()
