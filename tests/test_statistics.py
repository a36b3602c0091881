"""What is said of gains: properties that hold for all gains, and printed values of others."""
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from pseudolabel_nb.core import UserError
from pseudolabel_nb.experiments.results import columns, summarize, summary_columns, table_text
from pseudolabel_nb.measures.evidence import (
    cohen_dz, count_signs, effect, paired_p, paired_power, pairs_needed, seeds_needed, sentence, smallest_p, weigh)
from pseudolabel_nb.measures.ranking import holm, rank
from pseudolabel_nb.measures.statistics import paired_interval, sign_flip_p

quick = settings(max_examples=60, deadline=None, derandomize=True)
small = st.integers(-50, 50)
gains = st.lists(small.map(lambda n: n / 1024), min_size=1, max_size=9) # sums without rounding, in any order
some = st.lists(small.map(lambda n: n / 1024), min_size=2, max_size=9)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)
OPPOSITE = {"helps": "hurts", "seems to help": "seems to hurt", "hurts": "helps", "seems to hurt": "seems to help"}


@st.composite
def tables(draw, least=2, most=5):
    "Gains of some strategies over the same seeds."
    n, names = draw(st.integers(least, most)), draw(
        st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5, unique=True))
    return {name: [draw(small) / 1024 for _ in range(n)] for name in names}


# ---- one list of gains

@quick
@given(gains, st.randoms())
def test_the_order_of_seeds_does_not_matter(values, random):
    other = random.sample(values, len(values))
    assert sentence(values, "x") == sentence(other, "x")
    assert weigh(values).signs == weigh(other).signs and seeds_needed(values) == seeds_needed(other)


@quick
@given(gains)
def test_flipped_signs_flip_the_verdict_and_nothing_else(values):
    here, there = weigh(values), weigh([-v for v in values])
    assert there.verdict == OPPOSITE.get(here.verdict, here.verdict)
    assert (here.signs.positive, here.signs.negative, here.signs.zero) == (
        there.signs.negative, there.signs.positive, there.signs.zero)
    assert (here.p_sign_flip, here.p_t, here.signs.p, here.seeds_needed) == (
        there.p_sign_flip, there.p_t, there.signs.p, there.seeds_needed)
    if len(values) > 1: assert here.d_z == -there.d_z


@quick
@given(st.lists(small, min_size=1, max_size=9))
def test_sign_flips_by_brute_force_in_whole_numbers(values):
    "In integers there is no rounding, so ties are ties; in thousandths the answer has to be the same."
    sums = [abs(sum(s * v for s, v in zip(signs, values))) for signs in itertools.product((1, -1), repeat=len(values))]
    exact = sum(s >= abs(sum(values)) for s in sums) / len(sums)
    assert sign_flip_p(values) == exact == sign_flip_p([v / 1000 for v in values])
    assert exact >= smallest_p(len(values))


@pytest.mark.parametrize("values", [[-2, -5, -4, 2, -5, 14], [1, 2, -3], [0, 0]])
def test_a_mean_of_zero_is_never_evidence(values):
    assert sign_flip_p(values) == sign_flip_p([v / 10 for v in values]) == 1


def test_sign_flips_of_darwins_maize():
    # Fisher 1935, section 21
    assert sign_flip_p([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]) == 1726 / 2**15


@quick
@given(gains)
def test_signs_as_scipy_counts_them(values):
    s = count_signs(values)
    assert s.positive + s.negative + s.zero == len(values)
    if s.positive + s.negative: assert s.p == stats.binomtest(s.positive, s.positive + s.negative).pvalue
    assert s.p >= smallest_p(len(values)) * (1 - 1e-12)


def test_five_pairs_cannot_give_less_than_a_sixteenth():
    assert [smallest_p(n) for n in (1, 2, 5, 6)] == [1, 0.5, 0.0625, 0.03125]
    assert all(smallest_p(n + 1) < smallest_p(n) for n in range(1, 60))
    assert "5 seeds cannot give less than 0.0625, 6 can" in sentence([0.04, 0.05, 0.06, 0.05, 0.04], "x")


@quick
@given(some)
def test_t_test_as_scipy_does_it_and_as_its_interval_says(values):
    assume(np.std(values) > 1e-9)
    assert paired_p(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9)
    i = paired_interval(values)
    assert (paired_p(values) < 0.05) == (i.low > 0 or i.high < 0)


@quick
@given(some, st.floats(0.01, 100))
def test_size_has_no_unit(values, scale):
    assume(np.std(values) > 1e-9)
    scaled = [scale * v for v in values]
    assert cohen_dz(scaled) == pytest.approx(cohen_dz(values)) and effect(scaled, scaled).ratio == pytest.approx(
        effect(values, values).ratio)


@quick
@given(gains)
def test_verdict_and_interval_agree(values):
    e = weigh(values)
    if len(values) == 1: assert e.verdict == "one seed: no evidence" and np.isnan(e.d_z) and e.seeds_needed is None
    elif e.interval.low > 0: assert e.verdict == ("helps" if e.p_sign_flip <= 0.05 else "seems to help")
    elif e.interval.high < 0: assert e.verdict == ("hurts" if e.p_sign_flip <= 0.05 else "seems to hurt")
    else: assert e.verdict == "not told from 0"
    if len(values) < 6: assert e.verdict not in ("helps", "hurts")
    assert (sentence(values, "x").startswith("x") and "nan" not in sentence(values, "x")
            and "\n" not in sentence(values, "x"))


# ---- power

@pytest.mark.parametrize(
    ("d", "power", "pairs"),
    [(0.2, 0.8, 199), (0.5, 0.8, 34), (0.8, 0.8, 15), (0.5, 0.9, 44), (1.0, 0.8, 10), (1 / 2**0.5, 0.85, 20)])
def test_printed_numbers_of_pairs(d, power, pairs):
    "G*Power 3, R's pwr; the last from Dalgaard 2008, section 9.3 (n = 19.97)."
    assert pairs_needed(d, power) == pairs == pairs_needed(-d, power)


@quick
@given(st.floats(1e-3, 1e3), st.integers(2, 10**6), st.integers(1, 1000))
def test_power_grows_with_seeds_and_with_the_effect(d, n, more):
    here = paired_power(d, n)
    assert 0.05 - 1e-9 <= here <= 1
    assert paired_power(d, n + more) >= here - 1e-9 and paired_power(1.1 * d, n) >= here - 1e-9


@quick
@given(st.floats(0.005, 50), st.floats(0.1, 0.99), st.floats(0.001, 0.09))
def test_pairs_needed_is_the_least_number(d, power, alpha):
    n = pairs_needed(d, power, alpha)
    assume(n is not None)
    assert paired_power(d, n, alpha) >= power and (n == 2 or paired_power(d, n - 1, alpha) < power)


@quick
@given(some)
def test_what_is_not_told_needs_more_seeds(values):
    e = weigh(values)
    if e.verdict == "not told from 0" and e.seeds_needed is not None: assert e.seeds_needed >= 1
    if e.interval.mean == 0: assert e.seeds_needed is None


@pytest.mark.parametrize(("values", "more"),
                         [([0.1], None), ([0.1, -0.1], None), ([0.1, 0.2, -0.3], None), ([0.1, 0.1], 0), ([0.1] * 5, 0),
                          ([0.5 - 0.5**0.5, 0.5 + 0.5**0.5], 34 - 2)])
def test_seeds_needed_at_the_edges(values, more):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seeds_needed(values) == more


@pytest.mark.parametrize(
    "wrong",
    [dict(power=1), dict(power=0.05), dict(power=0.01), dict(alpha=0), dict(alpha=0.9), dict(power=float("nan"))])
def test_impossible_power_is_refused(wrong):
    with pytest.raises(UserError, match="expected 0 < alpha < power < 1"): seeds_needed([0.1, 0.2, 0.15], **wrong)


# ---- many comparisons

@quick
@given(p_values)
def test_holm_lies_between_no_correction_and_bonferroni_and_above_the_false_discovery_rate(p):
    q = holm(p)
    assert (q >= p).all() and (q <= np.minimum(1, len(p) * np.asarray(p)) + 1e-15).all()
    assert (q >= stats.false_discovery_control(p) - 1e-12).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= 0).all()


@quick
@given(p_values, st.randoms())
def test_holm_keeps_the_order_given(p, random):
    order = random.sample(range(len(p)), len(p))
    assert holm([p[i] for i in order]).tolist() == holm(p)[order].tolist()


@quick
@given(p_values, st.floats(0.001, 0.2))
def test_holm_claims_what_stepping_down_claims(p, alpha):
    "The procedure as Holm wrote it: the smallest p against alpha/m, the next against alpha/(m-1), until one fails."
    claimed, m = 0, len(p)
    for i, value in enumerate(sorted(p)):
        if value * (m - i) > alpha: break
        claimed += 1
    assert (holm(p) <= alpha).sum() == claimed


@pytest.mark.parametrize("bad", [[-0.1], [1.1, 0.5], [float("nan")]])
def test_holm_refuses_what_is_no_p_value(bad):
    with pytest.raises(UserError, match="in 0 to 1"): holm(bad)


# ---- ranking

@quick
@given(tables(), st.integers(0, 3))
def test_a_ranking_is_coherent(table, seed):
    ranking, k = rank(table, draws=200, seed=seed), len(table)
    rows = ranking.rows
    assert sorted(r.name for r in rows) == sorted(table)
    assert all(a.interval.mean >= b.interval.mean for a, b in itertools.pairwise(rows))
    assert all(1 <= r.first <= i <= r.last <= k for i, r in enumerate(rows, 1))
    assert sum(r.p_best for r in rows) == pytest.approx(1)
    assert rows[0].name in ranking.together and (ranking.best is None) == (len(ranking.together) > 1 or k == 1)
    if ranking.best: assert ranking.lead.low > 0 and rows[0].last == 1
    assert [r.p_holm for r in rows] == pytest.approx(holm([paired_p(table[r.name]) for r in rows]).tolist())
    assert "**" not in str(ranking) and ranking.conclusion in str(ranking)


@quick
@given(tables(), st.floats(0.05, 0.5))
def test_ranks_follow_from_all_pairs(table, alpha):
    "Pair by pair, with the functions for one list of gains."
    rows, pairs = rank(table, alpha, draws=10).rows, list(itertools.combinations(sorted(table), 2))
    differences = {pair: np.subtract(table[pair[0]], table[pair[1]]) for pair in pairs}
    told = {pair for pair, p in zip(pairs, holm([paired_p(differences[pair]) for pair in pairs])) if p <= alpha}
    above = {(a, b) if differences[a, b].mean() > 0 else (b, a) for a, b in told}
    for r in rows:
        assert (r.first, r.last) == (
            1 + sum(b == r.name for _, b in above), len(rows) - sum(a == r.name for a, _ in above))
    assert rank(table, alpha, draws=10).together == tuple(r.name for r in rows if (rows[0].name, r.name) not in above)


def test_equal_means_are_ranked_by_name():
    assert [r.name for r in rank(dict(b=[1, 0], c=[0, 1], a=[0.5, 0.5])).rows] == ["a", "b", "c"]


@quick
@given(tables(), st.randoms())
def test_a_ranking_does_not_depend_on_the_order_of_names(table, random):
    assert rank(dict(random.sample(list(table.items()), len(table))), draws=100) == rank(table, draws=100)


@quick
@given(tables(least=3), st.randoms())
def test_a_ranking_does_not_depend_on_the_order_of_seeds(table, random):
    n = len(next(iter(table.values())))
    order = random.sample(range(n), n)
    here, there = rank(table), rank({name: [g[i] for i in order] for name, g in table.items()})
    by_name = {r.name: r for r in there.rows}
    for r in here.rows:
        assert r.p_best == pytest.approx(by_name[r.name].p_best, abs=0.05)
        assert (r.first, r.last) == (by_name[r.name].first, by_name[r.name].last)
    # equal means: either is first
    assert set(here.together) == set(there.together) or here.rows[0].name != there.rows[0].name


@quick
@given(tables(), st.floats(-1, 1))
def test_what_all_strategies_share_does_not_move_their_ranks(table, shift):
    "A seed that is easy for all: ranks are about differences within seeds."
    moved = rank(
        {name: [g + shift * (i + 1) for i, g in enumerate(values)] for name, values in table.items()}, draws=50)
    ranks = {r.name: (r.first, r.last) for r in rank(table, draws=50).rows}
    # else rounding decides
    assume(all(np.std(np.subtract(table[a], table[b])) > 1e-6 or a == b for a in table for b in table))
    assert {r.name: (r.first, r.last) for r in moved.rows} == ranks


@pytest.mark.parametrize("bad", [{}, dict(a=[0.1], b=[0.1, 0.2]), dict(a=[]), dict(a=[0.1, float("nan")])])
def test_a_ranking_needs_the_same_seeds(bad):
    with pytest.raises(UserError, match="expected"): rank(bad)


# ---- the tables

def runs(**gains_of):
    "Made-up rows of results.csv."
    return pd.DataFrame(
        [dict(zip(columns, (name, 0.05, s, 12, 24, 0.04, 0.03, 0.7, 0.7, 0.7 + g, 0.7, g, 3, 60.0)))
         for name, values in gains_of.items()
         for s, g in enumerate(values)])


def test_a_summary_read_back_gives_the_same_table(tmp_path):
    summary = summarize(
        runs(supervised=[0, 0, 0], naive=[0.01, 0.02, -0.01], limited=[0.04, 0.05, 0.05], weighted=[0.01]), 0.08)
    summary.to_csv(tmp_path / "summary.csv", index=False)
    assert table_text(pd.read_csv(tmp_path / "summary.csv")) == table_text(summary)
    assert list(summary) == list(summary_columns) and "3 of 3 up" in table_text(summary)
    assert ("naive,0.05,3," in (tmp_path / "summary.csv").read_text()
            and ",2," in (tmp_path / "summary.csv").read_text().split("naive")[1])


@quick
@given(tables(most=12))
def test_the_table_fits_100_columns_and_its_p_values_are_holms(table):
    summary = summarize(
        runs(supervised=[0] * len(next(iter(table.values()))), **{name * 15: g for name, g in table.items()}), 0.08)
    assert max(map(len, table_text(summary).splitlines())) <= 100
    tested = summary[summary["strategy"] != "supervised"]
    assert tested["p_holm"].tolist() == pytest.approx(holm(tested["p_t"]).tolist())
    for r in tested.to_dict("records"):
        assert r["p_holm"] <= 0.05 or r["evidence"] in (
            "not told from 0", "above 0, not after Holm", "below 0, not after Holm")


@pytest.mark.parametrize("path", sorted((ROOT / "nbs/benchmarks/results").rglob("summary.csv")),
                         ids=lambda p: p.relative_to(ROOT / "nbs/benchmarks/results").as_posix())
def test_stored_summaries_are_read(path):
    text, summary = table_text(pd.read_csv(path)), pd.read_csv(path)
    assert len(text.splitlines()) >= len(summary) + 1 and "nan" not in text and "<NA>" not in text
    assert max(map(len, text.splitlines())) <= 100
