"Advice stands on committed numbers, keeps to its order, and is judged without having seen what it is judged on."
import csv
import math

import numpy as np
import pytest
from conftest import ROOT, tool_module

import pseudolabel_nb as pnb
from pseudolabel_nb.diagnostics.advice import advise, paired_gains, rank_strategies, variant
from pseudolabel_nb.diagnostics.confidence_filter import examine_filter
from pseudolabel_nb.diagnostics.expectations import Expectation, Trial, expectations, step_costs, trials
from pseudolabel_nb.diagnostics.findings import Diagnosis, Finding, Remedy, severities
from pseudolabel_nb.diagnostics.known import DiagnosisInputs, raise_threshold
from pseudolabel_nb.diagnostics.quantity import examine_ratio
from pseudolabel_nb.diagnostics.rules import Examined, apply_rules
from pseudolabel_nb.runs.compare import compare
from pseudolabel_nb.strategies.strategy import strategies, strategy

RESULTS = ROOT / "nbs" / "benchmarks" / "results"


@pytest.fixture(scope="module")
def tool():
    "nbs/benchmarks/advice.py as a module."
    with tool_module("advice") as made: yield made


# ---- what it stands on

def test_expectations_are_the_committed_results(tool):
    "Every trial of the package is what its files say, and every result of a strategy is a trial of the package."
    key = lambda t: (t.data, t.ratio, t.steps, t.seeds, tuple(sorted(t.gains)))
    made = {key(t): t for t in tool.trials_of(tool.read_cells())}
    for t in trials:
        assert key(t) in made, "python nbs/benchmarks/advice.py --table writes what the files say now"
        found = made.pop(key(t))
        assert all(found.gains[k] == pytest.approx(v, abs=5e-5) for k, v in t.gains.items())
    assert not [key for key, t in made.items() if t.gains], (
        "results that the table of expectations does not have yet; python nbs/benchmarks/advice.py --table writes it")


def test_a_changed_result_would_be_seen(tool, tmp_path):
    rows = (RESULTS / "micrographs/results.csv").read_text().splitlines()
    changed = [",".join([*cells[:11], str(float(cells[11]) + 0.003), *cells[12:]])
               for cells in (r.split(",") for r in rows[1:])]
    (tmp_path / "micrographs").mkdir()
    (tmp_path / "micrographs/results.csv").write_text("\n".join([rows[0], *changed]) + "\n")
    found = tool.trials_of(tool.read_cells(tmp_path))[0]
    ours = next(t for t in trials if t.data == "micrographs")
    assert all(abs(found.gains[k] - v) > 2e-3 for k, v in ours.gains.items())


def test_costs_are_the_committed_speed():
    lines = [line for line in (RESULTS / "speed.csv").read_text().splitlines() if not line.startswith("#")]
    measured = {r["what"].split(",")[0].removeprefix("a step of "): float(r["value"])
                for r in csv.DictReader(lines) if r["what"].startswith("a step of")}
    assert {k: v * (2 if k == "naive" else 1) for k, v in measured.items()} == pytest.approx(step_costs)


# ---- the order

FINDINGS = {s: Finding("t", s, 1.0, "1", "", Remedy("pu" if s == "severe" else "cps")) for s in severities}

def test_measured_gains_outrank_findings_and_these_what_happened_elsewhere():
    elsewhere = {"fixmatch": Expectation("fixmatch", 0.04, 0.03, 0.05, 5, 9)}
    names = lambda findings, gains: [a.name for a in rank_strategies(findings, gains, elsewhere).rows]
    assert names([], {})[:2] == ["fixmatch", "supervised"]
    assert names([FINDINGS["warning"], FINDINGS["severe"]], {})[:4] == ["pu", "cps", "fixmatch", "supervised"]
    order = names([FINDINGS["warning"], FINDINGS["severe"]],
                  {"limited": [0.01], "pu": [-0.001], "fixmatch": [-0.05, -0.03], "naive": [0.02]})
    assert order[:4] == ["naive", "limited", "cps", "supervised"] and order[-2:] == ["pu", "fixmatch"]
    assert sorted(order) == sorted(strategies)


def test_what_is_fine_indicates_nothing():
    assert rank_strategies([FINDINGS["ok"]]).rows == rank_strategies().rows
    assert rank_strategies([FINDINGS["note"]]).rows[0].strategy == "cps"


def test_advice_that_cannot_be_followed_is_refused():
    with pytest.raises(pnb.UserError, match="unknown strategy"):
        rank_strategies([Finding("t", "warning", 1.0, "", "", Remedy("magic"))])
    with pytest.raises(pnb.UserError, match="no field"):
        rank_strategies([Finding("t", "warning", 1.0, "", "", Remedy("naive", {"selector__magic": 1}))])


def test_every_line_of_advice_can_be_followed():
    findings = apply_rules(Examined(strategy("naive"), 0.04, 0.2, 10, 190, 1.0, 0.4))
    assert {f.remedy.strategy for f in findings} == {"naive", "limited", "pu", "curriculum"}
    for a in rank_strategies(findings).rows: assert variant(a.remedy).name == a.name


def test_a_diagnosis_is_enough():
    advice = advise(Diagnosis((FINDINGS["severe"],), subject="run <7>"))
    assert advice.first.strategy == "pu" and "run <7>" in str(advice) and "<7>" not in advice._repr_html_()


# ---- of real runs

@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    "A sweep of two strategies and two seeds, and its data."
    data = pnb.micrographs(n_train=24, n_val=6, n_test=6, size=64)
    out = tmp_path_factory.mktemp("swept")
    pnb.sweep(data, [strategy("naive", rounds=1), strategy("limited", rounds=1)], [0.1], [0, 1], out,
              pnb.Settings(steps=24, crop=64, batch_size=2, network_options=dict(widths=(4, 8)), evaluations=1), [3e-3],
              "cpu", lambda line: None)
    return data, out


def test_gains_are_those_of_validation(swept):
    _, out = swept
    gains, on_test = paired_gains(compare(out)), paired_gains(compare(out), "test_f1")
    runs = {p.parent.name: pnb.open_run(p.parent) for p in out.glob("runs/*/result.json")}
    for name in ("naive", "limited"):
        for key, found in (("val_f1", gains), ("f1", on_test)):
            assert found[name] == pytest.approx(
                [runs[f"{name}-r0.1-s{k}"].result[key] - runs[f"supervised-r0.1-s{k}"].result[key] for k in (0, 1)])
    assert gains != on_test


def test_a_sweep_and_a_single_run_are_advised_on(swept):
    data, out = swept
    of_all, of_one = advise(out, data), advise(pnb.open_run(out / "runs/naive-r0.1-s0"), data)
    assert {a.name for a in of_all.rows if a.kind == "measured"} == {"naive", "limited"} and all(
        a.seeds == 2 for a in of_all.rows if a.kind == "measured")
    assert not any(a.kind == "measured" for a in of_one.rows) and any(
        f.topic == "dilution" for a in of_one.rows for f in a.findings)
    assert len(of_one.frame()) == len(of_one.rows) and "costs" in str(of_all) and "<ol" in of_all._repr_html_()


# ---- judged

def test_the_committed_judgement_is_up_to_date(tool):
    with open(RESULTS / "advice.csv", newline="") as f: committed = list(csv.DictReader(f))
    assert committed == [
        {k: str(v) for k, v in row.items()} for row in tool.judge_all()], "run python nbs/benchmarks/advice.py"
    assert tuple(committed[0]) == tool.COLUMNS


def cell(tool, data, gains, relative=1.0):
    "A cell with two seeds a strategy."
    rows = {name: {s: dict(gain=str(g), particle_ratio_real="0.04", particle_ratio_pseudo=str(0.04 * relative),
                           n_labeled="10", n_pseudo="20")
                   for s in (0, 1)}
            for name, g in {"supervised": 0.0, **gains}.items()}
    return tool.Cell(data, 0.05, 1200, "s", rows)


def test_nobody_is_advised_from_what_it_is_judged_on(tool):
    "On its own data set fixmatch shines; the others know nothing of it."
    own = cell(tool, "a", dict(naive=-0.01, fixmatch=0.2, limited=0.03))
    others = [cell(tool, name, dict(naive=-0.01, fixmatch=-0.05, limited=0.02)) for name in "bc"]
    row = tool.judge(own, [own, *others])
    assert (row["advised"], row["best"], row["within"]) == (
        "limited", "fixmatch", False) and row["gap"] == pytest.approx(0.17)
    assert row["gap_supervised"] == pytest.approx(0.2) and row["gap_any"] == pytest.approx(0.2 - 0.22 / 4)


def test_the_diagnosis_is_heard(tool):
    own = cell(tool, "a", dict(naive=-0.01, class_balanced=0.03, limited=0.01), relative=0.3)
    other = cell(tool, "b", dict(naive=-0.01, class_balanced=-0.1, limited=-0.1))
    row = tool.judge(own, [own, other])
    assert (row["advised"], row["gap"], row["findings"]) == ("class_balanced", 0.0, "class ratio 0.30 ×")


def test_new_results_are_picked_up(tool, tmp_path):
    "A study's table, with columns of its own; what was scored on validation does not count."
    head = "dataset,strategy,labeled_ratio,seed,phase,steps,f1,f1_supervised,gain\n"
    (tmp_path / "study").mkdir()
    rows = [f"cells,{name},0.05,{seed},{phase},4000,0.7,0.7,{gain}"
            for name, gain in (("supervised", 0), ("naive", 0.01), ("limited", 0.02), ("best", 0.05))
            for seed in (100, 101)
            for phase in ("test", "design")]
    (tmp_path / "study/results.csv").write_text(head + "\n".join(rows) + "\n")
    cells = tool.read_cells(tmp_path)
    assert [(c.data, c.ratio, c.steps) for c in cells] == [("cells", 0.05, 4000)] and tool.trials_of(cells) == (
        Trial("cells", 0.05, 4000, 2, dict(naive=0.01, limited=0.02, best=0.05)),)
    assert math.isclose(tool.judge_all(tmp_path)[0]["gain_best"], 0.05)


def test_expectations_leave_a_data_set_out():
    assert expectations(without="vnc_mito")["limited"].sets == expectations()["limited"].sets - 1


def test_a_strategy_of_ones_own_with_too_much_foreground_does_not_end_all_advice():
    findings = apply_rules(Examined(strategy("limited", name="lighter"), 0.04, 0.12, 8, 8, 0))
    assert (findings[0].remedy.strategy == "class_quantiles"
            and rank_strategies(findings).first.strategy == "class_quantiles")


def test_what_was_refused_or_too_low_is_not_advised_again():
    assert {
        f.topic: f.remedy.strategy
        for f in apply_rules(Examined(strategy("curriculum"), 0.04, 0.04, 8, 8, 1.0)) if f.remedy}["gate"] == "limited"
    known = DiagnosisInputs(
        real=np.array([[96, 4]] * 4), kept=np.array([[80, 20]] * 4), strategy="naive", thresholds=(0.95, 0.95))
    assert examine_ratio(known).findings[0].remedy.changes == {"selector__threshold": 0.97} # 0.9 would be lower
    assert raise_threshold(DiagnosisInputs()) == raise_threshold(DiagnosisInputs(thresholds=(0.7, 0.7))) == 0.9


def test_the_words_for_a_ratio_within_a_factor_of_two_are_true_at_both_ends():
    for pseudo in (0.021, 0.079):
        assert "half to twice as much" in str(apply_rules(Examined(strategy("naive"), 0.04, pseudo, 8, 8, 0))[0])


def test_a_filter_keeps_no_more_than_there_is():
    pixels = np.zeros((1, 1024), int)
    pixels[0, [10, 400, 900]] = 900, 60, 40 # p of 0.01, 0.39 and 0.88
    said = examine_filter(DiagnosisInputs(pixels=pixels, thresholds=(0.6, 0.35))).findings[0].sentence
    assert ("keep 94% of what is called background and 100% of what is called foreground" in said
            and "6.2% of what is called background is kept as foreground" in said)
    assert "is kept as foreground" not in examine_filter(
        DiagnosisInputs(pixels=pixels, thresholds=(0.6, 0.6))).findings[0].sentence
