"""A sweep by one process, by several, and by a Dask cluster: the same table, nothing lost when a run fails or the sweep
is stopped, and no process left behind."""
import copy
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import discs
from PIL import Image

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError, read_json
from pseudolabel_nb.data.images import Cache, from_arrays
from pseudolabel_nb.experiments import jobs
from pseudolabel_nb.experiments import sweep as module
from pseudolabel_nb.experiments.clusters import dask_cluster, processes
from pseudolabel_nb.experiments.sweep import sweep
from pseudolabel_nb.runs.run import Run, locked
from pseudolabel_nb.strategies.strategy import Strategy

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = pnb.Settings(
    steps=16, batch_size=2, crop=16, network_options=dict(widths=(4, 8)), evaluations=1, checkpoint_every=5)
MINE = """
import os, signal
from dataclasses import dataclass
from pseudolabel_nb.strategies.selection import Rule, Selector

@dataclass(frozen=True)
class Mine(Selector):
    "Trusts all; or it fails, or ends its process, until `calm` is a file."
    how: str = ""
    calm: str = ""
    def fit(self, members, context):
        if not os.path.exists(self.calm):
            if self.how == "fails": raise KeyError("mito")
            if self.how == "dies": os.kill(os.getpid(), signal.SIGKILL)
        return Rule((0.5, 0.5), members[0].ids)
"""



@cache
def data() -> pnb.Data: return pnb.Data("discs", discs(12, 0), discs(6, 1), discs(6, 2))


pytestmark = pytest.mark.usefixtures("one_thread") # as the workers have it


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A module of the user's with a selector."
    (tmp_path / "code").mkdir()
    (tmp_path / "code/my_selectors.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    import my_selectors
    yield my_selectors
    del sys.modules["my_selectors"]


def quick(out: Path, strategies=("naive", "limited"), ratios=(0.34, 0.5), seeds=(0, 1), rates=(1e-3, 3e-3), **more):
    "A sweep of tiny runs."
    chosen = [pnb.strategy(r, rounds=2) if isinstance(r, str) else r for r in strategies]
    return sweep(data(), chosen, ratios, seeds, out, SETTINGS, rates, "cpu", more.pop("say", lambda line: None), **more)


def table(out: Path) -> list[bytes]:
    "results.csv without its last column, the seconds."
    lines = (out / "results.csv").read_bytes().splitlines()
    assert lines[0].endswith(b",seconds")
    return [line.rpartition(b",")[0] for line in lines]


def read_rate(out: Path) -> float:
    "The learning rate that was chosen for the lower ratio."
    return float(pd.read_csv(out / "tuning/r0.34.csv").set_index("chosen").loc[True, "learning_rate"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    "The sweep by this process."
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone")
    assert quick(out).failed == {}
    return out


@contextmanager
def local_cluster():
    "The executor of a Dask cluster of two workers, here."
    distributed = pytest.importorskip("distributed", reason="needs distributed: pip install \"pseudolabel_nb[dask]\"")
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
          dask_cluster(cluster.scheduler_address) as executor):
        yield executor


WORKERS = dict(processes=lambda: processes(2), dask=local_cluster)


# the same, whoever works

@pytest.mark.parametrize("kind", WORKERS)
def test_the_same_table(kind, alone, tmp_path):
    said = []
    with WORKERS[kind]() as workers: done = quick(tmp_path, executor=workers, say=said.append)
    assert done.failed == {} and table(tmp_path) == table(alone)
    assert pd.read_csv(tmp_path / "results.csv")["seconds"].gt(0).all() and len(table(alone)) == 1 + 2 * 2 * 3
    assert (tmp_path / "summary.csv").read_bytes() == (alone / "summary.csv").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in alone.iterdir())
    for p in alone.glob("*/*/checkpoints/round-*.safetensors"):
        assert p.read_bytes() == (tmp_path / p.relative_to(alone)).read_bytes(), p
    taught = sorted(line.split(":")[0] for line in said if ": round 0: " in line and "-lr" not in line)
    # each first training once; s0's was done in tuning
    assert taught == sorted(
        ["supervised-r0.34-s1", "supervised-r0.5-s1"] + [f"naive-r{r}-s{s}" for r in (0.34, 0.5) for s in (0, 1)])


def test_again_trains_nothing(alone):
    stamps = lambda: {p: p.stat().st_mtime_ns for p in alone.rglob("*") if p.suffix in (".safetensors", ".jsonl")}
    before, text = stamps(), (alone / "results.csv").read_bytes()
    with processes(2) as workers: quick(alone, executor=workers)
    assert stamps() == before and (alone / "results.csv").read_bytes() == text


def test_what_the_first_teacher_predicts_is_shared(tmp_path):
    """One store under several names where nothing else labeled since; nothing is left aside, and nothing of the user's
    is taken."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "notes.txt").write_text("mine")
    strategies = [pnb.strategy("naive", rounds=1), pnb.strategy("limited", rounds=1),
                  pnb.strategy("naive", name="flipped", rounds=1, teacher__flips=True)]
    quick(tmp_path, strategies, [0.34], [0], [3e-3])
    naive, limited, flipped = (tmp_path / f"runs/{r.name}-r0.34-s0/predictions/round-1/probs.u16" for r in strategies)
    assert naive.samefile(limited) and not naive.samefile(flipped) and naive.read_bytes() != flipped.read_bytes()
    assert (tmp_path / "shared" / "notes.txt").read_text() == "mine" and not [*tmp_path.glob(".pseudolabel*")]


def test_steps_left(tmp_path):
    "What the progress bar counts: each first teacher once, and nothing that is on disk."
    methods = [pnb.strategy(n, rounds=1) for n in ("naive", "limited")]
    plan = module._jobs(tmp_path, methods, [0.34], [0], SETTINGS, [3e-3])
    assert list(module._steps_left(plan).values()) == [16, 8]
    sweep(data(), methods[:1], [0.34], [0], tmp_path, SETTINGS, [3e-3], "cpu", lambda line: None)
    assert list(module._steps_left(plan).values()) == [0, 8]


def test_data_travels():
    "Opened in a worker, images are what they were; decoded ones stay at home."
    images = pnb.micrographs(n_train=3, n_val=2, n_test=2, size=64)
    first = images.train.image(0)
    sent = pickle.dumps(images)
    assert len(sent) < 5000
    arrived = pickle.loads(sent) # noqa: S301 - it was dumped a line above
    assert np.array_equal(arrived.train.image(0), first) and np.array_equal(arrived.val.mask(1), images.val.mask(1))
    assert vars(copy.copy(Cache(0)))["limit"] == 0 # a state that counts as false is a state, too


# what fails

@pytest.mark.parametrize("how", ["fails", "dies"])
def test_a_failed_run_is_written_down_and_the_others_go_on(how, mine, alone, tmp_path):
    strategies = "naive", Strategy("mine", mine.Mine(how, str(tmp_path / "calm")), rounds=2), "limited"
    said, out, some = [], tmp_path / "out", dict(ratios=[0.34], rates=[read_rate(alone)])
    expected = [line for line in table(alone) if b",0.5," not in line]
    with processes(2) as workers: done = quick(out, strategies, **some, executor=workers, say=said.append)
    assert sorted(done.failed) == ["mine-r0.34-s0", "mine-r0.34-s1"]
    for name, line in done.failed.items():
        assert (("KeyError: 'mito'" if how == "fails" else "SIGKILL") in line and "\n" not in line
                and f"{name} failed: {line}" in said and line in str(done))
        assert Run(out / "runs" / name).status == "failed" and Run(out / "runs" / name).error["error"] == line
    assert table(out) == expected
    (tmp_path / "calm").touch()
    done = quick(out, strategies, **some)
    assert done.failed == {} and not list(out.rglob("error.json")) and set(expected) < set(table(out))


def test_all_fail(mine, tmp_path):
    "Where nothing is to be shown, the first error is the sweep's."
    with pytest.raises(UserError, match="no foreground"):
        sweep(replace(
                  data(),
                  train=from_arrays(np.random.default_rng(0).normal(size=(8, 24, 24)), np.zeros((8, 24, 24), "uint8"))),
              ["naive"], [0.5], [0, 1], tmp_path, SETTINGS, [3e-3], "cpu", lambda line: None)


def test_a_busy_folder_is_left_alone(tmp_path):
    "Another process works on a run: it is named, and nothing is written there."
    quick(tmp_path, [], [0.34], [0], [3e-3])
    with locked(tmp_path / "runs/naive-r0.34-s0"): done = quick(tmp_path, ["naive"], [0.34], [0], [3e-3])
    assert "another process" in done.failed["naive-r0.34-s0"] and not (
        tmp_path / "runs/naive-r0.34-s0/error.json").exists()
    assert quick(tmp_path, ["naive"], [0.34], [0], [3e-3]).failed == {}


def test_a_full_disk_stops_all(tmp_path, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device", "x")
    monkeypatch.setattr(jobs, "score", full)
    with pytest.raises(OSError, match="No space left"): quick(tmp_path)
    assert not list(tmp_path.rglob("error.json")) and len(list((tmp_path / "runs").iterdir())) == 1


def test_a_sweep_that_is_gone_ends_its_runs(tmp_path):
    "A run on another machine cannot be killed from here: it looks whether its sweep is still there."
    job = module._jobs(tmp_path, [pnb.strategy("naive")], [0.34], [0], SETTINGS, [3e-3])[0]
    with module._signed(tmp_path, jobs.Common(data(), "cpu"), True) as common: assert not common.called_off()
    assert common.called_off() and jobs.work(common, job) is None
    assert len(Run(job.folder).records()) == 1 and Run(job.folder).result is None


def test_what_a_worker_cannot_know(tmp_path, monkeypatch):
    from pseudolabel_nb.models.networks import networks
    monkeypatch.setitem(networks, "here", lambda channels, n_classes: torch.nn.Conv2d(channels, n_classes, 1))
    with processes(1) as workers, pytest.raises(UserError, match=r"unknown network 'here'.*move them .* into a file"):
        sweep(data(), ["naive"], [0.34], [0], tmp_path / "out", replace(SETTINGS, network="here", network_options={}),
              [3e-3], "cpu", executor=workers)
    assert not (tmp_path / "out").exists()


# the command

def folder(root: Path) -> Path:
    "Images with a square each, in images/ and masks/."
    rng = np.random.default_rng(0)
    for split, n in dict(train=8, val=4, test=4).items():
        for kind in ("images", "masks"): (root / split / kind).mkdir(parents=True)
        for k in range(n):
            mask = np.zeros((32, 32), "u1")
            y, x = rng.integers(2, 20, 2)
            mask[y:y + 9, x:x + 9] = 255
            Image.fromarray(mask).save(root / split / f"masks/{split}_{k}.png")
            Image.fromarray((mask // 4 + rng.integers(60, 120, mask.shape)).astype("u1")).save(
                root / split / f"images/{split}_{k}.png")
    return root


def config(tmp_path: Path, **more) -> Path:
    "A sweep.toml."
    lines = dict(strategy=["naive", "limited"], seeds=[0, 1], n_iterations=2, learning_rates=[0.003],
                 labeled_ratios=[0.5], device="cpu", data_dir=str(tmp_path / "d")) | more
    settings = dict(steps=60, crop=32, batch_size=2, evaluations=1, checkpoint_every=10)
    text = ("".join(f"{k} = {json.dumps(v)}\n" for k, v in lines.items())
            + "[settings]\nnetwork_options = {widths = [4, 8]}\n"
            + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items()))
    (tmp_path / "sweep.toml").write_text(text)
    return tmp_path / "sweep.toml"


def started(*argv, name="sweep") -> subprocess.Popen:
    "The command as a shell starts it in the foreground (where Ctrl-C is not ignored), in a process group of its own."
    env = dict(
        os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    code = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from "
            f"pseudolabel_nb.cli import {name}; sys.exit({name}())")
    return subprocess.Popen([sys.executable, "-c", code, *map(str, argv)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def ended(*argv, name="sweep") -> tuple[int, str, str]:
    "Code, stdout and stderr of the command."
    p = started(*argv, name=name)
    out, err = p.communicate(timeout=240)
    return p.returncode, out, err


def children(pid: int) -> set[int]:
    "The processes that it has started, and those that they have."
    known = {}
    for p in Path("/proc").glob("[0-9]*/stat"):
        try: known[int(p.parent.name)] = int(p.read_text().rpartition(")")[2].split()[1])
        except OSError: pass
    found, new = set(), {pid}
    while new: found, new = found | new, {c for c, parent in known.items() if parent in new}
    return found - {pid}


def gone(pids: set[int], patience: float = 10) -> bool:
    "Do all of these processes end within so many seconds?"
    for _ in range(int(patience / 0.1)):
        if not any(Path(f"/proc/{p}").exists() and ") Z" not in Path(f"/proc/{p}/stat").read_text() for p in pids):
            return True
        time.sleep(0.1)
    return False


def in_the_middle(process: subprocess.Popen, out: Path) -> set[int]:
    "Wait until both workers work; the workers' process ids."
    for _ in range(1200):
        if len(list(out.glob("runs/*/metrics.jsonl"))) >= 2: return children(process.pid)
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError(out)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    "The folder of images, sweep.toml, and what the sweep of one process writes to `out`."
    root = tmp_path_factory.mktemp("unbroken")
    folder(root / "d")
    code, said, err = ended("--config", config(root), "--threads", 1, "--output-dir", root / "out")
    assert (code, err) == (0, "") and "labels  strategy" in said
    return root


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=lambda s: s.name)
def test_stopped_in_the_middle(how, unbroken, tmp_path):
    "Killed or interrupted, a sweep leaves no process behind, and the same command does what is missing."
    argv, out = (
        "--config", unbroken / "sweep.toml", "--workers", 2, "--output-dir", tmp_path / "out"), tmp_path / "out"
    p = started(*argv)
    workers = in_the_middle(p, out)
    assert len(workers) >= 2
    if how == signal.SIGINT: os.killpg(p.pid, how) # as a terminal does
    else: p.send_signal(how)
    _, err = p.communicate(timeout=30)
    assert gone(workers), "workers are left"
    if how == signal.SIGINT: assert (p.returncode, err) == (130, "stopped; the same command goes on where it was\n")
    begun = {q: q.stat().st_mtime_ns for q in out.glob("runs/*/result.json")}
    assert len(begun) < 6
    code, said, err = ended(*argv)
    assert (code, err) == (0, "") and "labels  strategy" in said and len(table(out)) == 7
    assert all(q.stat().st_mtime_ns == stamp for q, stamp in begun.items())
    assert table(out) == table(unbroken / "out")
    assert {q.name for q in out.iterdir()} == {q.name for q in (unbroken / "out").iterdir()}


def test_exit_code_and_a_plugin_in_the_workers(tmp_path):
    folder(tmp_path / "d")
    (tmp_path / "my_plugin.py").write_text(
        MINE + "from pseudolabel_nb.strategies.strategy import register_strategy\n"
               "register_strategy('mine', selector__how='fails')(Mine)\n")
    argv = ("--config", config(tmp_path, strategy=["naive", "mine"], seeds=[0]), "--plugin", tmp_path / "my_plugin.py",
            "--workers", 2, "--output-dir", tmp_path / "out")
    code, said, err = ended(*argv)
    assert (code == 1 and err.splitlines()[0] == "failed: mine-r0.5-s0: KeyError: 'mito'"
            and "1 runs have failed" not in err and len(err.splitlines()) == 2)
    assert ("mine-r0.5-s0 failed: KeyError" in said and "labels  strategy" in said
            and "naive" in said.split("labels  strategy")[1])
    assert "my_plugin.py" in read_json(tmp_path / "out/runs/mine-r0.5-s0/error.json")["traceback"]
    code, _, err = ended(*argv, "--strategy", "mine", "--set", "selector.how=calmly")
    assert code == 2 and "was begun with another config" in err
    code, said, err = ended(*argv[:-1], tmp_path / "calm", "--strategy", "mine", "--set", "selector.how=calmly")
    assert (code, err) == (0, "")


def test_dask_from_the_command_line(unbroken, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs distributed: pip install \"pseudolabel_nb[dask]\"")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        code, said, err = ended("--config", unbroken / "sweep.toml", "--seeds", 0, "--dask", cluster.scheduler_address,
                                "--output-dir", tmp_path / "out")
    assert ((code, err) == (0, "") and "labels  strategy" in said and len(table(tmp_path / "out")) == 4
            and set(table(tmp_path / "out")) < set(table(unbroken / "out")))


@pytest.mark.parametrize("argv, parts",
                         [(("--dask", "tcp://127.0.0.1:9", "--workers", "2"), ["--workers 2", "--dask"]),
                          (("--workers", "0"), ["--workers", "at least 1"]),
                          (("--config", "nowhere.toml"), ["nowhere.toml", "no such file"])],
                         ids=" ".join)
def test_slips(argv, parts, tmp_path):
    code, _, err = ended("--demo", "--output-dir", tmp_path / "out", *argv)
    assert code == 2 and err.count("\n") == 1 and all(p in err for p in parts), err


def test_no_scheduler():
    pytest.importorskip("distributed", reason="needs distributed: pip install \"pseudolabel_nb[dask]\"")
    with pytest.raises(UserError, match="no Dask scheduler answers"), dask_cluster("tcp://127.0.0.1:9", patience=1):
        pass
    with pytest.raises(UserError, match="no Dask scheduler answers"), dask_cluster("nonsense://x", patience=1): pass
    with pytest.raises(UserError, match=r"nofile\.json: no such file"), dask_cluster("nofile.json", patience=1): pass


def test_repeat(unbroken, tmp_path):
    "From the folder alone: the images are where they were."
    pytest.importorskip(
        "pseudolabel_nb.experiments.repeat", reason="pseudolabel_nb.experiments.repeat is not written yet")
    run = unbroken / "out/runs/naive-r0.5-s0"
    code, said, err = ended("--from", run, "--output-dir", tmp_path / "again", name="train")
    assert (code, err) == (0, "") and read_json(
        tmp_path / "again" / run.name / "result.json")["f1"] == read_json(run / "result.json")["f1"], said


def test_report(unbroken, tmp_path):
    pytest.importorskip(
        "pseudolabel_nb.experiments.report", reason="pseudolabel_nb.experiments.report is not written yet")
    for lacking in ("nbconvert", "nbformat", "ipykernel"): pytest.importorskip(lacking, reason=f"needs {lacking}")
    code, said, err = ended(unbroken / "out", "--out", tmp_path, name="report")
    assert ((code, err) == (0, "") and "report.html" in said and (tmp_path / "report.html").exists()
            and (tmp_path / "report.ipynb").exists())
