"""A run that is killed (SIGKILL) goes on where it was: nothing is lost but the steps since the last checkpoint, and it
ends bit for bit as if nothing had happened.

The processes are real; the moments at which they die are not left to the clock. Everything that a run does to its
folder, and every step of training, is an event with a number: an unbroken run lists its events, and others are killed
at one of them, half-way through what they write.
"""
import ast, multiprocessing, os, random, re, signal, time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT

CHECKPOINT_EVERY = 5 # steps
KINDS = ("step", "half a file", "half a line", "predicting", "os.rename", "other") # what a process can be killed in
MOMENTS = 5 # a strategy

# ---- what runs in the processes

def strategies() -> dict:
    "One of each kind: rounds, a teacher that labels at every step, an ensemble, and labels made anew every few steps."
    from pseudolabel_nb.strategies.self_training import SelfTraining
    from pseudolabel_nb.strategies.strategy import Strategy
    from pseudolabel_nb.strategies.strategy import strategies as known
    from pseudolabel_nb.strategies.threshold import ClassThresholds
    return dict(rounds=replace(known["class_balanced"], rounds=2), live=known["fixmatch"],
                members=replace(known["ensemble"], rounds=2),
                labels_anew=Strategy("labels_anew", ClassThresholds(0.5, 0.5),
                                     SelfTraining(paired=True, ramp_up=0.5, relabel_every=4), rounds=2))

def discs(n: int, seed: int):
    "Noisy images of 72 × 72 px, each with a disc; what is said of one fills more than a buffer of a file."
    from pseudolabel_nb.data.images import from_arrays
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:72, :72]
    masks = [(np.hypot(x - rng.uniform(10, 62), y - rng.uniform(10, 62)) < 9).astype("u1") for _ in range(n)]
    return from_arrays([(m + 0.5 * rng.standard_normal(m.shape)).astype("f4") for m in masks], masks)

def register() -> None:
    """A small network with batch statistics and dropout; views that draw from Python's, NumPy's and torch's global
    generators, as users write them."""
    import torch
    from torch import nn

    from pseudolabel_nb.models.networks import register_network
    from pseudolabel_nb.training.augmentation import register_augmentation
    @register_network("forgetful")
    def forgetful(channels, n_classes):
        return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3),
                             nn.Conv2d(4, n_classes, 3, padding=1))
    @register_augmentation("careless")
    def careless(image, rng):
        return (image * (1 + 0.2 * random.random()) + 0.1 * np.random.standard_normal(image.shape)  # noqa: NPY002
                + 0.1 * torch.rand(1).item()).astype("f4")

def train(folder: Path, name: str, **settings):
    "The run, to its end."
    import torch

    import pseudolabel_nb as pnb
    torch.set_num_threads(1)
    register()
    asked = dict(steps=24, batch_size=2, crop=32, network="forgetful", evaluations=3,
                 checkpoint_every=CHECKPOINT_EVERY) | settings
    data = pnb.Data("discs", discs(12, 0), discs(6, 1), discs(6, 2))
    return pnb.run(data, strategies()[name], folder, labeled_ratio=0.34, settings=pnb.Settings(**asked), device="cpu")

class Watch:
    "Counts the events of a run, writes one line for each, and ends the process at one of them."
    def __init__(self, folder: Path, log: Path, at: int | None, end: int = signal.SIGKILL):
        self.folder, self.at, self.end, self.seen = str(folder), at, end, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def event(self, kind: str, what: str = "", before=lambda: None) -> None:
        "One event; where it is the last one, `before` leaves things half done."
        self.seen += 1
        # temporary files have names by chance
        os.write(self.log, re.sub(r"[.]\w{8}[.]pseudolabel[.]part$", "", f"{kind} {what}").encode() + b"\n")
        if self.seen != self.at: return
        self.event = lambda *rest: None # what is done while dying is no event
        before()
        os.kill(os.getpid(), self.end)

    def listen(self) -> None:
        "From now on, whatever this process does to the folder is an event."
        import sys

        from pseudolabel_nb.inference import predictions
        from pseudolabel_nb.training import loop
        learn, histogram, write, sync = (
            loop.Trainer.train_step, predictions.confidence_histogram, Path.write_bytes, os.fsync)
        def learned(trainer, *rest, **more):
            loss = learn(trainer, *rest, **more)
            self.event("step")
            return loss
        def counted(*rest):
            self.event("predicting") # the probabilities of some images are written, their histograms are not
            return histogram(*rest)
        def written(path, data):
            if str(path).startswith(self.folder):
                self.event("half a file", path.name, lambda: write(path, data[:len(data) // 2]))
            return write(path, data)
        def synced(fd):
            self.event("half a line", before=lambda: os.ftruncate(fd, os.fstat(fd).st_size - 9))
            return sync(fd)
        loop.Trainer.train_step, predictions.confidence_histogram, Path.write_bytes, os.fsync = (
            learned, counted, written, synced)
        sys.addaudithook(self.heard)

    def heard(self, event: str, args: tuple) -> None:
        "Files that are opened, renamed or removed."
        if event not in ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"): return
        if isinstance(args[0], (str, os.PathLike)) and os.fspath(args[0]).startswith(self.folder):
            self.event(event, os.fspath(args[0]).removeprefix(self.folder))

def live(folder: Path, name: str, log: Path, at: int | None, end: int, settings: dict) -> None:
    "What a process does, until it is done or dies."
    watch = Watch(folder, log, at, end)
    watch.listen()
    try: train(folder, name, **settings)
    except ValueError as e:
        os.write(watch.log, f"error {e}\n".encode())
        raise SystemExit(2) from None

# ---- processes

@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    "Begins a process that trains in a folder; it is forked from one that has imported torch already."
    with pytest.MonkeyPatch.context() as m:
        m.setenv("OMP_NUM_THREADS", "1")
        server, logs = multiprocessing.get_context("forkserver"), tmp_path_factory.mktemp("logs")
        server.set_forkserver_preload(
            [__name__, "torch._dynamo", "filelock", "safetensors.torch", "scipy.stats", "tqdm.auto",
             "pseudolabel_nb.training.rounds", "pseudolabel_nb.strategies.strategy"])
        def started(folder, name, at=None, end=signal.SIGKILL, **settings):
            process = server.Process(
                daemon=True, target=live,
                args=(Path(folder), name, log := logs / f"{time.monotonic_ns()}", at, end, settings))
            process.start()
            return process, log
        yield started

@pytest.fixture(scope="module")
def live_once(begin):
    "One life of a run: how it ended, and its events."
    def lived(*args, **more) -> tuple[int, list[str]]:
        process, log = begin(*args, **more)
        process.join(60)
        assert process.exitcode is not None, "still at work after a minute"
        return process.exitcode, log.read_text().splitlines()
    return lived

@pytest.fixture(scope="module")
def unbroken(live_once, tmp_path_factory):
    "A run of each strategy that nobody interrupts: its folder and its events; made once."
    made = {}
    def run(name: str) -> tuple[Path, list[str]]:
        if name not in made:
            folder = tmp_path_factory.mktemp("unbroken") / name
            code, events = live_once(folder, name)
            assert code == 0, events[-1:]
            made[name] = folder, events
        return made[name]
    return run

def steps(events: list[str]) -> int: return sum(e.startswith("step") for e in events)

def kind(event: str) -> str: return next((k for k in KINDS if event.startswith(k)), "other")

def same(a: Path, b: Path) -> None:
    """The two folders hold the same files; records, scores, weights and predictions are the same, bit for bit.

    Seconds differ."""
    import pseudolabel_nb as pnb
    names = [sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file()) for folder in (a, b)]
    assert names[0] == names[1]
    first, second = pnb.open_run(a), pnb.open_run(b)
    for what in ("config", "split", "environment"): assert getattr(first, what) == getattr(second, what)
    assert first.metrics() == second.metrics()
    assert [replace(r, seconds=0) for r in first.records()] == [replace(r, seconds=0) for r in second.records()]
    assert first.result | dict(seconds=0) == second.result | dict(seconds=0)
    exact = [n for n in names[0] if n.suffix in (".safetensors", ".u16", ".i32") or n.name in (
                 "index.jsonl", "meta.json", "test_counts.json")]
    assert Counter(n.suffix for n in exact)[".safetensors"] >= 2
    for name in exact: assert (a / name).read_bytes() == (b / name).read_bytes(), name

# ---- going on

def moments(name: str, events: list[str]) -> list[int]:
    """Where to kill: at one event of each of five kinds in turn, chosen at random, but of the lines at the last, which
    is the record of the last round."""
    chance, kinds = random.Random(name), KINDS[:4] + KINDS[4 + list(strategies()).index(name) % 2:][:1]
    found = {k: [n for n, e in enumerate(events, 1) if kind(e) == k] for k in kinds}
    return [n[-1] if k == "half a line" else chance.choice(n) for k, n in found.items()]

@pytest.mark.parametrize("k", range(MOMENTS))
@pytest.mark.parametrize("name", ["rounds", "live", "members", "labels_anew"])
def test_killed_once(live_once, unbroken, tmp_path, name, k):
    whole, events = unbroken(name)
    at = moments(name, events)[k]
    code, before = live_once(tmp_path / name, name, at)
    assert code == -signal.SIGKILL and before == events[:at] # the same, up to the moment
    code, after = live_once(tmp_path / name, name)
    assert code == 0, after[-1:]
    same(tmp_path / name, whole)
    assert 24 == steps(events) <= steps(before + after) <= 24 + CHECKPOINT_EVERY

@pytest.mark.parametrize("name", ["rounds", "live", "members", "labels_anew"])
def test_killed_again_and_again(live_once, unbroken, tmp_path, name):
    "Moments at random, with more and more time to live."
    whole, _ = unbroken(name)
    chance, done = random.Random(f"again {name}"), []
    for life in range(40):
        code, events = live_once(tmp_path / name, name, chance.randrange(20, 60 + 30 * life))
        done.append(steps(events))
        if code == 0: break
        assert code == -signal.SIGKILL, events[-1:]
    assert code == 0 and len(done) > 3
    same(tmp_path / name, whole)
    assert sum(done) <= 24 + CHECKPOINT_EVERY * (len(done) - 1)

def test_a_second_process_is_refused_until_the_first_is_gone(begin, live_once, unbroken, tmp_path):
    whole, events = unbroken("rounds")
    folder, middle = tmp_path / "rounds", [n for n, e in enumerate(events, 1) if kind(e) == "step"][9]
    first, log = begin(folder, "rounds", middle, signal.SIGSTOP)
    while not log.exists() or log.read_text().count("\n") < middle: time.sleep(0.02)
    try:
        code, said = live_once(folder, "rounds")
        assert code == 2 and not steps(said)
        assert (said[-1] == f"error {folder}: another process is working in this run "
                            "folder; wait for it, or choose another output folder")
    finally:
        first.kill()
        first.join(60)
    code, after = live_once(folder, "rounds")
    assert code == 0, after[-1:] # the lock went with the process
    same(folder, whole)

# ---- chance

def test_numbers_of_users_go_on_too(live_once, tmp_path):
    "Views that draw from the global generators of Python, NumPy and torch."
    code, events = live_once(tmp_path / "whole", "rounds", augment="careless")
    assert code == 0, events[-1:]
    at = [n for n, e in enumerate(events, 1) if kind(e) == "step"][8]
    assert live_once(tmp_path / "cut", "rounds", at, augment="careless")[0] == -signal.SIGKILL
    assert live_once(tmp_path / "cut", "rounds", augment="careless")[0] == 0
    same(tmp_path / "cut", tmp_path / "whole")

@pytest.mark.parametrize("seeded", [True, False])
def test_without_the_seed_of_each_step_a_resumed_run_would_differ(monkeypatch, tmp_path, seeded):
    "The network and the views of these tests are random indeed: it is the seeds that make a resumed run the same."
    from pseudolabel_nb.training import loop
    if not seeded:
        for name in ("seed_torch", "seed_shared"): monkeypatch.setattr(loop, name, lambda *names: None)
    learn = loop.Trainer.train_step
    def dying(trainer, *rest):
        if trainer.phase.number == 1 and trainer.step == 3: raise KeyboardInterrupt
        return learn(trainer, *rest)
    train(tmp_path / "whole", "rounds")
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(loop.Trainer, "train_step", dying)
        train(tmp_path / "cut", "rounds")
    train(tmp_path / "cut", "rounds")
    if seeded: return same(tmp_path / "cut", tmp_path / "whole")
    with pytest.raises(AssertionError): same(tmp_path / "cut", tmp_path / "whole")

STREAMS = {"default_rng", "Generator", "SeedSequence"}
DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "rand_like", "randn_like",
         "randint_like"}

def global_chance(tree: ast.AST) -> list[str]:
    "What draws from, or seeds, a generator that everyone shares."
    found = [
        ast.unparse(n) for n in ast.walk(tree) if isinstance(
            n, (ast.Import, ast.ImportFrom)) and "random" in [*(a.name for a in n.names), getattr(n, "module", None)]]
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        name = ast.unparse(call.func)
        if name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] not in STREAMS: found.append(name)
        if (name.startswith("torch.") and name.split(".")[-1] in DRAWS
                and "generator" not in [k.arg for k in call.keywords]):
            found.append(name)
    return found

ALLOWED = {"streams.py": {"import random", "np.random.seed"}} # seeds them

@pytest.mark.parametrize(
    "module", sorted((ROOT / "pseudolabel_nb").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_module_draws_from_a_shared_generator(module):
    assert not set(global_chance(ast.parse(module.read_text(encoding="utf-8")))) - ALLOWED.get(module.name, set())

@pytest.mark.parametrize("code",
                         ["import random", "from random import choice", "np.random.rand(3)", "numpy.random.seed(0)",
                          "np.random.shuffle(x)", "torch.rand(3)", "torch.randperm(4, device=d)"])
def test_a_shared_generator_would_be_seen(code): assert global_chance(ast.parse(code))

@pytest.mark.parametrize("code",
                         ["np.random.default_rng(0)", "np.random.Generator(b)", "rng.random(3)",
                          "torch.rand(3, generator=g)", "from pseudolabel_nb.core import random_stream"])
def test_streams_of_ones_own_are_not_meant(code): assert not global_chance(ast.parse(code))
