"""Runs in TensorBoard and MLflow, read back by their own readers: real runs, odd ones, and runs that grow between two
calls."""
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError, append_jsonl, read_json, read_jsonl, write_json, write_text
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.runs import tracking
from pseudolabel_nb.runs.run import RoundRecord, begin_run
from pseudolabel_nb.runs.tracking import run_scalars, to_mlflow, to_tensorboard
from pseudolabel_nb.strategies.strategy import strategies

SETTINGS = pnb.Settings(steps=8, batch_size=2, crop=16, network_options=dict(widths=(4, 8)), evaluations=2)


def noise(n: int, seed: int) -> pnb.ImageSet:
    rng = np.random.default_rng(seed)
    return from_arrays(
        rng.standard_normal((n, 16, 16)).astype("float32"), (rng.random((n, 16, 16)) < 0.2).astype("uint8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder, data = tmp_path_factory.mktemp("a sweep"), pnb.Data("noise", noise(8, 0), noise(4, 1), noise(4, 2))
    for name in ("supervised", "naive"):
        pnb.run(data, replace(strategies[name], rounds=1) if name == "naive" else name, folder / "runs" / name,
                labeled_ratio=0.5, settings=SETTINGS, device="cpu")
    return folder


def odd(folder: Path) -> pnb.Run:
    "A run with class names, a strategy name and numbers that need care."
    config = dict(classes=["a/b", "c'\n<d>"], seed=0,
                  strategy=dict(name="x' OR 1=1 --", about="é" * 9000, nothing=None, list=[1, 2]))
    run = begin_run(folder, config, dict(test=["t"]), "cpu")
    append_jsonl(folder / "metrics.jsonl", dict(round=0, member=0, step=5, loss=math.nan, f1=0.1, precision=None))
    for r in range(2):
        run.add_record(RoundRecord(r, 10, 0.5, 0.5, 0.5, 0.5, True, "", 3.0, 0.04, ratio_pseudo=0.1 if r else None,
                                   thresholds=(0.8, 0.6), kept=(9, 1), gain=math.inf if r else None))
    return run


@pytest.fixture
def read_tensorboard():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="needs TensorBoard: pip install 'pseudolabel_nb[track]'")
    def read(folder: Path) -> dict[tuple[str, int], list[float]]:
        events, found = accumulator.EventAccumulator(str(folder), size_guidance=dict(scalars=0)).Reload(), {}
        for name in events.Tags()["scalars"]:
            for e in events.Scalars(name): found.setdefault((name, e.step), []).append(e.value)
        return found
    return read


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    "A database with MLflow's tables, which take seconds to make."
    for needed in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(needed, reason="needs MLflow: pip install 'pseudolabel_nb[track]'")
    from mlflow import MlflowClient
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}")
    return file


@pytest.fixture
def mlflow_store(empty_store, tmp_path):
    from mlflow import MlflowClient
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    return store, MlflowClient(store)


def expected(run: pnb.Run) -> dict[tuple[str, int], float]: return {(s.name, s.step): s.value for s in run_scalars(run)}


def test_every_number_of_a_run_is_there_once(runs):
    for name in ("supervised", "naive"):
        run = pnb.open_run(runs / "runs" / name)
        scalars = run_scalars(run)
        assert len({(s.name, s.step) for s in scalars}) == len(scalars) and all(math.isfinite(s.value) for s in scalars)
        assert [s.value for s in sorted(scalars, key=lambda s: s.step) if s.name == "train/loss"] == [
            m["loss"] for m in run.metrics()]
        assert {s.name: s.value for s in scalars if s.name.startswith("test/")} == {
            f"test/{k}": run.result[k] for k in ("f1", "precision", "recall")}
        assert max(s.step for s in scalars) == SETTINGS.steps and max(s.seconds for s in scalars) == pytest.approx(
            sum(r.seconds for r in run.records()))


def test_tensorboard_reads_what_was_written_once(runs, tmp_path, read_tensorboard):
    added = to_tensorboard(runs, tmp_path / "logs")
    files = sorted(p.name for p in (tmp_path / "logs").rglob("*") if p.is_file())
    assert to_tensorboard(runs, tmp_path / "logs") == 0 and files == sorted(
        p.name for p in (tmp_path / "logs").rglob("*") if p.is_file())
    total = 0
    for name in ("supervised", "naive"):
        found = read_tensorboard(tmp_path / "logs" / "runs" / name)
        wanted = expected(pnb.open_run(runs / "runs" / name))
        assert found.keys() == wanted.keys() and all(found[k] == [pytest.approx(wanted[k], rel=1e-6)] for k in wanted)
        total += len(found)
    assert added == total


def test_mlflow_reads_what_was_written_once(runs, mlflow_store):
    store, client = mlflow_store
    assert to_mlflow(runs, store, "one") == sum(
        len(expected(pnb.open_run(runs / "runs" / n))) for n in ("supervised", "naive"))
    assert to_mlflow(runs, store, "one") == 0
    logged = {r.info.run_name: r for r in client.search_runs([client.get_experiment_by_name("one").experiment_id])}
    assert set(logged) == {"runs/supervised", "runs/naive"} and {r.info.status for r in logged.values()} == {"FINISHED"}
    for name, run in logged.items():
        found = [((key, m.step), m.value)
                 for key in run.data.metrics
                 for m in client.get_metric_history(run.info.run_id, key)]
        assert dict(found) == expected(pnb.open_run(runs / name)) and len(dict(found)) == len(found)
        assert run.data.params["settings.steps"] == "8" and run.info.end_time >= run.info.start_time
    # another experiment: the name of the folder above
    assert to_mlflow(pnb.open_run(runs / "runs" / "naive"), store) > 0
    assert client.get_experiment_by_name("runs")


def test_a_run_that_goes_on_is_followed(tmp_path, read_tensorboard, mlflow_store):
    store, client = mlflow_store
    run, seen = begin_run(tmp_path / "r", dict(strategy=dict(name="x")), dict(test=["t"]), "cpu"), []
    for r in range(3):
        append_jsonl(run.folder / "metrics.jsonl", dict(round=r, member=0, step=10, loss=0.5, f1=0.5 + r / 10))
        # computed twice after an interruption
        if r == 1: append_jsonl(run.folder / "metrics.jsonl", dict(round=0, member=0, step=10, loss=0.5, f1=0.5))
        seen.append((to_tensorboard(run, tmp_path / "logs"), to_mlflow(run, store, "e")))
        run.add_record(RoundRecord(r, 10, 0.5, 0.5, 0.5, 0.5, True, "", 3.0, 0.04))
    assert seen == [(2, 2)] * 3
    write_json(run.folder / "error.json", dict(error="killed", when="now"))
    assert to_mlflow(run, store, "e") == 0
    (logged,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (logged.info.status, logged.data.tags["error"]) == ("FAILED", "killed")
    (run.folder / "error.json").unlink()
    write_json(run.folder / "result.json", dict(f1=0.7, precision=0.7, recall=0.7))
    assert (to_tensorboard(run, tmp_path / "logs"), to_mlflow(run, store, "e")) == (3, 3)
    assert client.get_run(logged.info.run_id).info.status == "FINISHED"
    assert read_tensorboard(tmp_path / "logs" / "r") == {k: [pytest.approx(v)] for k, v in expected(run).items()}


def test_odd_names_and_numbers(tmp_path, read_tensorboard, mlflow_store):
    store, client = mlflow_store
    run = odd(tmp_path / "it's \"odd\"")
    wanted = expected(run)
    assert ("validation/f1", 5) in wanted and not any(
        k[0] in ("train/loss", "gate/gain") for k in wanted) and ("pseudo/threshold/a/b", 20) in wanted
    to_tensorboard(run, tmp_path / "logs")
    assert read_tensorboard(tmp_path / "logs" / run.name).keys() == wanted.keys()
    assert to_mlflow(run, store) == len(wanted) and to_mlflow(run, store) == 0
    (logged,) = client.search_runs([client.get_experiment_by_name(tmp_path.name).experiment_id])
    assert logged.info.run_name == run.name and logged.data.params["strategy.name"] == "x' OR 1=1 --"


def test_nothing_is_written_into_the_runs(runs, tmp_path, mlflow_store):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in runs.rglob("*")}
    to_tensorboard(runs, tmp_path / "logs")
    to_mlflow(runs, mlflow_store[0])
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in runs.rglob("*")}
    assert read_jsonl(runs / "runs" / "naive" / "metrics.jsonl") and read_json(runs / "runs" / "naive" / "result.json")


def test_mlflow_is_asked_to_tell_nobody(runs, mlflow_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    to_mlflow(runs, mlflow_store[0])
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    to_mlflow(runs, mlflow_store[0])
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false" # the user has decided


def test_slips_are_one_line(runs, tmp_path, monkeypatch, mlflow_store):
    (tmp_path / "empty").mkdir()
    for call in (to_tensorboard, to_mlflow):
        for folder, part in ((tmp_path / "nothing", "no such folder"), (tmp_path / "empty", "found no run")):
            with pytest.raises(UserError, match=part) as error:
                call(folder, f"sqlite:///{tmp_path}/x.db" if call is to_mlflow else tmp_path / "x")
            assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="MLflow at nowhere://x refuses") as error: to_mlflow(runs, "nowhere://x")
    assert "\n" not in str(error.value)
    run = odd(tmp_path / "again")
    to_tensorboard(run, tmp_path / "logs")
    write_text(run.folder / "metrics.jsonl", "")
    append_jsonl(run.folder / "metrics.jsonl", dict(round=0, member=0, step=5, f1=0.2))
    with pytest.raises(UserError,
                       match=r"validation/f1 at step 5 is 0.1; expected 0.2 .* another run was logged there"):
        to_tensorboard(run, tmp_path / "logs")
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for call in (to_tensorboard, to_mlflow):
        with pytest.raises(UserError, match=r"pip install 'pseudolabel_nb\[track\]'"): call(runs, str(tmp_path / "y"))
