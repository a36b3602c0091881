"""The run comparer without a browser: runs of any state, read only when written to, never written; views in step; what
it says is what `compare` says."""
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_compare import states
from written_runs import write_run

from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.inference.predictions import store
from pseudolabel_nb.runs.compare import compare, find_runs
from pseudolabel_nb.widgets.comparer_figures import image_choices, paired, say, show_image
from pseudolabel_nb.widgets.comparer_state import (
    ComparerSettings, ComparerState, RunReader, columns, matches, run_names)
from pseudolabel_nb.widgets.explorer_figures import image_sets


@pytest.fixture(autouse=True)
def no_windows():
    "Figures are drawn to nowhere, and closed."
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    yield
    plt.close("all")


@pytest.fixture
def folder(tmp_path) -> Path:
    "Five seeds of three strategies; naive is worse on every seed, class_balanced better."
    for seed in range(5):
        for strategy, gain in (("supervised", 0), ("naive", -0.05), ("class_balanced", 0.04)):
            write_run(tmp_path / f"{strategy}-s{seed}", 0.6 + gain * (1 + 0.1 * seed), strategy=strategy, seed=seed)
    return tmp_path


def everything(folder: Path) -> dict:
    "Each file with its time and bytes."
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_state_needs_no_widgets(tmp_path):
    import subprocess
    import sys
    code = "import sys; import pseudolabel_nb.widgets.comparer_state; assert 'ipywidgets' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_says_what_compare_says(folder):
    state = ComparerState(folder)
    state.change(picked=tuple(f.name for f in state.facts))
    gains, rows = paired(state.chosen), compare(folder).gains().set_index("strategy.name")
    assert set(gains) == {"naive", "class_balanced"}
    for label, its in gains.items():
        assert np.mean(its) == pytest.approx(rows.loc[label, "mean"]) and len(its) == rows.loc[label, "n"] == 5
    said = " ".join(state.sentences())
    assert "5 of 5 positive" in said and "0 of 5 positive" in said


def test_runs_of_any_state_are_listed_and_nothing_is_written(folder):
    states(folder / "more")
    (folder / "bad").mkdir()
    for name in ("config.json", "split.json"): (folder / "bad" / name).write_text("{")
    (folder / "odd").mkdir()
    for name, text in (("config.json", '{"strategy": 3}'), ("split.json", "{}"), ("rounds.jsonl", '{"round": 0}\n')):
        (folder / "odd" / name).write_text(text)
    before = everything(folder)
    state = ComparerState(folder)
    assert (len(state.facts) + len(state.reader.damaged) == len(find_runs(folder))
            and str(folder / "bad") in state.reader.damaged)
    state.pick_found()
    for view in ("curves", "gain", "ratio", "images"):
        state.change(view=view)
        try: assert state.picture().startswith(b"\x89PNG")
        except UserError: pass
    assert state.csv().count("\n") >= len(state.facts)
    assert everything(folder) == before


def test_only_what_was_written_is_read(folder):
    reader = RunReader(folder)
    assert reader.refresh() and reader.reads == 15
    assert not reader.refresh() and reader.reads == 15
    path = folder / "naive-s3" / "result.json"
    path.write_text(path.read_text().replace("0.", "0.9", 1))
    assert reader.refresh() and reader.reads == 16
    os.utime(folder / "naive-s3" / "config.json")
    assert reader.refresh() and reader.reads == 17
    (folder / "naive-s4" / "config.json").unlink()
    assert reader.refresh() and len(reader.facts) == 14 and reader.reads == 17


def test_newest_first_and_the_names_of_compare(folder):
    write_run(folder / "again" / "naive-s0", strategy="naive", seed=9)
    state = ComparerState(folder)
    assert state.facts[0].name == "again/naive-s0"
    assert [f.name for f in state.facts] == [f.name for f in compare(folder).facts] == run_names(
        [str(f.run.folder) for f in state.facts])


def test_search_order_and_pages(folder):
    state = ComparerState(folder, settings=ComparerSettings(rows=4))
    assert state.pages == 4 and len(state.shown()) == 4
    state.change(page=99)
    assert state.settings.page == 3 and len(state.shown()) == 3
    state.change(query="naive")
    assert state.settings.page == 0 and {f.name for f in state.found()} == {f"naive-s{k}" for k in range(5)}
    state.change(query="seed=3 -naive -supervised")
    assert [f.name for f in state.found()] == ["class_balanced-s3"]
    state.change(query="", order="test_f1")
    scores = [f.numbers["test_f1"] for f in state.found()]
    assert scores == sorted(scores, reverse=True)
    state.change(query="nothing like it")
    assert state.shown() == [] and state.pages == 1
    assert matches(state.facts[0], "  ")


def test_only_what_differs(folder):
    c = compare(folder)
    few, all_of_it = columns(c), columns(c, differs=False)
    assert ("seed" in few and "settings.steps" not in few and "settings.steps" in all_of_it
            and len(set(all_of_it)) == len(all_of_it))


def test_what_cannot_be_changes_nothing(folder):
    state, told = ComparerState(folder), []
    state.observers.append(lambda s: told.append(1))
    before = state.settings
    for bad in (dict(view="x"), dict(order="x"), dict(metric="x"), dict(curve="x"), dict(rows=0), dict(picked=("x",))):
        with pytest.raises(UserError): state.change(**bad)
    assert state.settings == before and not told
    with pytest.raises(UserError): ComparerState(folder / "none")


def test_baselines_are_those_of_the_picked_seeds(folder):
    state = ComparerState(folder)
    state.change(picked=("naive-s1", "naive-s2"))
    assert "no F1 beside a supervised run" in say(state.chosen)[0]
    state.pick_baselines()
    assert set(state.settings.picked) == {"naive-s1", "naive-s2", "supervised-s1", "supervised-s2"}
    assert "0 of 2 positive" in state.sentences()[0]


def test_the_code_makes_the_view(folder):
    state = ComparerState(folder)
    state.change(picked=("naive-s1", "supervised-s1"))
    for view in ("curves", "gain", "ratio"):
        state.change(view=view)
        scope = {}
        exec(state.code(), scope)
        assert {f.name for f in scope["runs"].facts} == set(state.settings.picked)


def test_a_picture_is_drawn_once(folder, monkeypatch):
    state, drawn = ComparerState(folder), []
    state.pick_found()
    figure = state.figure
    monkeypatch.setattr(state, "figure", lambda: drawn.append(1) or figure())
    assert state.picture() == state.picture() and drawn == [1]
    state.change(query="naive")
    state.picture()
    assert drawn == [1]
    os.utime(folder / "naive-s0" / "metrics.jsonl")
    state.refresh()
    state.picture()
    assert drawn == [1, 1]
    assert state.picture("svg").lstrip().startswith(b"<?xml")


def imaged(folder: Path, size: int = 64):
    "Data, and two runs that keep predictions of a watched image, one run without."
    data = micrographs(6, 2, 2, size=size)
    for strategy, offset in (("naive", 0.0), ("class_balanced", 0.3)):
        probs = lambda i, offset=offset: np.clip(data.train.mask(i)[None] * 0.7 + offset, 0, 1)
        store([(data.train.ids[i], probs(i)) for i in (3, 4)], folder / f"{strategy}-s0" / "predictions" / "round-3",
              teacher="checkpoints/round-2.safetensors")
    return data


def test_hidden_labels_stay_hidden_unless_asked_for(folder):
    data = imaged(folder)
    runs = compare(folder).only(["naive-s0", "class_balanced-s0", "supervised-s0"])
    assert image_choices(runs, data) == {"train_0003": "watched", "train_0004": "watched"}
    words = lambda fig: " ".join(ax.get_title() for ax in fig.axes) + fig.get_suptitle() + " ".join(
        t.get_text() for legend in fig.legends for t in legend.get_texts())
    hidden, seen = words(show_image(runs, data, "train_0003")), words(show_image(runs, data, "train_0003", oracle=True))
    assert "labels hidden" in hidden and "F1" not in hidden and "missed" not in hidden
    assert "oracle" in seen and "F1 1.000" in seen and "supervised-s0: keeps no prediction" in seen
    with pytest.raises(UserError, match="none of 3 runs"): show_image(runs, data, "train_0000")
    assert "round 3" in words(show_image(runs, None, "train_0003"))


def test_images_without_labels_are_found_by_the_names_that_runs_give_them(folder):
    data = micrographs(6, 2, 2, size=64)
    data = replace(data, train=data.train.subset(data.train.ids[:3]), unlabeled=data.train.subset(data.train.ids[3:]))
    probs = data.pool().mask(3)[None] * 0.7
    said = store([("unlabeled/train_0003", probs)], folder / "naive-s0" / "predictions" / "round-3",
                 teacher="checkpoints/round-2.safetensors")
    shown = show_image(
        compare(folder).only(["naive-s0", "supervised-s0"]), data, "unlabeled/train_0003").axes[0].images[0].get_array()
    # the image, not its probabilities
    assert np.corrcoef(np.ravel(shown), data.train._with(data.unlabeled.items).image(0).ravel())[0, 1] > 0.9
    assert image_sets(data, said).ids[-1] == "unlabeled/train_0005"


def test_validation_images_are_predicted_with_their_errors(folder):
    from pseudolabel_nb.models.checkpoints import save_network
    from pseudolabel_nb.models.networks import build_network
    data = imaged(folder)
    runs = compare(folder).only(["naive-s0", "supervised-s0"])
    for f in runs.facts:
        (f.run.folder / "split.json").write_text(
            f.run.folder.joinpath("split.json").read_text().replace("v.png", data.val.ids[0]))
        c = f.run.folder / "config.json"
        c.write_text(
            c.read_text().replace('"batch_size": 4', '"batch_size": 4, "tile": 1024').replace("[8, 16]", "[4, 8]"))
        save_network(f.run.folder / f.run.best().checkpoint,
                     build_network("unet", 1, 2, **f.run.config["settings"]["network_options"]), f1=0.5)
    before = everything(folder)
    assert image_choices(runs, data)[data.val.ids[0]] == "validation"
    titles = [ax.get_title() for ax in show_image(runs, data, data.val.ids[0]).axes]
    assert len(titles) == 2 and all("missed" in t and "invented" in t for t in titles)
    assert everything(folder) == before


widgets = pytest.importorskip("ipywidgets")


def test_two_views_stay_in_step_and_close(folder):
    from pseudolabel_nb.widgets.comparer import RunComparer
    state = ComparerState(folder)
    a, b = RunComparer(state), RunComparer(state)
    a.ticks[2].value = True
    assert b.ticks[2].value and state.settings.picked == (b.ticks[2].description,)
    b.view.value = "gain"
    assert a.view.value == "gain" and a.code.value == b.code.value == state.code() and a.metric.layout.display == "flex"
    assert "no F1 beside" in b.sentences.value or "Only supervised" in b.sentences.value
    a.query.value = "naive"
    assert b.query.value == "naive" and all("naive" in t.description for t in b.ticks[:5])
    b.close()
    a.query.value = ""
    assert b.query.value == "naive" and len(state.observers) == 1


def test_names_are_escaped(tmp_path):
    from pseudolabel_nb.widgets.comparer import RunComparer
    write_run(tmp_path / "<script>alert(1)", strategy="<img src=x>", error="<b>bad</b>", finished=False)
    view = RunComparer(tmp_path)
    view.state.pick_found()
    values = [w.value for w in (*view.cells, view.head, view.sentences, view.message, view.count)]
    assert not any(re.search("<script|<img src=x|<b>bad", text) for text in [*values, view.snapshot()])
    assert not any(t.description_allow_html for t in view.ticks)


def test_watching_sees_what_is_written_and_stops(folder):
    from pseudolabel_nb.widgets.comparer import RunComparer
    view = RunComparer(folder, watch=0.05)
    before = view.state.reader.reads
    time.sleep(0.3)
    assert view.state.reader.reads == before and view.live.value
    write_run(folder / "late", strategy="naive", seed=8, finished=False)
    end = time.monotonic() + 5
    while not view.count.value.startswith("16 runs") and time.monotonic() < end: time.sleep(0.05)
    assert view.count.value.startswith("16 runs") and view.ticks[0].description == "late"
    view.close()
    assert not any(t.name == "RunComparer" for t in threading.enumerate())
    with pytest.raises(UserError): RunComparer(folder, watch=-1)


def test_it_saves_and_snapshots(folder, tmp_path_factory, monkeypatch):
    from pseudolabel_nb.widgets.comparer import RunComparer
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    view = RunComparer(folder)
    view.state.pick_found()
    assert (view.save("csv").read_text().count("\n") == 16 and view.save("png").read_bytes()[1:4] == b"PNG"
            and b"<svg" in view.save("svg", "drawn").read_bytes())
    with pytest.raises(UserError): view.save("pdf")
    bundle = view._repr_mimebundle_()
    bundle = bundle[0] if isinstance(bundle, tuple) else bundle
    assert ("application/vnd.jupyter.widget-view+json" in bundle and "data:image/png;base64," in bundle["text/html"]
            and "15 runs" in bundle["text/plain"])
    assert len(bundle["text/html"]) < 150_000


def test_every_control_says_what_it_is_for(folder):
    from pseudolabel_nb.widgets.comparer import RunComparer
    def below(w):
        yield w
        for child in getattr(w, "children", ()): yield from below(child)
    controls = [
        w for w in below(RunComparer(folder)) if hasattr(w, "description") and type(w).__name__ not in ("HTML",)]
    assert len(controls) > 25 and all(
        w.description or type(w).__name__ == "ToggleButtons" for w in controls) and all(w.tooltip for w in controls)


def test_a_thousand_runs_are_listed_at_once(tmp_path):
    from pseudolabel_nb.widgets.comparer import RunComparer
    for k in range(1000):
        write_run(tmp_path / f"run-{k:04}", 0.6, strategy=("supervised", "naive")[k % 2], seed=k, metrics=False)
    began = time.perf_counter()
    view = RunComparer(tmp_path)
    listed = time.perf_counter() - began
    began = time.perf_counter()
    assert not view.state.refresh()
    looked = time.perf_counter() - began
    print(f"1,000 runs listed in {listed:.2f} s, looked at again in {looked:.3f} s")
    assert view.state.pages == 100 and listed < 8 and looked < 2 # measured: 0.8 and 0.1 on an idle machine


def test_of_several_baseline_runs_the_newest_counts_everywhere(tmp_path):
    for k, (name, strategy, f1) in enumerate(
        (("old", "supervised", 0.40), ("new", "supervised", 0.58), ("tried", "naive", 0.60))
    ):
        for p in write_run(tmp_path / name, f1, strategy=strategy).iterdir(): os.utime(p, (1000 * (k + 1),) * 2)
    made = compare(tmp_path)
    assert (paired(made)["naive"] == pytest.approx([0.02])
            and made.gains().set_index("strategy.name").loc["naive", "mean"] == pytest.approx(0.02))


def test_why_there_is_no_picture_is_said_as_long_as_there_is_none(tmp_path):
    from pseudolabel_nb.widgets.comparer import RunComparer
    for strategy in ("supervised", "naive"): write_run(tmp_path / strategy, strategy=strategy, finished=False)
    view = RunComparer(tmp_path)
    view.state.pick_found()
    view.state.change(view="gain")
    assert "none of 2 runs has a score" in view.undrawn.value and not view.picture.value
    for strategy in ("supervised", "naive"):
        (tmp_path / strategy / "result.json").write_text(
            '{"f1": 0.7, "precision": 0.7, "recall": 0.7, "best_round": 3}')
    view.state.refresh()
    assert not view.undrawn.value and view.picture.value[1:4] == b"PNG"
