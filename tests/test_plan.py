"""A plan keeps to its goal and its budget, repeats nothing, goes on after a kill, and says so when nothing helps.

Most tests put run folders with made-up scores in the place of a sweep; the others train tiny networks.
"""
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import discs
from PIL import Image

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError, read_json, to_dict, write_json
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.experiments import action_plan as module
from pseudolabel_nb.experiments.action_plan import action_plan
from pseudolabel_nb.experiments.results import run_folder
from pseudolabel_nb.experiments.sweep import Sweep
from pseudolabel_nb.runs.run import RoundRecord, begin_run

ROOT = Path(__file__).resolve().parents[1]
# as the expectations order them within phases
SIX = ["limited", "class_balanced", "weighted", "curriculum", "pu", "mean_teacher"]
TINY = dict(ratios=[0.34], seeds=[0, 1],
            settings=pnb.Settings(steps=12, batch_size=2, crop=16, network_options=dict(widths=(4, 8)), evaluations=1,
                                  checkpoint_every=5),
            learning_rates=[1e-3, 3e-3], device="cpu")


# ---- a sweep that is made up

class MadeUp:
    "Writes run folders in place of training: gains on validation and test by strategy, pseudo-label ratios, failures."
    def __init__(self, gains=None, test=None, relative=None, fails=(), base=0.6, minutes=0.0):
        self.gains, self.test, self.relative, self.fails, self.base, self.minutes, self.trained, self.clock = (
            gains or {}, test or {}, relative or {}, set(fails), base, minutes, [], 0.0)

    def __call__(self, data, strategies, ratios, seeds, out, settings, learning_rates, device, say, executor, source):
        failed = {}
        for r in [pnb.strategy("supervised"), *strategies]:
            for ratio in ratios:
                for seed in seeds:
                    folder = run_folder(out, r.name, ratio, seed)
                    if (folder / "result.json").exists(): continue
                    if r.name in self.fails: failed[folder.name] = "KeyError: 'mito'"
                    else: self.train(r, folder, ratio, seed, say)
        return Sweep(Path(out), "", failed)

    def train(self, r, folder, ratio, seed, say):
        run = begin_run(folder, dict(data="d", labeled_ratio=ratio, seed=seed, strategy=to_dict(r)),
                        dict(labeled=["a"], val=["v", str(seed)], test=["t"]), "cpu")
        noise = 0.01 * (seed % 2) # the same in all strategies, so that gains are exact
        base = self.base(ratio) if callable(self.base) else self.base
        f1 = base + noise + self.gains.get(r.name, 0.0)
        more = dict(n_pseudo=2, ratio_pseudo=0.04 * self.relative.get(r.name, 1.0), kept=(90, 10)) if r.selector else {}
        if not run.records(): run.add_record(RoundRecord(0, 1, f1, f1, f1, 0.5, True, "c", 1.0, 0.04))
        self.clock += self.minutes
        say(f"{folder.name}: round 0")
        run.add_record(RoundRecord(1, 1, f1, f1, f1, 0.5, True, "c", 1.0, 0.04, **more))
        write_json(folder / "result.json",
                   dict(f1=base - 0.05 + noise + self.test.get(r.name, 0.0), val_f1=f1, precision=f1, recall=f1,
                        n_labeled=round(100 * ratio)))
        self.trained.append(folder.name)

@pytest.fixture
def planned(monkeypatch, tmp_path):
    "Runs a plan over made-up results, on a clock that they turn."
    def go(made: MadeUp, out=None, **options):
        monkeypatch.setattr(module, "sweep", made)
        monkeypatch.setattr(module, "_now", lambda: made.clock)
        data = pnb.Data(
            "d", from_arrays(np.zeros((100, 8, 8)), np.eye(8, dtype="uint8")[None].repeat(100, 0)), None, None)
        return action_plan(
            data, out or tmp_path / "plan",
            **{**dict(ratios=[0.1], seeds=[0, 1, 2], learning_rates=[1e-3], say=lambda line: None), **options})
    return go


def test_all_phases_in_order_and_the_supervised_result_where_nothing_helps(planned):
    made = MadeUp({"pu": -0.02, "limited": -0.001})
    plan = planned(made)
    assert [s.strategy for s in plan.steps] == SIX and [s.phase for s in plan.steps] == [1, 1, 2, 2, 3, 3]
    assert (plan.stopped, plan.use, plan.runs) == ("phases", "supervised", 21)
    assert plan.conclusion.startswith(
        "Report the supervised result: of 6 strategies none") and "look elsewhere" in plan.reading
    assert all(s.why.startswith("phase ") and "elsewhere" in s.why and "× a supervised" in s.why for s in plan.steps)


def test_the_goal_ends_it_and_is_read_from_validation(planned, tmp_path):
    made = MadeUp({"weighted": 0.035, "limited": 0.01}, test={"limited": 0.08, "weighted": 0.002})
    plan = planned(made)
    assert (plan.stopped, plan.use) == ("goal", "weighted")
    # best on validation first; curriculum had no turn
    assert [s.strategy for s in plan.tried] == ["weighted", "limited", "class_balanced"]
    assert (plan.best.validation.interval.mean == pytest.approx(0.035)
            and plan.best.test.interval.mean == pytest.approx(0.002))
    assert "+3 is reached" in plan.conclusion and plan.pending == ("curriculum", "pu", "mean_teacher")
    assert planned(MadeUp({"limited": 0.0299}), tmp_path / "b", phases=[["limited"]]).stopped == "phases"
    assert planned(MadeUp({"limited": 0.0301}), tmp_path / "c", phases=[["limited"]]).stopped == "goal"


@pytest.mark.parametrize("gain, said",
                         [(0.025, "class balance or dilution was the problem"), (0.005, "look elsewhere"),
                          (-0.01, "did not help; look elsewhere"), (0.015, "may be part of the problem")])
def test_the_quick_test_is_read(planned, gain, said):
    assert said in planned(MadeUp({"limited": gain}), phases=[["limited"]]).reading


def test_the_budget_of_runs_is_kept_to_the_run(planned, tmp_path):
    for most, tried in ((3, 0), (5, 0), (6, 1), (8, 1), (9, 2), (21, 6), (None, 6)):
        made = MadeUp()
        plan = planned(made, tmp_path / str(most), max_runs=most)
        assert len(made.trained) == plan.runs <= (most or 99) and len(plan.tried) == tried, most
        assert plan.stopped == ("runs" if tried < 6 else "phases")
    with pytest.raises(UserError, match="expected at least 3"): planned(MadeUp(), tmp_path / "few", max_runs=2)
    with pytest.raises(UserError, match="expected at least 5"):
        planned(MadeUp(), tmp_path / "tuned", max_runs=4, learning_rates=[1e-3, 3e-3])
    assert not (tmp_path / "few").exists()


def test_minutes_are_kept_over_calls(planned, tmp_path):
    "A supervised run takes a minute here, and so does one of each strategy."
    made = MadeUp(minutes=1.0)
    plan = planned(made, minutes=9)
    # three more would take 3 × 1.5 minutes by what is known
    assert (plan.stopped, [s.strategy for s in plan.tried], plan.minutes) == ("minutes", ["limited"], 6.0)
    again = MadeUp(minutes=1.0)
    assert planned(again, minutes=9).minutes == 6.0 and not again.trained
    more = planned(MadeUp(minutes=1.0), minutes=100)
    assert (
        more.minutes == 21.0 and more.stopped == "phases" and read_json(tmp_path / "plan/plan.json")["minutes"] == 21.0)


def test_what_takes_longer_than_it_should_is_stopped_and_goes_on(planned, tmp_path):
    made = MadeUp(minutes=1.0)
    plan = planned(made, minutes=3.5)
    assert (plan.stopped, plan.tried, made.trained) == ("minutes", (), [f"supervised-r0.1-s{k}" for k in range(3)])
    slow = MadeUp(minutes=4.0)
    plan = planned(slow, minutes=9, phases=[["class_balanced"]])
    # the second run was under way
    assert (plan.stopped, plan.steps[0].state, slow.trained) == ("minutes", "begun", ["class_balanced-r0.1-s0"])
    assert "no strategy was tried to its end" in plan.conclusion and "not finished" in str(plan)
    rest = MadeUp(minutes=1.0)
    assert planned(rest, minutes=99, phases=[["class_balanced", "limited"]]).stopped == "phases"
    # what was begun goes on first
    assert rest.trained == [
        "class_balanced-r0.1-s1", "class_balanced-r0.1-s2", *(f"limited-r0.1-s{k}" for k in range(3))]


def test_nothing_is_repeated_and_reasons_stay(planned, tmp_path):
    first = planned(MadeUp({"limited": 0.01}), max_runs=9)
    again = MadeUp({"limited": 0.9})
    plan = planned(again, max_runs=9)
    assert again.trained == [] and plan == first # dataclasses, field by field, clock included
    more = MadeUp()
    assert [s.why for s in planned(more, max_runs=12).steps][:2] == [s.why for s in first.steps] and more.trained == [
        f"weighted-r0.1-s{k}" for k in range(3)]


def test_a_finished_sweep_counts_and_costs_nothing(planned, tmp_path):
    MadeUp({"class_balanced": 0.01})(None, [pnb.strategy("class_balanced")], [0.1], [0, 1, 2], tmp_path / "plan", None,
                                     [1e-3], "cpu", print, None, None)
    made = MadeUp()
    plan = planned(made, max_runs=3)
    assert (plan.runs, [s.strategy for s in plan.steps], made.trained) == (
        3, ["class_balanced", "limited"], [f"limited-r0.1-s{k}" for k in range(3)])
    assert next(s for s in plan.steps if s.strategy == "class_balanced").why == "was finished before the plan"
    assert planned(MadeUp(), max_runs=3).runs == 3 # the second call remembers what was there before the first


def test_a_strategy_that_fails_is_noted_and_tried_again_by_the_next_call(planned):
    made = MadeUp(fails=["limited"])
    plan = planned(made, phases=[["limited", "class_balanced"]])
    assert [(s.strategy, s.state, s.error) for s in plan.steps] == [
        ("limited", "failed", "KeyError: 'mito'"), ("class_balanced", "tried", "")]
    assert plan.stopped == "phases" and "limited was not run" in plan.reading
    assert [s.state for s in planned(MadeUp(), phases=[["limited", "class_balanced"]]).steps] == ["tried", "tried"]


def test_without_a_baseline_there_is_no_plan(planned):
    with pytest.raises(UserError, match=r"supervised-r0.1-s0: KeyError: 'mito'.*the same call"):
        planned(MadeUp(fails=["supervised"]))
    assert (planned(MadeUp(fails=SIX)).conclusion == "Report the supervised result: no strategy was tried to its "
                                                     "end (every strategy of the plan had its turn).")


def test_findings_change_the_order(planned, tmp_path):
    "By what they brought elsewhere weighted comes before curriculum, and limited before class_balanced."
    usual = planned(MadeUp(), phases=[["naive"], ["limited", "class_balanced"]])
    starved = planned(
        MadeUp(relative={"naive": 0.05}), tmp_path / "b", phases=[["naive"], ["limited", "class_balanced"]])
    assert ([s.strategy for s in usual.steps] == ["naive", "limited", "class_balanced"]
            and [s.strategy for s in starved.steps] == ["naive", "class_balanced", "limited"])
    assert "class ratio 0.05 ×" in starved.steps[1].why


def test_near_the_ceiling_nothing_is_tried(planned, tmp_path):
    flat, rising = lambda ratio: 0.8 - 0.0001 / ratio, lambda ratio: 0.8 - 0.02 / ratio
    plan = planned(MadeUp(base=flat), ratios=[0.1, 0.2, 0.4])
    assert (plan.stopped, plan.steps, plan.use) == ("ceiling", (), "supervised") and "ceiling" in plan.conclusion
    assert planned(MadeUp(base=rising), tmp_path / "b", ratios=[0.1, 0.2, 0.4]).stopped == "phases"
    # so little was asked for
    assert planned(MadeUp(base=flat, gains={"limited": 0.006}), tmp_path / "c", ratios=[0.1, 0.2, 0.4],
                   goal=0.05).stopped == "goal"


def test_luck_and_single_runs_are_called_so(planned, tmp_path):
    one = planned(MadeUp({"limited": 0.01}), seeds=[0])
    assert one.use == "supervised" and "one run is no evidence" in one.conclusion
    assert "repeat it with more seeds" in planned(MadeUp({"limited": 0.05}), tmp_path / "b", seeds=[0]).conclusion


# ---- trained for real


def small(out: Path, **more):
    "A plan over two strategies of two rounds, on tiny images."
    torch.set_num_threads(1)
    data = pnb.Data("discs", discs(12, 0), discs(6, 1), discs(6, 2))
    phases = [[pnb.strategy("class_balanced", rounds=2)], [pnb.strategy("weighted", rounds=2)]]
    return action_plan(data, out, **{**TINY, **dict(goal=90, phases=phases, say=lambda line: None), **more})


def table(out: Path) -> list[bytes]:
    "results.csv without its last column, the seconds."
    return [line.rpartition(b",")[0] for line in (out / "results.csv").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    "A plan that was let be."
    out = tmp_path_factory.mktemp("whole")
    plan = small(out)
    assert plan.stopped == "phases" and len(plan.tried) == 2 and plan.runs == 8 # two tuning runs
    return out


def test_killed_and_resumed(whole, tmp_path):
    "Killed with all it has begun; the same call ends with the same table, and no finished run is touched."
    code = (f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import "
            "test_plan; test_plan.small(test_plan.Path(sys.argv[1]))")
    env, finished = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT)), lambda: sorted(
        tmp_path.glob("runs/*/result.json"))
    p = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=env, start_new_session=True)
    while len(finished()) < 3 and p.poll() is None: time.sleep(0.02)
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    times = {f: f.stat().st_mtime_ns for f in finished()}
    plan = small(tmp_path)
    assert 3 <= len(times) < 6 and {f: f.stat().st_mtime_ns for f in times} == times
    assert table(tmp_path) == table(whole) and plan.stopped == "phases" and plan.runs == 8
    same = lambda out: {k: v for k, v in read_json(out / "plan.json").items() if k != "minutes"}
    assert same(tmp_path) == same(whole)
    assert [s["strategy"] for s in same(whole)["steps"]] == [
        "class_balanced", "weighted"] and "## What was tried" in (whole / "plan.md").read_text()


def test_time_runs_out_between_two_rounds(whole, tmp_path, monkeypatch):
    "The run is no failure; it goes on with the same result."
    said = []
    def tell(line):
        said.append(str(line))
        if "class_balanced-r0.34-s0: round 1" in str(line):
            monkeypatch.setattr(module.Budget, "spent", lambda self: 99.0)
    plan = small(tmp_path, minutes=50, say=tell)
    assert (plan.stopped, plan.steps[0].state, plan.steps[0].error) == ("minutes", "begun", "")
    run = pnb.open_run(tmp_path / "runs/class_balanced-r0.34-s0")
    assert run.status == "running or interrupted" and len(run.records()) == 2
    monkeypatch.undo()
    small(tmp_path)
    assert table(tmp_path) == table(whole)


def test_an_executor_changes_nothing(whole, tmp_path):
    with ThreadPoolExecutor(2) as threads: plan = small(tmp_path, executor=threads)
    assert table(tmp_path) == table(whole) and plan.runs == 8


# ---- the command

def test_help_answers_without_torch():
    code = ("import sys\nfrom pseudolabel_nb.cli import plan\ntry: plan(['--help'])\n"
            "finally: assert not {'torch', 'pandas', 'scipy'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(flag in done.stdout for flag in ("--goal", "--max-runs", "--minutes", "--workers", "--phase", "--config",
                                                "example: pseudolabel-plan")) and "None)" not in done.stdout


@pytest.fixture
def folder(tmp_path) -> Path:
    "images/ and masks/ of three splits."
    rng = np.random.default_rng(0)
    for split, n in dict(train=6, val=4, test=3).items():
        for k in range(n):
            mask = np.zeros((32, 32), "uint8")
            mask[4 + k:14 + k, 6:16] = 255
            for kind, image in (("images", (mask / 3 + rng.integers(0, 99, mask.shape)).astype("uint8")),
                                ("masks", mask)):
                path = tmp_path / "data" / split / kind / f"{split}_{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    return tmp_path / "data"


def test_the_command(folder, tmp_path, capsys):
    from pseudolabel_nb.cli import plan
    (tmp_path / "plan.toml").write_text(
        'phase = ["limited", "class_balanced"]\nseeds = [0]\nlabeled-ratios = 0.5\nlearning-rates = 0.003\n'
        'goal = 90\n[settings]\nsteps = 12\ncrop = 32\nevaluations = 1\nnetwork_options = {widths = [4, 8]}\n')
    argv = ["--config", str(tmp_path / "plan.toml"), "--data-dir", str(folder), "--output-dir", str(tmp_path / "out"),
            "--device", "cpu", "--threads", "1"]
    assert plan([*argv, "--max-runs", "2"]) == 0
    said = capsys.readouterr().out
    assert ("next: limited (phase 1" in said and "Report the supervised result" in said
            and "Quick test: limited brought" in said and "Spent: 2 runs of 2" in said
            and str(tmp_path / "out/plan.md") in said)
    assert plan(argv) == 0
    found = json.loads((tmp_path / "out/plan.json").read_text())
    assert ([s["strategy"] for s in found["steps"]] == ["limited", "class_balanced"] and found["stopped"] == "phases"
            and found["runs"] == 3)
    assert plan([*argv, "--phase", "supervised"]) == 2
    assert "leave it out" in capsys.readouterr().err
