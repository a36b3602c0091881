"""Properties of the measures and of the selectors that hold for every input, tried on inputs nobody would write by
hand."""
import tempfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.diagnostics.class_ratio import class_ratio, diagnose_pseudo_labels
from pseudolabel_nb.inference.predictions import store, with_background
from pseudolabel_nb.measures.metrics import (
    all_foreground_f1, best_threshold, binary_histogram, class_pixels, confusion, f1, foreground_ratio, quantize,
    scores, threshold_curve, threshold_edges)
from pseudolabel_nb.measures.prior import estimate_prior
from pseudolabel_nb.measures.statistics import (
    bootstrap_gain, paired_interval, resample_weights, sign_flip_p, sum_by_group)
from pseudolabel_nb.strategies.class_balanced import ClassBalanced
from pseudolabel_nb.strategies.class_quantiles import ClassQuantiles, misses
from pseudolabel_nb.strategies.limited import Limited
from pseudolabel_nb.strategies.low_threshold import LowThreshold
from pseudolabel_nb.strategies.selection import Context, apply, kept_pixels
from pseudolabel_nb.strategies.pseudo_images import PseudoImages
from pseudolabel_nb.strategies.threshold import ClassThresholds, EveryPixel, Threshold

quick = settings(max_examples=60, deadline=None, derandomize=True)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
gains = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=1, max_size=10)

pixels = st.one_of(st.tuples(st.integers(0, n), st.integers(0, n)) for n in (4, 20, 10**6)) # (background, foreground)


@st.composite
def pairs(draw, values=(0, 1), target_values=(0, 1, 255)):
    "A prediction and a target of the same shape."
    shape = draw(sizes)
    return tuple(draw(arrays(np.uint8, shape, elements=st.sampled_from(v))) for v in (values, target_values))


@st.composite
def scored(draw):
    "Probabilities, hitting 0, 1 and bin edges often, and a target."
    _, target = draw(pairs())
    edges = threshold_edges(64).tolist()
    p = draw(arrays(np.float64, target.shape,
                    elements=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(edges), st.floats(0, 1))))
    return p, target


@st.composite
def image_counts(draw):
    "tp, fp, fn of two models on the same images, whose foreground tp + fn is the same for both."
    n = draw(st.integers(1, 6))
    foreground = draw(arrays(np.int64, n, elements=st.integers(0, 50)))
    found = [np.minimum(foreground, draw(arrays(np.int64, n, elements=st.integers(0, 50)))) for _ in "ab"]
    invented = [draw(arrays(np.int64, n, elements=st.integers(0, 50))) for _ in "ab"]
    return tuple(np.stack([tp, fp, foreground - tp], 1) for tp, fp in zip(found, invented))


# --- counting

@quick
@given(pairs((0, 1, 2, 255), (0, 1, 2, 255)))
def test_confusion_agrees_with_counting_by_hand(pair):
    pred, target = pair
    valid = target != 255
    for c, (tp, fp, fn) in enumerate(confusion(pred, target, 3)):
        assert tp == ((pred == c) & (target == c)).sum()
        assert fp == ((pred == c) & (target != c) & valid).sum()
        assert fn == ((pred != c) & (target == c)).sum()


@quick
@given(pairs(), st.randoms())
def test_confusion_is_a_sum_over_pixels(pair, random):
    "Order does not matter, parts add up, and every valid pixel is counted once as tp or fn."
    pred, target = (a.ravel() for a in pair)
    whole = confusion(pred, target)
    order = random.sample(range(len(pred)), len(pred))
    cut = random.randint(0, len(pred))
    assert (confusion(pred[order], target[order]) == whole).all()
    assert (confusion(pred[:cut], target[:cut]) + confusion(pred[cut:], target[cut:]) == whole).all()
    assert whole[:, [0, 2]].sum() == (target != 255).sum() == class_pixels(target).sum()


@quick
@given(pairs((0, 1), (0, 1)))
def test_swapping_prediction_and_target_swaps_precision_and_recall(pair):
    there, back = scores(confusion(*pair)), scores(confusion(*pair[::-1]))
    assert (there.precision, there.recall, there.f1) == (back.recall, back.precision, back.f1)
    assert min(there.precision, there.recall) - 1e-12 <= there.f1 <= max(there.precision, there.recall) + 1e-12


@quick
@given(pairs((0, 1), (0, 1, 255)))
def test_nothing_ignored_ever_counts(pair):
    pred, target = pair
    assert (confusion(np.where(target == 255, 1 - pred, pred), target) == confusion(pred, target)).all()


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16, np.int64, np.float32])
def test_confusion_takes_every_dtype(dtype):
    pred, target = np.array([0, 1, 1]).astype(dtype), np.array([0, 1, 0]).astype(dtype)
    assert confusion(pred, target).tolist() == [[1, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize("bad", [[-1], [2], [254], [256], [0.5], [np.nan], [np.inf], [1e20]])
def test_values_that_are_no_class_are_refused(bad):
    for call in (lambda: class_pixels(bad), lambda: confusion(bad, [0]), lambda: confusion([0], bad)):
        with pytest.raises(UserError) as e: call()
        assert "\n" not in str(e.value) and "expected" in str(e.value)


def test_ignore_must_not_be_a_class():
    with pytest.raises(UserError, match="ignore=1"): confusion([0], [0], ignore=1)


def test_nothing_at_all():
    assert confusion([], []).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert foreground_ratio([]) == 0.0
    assert f1(np.zeros((4, 3))).tolist() == [0.0] * 4
    assert binary_histogram(np.zeros((0,)), np.zeros((0,))).sum() == 0


# --- thresholds

@quick
@given(scored(), st.sampled_from([2, 64, 1024, 65536]))
def test_curve_is_thresholding(case, bins):
    "At every edge of a histogram the curve gives what thresholding the probabilities themselves gives."
    p, target = case
    thresholds, precision, recall, curve = threshold_curve(binary_histogram(p, target, bins))
    stored = (quantize(p) / 65535).astype(np.float32)
    for k in {0, 1, bins // 3, bins // 2, bins - 1}:
        for values in (stored, stored.astype(np.float64)):
            s = scores(confusion(values >= thresholds[k], target))
            assert (s.precision, s.recall, s.f1) == (precision[k], recall[k], curve[k])


@quick
@given(arrays(np.float32, 40, elements=st.floats(0, 1, width=32)), st.sampled_from([2, 64, 1024]))
def test_single_precision_and_stored_probabilities_agree_at_every_edge(p, bins):
    q = quantize(p)
    for k, t in enumerate(threshold_edges(bins)): assert ((p >= t) == (q >= k * (65536 // bins))).all()


@quick
@given(scored())
def test_recall_falls_and_best_is_best(case):
    p, target = case
    hist = binary_histogram(p, target)
    thresholds, _, recall, curve = threshold_curve(hist)
    threshold, best = best_threshold(hist)
    assert (np.diff(recall) <= 0).all() and (np.diff(thresholds) > 0).all()
    assert best == curve.max() and threshold in thresholds
    assert hist.sum() == (target != 255).sum()
    assert curve[0] == pytest.approx(all_foreground_f1(foreground_ratio([target])))


@pytest.mark.parametrize("bad", [[-0.01], [1.01], [np.nan], [np.inf]])
def test_logits_and_nan_are_no_probabilities(bad):
    with pytest.raises(UserError, match="expected 0 to 1"): quantize(bad)


@pytest.mark.parametrize("bins", [0, 1, 3, 1000, 131072])
def test_bins_are_a_power_of_two(bins):
    with pytest.raises(UserError, match="power of two"): threshold_edges(bins)


# --- statistics

@quick
@given(gains)
def test_signs_of_all_gains(values):
    "Flipping all signs changes no p-value and mirrors the interval; p is a multiple of 2^-n and at least 2^(1-n)."
    n, p = len(values), sign_flip_p(values)
    assert p == sign_flip_p([-v for v in values])
    assert 2 ** (1 - n) <= p <= 1 and (p * 2**n) % 1 == 0
    here, there = paired_interval(values), paired_interval([-v for v in values])
    if n > 1:
        assert (here.low, here.high) == pytest.approx(
            (-there.high, -there.low), abs=1e-12) and here.low <= here.mean <= here.high


@quick
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=8), st.floats(1e-6, 1e6))
def test_p_has_no_unit(values, scale):
    assert sign_flip_p(values) == sign_flip_p([scale * v for v in values])


@pytest.mark.parametrize("bad", [[], [np.nan], [0.1, np.inf]])
def test_unfinished_runs_are_refused(bad):
    for call in (paired_interval, sign_flip_p):
        with pytest.raises(UserError, match="finite"): call(bad)


@quick
@given(image_counts(), st.integers(0, 5))
def test_bootstrap_gain_is_antisymmetric_and_bounded(counts, seed):
    a, b = counts
    ab, ba = bootstrap_gain(a, b, n=200, seed=seed), bootstrap_gain(b, a, n=200, seed=seed)
    assert ab.gain == pytest.approx(-ba.gain) and ab.probability == pytest.approx(1 - ba.probability)
    assert (ab.low, ab.high) == pytest.approx((-ba.high, -ba.low))
    assert -1 <= ab.low <= ab.high <= 1 and 0 <= ab.probability <= 1
    assert ab.gain == pytest.approx(float(f1(b.sum(0)) - f1(a.sum(0))))
    assert ab == bootstrap_gain(a, b, n=200, seed=seed)


@quick
@given(image_counts())
def test_a_group_each_is_no_grouping(counts):
    names = [f"{i:03}" for i in range(len(counts[0]))]
    assert bootstrap_gain(*counts, n=100) == bootstrap_gain(*counts, groups=names, n=100)


@quick
@given(st.integers(1, 8), st.integers(1, 50), st.integers(0, 9))
def test_every_draw_is_as_large_as_the_sample(units, n, seed):
    w = resample_weights(units, n, np.random.default_rng(seed))
    assert w.shape == (n, units) and (w >= 0).all() and (w.sum(1) == units).all()


@quick
@given(arrays(np.int64, (7, 2), elements=st.integers(0, 99)), st.lists(st.sampled_from("abc"), min_size=7, max_size=7))
def test_groups_keep_every_pixel(counts, groups):
    names, total = sum_by_group(counts, groups)
    assert names == sorted(set(groups)) and (total.sum(0) == counts.sum(0)).all()


# --- ratios

@quick
@given(st.lists(pairs().map(lambda p: p[1]), min_size=1, max_size=6))
def test_prior_is_the_pooled_ratio(masks):
    if not foreground_ratio(masks):
        with pytest.raises(UserError): estimate_prior(masks)
        return
    prior = estimate_prior(masks)
    assert prior.foreground == pytest.approx(foreground_ratio(masks)) and sum(prior.ratios) == pytest.approx(1)
    assert 0 <= prior.interval[0] <= prior.interval[1] <= 1 and prior.n_images == len(masks)


@settings(quick, max_examples=300)
@given(pixels, pixels.filter(lambda c: c[1]))
def test_verdict_follows_the_rule(pseudo, real):
    r = class_ratio(pseudo, real)
    p = (pseudo[1] * sum(real), real[1] * sum(pseudo))      # whole numbers: pseudo ratio over real ratio is p[0] / p[1]
    expected = ("lower the threshold" if not sum(pseudo)
                else "try class-balanced" if 2 * p[0] < p[1]
                else "raise the threshold" if p[0] > 2 * p[1]
                else "the pseudo-labels hold")
    assert r.advice.startswith(expected) and (r.severity == "ok") == (r.verdict == "reasonable")
    assert str(r).count("\n") == 3 and "color:#" not in r._repr_html_() and "currentColor" in r._repr_html_()


@quick
@given(st.lists(pairs().map(lambda p: p[1]), min_size=1, max_size=5))
def test_diagnosis_reads_any_container(masks):
    real = [np.array([[0, 1]])]
    results = {diagnose_pseudo_labels(form, real, verbose=False)
               for form in (tuple(masks), iter(masks), [m[None] for m in masks], [m.astype(float) for m in masks])}
    assert len(results) == 1 and results.pop().pseudo_ratio == foreground_ratio(masks)


def test_diagnosis_prints_once(capsys):
    result = diagnose_pseudo_labels([[[0, 1]]], [[[0, 1]]])
    assert capsys.readouterr().out == f"{result}\n"
    diagnose_pseudo_labels([[[0, 1]]], [[[0, 1]]], verbose=False)
    assert capsys.readouterr().out == ""


# --- selectors, on predictions full of ties: the same few numbers over and over, thresholds and bin edges among them

few = settings(quick, max_examples=8)
each = pytest.mark.parametrize
selectors = [Threshold(), Threshold(0.5), EveryPixel(), ClassThresholds(), LowThreshold(), LowThreshold(0.4), Limited(),
             ClassBalanced(), ClassQuantiles(), ClassQuantiles(0.5, aligned=False), ClassQuantiles(0.4, ratio=1.5)]
side = 12

corners = np.eye(4), np.full((1, 4), 0.25), [
    [0, 0.5, 0.5, 0], [0.5, 0.5, 0, 0], [0.7, 0.3, 0, 0], [0.4, 0.6, 0, 0], [0.2, 0.8, 0, 0], [0.1, 0.2, 0.3, 0.4]]
palettes = {2: np.stack([1 - np.array(p := [0, 1e-5, 0.1, 0.2, 0.3, 0.4, 0.499999, 0.5, 0.6, 0.7, 0.8, 0.9, 1]), p], 1),
            4: np.concatenate(corners)}


@st.composite
def predicted_images(draw, classes, smooth=st.booleans()):
    "Foreground planes (C - 1, H, W) of up to five images, some of them twice."
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 5))
    if draw(smooth):
        p = rng.dirichlet([draw(st.floats(0.5, 8))] + [draw(st.floats(0.1, 1))] * (classes - 1), (n, side, side))
    else:
        p = palettes[classes][
            rng.choice(len(palettes[classes]), (n, side, side), p=rng.dirichlet(np.full(len(palettes[classes]), 0.5)))]
    planes = list(np.moveaxis(p, -1, 1)[:, 1:].astype(np.float32))
    return planes + planes[:draw(st.integers(0, 2))]


@contextmanager
def teacher(planes, order=None):
    with tempfile.TemporaryDirectory() as d:
        yield store([(f"{i:02d}", planes[i]) for i in (range(len(planes)) if order is None else order)], d,
                    n_classes=len(planes[0]) + 1)


def known(classes, foreground=0.1, labeled=2):
    return Context((1 - foreground, *[foreground / (classes - 1)] * (classes - 1)), labeled)


def all_probs(predictions): return torch.stack([predictions.probs(i) for i in range(len(predictions))])


@each("classes", [2, 4])
@each("selector", selectors, ids=repr)
@few
@given(st.data())
def test_every_kept_pixel_reaches_the_threshold_of_its_class_and_no_ignored_pixel_reaches_any(selector, classes, data):
    "To the last bit, in the precision of `apply`."
    with teacher(data.draw(predicted_images(classes))) as predictions:
        rule, probs = selector.fit([predictions], known(classes)), all_probs(predictions)
    target = apply(rule, probs).target.long()
    thresholds = torch.tensor(rule.thresholds).view(1, -1, 1, 1)
    reached, kept = probs >= thresholds, target != 255
    assert (
        reached.gather(1, torch.where(kept, target, 0)[:, None])[:, 0][kept].all() and not reached.any(1)[~kept].any())
    factor = probs / thresholds
    assert (factor.gather(1, torch.where(kept, target, 0)[:, None])[:, 0][kept] == factor.max(1).values[kept]).all()


@each("classes", [2, 4])
@each("selector", selectors, ids=repr)
@few
@given(st.data())
def test_a_rule_depends_on_nothing_but_scores_and_ids(selector, classes, data):
    "Fitted again, or on a store in another order: the same; best first, equal scores by id."
    planes = data.draw(predicted_images(classes))
    with teacher(planes) as here, teacher(planes, data.draw(st.permutations(range(len(planes))))) as there:
        rule, scores = selector.fit([here], known(classes)), dict(zip(here.ids, here.scores()))
        assert selector.fit([here], known(classes)) == rule == selector.fit([there], known(classes))
    assert list(rule.images) == sorted(set(rule.images), key=lambda id: (-scores[id], id))


@each("classes", [2, 4])
@few
@given(st.data(), st.floats(0.01, 4), st.integers(1, 4))
def test_no_selector_takes_more_images_than_its_limit(classes, data, ratio, labeled):
    with teacher(data.draw(predicted_images(classes))) as predictions:
        for selector in (Limited(ratio=ratio), ClassBalanced(ratio=ratio), ClassQuantiles(ratio=ratio),
                         ClassQuantiles(0.7, False, ratio)):
            assert len(
                selector.fit([predictions], known(classes, labeled=labeled)).images) <= max(1, ratio * labeled + 1e-6)


@each("classes", [2, 4])
@each("selector", selectors, ids=repr)
@few
@given(st.data())
def test_stored_and_live_probabilities_are_selected_alike(selector, classes, data):
    "What was stored, what is quantized on the fly, one image or a batch, whole or in windows."
    planes = data.draw(predicted_images(classes))
    images = from_arrays(np.zeros((len(planes), side, side), "float32"), ids=[f"{i:02d}" for i in range(len(planes))])
    with teacher(planes) as predictions:
        rule = selector.fit([predictions], known(classes))
        live = torch.stack([with_background(quantize(p)) for p in planes])
        assert torch.equal(live, all_probs(predictions))
        batch, pseudo = apply(rule, live).target.numpy(), PseudoImages(images, predictions, rule)
        for k, id in enumerate(rule.images):
            assert (pseudo.mask(k) == batch[int(id)]).all() and (
                apply(rule, live[int(id)]).target[0].numpy() == batch[int(id)]).all()
            assert (pseudo.mask_crop(k, 3, 1, 5, 7) == batch[int(id)][3:8, 1:8]).all()


def certain(selector, classes): # does the predicted class decide, or are there two classes? else histograms cannot tell
    return classes == 2 or not (isinstance(selector, LowThreshold) and selector.threshold != 0.5)


@each(("selector", "classes"), [(s, c) for s in selectors for c in (2, 4) if certain(s, c)], ids=repr)
@few
@given(st.data())
def test_counting_by_histograms_is_exact_but_for_the_bins_that_are_cut(selector, classes, data):
    with teacher(data.draw(predicted_images(classes))) as predictions:
        rule, probs = selector.fit([predictions], known(classes)), all_probs(predictions)
        counted = kept_pixels(predictions, rule.thresholds)
    target = apply(rule, probs).target
    exact = torch.stack([(target == c).sum((1, 2)) for c in range(classes)], 1).numpy()
    first, second = (factor := probs / torch.tensor(rule.thresholds).view(1, -1, 1, 1)).topk(2, 1).values.unbind(1)
    cut = (factor - 1).abs().min(1).values * max(rule.thresholds) <= 1 / 1024 # a bin's width from a threshold …
    cut |= (first - second).abs() * min(rule.thresholds) <= 2 / 1024 # … or from where two classes change over
    cut = 0 if isinstance(selector, ClassQuantiles) else cut.sum((1, 2)).numpy()[:, None] # which cuts between bins
    assert (np.abs(counted - exact) <= cut).all()


def test_a_low_threshold_is_a_cut(tmp_path):
    "For every number that can be stored: foreground from the threshold on, background below, to the last one."
    every = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    predictions = store([("every", every)], tmp_path)
    for percent in range(1, 100):
        target = apply(LowThreshold(percent / 100).fit([predictions], known(2)), predictions.probs(0)).target[0].numpy()
        assert (target == (every[0].astype(int) * 100 >= percent * 65535)).all(), percent


@few
@given(st.data(), st.floats(0.001, 0.999))
def test_a_low_threshold_ignores_nothing(data, threshold):
    with teacher(data.draw(predicted_images(4))) as predictions:
        assert apply(LowThreshold(threshold).fit([predictions], known(4)), all_probs(predictions)).ignored == 0


def best_reachable(q, prior):
    "The least miss of any two cuts between bins, tried one by one; background first."
    common = int(prior[1] > prior[0])
    # by confidence in the common class
    pixels = np.bincount((q if common else 65535 - q).ravel() >> 6, minlength=1024)[::-1]
    upto = np.concatenate([[0], pixels.cumsum()])
    ways = [(upto[a], upto[-1] - upto[b])
            for a in np.unique(np.flatnonzero(np.diff(upto[:513])) + 1)
            for b in np.flatnonzero(pixels[a:]) + a]
    return min((misses(np.array(w), np.array(sorted(prior)[::-1])).max() for w in ways), default=np.inf)


@settings(quick, max_examples=60)
@given(st.data(), st.floats(0.01, 0.99), st.one_of(st.just(1.0), st.floats(0.01, 1)))
def test_class_quantiles_meet_the_prior_wherever_two_cuts_can(data, foreground, quantile):
    "Within a tenth, counted pixel by pixel; and a warning exactly where no cuts would do."
    with teacher(data.draw(predicted_images(2))) as predictions:
        rule, probs = ClassQuantiles(quantile).fit(
            [predictions], context := known(2, foreground)), all_probs(predictions)
        q = np.stack([predictions.quantized(i) for i in range(len(predictions))])
    off = misses(np.array(apply(rule, probs).kept), np.array(context.prior)).max()
    assert (off <= 0.1) == (not rule.warning) == (best_reachable(q, context.prior) <= 0.1)
    assert sum(rule.thresholds) > 1 - 1e-5 and "\n" not in rule.warning # no pixel passes both


@settings(quick, max_examples=40)
@given(st.data(), st.sampled_from([2, 4]), st.booleans(), st.floats(0.02, 0.5), st.floats(0.05, 1))
def test_class_quantiles_warn_where_they_miss(data, classes, aligned, foreground, quantile):
    with teacher(data.draw(predicted_images(classes))) as predictions:
        rule, probs = ClassQuantiles(quantile, aligned).fit(
            [predictions], context := known(classes, foreground)), all_probs(predictions)
        n = predictions.predicted().sum(0)
    kept = np.array(apply(rule, probs).kept)
    off = misses(kept, np.array(context.prior)).max()
    assert (off <= 0.1) == (not rule.warning)
    if not aligned and classes == 2: assert ((kept > 0) == (n > 0)).all() and (kept <= n).all()


def test_class_quantiles_keep_the_share_that_was_asked_for_where_bins_are_fine():
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 4, (1, 400, 400)).astype("float32")
    with teacher([p]) as predictions:
        for quantile in (0.1, 0.2, 0.5, 0.9):
            kept = np.array(
                apply(ClassQuantiles(quantile).fit([predictions], known(2, 0.05)), predictions.probs(0)).kept)
            assert (kept.sum() / p.size == pytest.approx(quantile, rel=0.1)
                    and kept[1] / kept.sum() == pytest.approx(0.05, rel=0.05))


def test_no_pixel_is_counted_for_two_classes():
    "90 of background and 40 of foreground would meet this prior, but 30 pixels are in both."
    p = np.repeat([0.01, 0.25, 0.9], [60, 30, 10]).reshape(1, 10, 10).astype("float32")
    with teacher([p]) as predictions: rule = ClassQuantiles(1.0).fit([predictions], known(2, 0.3))
    assert rule.warning and sum(rule.thresholds) > 1
