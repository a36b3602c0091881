"""Ensembles on input nobody would write by hand: rules against counting pixel by pixel, interruptions, and what is
refused."""
import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pseudolabel_nb.core import UserError
from pseudolabel_nb.inference import ensembles
from pseudolabel_nb.inference.ensembles import combine, combine_probs, combined_planes, register_combination, undecided
from pseudolabel_nb.inference.predictions import Predictions, levels, store, with_background
from pseudolabel_nb.measures.metrics import quantize
from pseudolabel_nb.strategies.ensemble import agreement
from pseudolabel_nb.strategies.selection import Rule, apply

quick = settings(max_examples=60, deadline=None, derandomize=True)
rules = ("mean", "weighted", "majority", "unanimous")
sizes = ((6, 9), (8, 8), (6, 9), (5, 3), (1, 1))


@st.composite
def stored(draw, classes=(2, 4)):
    "What one to five members say of a few pixels, as stores give it; ends and near-ties of the range come often."
    members, n_classes, seed = draw(st.integers(1, 5)), draw(st.sampled_from(classes)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(
        np.full(n_classes, draw(st.sampled_from([0.1, 1.0, 30.0]))), (members, 3, 7)).transpose(0, 3, 1, 2)
    q = quantize(p[:, 1:])
    return with_background(
        np.where(rng.random((members, 1, 3, 7)) < 0.2, levels // n_classes + rng.integers(2, size=q.shape),
                 q).astype(np.uint16))


def member(folder, seed, n_classes=2, sizes=sizes, teacher=None):
    "A store of random distributions."
    rng = np.random.default_rng(seed)
    images = [rng.dirichlet(np.ones(n_classes), s).transpose(2, 0, 1)[1:] for s in sizes]
    return store([(f"{k}.png", p) for k, p in enumerate(images)], folder, n_classes,
                 teacher=f"seed {seed}" if teacher is None else teacher)


@pytest.fixture
def members(tmp_path): return [member(tmp_path / f"member-{k}", k) for k in range(3)]


def files(predictions):
    return {name: (predictions.folder / name).read_bytes()
            for name in ("probs.u16", "histograms.i32", "index.jsonl", "meta.json")}


# Rules

def by_hand(said, needed):
    "The distribution of one pixel after a vote; `said` is (members, classes)."
    votes = [int(np.argmax(p)) for p in said]
    for c in range(said.shape[1]):
        if votes.count(c) >= needed: return said[[v == c for v in votes]].mean(0)
    return undecided(said.shape[1]).flatten().numpy()


@quick
@given(stored())
def test_votes_agree_with_counting_them_pixel_by_pixel(probs):
    flat = probs.flatten(2).permute(2, 0, 1).numpy()
    for how, needed in (("majority", len(probs) // 2 + 1), ("unanimous", len(probs))):
        expected = np.stack([by_hand(said, needed) for said in flat], 1)
        np.testing.assert_allclose(combine_probs(probs, how).flatten(1).numpy(), expected, atol=1e-6)


@quick
@given(stored(), st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_every_rule_gives_distributions_that_can_be_stored(probs, weights):
    for how in rules:
        made = combine_probs(probs, how, weights[:len(probs)])
        assert made.shape == probs.shape[1:] and made.dtype == torch.float32
        np.testing.assert_allclose(made.sum(0).numpy(), 1, atol=1e-4) # levels of four classes do not sum exactly
        quantize(made) # refuses what is not in [0, 1]


@quick
@given(stored(), st.randoms())
def test_the_order_of_members_does_not_matter(probs, random):
    order = random.sample(range(len(probs)), len(probs))
    weights = [random.random() for _ in order]
    for how in rules:
        torch.testing.assert_close(combine_probs(probs[order], how, [weights[k] for k in order]),
                                   combine_probs(probs, how, weights), atol=1e-6, rtol=0)


@quick
@given(stored(), st.floats(1e-6, 1e6))
def test_only_the_ratios_of_weights_count_and_a_member_of_weight_0_is_not_there(probs, factor):
    weights = np.arange(1, len(probs) + 1)
    torch.testing.assert_close(combine_probs(probs, "weighted", weights * factor),
                               combine_probs(probs, "weighted", weights), atol=1e-6, rtol=0)
    with_ghost = torch.cat([probs, probs[:1].flip(1)])
    torch.testing.assert_close(combine_probs(with_ghost, "weighted", [*weights, 0]),
                               combine_probs(probs, "weighted", weights), atol=1e-6, rtol=0)


def test_members_that_are_all_worth_nothing_count_alike():
    probs = torch.rand(3, 2, 4, 4)
    torch.testing.assert_close(combine_probs(probs, "weighted", (0, 0, 0)), combine_probs(probs, "mean"))


@quick
@given(stored(), st.floats(0.01, 1))
def test_what_nobody_agrees_on_is_kept_by_no_threshold_over_chance(probs, share):
    "Of an undecided pixel, whatever the thresholds; and never as foreground where foreground must reach 1 / C."
    classes = probs.shape[1]
    over = 1 / classes + classes / levels
    at = over + share * (1 - over)
    for how in ("majority", "unanimous"):
        made = combine_probs(probs, how)
        open_ = (made == undecided(classes)).all(0)
        assert (apply(Rule((over,) * classes), made).target[0][open_] == 255).all()
        assert (apply(Rule((0.1, *(at,) * (classes - 1))), made).target[0][open_] == 0).all()


@quick
@given(stored(classes=(2, 3)))
def test_reliable_negatives_pixel_by_pixel(probs):
    if len(probs) < 2: return
    made = combine_probs(probs[:2], "reliable_negatives")
    first, second = (p.numpy().argmax(0) for p in probs[:2])
    for y, x in np.ndindex(first.shape):
        a, b = first[y, x] > 0, second[y, x] > 0
        expected = undecided(probs.shape[1])[:, 0, 0] if a != b else probs[0 if a else 1, :, y, x]
        assert torch.equal(made[:, y, x], expected)


def test_two_alike_are_reliable_as_they_are():
    probs = with_background(np.arange(levels + 1, dtype=np.uint16).reshape(1, 256, 256))
    assert torch.equal(combine_probs(torch.stack([probs, probs]), "reliable_negatives"), probs)


# Refused

@pytest.mark.parametrize(("how", "weights", "said"),
                         [("avarage", None, "unknown combination 'avarage'"), ("weighted", None, "no weights"),
                          ("weighted", (1, 1), "expected 3 numbers"), ("weighted", (1, 1, -1), "at least 0"),
                          ("weighted", (1, 1, float("nan")), "at least 0"),
                          ("mean", (1, 1, float("inf")), "at least 0"), ("reliable_negatives", None, "expected 2")])
def test_what_a_rule_cannot_use_is_refused_before_anything_is_written(members, tmp_path, how, weights, said):
    before = files(combine(members, tmp_path / "out"))
    with pytest.raises(UserError, match=said) as e: combine(members, tmp_path / "out", how, weights)
    assert "\n" not in str(e.value)
    assert files(Predictions(tmp_path / "out")) == before


def test_members_that_do_not_fit_are_refused(members, tmp_path):
    others = {
        "classes": member(tmp_path / "classes", 1, n_classes=3),
        r"images .* \(4 instead of 5\)": member(tmp_path / "fewer", 1, sizes=sizes[:4]),
        r"the one at 0 is 'z' instead of '0.png'": store(
            [("z", members[0].probs(0)[1:].numpy())]
            + [(f"{k}.png", members[0].probs(k)[1:].numpy()) for k in range(1, 5)],
            tmp_path / "named"),
        r"image sizes .*the one at 1 is \(8, 9\) instead of \(8, 8\)": member(
            tmp_path / "sized", 1, sizes=(sizes[0], (8, 9), *sizes[2:])),
    }
    for said, other in others.items():
        for call in (partial(combine, out=tmp_path / "out"), partial(agreement, thresholds=(0.8, 0.6))):
            with pytest.raises(UserError, match=said) as e: call([*members, other])
            assert str(other.folder) in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("same", ["member-1", "member-1/", "../{name}/member-1"])
def test_a_member_is_not_written_over(members, tmp_path, same):
    before = files(members[1])
    with pytest.raises(UserError, match="folder of its own"):
        combine(members, f"{tmp_path}/{same.format(name=tmp_path.name)}")
    assert files(members[1]) == before


def test_a_rule_of_ones_own_that_gives_no_distribution_is_refused(members, tmp_path, monkeypatch):
    monkeypatch.setattr(ensembles, "combinations", dict(ensembles.combinations))
    register_combination("total")(lambda probs, weights: probs.sum(0))
    register_combination("all")(lambda probs, weights: probs)
    with pytest.raises(UserError, match="expected 0 to 1"): combine(members, tmp_path / "out", "total")
    with pytest.raises(UserError, match=r"makes \(3, 2, 1, 1\)"): combine(members, tmp_path / "out", "all")
    assert "total" in ensembles.combinations


# Stores

@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("how", rules)
def test_an_ensemble_of_one_equals_its_member_through_the_store(tmp_path, how, n_classes):
    one = member(tmp_path / "one", 0, n_classes)
    made = combine([one], tmp_path / "out", how, (0.3,), teacher=one.teacher)
    assert files(made) == files(one)


def killed(after):
    "`combined_planes` that dies when it is asked for that image, and the images it was asked for."
    asked = []
    def planes(members, i, how="mean", weights=None):
        if i == after: raise KeyboardInterrupt
        asked.append(i)
        return combined_planes(members, i, how, weights)
    return planes, asked


def interrupt(members, out, monkeypatch, after=3, **options):
    "A combination that dies at an image, and in the middle of writing it."
    with monkeypatch.context() as m:
        m.setattr(ensembles, "combined_planes", killed(after)[0])
        with pytest.raises(KeyboardInterrupt): combine(members, out, **options)
    with open(out / "probs.u16", "ab") as f: f.write(b"half an image")
    with open(out / "index.jsonl", "a") as f: f.write('{"id": "half a li')
    assert not (out / "meta.json").exists()


@pytest.mark.parametrize("how", rules)
def test_an_interrupted_combination_goes_on_and_ends_with_the_same_bytes(members, tmp_path, monkeypatch, how):
    weights = (0.9, 0.8, 0.3)
    whole = combine(members, tmp_path / "whole", how, weights)
    interrupt(members, tmp_path / "cut", monkeypatch, how=how, weights=weights)
    planes, asked = killed(None)
    monkeypatch.setattr(ensembles, "combined_planes", planes)
    assert files(combine(members, tmp_path / "cut", how, weights)) == files(whole)
    assert asked == [3, 4]
    assert files(combine(members, tmp_path / "cut", how, weights)) == files(whole) and asked == [3, 4]


def test_an_interrupted_combination_by_another_rule_is_begun_anew(members, tmp_path, monkeypatch):
    interrupt(members, tmp_path / "out", monkeypatch, how="unanimous")
    assert files(combine(members, tmp_path / "out", "mean")) == files(combine(members, tmp_path / "whole", "mean"))


def test_a_name_of_ones_own_decides_what_is_used_again(members, tmp_path):
    first = files(combine(members, tmp_path / "out", "mean", teacher="round 1"))
    assert json.loads(first["meta.json"])["teacher"] == "round 1"
    assert files(combine(members, tmp_path / "out", "unanimous", teacher="round 1")) == first
    assert files(combine(members, tmp_path / "out", "unanimous", teacher="round 2")) != first


def test_strips_change_nothing_and_bound_what_is_in_memory(tmp_path, monkeypatch):
    members = [member(tmp_path / f"{k}", k, n_classes=3, sizes=[(37, 20), (3, 300)]) for k in range(3)]
    whole = {how: [combined_planes(members, i, how, (3, 2, 1)) for i in range(2)] for how in rules}
    seen = []
    for how, rule in list(ensembles.combinations.items()):
        monkeypatch.setitem(ensembles.combinations, how,
                            lambda probs, weights, rule=rule: (seen.append(probs.shape), rule(probs, weights))[1])
    monkeypatch.setattr(ensembles, "strip", 100)
    for how in rules:
        for i in range(2): assert np.array_equal(combined_planes(members, i, how, (3, 2, 1)), whole[how][i])
    # a row at least
    assert {s[:2] for s in seen} == {(3, 3)} and max(s[2] * s[3] for s in seen) == 300 and max(s[2] for s in seen) == 5


def test_no_images_at_all(tmp_path):
    members = [store([], tmp_path / f"{k}") for k in range(2)]
    made = combine(members, tmp_path / "out", "majority")
    assert len(made) == 0 and len(Predictions(tmp_path / "out")) == 0
    assert agreement(members, (0.8, 0.6)) == dict.fromkeys(("mean", "majority", "unanimous"), (0, 0))


# Agreement

@pytest.mark.parametrize(("n_classes", "thresholds"), [(2, (0.8, 0.6)), (2, (0.4, 0.3)), (4, (0.4, 0.3, 0.5, 0.26))])
def test_agreement_counts_what_the_stores_would_keep(tmp_path, n_classes, thresholds):
    members = [member(tmp_path / f"{k}", k, n_classes) for k in range(3)]
    counted = agreement(members, thresholds, (3, 2, 1))
    some = agreement(members, thresholds, (3, 2, 1), ids=("1.png", "3.png"))
    for how in rules:
        made = combine(members, tmp_path / how, how, (3, 2, 1))
        kept = np.array([apply(Rule(thresholds), made.probs(i)).kept for i in range(len(made))])
        assert counted[how] == tuple(kept.sum(0)) and some[how] == tuple(kept[[1, 3]].sum(0))


def test_unanimity_keeps_no_more_than_the_majority_and_no_more_foreground_than_any_member(members):
    for foreground in (0.55, 0.6, 0.8):
        kept = agreement(members, (0.8, foreground))
        alone = [agreement([m], (0.8, 0.500008))["mean"] for m in members]
        assert all(u <= m for u, m in zip(kept["unanimous"], kept["majority"]))
        assert kept["unanimous"][1] <= min(a[1] for a in alone)
