"""The curriculum stepper without a browser: rounds that are stepped, paused, stopped and branched end as they would
have ended undisturbed."""
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import discs

from pseudolabel_nb.core import UserError, overseeing, progress, read_json, stop_if_asked, write_bytes, write_json
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.runs.branch import branch
from pseudolabel_nb.runs.compare import compare
from pseudolabel_nb.runs.run import RoundRecord, Run, locked, open_run, teacher_of
from pseudolabel_nb.widgets.stepper_figures import diagnosis_html, preview, round_rows
from pseudolabel_nb.widgets.stepper_pictures import Watch
from pseudolabel_nb.widgets.stepper_state import StepperState

# ---- a run whose rounds take no time

STRATEGY = dict(
    kind="Strategy", name="curriculum", selector=dict(kind="Threshold", threshold=0.7),
    schedule=dict(kind="Moving", field="threshold", start=0.9, stop=0.6, shape="linear"), teacher=dict(kind="Teacher"),
    method=dict(kind="SelfTraining", weight=1.0), rounds=3, prior=None, about="")
STEPS = 30 # a round pretends to have


def begun(folder: Path, **strategy) -> Run:
    folder.mkdir(parents=True)
    write_json(folder / "config.json",
               dict(data="d", classes=["background", "<b>particle"], seed=0, labeled_ratio=0.2,
                    strategy=STRATEGY | strategy, settings=dict(kind="Settings", steps=120, gate=0.75)))
    write_json(folder / "split.json", dict(labeled=["a"], val=["b"], test=["c"]))
    write_json(folder / "environment.json", dict(device="cpu"))
    return Run(folder)


class Fake:
    "Makes generators of rounds; `gate` holds a round up at its step 10, `fail` breaks one."
    def __init__(self, fail: dict | None = None):
        self.fail, self.hold, self.held, self.made = fail or {}, threading.Event(), threading.Event(), 0

    def __call__(self, run: Run):
        self.made += 1
        for number in range(len(run.records()), run.config["strategy"]["rounds"] + 1):
            for k in progress(range(STEPS), desc=f"round {number}"):
                stop_if_asked()
                if k == 10 and number == 2 and not self.hold.is_set():
                    self.held.set()
                    while not self.hold.wait(0.005): stop_if_asked()
                if number in self.fail: raise self.fail[number]
            write_bytes(run.folder / f"checkpoints/round-{number}.safetensors", bytes([number]))
            run.add_record(
                RoundRecord(
                    number, STEPS, 0.6, 0.6, 0.6, 0.4, True, f"checkpoints/round-{number}.safetensors", 1.0, 0.04))
            yield run.records()[-1]


@pytest.fixture
def fake():
    made = Fake()
    yield made
    made.hold.set()


def test_a_state_needs_no_widgets():
    code = ("import sys; import pseudolabel_nb.widgets.stepper_figures, pseudolabel_nb.widgets.stepper_state; "
            "assert not {'ipywidgets', 'IPython'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_step_is_a_round_in_the_background(tmp_path, fake):
    state, seen = StepperState(begun(tmp_path / "r"), fake), []
    state.observers.append(
        lambda s: seen.append(
            (s.activity, s.doing.what, len(s.records), threading.current_thread() is threading.main_thread())))
    fake.hold.set()
    state.step(wait=True)
    assert [r.round for r in state.records] == [0] and state.activity == "idle" and state.round == 0
    assert ("round", "round 0", 0, False) in seen and seen[-1][0] == "idle"
    state.run_all(wait=True)
    assert state.finished and len(state.records) == 4 and state.share == 1.0 and "all are done" in state.standing()
    with pytest.raises(UserError, match="all 4 rounds are done"): state.step()


def test_pause_ends_after_the_round(tmp_path, fake):
    state = StepperState(begun(tmp_path / "r"), fake)
    state.run_all()
    assert fake.held.wait(10)
    # in the middle of the third of four
    assert state.at_work and 0.5 < state.share < 0.75 and "round 2" in state.standing()
    with pytest.raises(UserError, match="already"): state.step()
    with pytest.raises(UserError, match="Pause or Stop"): state.branch({})
    state.pause()
    assert state.activity == "pausing"
    fake.hold.set()
    assert state.wait(10) and len(state.records) == 3 and not state.error
    state.run_all(wait=True)
    assert state.finished and fake.made == 2


def test_stop_leaves_the_round(tmp_path, fake):
    state = StepperState(begun(tmp_path / "r"), fake)
    state.run_all()
    assert fake.held.wait(10)
    state.stop()
    assert (state.wait(10) and len(state.records) == 2 and state.activity == "idle" and not state.error
            and "stopped" in state.standing())
    fake.hold.set()
    state.step(wait=True)
    assert len(state.records) == 3 and "stopped" not in state.standing()


def test_an_error_is_said_and_can_be_mended(tmp_path):
    state = StepperState(
        begun(tmp_path / "r"), fake := Fake({1: UserError("round 1: found nan; expected numbers, so lower the rate")}))
    state.run_all(wait=True)
    assert (len(state.records) == 1 and state.error == "round 1: found nan; expected numbers, so lower the rate"
            and "UserError" in state.trace)
    fake.fail = {1: RuntimeError("boom")}
    state.step(wait=True)
    assert state.error.startswith("RuntimeError: boom") and "press Step" in state.error
    fake.fail = {}
    fake.hold.set()
    state.run_all(wait=True)
    assert state.finished and not state.error and not state.trace


def test_a_generator_that_was_handed_over(tmp_path, fake):
    run = begun(tmp_path / "r")
    state = StepperState(run, fake(run))
    fake.hold.set()
    for n in (1, 2): state.step(wait=True); assert len(state.records) == n
    new = state.branch({"schedule.stop": 0.5})
    assert state.run is new
    with pytest.raises(UserError, match="belongs to another run"): state.step()
    state.open(run)
    state.run_all(wait=True)
    assert state.finished and fake.made == 1
    broken = StepperState(begun(tmp_path / "s"), Fake({0: RuntimeError("x")})(Run(tmp_path / "s")))
    broken.step(wait=True)
    with pytest.raises(UserError, match="has ended"): broken.step()


def test_a_generator_that_holds_the_folder_frees_it_at_its_end(tmp_path, fake):
    "Each step is a thread of its own; the lock is taken in the first and given back in the last."
    run = begun(tmp_path / "r")
    def holding():
        with locked(run.folder): yield from fake(run)
    state = StepperState(run, holding())
    fake.hold.set()
    state.step(wait=True)
    with pytest.raises(UserError, match="another process"), locked(run.folder): pass
    state.run_all(wait=True)
    assert state.finished
    assert next(state.worker.rounds, None) is None # its end
    with locked(run.folder): pass


def test_looking_only(tmp_path):
    state = StepperState(begun(tmp_path / "r"))
    with pytest.raises(UserError, match="only be looked at"): state.step()
    state.stop(), state.pause(), state.back(), state.forward()
    assert state.wait() and state.round is None and state.record is None
    with pytest.raises(UserError, match="no round is done"): state.branch({})


def test_another_view_of_the_folder_sees_what_is_written(tmp_path, fake):
    run = begun(tmp_path / "r")
    state, other = StepperState(run, fake), StepperState(run.folder)
    fake.hold.set()
    state.step(wait=True)
    assert not other.records and other.refresh() and len(other.records) == 1 and not other.refresh()
    assert StepperState(run.folder).round == 0 # opened again, it stands where it stood


def test_back_and_forward(tmp_path, fake):
    state = StepperState(begun(tmp_path / "r"), fake)
    fake.hold.set()
    for _ in range(3): state.step(wait=True)
    state.back(), state.back()
    assert state.round == 0 and state.settings.round == 0
    state.back()
    assert state.round == 0
    state.forward(), state.forward()
    assert state.round == 2 and state.settings.round is None # follows again
    for bad in (3, -1):
        with pytest.raises(UserError, match="is not done"): state.change(round=bad)
    state.change(round=1)
    state.step(wait=True)
    assert state.round == 3


def test_a_view_that_fails_does_not_end_training(tmp_path, fake):
    state = StepperState(begun(tmp_path / "r"), fake)
    def fails(s):
        if threading.current_thread() is not threading.main_thread(): raise ZeroDivisionError("no room")
    state.observers.append(fails)
    fake.hold.set()
    state.run_all(wait=True)
    assert state.finished


def test_only_the_overseen_thread_is_stopped():
    found = []
    def work():
        with overseeing(lambda: True):
            try: stop_if_asked()
            except KeyboardInterrupt: found.append("stopped")
        stop_if_asked()
        found.append("went on")
    thread = threading.Thread(target=work)
    with overseeing(lambda: False, lambda *told: found.append(told)):
        thread.start()
        thread.join()
        stop_if_asked()
        with overseeing(lambda: True): pass
        with progress(total=4, initial=1, desc="x") as bar: bar.update(2)
    assert found == ["stopped", "went on", ("x", 1, 4), ("x", 3, 4)]
    assert type(progress(total=1)).__name__ != "_Told"


# ---- branches

@pytest.mark.parametrize(
    ("changes", "said"),
    [(dict(seed=1), "seed was settled"), ({"settings.steps": 10}, "settings.steps was settled"),
     (dict(steps=10), "steps was settled"), (dict(labeled_ratio=0.5), "labeled_ratio was settled"),
     (dict(rounds=1), "rounds is 1"), (dict(rounds=2.5), "rounds is 2.5"), (dict(rounds=True), "cannot become True"),
     (dict(rounds=200), "60 of 120 steps are left"), ({"selector.x": 1}, "has no 'selector.x'"),
     ({"a.b.c": 1}, "has no 'a.b.c'"), ({"schedule.stop": "low"}, "cannot become 'low'"),
     ({"selector.threshold": 2.0, "schedule.stop": 1.4}, "threshold"), ({"schedule.field": "width"}, "moves 'width'")])
def test_what_cannot_be_branched_is_refused_in_a_line(tmp_path, fake, changes, said):
    state = StepperState(begun(tmp_path / "r"), fake)
    fake.hold.set()
    for _ in range(3): state.step(wait=True)
    state.change(round=1)
    with pytest.raises(UserError, match=re.escape(said)) as e: state.branch(changes)
    assert "\n" not in str(e.value) and [p.name for p in tmp_path.iterdir()] == ["r"] and state.run.name == "r"


def test_a_branch_is_a_run_of_its_own(tmp_path, fake):
    state = StepperState(begun(tmp_path / "r"), fake)
    fake.hold.set()
    state.run_all(wait=True)
    state.change(round=1)
    first = state.branch({"schedule.stop": 0.5, "method.weight": 0.5, "rounds": 4})
    assert (first.name, first.origin["name"], first.origin["round"], len(first.records()),
            state.round) == ("r-after-1", "r", 1, 2, 1)
    assert (first.config["strategy"]["schedule"]["stop"] == 0.5 and first.config["strategy"]["method"]["weight"] == 0.5
            and Path(tmp_path / "r-after-1" / first.origin["run"]).resolve() == (tmp_path / "r").resolve())
    state.run_all(wait=True)
    assert len(first.records()) == 5 and len(Run(tmp_path / "r").records()) == 4
    state.open(state.runs[0])
    state.change(round=1)
    assert (state.branch({}).name == "r-after-1-2" and state.branch({}).name == "r-after-1-2-after-1"
            and len(state.runs) == 4)
    assert "branched from r after round 1" in repr(first) and "branched from" in first._repr_html_()
    facts = {f.name: f for f in compare(tmp_path).facts}
    assert len(facts) == 4 and facts["r-after-1"].config["strategy.branched"] == "r, round 1" and len(
        {f.strategy for f in facts.values()}) == 3
    # removing one folder's file leaves the other's
    (tmp_path / "r-after-1" / "checkpoints" / "round-0.safetensors").unlink()
    assert (tmp_path / "r" / "checkpoints" / "round-0.safetensors").read_bytes() == b"\0"


def test_a_folder_that_is_there_is_not_written_to(tmp_path, fake):
    run = begun(tmp_path / "r")
    for _ in zip(range(2), fake(run)): pass
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("x")
    with pytest.raises(UserError, match="is there already"): branch(run, 1, tmp_path / "there")
    (run.folder / "checkpoints" / "round-0.safetensors").unlink()
    with pytest.raises(UserError, match="the weights of round 0"): branch(run, 1, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "there"]


# ---- real training

SETTINGS = dict(
    steps=36, batch_size=2, crop=32, evaluations=2, checkpoint_every=3, gate=0.0, network_options=dict(widths=(4, 8)))


@pytest.fixture(scope="module")
def tiny():
    from pseudolabel_nb.data.images import Data
    return Data("discs", discs(24, 0, 32), discs(6, 1, 32), discs(6, 2, 32))


def begin_tiny(data, folder: Path) -> Run:
    import pseudolabel_nb as pnb
    return pnb.begin(data, pnb.strategy("curriculum", rounds=2), folder, labeled_ratio=0.2,
                     settings=pnb.Settings(**SETTINGS), device="cpu")


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Run:
    import pseudolabel_nb as pnb
    run = begin_tiny(tiny, tmp_path_factory.mktemp("undisturbed") / "r")
    for _ in pnb.rounds(run, tiny): pass
    return run


def same(a: Run, b: Run, rounds: int = 3) -> None:
    "Records, evaluations, weights and predictions are the same, bit for bit; seconds differ."
    assert [replace(r, seconds=0) for r in a.records()] == [
        replace(r, seconds=0) for r in b.records()] and len(a.records()) == rounds
    assert a.metrics() == b.metrics()
    for pattern in ("checkpoints/*", "predictions/*/*"):
        names = [
            sorted(p.relative_to(r.folder) for p in r.folder.glob(pattern) if p.name != "begun.json") for r in (a, b)]
        assert names[0] == names[1] and names[0]
        for name in names[0]: assert (a.folder / name).read_bytes() == (b.folder / name).read_bytes(), name


def when(state: StepperState, what: str, done: int) -> threading.Event:
    "Set as soon as the thread is that far."
    event, heard = threading.Event(), state.worker.told
    def told(doing):
        if doing.what == what and doing.done >= done: event.set()
        heard(doing)
    state.worker.told = told
    return event


def test_stepped_paused_and_stopped_it_ends_as_undisturbed(tiny, undisturbed, tmp_path):
    import pseudolabel_nb as pnb
    state = StepperState(begin_tiny(tiny, tmp_path / "r"), lambda run: pnb.rounds(run, tiny), data=tiny)
    reached = when(state, "teacher", 7)
    state.step()
    assert reached.wait(60)
    state.stop(wait=True) # in the middle of the first teacher
    assert not state.records and not state.error
    state.step(wait=True)
    assert len(state.records) == 1
    with locked(tmp_path / "r"): pass # at rest the folder is free
    reached = when(state, "round 1", 4)
    state.run_all()
    assert reached.wait(60)
    state.pause()
    assert state.wait(60) and len(state.records) == 2
    reached = when(state, "round 2 predicts", 8)
    state.step()
    assert reached.wait(60)
    state.stop(wait=True)
    reached = when(state, "round 2", 5)
    state.step()
    assert reached.wait(60)
    state.stop(wait=True)
    assert len(state.records) == 2
    state.run_all(wait=True)
    assert state.finished, state.error
    same(state.run, undisturbed)


@pytest.mark.parametrize("round", [0, 1])
def test_a_branch_without_changes_is_the_run_itself(tiny, undisturbed, tmp_path, round):
    import pseudolabel_nb as pnb
    new = branch(undisturbed, round, tmp_path / "b")
    for _ in pnb.rounds(new, tiny): pass
    same(new, undisturbed)


def test_a_branch_is_trained_listed_and_scored(tiny, undisturbed, tmp_path):
    import shutil

    import pseudolabel_nb as pnb
    from pseudolabel_nb.experiments.results import read_results
    runs = tmp_path / "runs"
    shutil.copytree(undisturbed.folder, runs / "curriculum-r0.2-s0")
    base = pnb.run(tiny, "supervised", runs / "supervised-r0.2-s0", labeled_ratio=0.2,
                   settings=pnb.Settings(**SETTINGS), device="cpu")
    old = open_run(runs / "curriculum-r0.2-s0")
    state = StepperState(old, lambda run: pnb.rounds(run, tiny), data=tiny)
    state.change(round=1)
    new = state.branch({"schedule.stop": 0.3, "rounds": 3})
    state.run_all(wait=True)
    assert not state.error and [r.steps for r in new.records()] == [18, 9, 5, 4] and sum(
        r.steps for r in old.records()) == 36
    assert new.records()[2].thresholds == (0.6, 0.6) and new.records()[3].thresholds == (0.3, 0.3)
    for run in (old, new): pnb.finish(run, tiny)
    # begun again, it is gone on with
    assert pnb.begin(tiny, read_back(new), new.folder, labeled_ratio=0.2, settings=pnb.Settings(**SETTINGS),
                     device="cpu").records() == new.records()
    table = read_results(tmp_path)
    assert sorted(table["strategy"]) == ["curriculum", "curriculum-after-1", "supervised"] and base.result
    gains = compare(runs).gains().set_index("strategy.name")
    assert set(gains.index) == {"curriculum", "curriculum-after-1"} and (gains["n"] == 1).all()


def read_back(run: Run):
    from pseudolabel_nb.strategies.strategy_files import read_strategy
    return read_strategy(run.folder / "config.json")


def test_what_came_and_went_is_counted(tiny, undisturbed):
    watch, records = Watch(undisturbed, tiny), undisturbed.records()
    assert 1 <= len(watch.ids) <= 16
    change = watch.change(records[2], records[1])
    masks = {r.round: np.concatenate([target(watch, r, id).ravel() for id in watch.ids]) for r in records[1:]}
    for c in (0, 1):
        now, was = masks[2] == c, masks[1] == c
        assert (change.kept[c], change.added[c], change.dropped[c]) == (
            now.sum(), (now & ~was).sum(), (was & ~now).sum())
    assert change.pixels == masks[2].size and watch.change(records[0], None) is None
    first = watch.change(records[1], records[0])
    assert first.added == first.kept and first.before is None


def target(watch: Watch, record: RoundRecord, id: str) -> np.ndarray:
    "By the definition: the most confident class, where it reaches its threshold."
    said = watch.stores[record.round]
    p = said.probs(said.index(id)).numpy() / np.array(record.thresholds)[:, None, None]
    return np.where(p.max(0) >= 1, p.argmax(0), 255)


def test_words_say_what_the_record_says(tiny, undisturbed):
    state = StepperState(undisturbed, data=tiny)
    state.change(round=2)
    rows, r = dict(round_rows(state, None)), undisturbed.records()[2]
    assert (f"{r.f1:.3f}" in rows["validation"] and f"{r.gain:+.3f}" in rows["gate"]
            and rows["schedule"] == "0.900 for all → [0.600 for all]")
    assert f"{r.ratio_pseudo:.2%}" in rows["foreground kept"] and "Diagnosis of round 2" in diagnosis_html(state.run, 2)
    state.change(round=1)
    assert preview(state, Watch(undisturbed, tiny), {})[0].startswith("round 2: threshold 0.6, which keeps ")


def test_the_preview_tells_the_selector_the_decision_of_the_last_accepted_round(tiny, undisturbed, decisions):
    state = StepperState(undisturbed, data=tiny)
    for number in (0, 1):
        state.change(round=number)
        preview(state, Watch(undisturbed, tiny), {})
        assert decisions.pop() == teacher_of(undisturbed.records(), number + 1).threshold and not decisions


# ---- views

widgets = pytest.importorskip("ipywidgets")


def test_two_views_stay_in_step_and_close(tmp_path, fake):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    a = CurriculumStepper(begun(tmp_path / "r"), fake)
    b = CurriculumStepper(a.state)
    fake.hold.set()
    for _ in range(3):
        b.buttons["step"].click()
        assert a.state.wait(10)
    assert a.round.value == b.round.value == 2 and a.bar.value == b.bar.value == 0.75 and "3 of 4" in a.standing.value
    a.buttons["back"].click()
    assert b.round.value == 1 and "▶" in b.table.value and b.accordion.titles[0].startswith("Branch after round 1")
    b.inputs["schedule.stop"].value = 0.2
    assert "threshold 0.2" in b.planned.value
    b.inputs["schedule.stop"].value = 1.7
    assert "not possible" in b.planned.value
    b.inputs["schedule.stop"].value = 0.2
    b.buttons["branch"].click()
    assert (a.state.run.name == "r-after-1" and a.runs.value == b.runs.value == str(tmp_path / "r-after-1")
            and a.runs.layout.display == "flex")
    a.runs.value = str(tmp_path / "r")
    assert b.round.value == 2
    b.close()
    a.buttons["back"].click()
    assert len(a.state.observers) == 1
    a.close()


def test_an_error_stands_in_the_view(tmp_path):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    view = CurriculumStepper(begun(tmp_path / "r"), Fake({0: UserError("found <script>; expected none, so mend it")}))
    view.buttons["step"].click()
    view.state.wait(10)
    assert ("role='alert'" in view.message.value and "&lt;script&gt;; expected none, so mend it" in view.message.value
            and "&lt;script&gt;" in view.snapshot())
    with locked(tmp_path / "r"):
        view.state.worker.rounds = real
        view.buttons["step"].click()
        view.state.wait(10)
    assert "another process is working in this run folder" in view.message.value
    view.name.value = "../elsewhere"
    view._try(view._branch)
    assert "Cannot do that" in view.message.value


def real(run):
    with locked(run.folder): yield


def test_names_are_text(tmp_path, fake):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    run = begun(tmp_path / "<i>r")
    fake.hold.set()
    for _ in fake(run): pass
    lines = [json.loads(x) for x in (run.folder / "rounds.jsonl").read_text().splitlines()]
    for x in lines[1:]:
        x |= dict(
            thresholds=[0.6, 0.6], kept=[90, 10], n_pseudo=1, ratio_pseudo=0.1, verdict="<u>low", warning="<s>odd")
    (run.folder / "rounds.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for number in (1, 2, 3):
        store([("<em>one", np.full((1, 8, 8), 0.7))], run.folder / "predictions" / f"round-{number}")
    view = CurriculumStepper(run)
    texts = [x.value for x in (view.standing, view.table, view.facts, view.curves, view.diagnosis, view.kept_text,
                               view.change_text, view.legend, view.planned)]
    assert not any(re.search("<i>r|<b>particle|<u>low|<s>odd|<em>", text) for text in [*texts, view.snapshot()])
    assert view.image.value == "<em>one" and not view.image.layout.display


def test_a_snapshot_stands_beside_the_live_view(tiny, undisturbed):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    view = CurriculumStepper(undisturbed, data=tiny)
    bundle = view._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert ("application/vnd.jupyter.widget-view+json" in bundle and bundle["text/html"].count("data:image/jpeg") == 2
            and "3 of 3 rounds done" in bundle["text/plain"])
    assert len(bundle["text/html"]) < 150_000
    assert (view.buttons["step"].disabled and not view.buttons["back"].disabled and view.kept.value[1:4] == b"PNG"
            and "round 2" in view.kept_text.value)
    before = view.change.value
    view.image.value = view.image.options[-1]
    assert view.change.value != before and view.state.settings.image == view.image.options[-1]


def test_every_control_says_what_it_is_for(undisturbed):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    def below(w):
        yield w
        for child in getattr(w, "children", ()): yield from below(child)
    controls = [w
                for w in below(CurriculumStepper(undisturbed))
                if hasattr(w, "description") and type(w).__name__ not in ("HTML",)]
    assert len(controls) > 15 and all(
        w.description or type(w).__name__ == "FloatProgress" for w in controls) and all(w.tooltip for w in controls)


def test_watching_sees_a_run_that_is_trained_elsewhere(tmp_path, fake):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    run = begun(tmp_path / "r")
    view = CurriculumStepper(run.folder, watch=0.05)
    fake.hold.set()
    next(fake(run))
    end = time.monotonic() + 5
    while "1 of 4" not in view.standing.value and time.monotonic() < end: time.sleep(0.02)
    assert "1 of 4" in view.standing.value and view.buttons["step"].disabled
    view.close()
    time.sleep(0.2)
    assert not any(t.name == "CurriculumStepper watch" for t in threading.enumerate())


def test_origin_is_read_by_everybody(tmp_path, fake):
    run = begun(tmp_path / "r")
    for _ in zip(range(2), fake(run)): pass
    new = branch(run, 1, tmp_path / "n", {"schedule.stop": 0.5})
    assert (read_json(new.folder / "branch.json")["changes"] == {"schedule.stop": 0.5} and run.origin is None
            and "0.5" in new.config["strategy"]["about"])


def test_an_image_that_a_round_did_not_take_is_kept_nothing_of(tmp_path):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    run = begun(tmp_path / "r")
    for number, watched in ((0, None), (1, ("a",)), (2, None)):
        chosen = (
            dict(thresholds=(0.6, 0.6), kept=(1, 1), n_pseudo=1, ratio_pseudo=0.5, watched=watched) if number else {})
        write_bytes(run.folder / f"checkpoints/round-{number}.safetensors", b"")
        run.add_record(RoundRecord(number, STEPS, 0.6, 0.6, 0.6, 0.4, True, f"checkpoints/round-{number}.safetensors",
                                   1.0, 0.04, **chosen))
        if number: store([(id, np.full((1, 8, 8), 0.7)) for id in "ab"], run.folder / "predictions" / f"round-{number}")
    watch, records = Watch(run), run.records()
    assert [(watch.target(records[1], id) == 1).all() for id in "ab"] == [True, False] and (
        watch.target(records[1], "b") == 255).all()
    assert (watch.target(records[2], "b") == 1).all() # not written down: as if all were taken
    view = CurriculumStepper(run)
    view.state.change(round=1, image="b")
    assert "not among the images of round 1" in view.kept_text.value


def test_a_supervised_run_is_asked_for_no_rounds_by_a_form_nobody_touched(tmp_path, fake):
    from pseudolabel_nb.widgets.stepper import CurriculumStepper
    view = CurriculumStepper(begun(tmp_path / "r", name="supervised", selector=None, rounds=0), fake)
    fake.hold.set()
    view.state.step(wait=True)
    assert view.inputs["rounds"].value == 0 and view.changes() == {}
