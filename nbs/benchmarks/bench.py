"""What the package costs beside the bare network: ratios from one run, printed and written as a table.

    make bench            three to five minutes
    python nbs/benchmarks/bench.py --quick --out ratios.csv

Two ways of doing the same work are timed in turns, a few dozen batches each, in one process: when the machine is busy,
it is busy for both.
"""
import argparse
import csv
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median_low

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
TABLE = ROOT / "nbs" / "benchmarks" / "results" / "speed.csv"
SIDE, BATCH, LABELED = 256, 4, 0.05 # px; images a batch; share of the images that counts as labeled


@dataclass(frozen=True)
class Row:
    "One line of the table."
    what: str
    value: float # the median over repeats (of an even number, the lower of the two in the middle)
    goal: float | None # at most
    limit: float | None # at most, for now; None: the goal
    unit: str # of `value`: "ratio", "s", "modules"
    ours: float # what `value` is made of: the package
    bare: float | None # and what it is compared with
    of: str # unit of these two: "s", "MiB", "modules"
    low: float # smallest and largest `value` of the repeats
    high: float
    repeats: int

    def __str__(self) -> str:
        beside = f" over {self.bare:.3g} {self.of}" if self.bare is not None else ""
        judged = "".join(
            f"; {name} {most:g} {'met' if self.value <= most else 'missed'}"
            for name, most in (("goal", self.goal), ("limit", self.limit)) if most is not None)
        return f"{self.what:<52} {self.value:6.3f} {self.unit:<7} ({self.ours:.3g} {self.of}{beside}{judged})"


def ratio_row(what: str, pairs: list[tuple[float, float]], of: str = "s", goal: float | None = None,
              limit: float | None = None) -> Row:
    "The median ratio of some (ours, bare) pairs, and the pair it comes from."
    ranked = sorted(pairs, key=lambda p: p[0] / p[1])
    ratios = [a / b for a, b in ranked]
    return Row(what, median_low(ratios), goal, limit, "ratio", *ranked[(len(ranked) - 1) // 2], of, ratios[0],
               ratios[-1], len(pairs))


# Taking turns

class Turns:
    "A forward hook that stops the clock every few calls and does the same number of steps the bare way."
    def __init__(self, bare: Callable[[int], None], training: bool, every: int = 25):
        self.bare, self.training, self.every, self.calls, self.done, self.seconds = bare, training, every, 0, 0, 0.0

    def __call__(self, module, inputs) -> None:
        if module.training != self.training: return
        if self.calls % self.every == 0: self.catch_up()
        self.calls += 1

    def catch_up(self) -> None:
        "The bare steps that are still owed."
        began = time.perf_counter()
        for step in range(self.done, self.calls): self.bare(step)
        self.done, self.seconds = self.calls, self.seconds + time.perf_counter() - began

    def time(self, work: Callable) -> tuple[float, float]: # seconds of `work` without the bare steps, seconds of these
        "Do `work`, which calls the hook."
        began = time.perf_counter()
        work()
        self.catch_up()
        return time.perf_counter() - began - self.seconds, self.seconds


# Training

def training(folder: Path, images, steps: int) -> tuple[float, float]:
    "`training.loop.train` on some labeled images, and the same number of plain steps."
    import torch

    from pseudolabel_nb.data.loading import CropSampler, batch_at
    from pseudolabel_nb.models.networks import build_network, networks
    from pseudolabel_nb.training.augmentation import augmentation
    from pseudolabel_nb.training.loop import Phase, train
    from pseudolabel_nb.training.losses import losses
    from pseudolabel_nb.runs.settings import Settings

    settings = Settings(steps=steps, evaluations=1, network="timed")
    windows, augment, loss = CropSampler(
        images, settings.crop, settings.foreground_share), augmentation(settings.augment), losses[settings.loss]
    network = build_network()
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)

    def bare(step: int) -> None:
        x, y, *_ = batch_at(step, windows, batch_size=settings.batch_size, augment=augment)
        optimizer.zero_grad()
        loss(network(x), y, torch.ones(len(x)), y != 255).backward()
        optimizer.step()

    turns = Turns(bare, training=True)
    def timed(channels: int, n_classes: int):
        made = networks["unet"](channels, n_classes)
        made.register_forward_pre_hook(turns)
        return made

    networks["timed"] = timed
    phase = Phase(number=0, steps=steps, labeled=images, val=images.subset(images.ids[:1]))
    return turns.time(lambda: train(phase, settings, folder))


# Steps of the strategies

# times a supervised step; naive: one with an equal batch
STEP_LIMITS = {"naive": 1.1, "mean_teacher": 2.5, "fixmatch": 2.5, "unimatch": None, "cps": 4.3, "copy_paste": 2.5}


# seconds of the strategy's steps, of supervised ones
def step_costs(name: str, images, folder: Path, predictions, steps: int) -> tuple[float, float]:
    "A strategy's training steps and supervised ones, ten by ten in turns; drawing the batches is part of both."
    from dataclasses import replace

    from pseudolabel_nb.strategies.selection import Context
    from pseudolabel_nb.strategies.pseudo_images import PseudoImages
    from pseudolabel_nb.strategies.strategy import strategy as named
    from pseudolabel_nb.training.loop import Phase, Trainer, batch_fn
    from pseudolabel_nb.runs.settings import Settings

    strategy, settings = named(name), Settings(steps=steps)
    # so that the batch always has its eight windows
    method = strategy.method if strategy.method.online else replace(strategy.method, paired=True)
    rule = strategy.selector_at(1).fit([predictions], Context(labeled=len(images)))
    pseudo = PseudoImages(images.hide_masks(), predictions, rule)
    equal = replace(settings, batch_size=(1 if strategy.method.online else 2) * settings.batch_size)
    common = dict(steps=steps, labeled=images, val=images)
    phases = (Phase(number=1, pseudo=pseudo, method=method, **common), settings), (Phase(number=0, **common), equal)
    trainers = [Trainer(phase, s, folder / str(k), "cpu") for k, (phase, s) in enumerate(phases)]
    draws = [batch_fn(phase, s, phase.pseudo) for phase, s in phases]
    spent = [0.0, 0.0]
    for k in range(-2, 2 * (steps // 10)): # the first two turns are for warming up
        began = time.perf_counter()
        for _ in range(10): trainers[k % 2].train_step(draws[k % 2](trainers[k % 2].step))
        if k >= 0: spent[k % 2] += time.perf_counter() - began
    return spent[0], spent[1]


def strategy_steps(network, images, folder: Path, steps: int, repeats: int):
    "A row for each strategy whose step is another one."
    from pseudolabel_nb.inference.predictions import predict
    predictions = predict(network, images, folder / "store")
    for name, limit in STEP_LIMITS.items():
        pairs = [step_costs(name, images, folder / f"{name}-{k}", predictions, steps) for k in range(repeats)]
        yield ratio_row(f"a step of {name}, over a supervised step" + " with an equal batch" * (name == "naive"), pairs,
                        limit=limit)


# Pseudo-labeling

class Loaded:
    "As many images as one likes: a few, decoded and in memory, over and over under other names."
    def __init__(self, images, n: int):
        self.images, self.ids = images, tuple(f"{i:06}" for i in range(n))

    def __len__(self): return len(self.ids)
    def index(self, id: str) -> int: return int(id)
    def shape(self, i: int): return self.images.shape(i % len(self.images))
    def image(self, i: int): return self.images.image(i % len(self.images))


def pseudo_label(network, images, folder: Path) -> None:
    "What a round does before it trains: predict into a store, fit the selector, count what it keeps."
    from pseudolabel_nb.inference.predictions import predict
    from pseudolabel_nb.strategies.class_balanced import ClassBalanced
    from pseudolabel_nb.strategies.selection import Context
    from pseudolabel_nb.strategies.pseudo_images import PseudoImages

    predictions = predict(network, images, folder, batch_size=BATCH)
    rule = ClassBalanced().fit([predictions], Context(labeled=max(1, round(LABELED * len(images)))))
    PseudoImages(images, predictions, rule).kept()


def pseudo_labeling(network, bare_network, images, n: int) -> tuple[float, float]:
    "`pseudo_label` on n images, and `model(batch)` on the same batches, made beforehand."
    import numpy as np
    import torch

    batches = [torch.from_numpy(np.stack([images.image((k + i) % len(images)) for i in range(BATCH)])).contiguous(
                   memory_format=torch.channels_last)
               for k in range(0, len(images), BATCH)]
    turns = Turns(lambda step: bare_network(batches[step % len(batches)]), training=False)
    hook = network.register_forward_pre_hook(turns)
    try:
        with torch.inference_mode(), tempfile.TemporaryDirectory() as d:
            return turns.time(lambda: pseudo_label(network, Loaded(images, n), Path(d) / "store"))
    finally: hook.remove()


# Memory

def anonymous() -> float: # MiB
    "What this process holds in memory that no file backs; read by Linux only."
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("RssAnon:"))


def page(pool: Path, k: int):
    "One image of the pool, read from its file."
    import numpy as np
    return np.array(np.load(pool, mmap_mode="r")[k])


def peak_of_pseudo_labeling(n: int, pool: Path, weights: Path, threads: int) -> None:
    """Run in a process of its own: pseudo-label n images, each read from a file when it is its turn; print the peak in
    MiB."""
    import numpy as np
    import torch

    from pseudolabel_nb.data.images import Cache, ImageSet, Item
    from pseudolabel_nb.models.checkpoints import load_network
    from pseudolabel_nb.models.networks import build_network

    torch.set_num_threads(threads)
    network, size = build_network(), len(np.load(pool, mmap_mode="r"))
    load_network(weights, network)
    images = ImageSet(
        [Item(f"{i:06}", (SIDE, SIDE), partial(page, pool, i % size)) for i in range(n)], cache=Cache(2**24))
    seen, done = [anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005): seen.append(max(seen.pop(), anonymous()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with tempfile.TemporaryDirectory() as d: pseudo_label(network, images, Path(d) / "store")
    done.set()
    watcher.join()
    print(max(seen))


def peak(n: int, pool: Path, weights: Path, threads: int) -> float: # MiB
    "`peak_of_pseudo_labeling` in a fresh process."
    call = [sys.executable, __file__, "--peak-of", str(n), str(pool), str(weights), "--threads", str(threads)]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()[-1])


# Starting

def seconds(call: list[str]) -> float:
    "Wall time of a command."
    began = time.perf_counter()
    subprocess.run(call, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - began


def starting(repeats: int) -> list[Row]:
    "The bare interpreter, the import and `--help`, in turns."
    code = lambda text: [sys.executable, "-c", text]
    calls = code("pass"), code("import pseudolabel_nb"), code(
        "import sys; sys.argv = ['pseudolabel-train', '--help']; from pseudolabel_nb.cli import train; train()")
    python, imported, helped = zip(*([seconds(c) for c in calls] for _ in range(repeats)))
    found = subprocess.run(
        code("import pseudolabel_nb, sys; print(sum(m.split('.')[0] == 'torch' for m in sys.modules))"), check=True,
        capture_output=True, text=True, cwd=ROOT)
    torch_modules = int(found.stdout)
    return [ratio_row("import pseudolabel_nb, over the bare interpreter", list(zip(imported, python))),
            Row("modules of torch loaded by import pseudolabel_nb", torch_modules, 0, None, "modules", torch_modules,
                None, "modules", torch_modules, torch_modules, 1),
            Row("pseudolabel-train --help", median_low(helped), 0.5, None, "s", median_low(helped), None, "s",
                min(helped), max(helped), repeats)]


# The table

def measure(few: int, many: int, steps: int, pool: int, repeats: int, threads: int):
    "All rows, each as soon as it is known."
    import numpy as np
    import torch

    from pseudolabel_nb.data.synthetic import micrographs
    from pseudolabel_nb.models.checkpoints import load_network
    from pseudolabel_nb.models.networks import build_network

    torch.set_num_threads(threads)
    images = micrographs(n_train=pool, size=SIDE).train
    with tempfile.TemporaryDirectory() as d:
        folder, weights = Path(d), Path(d) / "run-0" / "checkpoints" / "round-0.safetensors"
        np.save(folder / "pool.npy", np.stack([images[i][0][0] for i in range(pool)]))
        training(folder / "warm", images, 6)
        yield ratio_row(f"{steps} training steps, over forward–backward–step",
                        [training(folder / f"run-{k}", images, steps) for k in range(repeats)], goal=1.05)
        networks = build_network(), build_network().eval()
        for network in networks: load_network(weights, network)
        yield from strategy_steps(networks[0], images, folder, max(10, steps // 3), repeats)
        pseudo_labeling(*networks, images, pool)
        for n, times in ((few, repeats), (many, max(1, repeats // 3))): # the many are repeats in themselves
            yield ratio_row(f"pseudo-labeling {n:,} images, over model(batch)",
                            [pseudo_labeling(*networks, images, n) for _ in range(times)], goal=1.05, limit=1.15)
        if Path("/proc/self/status").exists():
            peaks = [peak(n, folder / "pool.npy", weights, threads) for n in (many, few)]
            yield ratio_row(f"peak anonymous memory, {many:,} images over {few:,}", [tuple(peaks)], "MiB", goal=1.05)
    yield from starting(3 * repeats)


def processor() -> str:
    "What kind of processor this is, as far as the system says."
    try: return next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration): return platform.machine()


def machine(threads: int) -> dict:
    "What a reader needs to know of the machine."
    import torch
    return dict(processor=processor(), cores=os.cpu_count(), threads=threads, torch=torch.__version__,
                python=platform.python_version(), system=platform.system())


def write(path: Path, rows: list[Row], facts: dict) -> None:
    "The table as CSV, below one line of facts about the machine."
    from pseudolabel_nb.core import replacing
    tidy = lambda v: float(f"{v:.4g}") if isinstance(v, float) else v
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as f:
        f.write("# " + "; ".join(f"{k}: {v}" for k, v in facts.items()) + "\n")
        table = csv.DictWriter(f, [c.name for c in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows({k: tidy(v) for k, v in asdict(row).items()} for row in rows)


def main() -> None:
    "Measure, print, write."
    p = argparse.ArgumentParser(description="The speed ratios of the package: what it adds to the bare network.",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--threads", type=int, default=2, help="of torch; fewer than there are idle cores")
    p.add_argument("--repeats", type=int, default=5, help="of each comparison; the median counts")
    p.add_argument("--quick", action="store_true", help="small numbers, to see that it works; its ratios mean nothing")
    p.add_argument("--out", type=Path, default=TABLE, help="the CSV to write")
    p.add_argument("--peak-of", nargs=3, metavar=("N", "POOL", "WEIGHTS"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.peak_of: return peak_of_pseudo_labeling(int(a.peak_of[0]), Path(a.peak_of[1]), Path(a.peak_of[2]), a.threads)
    sizes = dict(few=8, many=24, steps=6, pool=4, repeats=1) if a.quick else dict(
        few=300, many=3000, steps=150, pool=60, repeats=a.repeats)
    os.environ["IN_TEST"] = "1" # no progress bars: they write while others are timed
    facts, rows = machine(a.threads), []
    print("; ".join(f"{k}: {v}" for k, v in facts.items()))
    for row in measure(**sizes, threads=a.threads):
        rows.append(row)
        print(row, flush=True)
    write(a.out, rows, facts)
    print(f"written to {a.out}")


if __name__ == "__main__": main()
