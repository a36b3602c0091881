"""What every selector keeps to, whatever the predictions: thresholds, limits, order, and the same answer from the store
as in training."""
import tempfile
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.inference.predictions import Predictions, store, with_background
from pseudolabel_nb.measures.metrics import quantize
from pseudolabel_nb.strategies.class_balanced import ClassBalanced, balanced_images
from pseudolabel_nb.strategies.class_quantiles import ClassQuantiles
from pseudolabel_nb.strategies.limited import Limited
from pseudolabel_nb.strategies.low_threshold import LowThreshold
from pseudolabel_nb.strategies.selection import Context, apply, kept_pixels
from pseudolabel_nb.strategies.pseudo_images import PseudoImages
from pseudolabel_nb.strategies.threshold import ClassThresholds, Threshold

quick = settings(max_examples=15, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
SELECTORS = [Threshold(0.7), ClassThresholds(0.6, 0.8), LowThreshold(0.4), Limited(0.7, 1.0), ClassBalanced(),
             ClassQuantiles(0.3), ClassQuantiles(0.5, aligned=False), ClassQuantiles(0.3, ratio=1.5)]
every_selector = pytest.mark.parametrize("selector", SELECTORS, ids=repr)
both = pytest.mark.parametrize("classes", [2, 4])
LIMITS = {SELECTORS[3]: 1.0, SELECTORS[4]: 2.0, SELECTORS[7]: 1.5}


@st.composite
def planes(draw, classes: int, images: int = 6, side: int = 8) -> list[np.ndarray]:
    "Foreground probabilities of some images, rare foreground among them, in float32."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sharp = draw(st.floats(0.3, 4.0))
    logits = rng.normal(size=(images, classes, side, side)) * sharp + np.array(
        [draw(st.floats(0, 4))] + [0] * (classes - 1))[:, None, None]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return list(probs[:, 1:].astype(np.float32))


@contextmanager
def stored(images: list[np.ndarray], order=None):
    "The images as a store, in some order, and their ids."
    order = range(len(images)) if order is None else order
    with tempfile.TemporaryDirectory() as d:
        yield store([(f"{i:02d}", images[i]) for i in order], d, n_classes=len(images[0]) + 1)


def context(classes: int) -> Context:
    return Context(prior=(0.9,) + (0.1 / (classes - 1),) * (classes - 1), labeled=2)


@both
@every_selector
@quick
@given(st.data())
def test_a_kept_pixel_reaches_its_threshold_and_an_ignored_one_reaches_none(selector, classes, data):
    with stored(data.draw(planes(classes))) as predictions:
        rule = selector.fit([predictions], context(classes))
        probs = torch.stack([predictions.probs(i) for i in range(len(predictions))])
    selection, reached = apply(rule, probs), probs >= torch.tensor(rule.thresholds).view(1, -1, 1, 1) * (1 - 1e-6)
    kept = selection.target != 255
    label = torch.where(kept, selection.target.long(), 0)
    assert reached.gather(1, label[:, None])[:, 0][kept].all()
    strictly = probs > torch.tensor(rule.thresholds).view(1, -1, 1, 1) * (1 + 1e-6)
    assert not strictly.any(1)[~kept].any()
    assert sum(selection.kept) + selection.ignored == kept.numel() and (selection.weight > 0).equal(kept)


@both
@every_selector
@quick
@given(st.data())
def test_the_order_of_storage_does_not_matter_and_ties_go_by_id(selector, classes, data):
    images = data.draw(planes(classes, images=3)) * 2 # each image twice, under another name
    order = data.draw(st.permutations(range(6)))
    with stored(images) as a, stored(images, order) as b:
        rule, other = (selector.fit([p], context(classes)) for p in (a, b))
        scores = dict(zip(a.ids, a.scores()))
        assert rule == other == selector.fit([a], context(classes))
    for first, second in zip(rule.images, rule.images[1:]):
        assert scores[first] > scores[second] or (scores[first] == scores[second] and first < second)
    assert len(set(rule.images)) == len(rule.images)


@both
@pytest.mark.parametrize("selector", LIMITS, ids=repr)
@quick
@given(st.data(), st.integers(1, 4))
def test_never_more_images_than_the_limit(selector, classes, data, labeled):
    with stored(data.draw(planes(classes))) as predictions:
        rule = selector.fit([predictions], Context(context(classes).prior, labeled))
    assert len(rule.images) <= max(1, int(LIMITS[selector] * labeled))


@both
@every_selector
@quick
@given(st.data())
def test_stored_and_live_probabilities_of_one_precision_are_selected_alike(selector, classes, data):
    images = data.draw(planes(classes, images=3))
    with stored(images) as predictions:
        rule = selector.fit([predictions], context(classes))
        pseudo = PseudoImages(
            from_arrays([np.zeros((8, 8), "float32")] * 3, ids=list(predictions.ids)), predictions, rule)
        for k, id in enumerate(rule.images):
            live = apply(rule, with_background(quantize(images[int(id)])))
            assert np.array_equal(pseudo.mask(k), live.target[0].numpy())


@both
@every_selector
@quick
@given(st.data())
def test_counting_by_histogram_is_counting_to_the_width_of_a_bin(selector, classes, data):
    with stored(data.draw(planes(classes))) as predictions:
        rule = selector.fit([predictions], context(classes))
        probs = torch.stack([predictions.probs(i) for i in range(len(predictions))])
        counted = kept_pixels(predictions, rule.thresholds).sum(0)
    exact = np.array(apply(rule, probs).kept)
    near = [(probs[:, c] - t).abs().le(2 / 1024).sum().item() for c, t in enumerate(rule.thresholds)]
    cut = rule.thresholds[1] / sum(rule.thresholds[:2]) # where two classes with low thresholds change over
    crossing = int((probs[:, 1] - cut).abs().le(2 / 1024).sum())
    if classes == 2: assert np.abs(counted - exact).max() <= sum(near) + crossing
    elif min(rule.thresholds) >= 0.5: assert (np.abs(counted - exact) <= near).all()


@both
@quick
@given(st.data(), st.floats(0.02, 0.3))
def test_class_quantiles_meet_the_prior_or_say_that_they_do_not(classes, data, prior):
    with stored(data.draw(planes(classes, images=4, side=48))) as predictions:
        rule = ClassQuantiles(0.3).fit(
            [predictions], Context((1 - prior,) + (prior / (classes - 1),) * (classes - 1), 2))
        kept = np.array(apply(rule, torch.stack([predictions.probs(i) for i in range(4)])).kept)
    ratio = kept[1:].sum() / max(kept.sum(), 1)
    assert abs(ratio / prior - 1) <= 0.12 or rule.warning, (
        f"kept {ratio:.3f} for a prior of {prior:.3f}, and no warning")
    assert "\n" not in rule.warning


@quick
@given(st.data(), st.floats(0.05, 0.3))
def test_class_balanced_meets_the_prior_or_says_that_it_does_not(data, prior):
    with stored(data.draw(planes(2, images=12, side=16))) as predictions:
        rule = ClassBalanced().fit([predictions], Context((1 - prior, prior), 3))
        kept = np.sum([apply(rule, predictions.probs(predictions.index(id))).kept for id in rule.images], 0)
    assert abs(kept[1] / max(sum(kept), 1) / prior - 1) <= 0.12 or rule.warning


def test_a_selector_reads_nothing_but_the_predictions(tmp_path):
    "Fitted on a store that was opened anew, without images, it gives the same rule."
    rng = np.random.default_rng(0)
    made = store([(str(k), rng.random((1, 8, 8), dtype=np.float32)) for k in range(4)], tmp_path)
    for selector in SELECTORS:
        assert selector.fit([made], context(2)) == selector.fit([Predictions(tmp_path)], context(2))


def test_choosing_among_many_images_takes_little_memory():
    "All pairs of 10,000 chosen and 10,000 other images would be a table of 1.6 GB."
    foreground = np.random.default_rng(0).beta(1, 12, 20_000)
    kept = np.stack([(1 - foreground) * 65536, foreground * 65536], 1).astype(int)
    tracemalloc.start()
    chosen = balanced_images(kept, list(range(20_000)), 0.02, 10_000, 10_000, 0.05)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(chosen)) == 10_000 and kept[chosen].sum(0)[1] / kept[chosen].sum() < foreground.mean() / 2
    assert most < 300e6
