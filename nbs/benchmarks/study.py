"""The study of what pseudo-labels bring on real images: every run of it, as a row of
nbs/benchmarks/results/study/results.csv.

    python nbs/benchmarks/study.py DATA --list                                     the arms, what each changes, and what
    is done python nbs/benchmarks/study.py DATA --datasets vnc_mito --ratios 0.05 --arms "supervised;best" --seeds 0-4
    --workers 2
    python nbs/benchmarks/study.py DATA --arms best --seeds 100-104 --phase test   the test set, once `best` is frozen
    python nbs/benchmarks/study.py DATA --sets                                     how many images there are, and what
    calling every pixel foreground would score

DATA holds vnc_mito/, ldc_cells/ and dsb2018/. A run that has its row is not done again, and one that was interrupted
goes on in --work, so a call that was stopped is simply given again. Of the validation images a run may look at as many
as it has labeled ones, drawn by seed (at most half of them); in phase `design` the others score it, in phase `test` the
test set does. --device cuda uses a GPU.
"""
import argparse
import csv
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

ROWS = Path(__file__).resolve().parent / "results" / "study" / "results.csv"
COLUMNS = ("dataset,strategy,labeled_ratio,seed,phase,steps,precision,recall,f1,f1_supervised,"
           "f1_full,gain,gap_closed,best_round,threshold,labeled,chosen_on,scored_on,seconds").split(",")
DATASETS = ("vnc_mito", "ldc_cells", "dsb2018")
# of a run; of short ones, for tuning and ablation, half as many
STEPS = dict(vnc_mito=8000, ldc_cells=4000, dsb2018=4000)
def unet(*widths: int) -> dict:
    "Options of the network."
    return dict(widths=list(widths), activation="relu", precision="bfloat16")


# gate: a student is refused only where 95 % of the resamples of validation images speak against it
BASE = dict(batch_size=8, crop=128, rotations="any", network="unet", network_options=unet(32, 64, 128, 256, 256),
            decision="steady", evaluations=1, gate=0.05, checkpoint_every=500)
ANY, QUARTER = dict(rotations="any"), dict(rotations="quarter")
# by data set, what the baseline's tuning has chosen otherwise; the same for every arm
TUNED = dict(ldc_cells=QUARTER, dsb2018=QUARTER)


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: a strategy, what is changed in it and in the settings, and its steps as a multiple of
    the data set's."""
    strategy: str = "supervised"
    changes: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    steps: float = 1


QUARTERS = {"method.rotations": "quarter"} # of the unlabeled windows
EVERY_PIXEL = {"selector": {"kind": "EveryPixel"}}
def stored(**options) -> dict:
    "The student of `best` with pseudo-labels that are stored, not made at every step."
    return {
        "method": dict(
            kind="SelfTraining", paired=True, **(dict(view="strong", mixing="paste", rotations="quarter") | options))}


def fixmatch(**options) -> dict:
    "The student of `best` without pasting: boxes exchanged, or nothing."
    return {"method": dict(kind="FixMatch", **(dict(rotations="quarter") | options))}


SELF = stored(mixing="cutmix") | {"selector.threshold": 0.5, "rounds": 1, "teacher.flips": True, "start": "restart"}
CUTMIX = fixmatch()
# pseudo-labeled foreground comes back into labeled windows
BOTH_WAYS, CUTMIX_BOTH_WAYS = {"method.both_ways": True}, {"method.both_ways": True, "method.cutmix": True}
CHOSEN = dict(decision="best", evaluations=5) # both by the highest F1 of the few validation images
EARLY = dict(teacher_share=0.2) # the first teacher is trained for a fifth of the steps
# thresholds at which the kept pixels of all images show the prior
QUANTILES = {"selector": {"kind": "ClassQuantiles", "quantile": 0.9}}
BALANCED = {"selector": {"kind": "ClassBalanced"}} # images and thresholds that meet the prior
def anew(steps: int = 200, **options) -> dict:
    """The student's average labels all images every so many steps; half of the pseudo-labeled windows are centered on
    foreground."""
    return stored(relabel_every=steps, **options)


# two images a labeled one in the first round, up to twenty in the second
GROWING = {"rounds": 2, "schedule": {"kind": "Moving", "field": "ratio", "start": 2.0, "stop": 20.0}}
# labels averaged over flips, windows turned as the labeled ones are: frozen as the next `best`, and not adopted, since
# the test set did not bear it out
FEW = anew(400, rotations="") | BALANCED | {"teacher.flips": True}
# the images of which a high F1 is expected, every pixel by the decision threshold
RELIABLE = anew(400, rotations="") | {"selector": {"kind": "ReliableImages"}, "teacher.flips": True}
# of these two a labeled one, the best
TWO_RELIABLE = RELIABLE | {"selector": {"kind": "ReliableImages", "expected": 1.0, "ratio": 2.0}}
FLIPPED = {"teacher.flips": True} # the average labels every window by what it says of its four flips
# three tenths of all steps restore hidden patches, one tenth learns from labels, the rest is the student's
PRETRAINED = {"teacher.pretraining": 0.75}, dict(teacher_share=0.4)
PASTED = stored() # what the student of `best` sees


def short(strategy: str = "best", changes: dict | None = None, **settings) -> Arm:
    "An arm of half the steps, to see what a part or a setting brings."
    return Arm(strategy, changes or {}, (EARLY if strategy != "supervised" else {}) | settings, steps=0.5)


ARMS = {
    "supervised": Arm(),
    "supervised, twice the steps": Arm(steps=2),
    "supervised, strong views": Arm(settings=dict(augment="strong")),
    "best": Arm("best", settings=EARLY),
    "best, twice the steps": Arm("best", settings=EARLY, steps=2),
    "best, labels anew every 200 steps, balanced": Arm("best", anew() | BALANCED, EARLY),
    "best, labels anew every 200 steps, balanced, at any angle": Arm("best", anew(rotations="") | BALANCED, EARLY),
    "best, labels anew every 400 steps, balanced, flips averaged": Arm("best", anew(400) | BALANCED | FLIPPED, EARLY),
    "best, few images": Arm("best", FEW, EARLY),
    "best, labels anew every 200 steps, class quantiles": Arm("best", anew(rotations="") | QUANTILES, EARLY),
    "best, labels anew every 200 steps, balanced, then ten times as many images": Arm(
        "best", anew(rotations="") | BALANCED | GROWING, EARLY),
    "best, reliable images": Arm("best", RELIABLE, EARLY),
    "best, two reliable images a label": Arm("best", TWO_RELIABLE, EARLY),
    "best, pretrained": Arm("best", *PRETRAINED),
    "supervised, pretrained": Arm(changes={"teacher.pretraining": 0.3}), # as many steps of it
    "best, live teacher flipped": Arm("best", FLIPPED, EARLY),
    "best, pasted both ways": Arm("best", BOTH_WAYS, EARLY),
    "best, CutMix and pasted both ways": Arm("best", CUTMIX_BOTH_WAYS, EARLY),
    "best, pasted both ways, three quarters of the steps": Arm("best", BOTH_WAYS, EARLY, steps=0.75),
    "best, CutMix, three quarters of the steps": Arm("best", CUTMIX, EARLY, steps=0.75),
    "class_balanced": Arm("class_balanced", settings=dict(teacher_share=0.5)),
    "short supervised": short("supervised"),
    "short supervised, any angle": short("supervised", **ANY),
    "short supervised, quarter turns": short("supervised", **QUARTER),
    "short supervised, four levels": short("supervised", network_options=unet(32, 64, 128, 256)),
    "short supervised, half the width": short("supervised", network_options=unet(16, 32, 64, 128, 128)),
    "short supervised, EMA 0.999": short("supervised", ema=0.999),
    "short supervised, strong views": short("supervised", augment="strong"),
    "short supervised, rate 0.001": short("supervised", learning_rate=1e-3),
    "short supervised, rate 0.006": short("supervised", learning_rate=6e-3),
    "short supervised, windows of 256 px": short("supervised", crop=256, batch_size=2), # as many pixels a step
    "short supervised, step and threshold of highest F1": short("supervised", **CHOSEN),
    "short supervised, any angle, step and threshold of highest F1": short("supervised", **ANY, **CHOSEN),
    "short best": short(),
    "short best, teacher half of the steps": short(teacher_share=0.5),
    "short best, weak views": short(changes={"method.view": "weak"}),
    "short best, no mixing": short(changes=fixmatch(mixing="none")),
    "short best, pasted both ways": short(changes=BOTH_WAYS),
    "short best, CutMix and pasted both ways": short(changes=CUTMIX_BOTH_WAYS),
    "short best, thresholds 0.60 and 0.80": short(
        changes={"selector": {"kind": "ClassThresholds", "foreground": 0.60, "background": 0.80}}),
    "short best, fresh student": short(changes={"start": "restart"}),
    "short best, labels anew every 200 steps": short(changes=anew()),
    "short best, labels anew every 200 steps, balanced": short(changes=anew() | BALANCED),
    "short class_balanced, pasted in strong views": short("class_balanced", PASTED, teacher_share=0.5),
    "short class_balanced, pasted": short("class_balanced", stored(view="weak", rotations=""), teacher_share=0.5),
    "short best, labels anew every 200 steps, class quantiles": short(changes=anew() | QUANTILES),
    "short best, labels anew every 200 steps, balanced, then ten times as many images": short(
        changes=anew(rotations="") | BALANCED | GROWING),
    "short best, reliable images": short(changes=RELIABLE),
    "short best, two reliable images a label": short(changes=TWO_RELIABLE),
    "short best, live teacher flipped": short(changes=FLIPPED),
    "short best, live teacher flipped, at any angle": short(changes=FLIPPED | {"method.rotations": ""}),
    "short best, half the weight": short(changes={"method.weight": 0.5}),
    "short best, three rounds": short(changes={"rounds": 3}),
    "short best, three teachers once a round": short(changes=stored() | {"teacher.members": 3}, teacher_share=0.5),
    "short best, slower teacher": short(ema=0.998),
    "short both ways, weak views": short(changes=BOTH_WAYS | {"method.view": "weak"}),
    "short both ways, foreground from 0.95": short(
        changes=BOTH_WAYS | {"selector": {"kind": "ClassThresholds", "foreground": 0.95, "background": 1 - 0.95}}),
    "short both ways, ramp-up over 30 %": short(changes=BOTH_WAYS | {"method.ramp_up": 0.3}),
    "short both ways, half the weight": short(changes=BOTH_WAYS | {"method.weight": 0.5}),
    "short both ways, no Dice on pseudo-labels": short(changes=BOTH_WAYS | {"method.pseudo_loss": "cross_entropy"}),
    "short best, CutMix": short(changes=CUTMIX),
    "short best, CutMix, labels at any angle": short(changes=CUTMIX, **ANY),
    "short best, CutMix, all at any angle": short(changes=fixmatch(rotations="any"), **ANY),
    "short best, CutMix, all by quarter turns": short(changes=CUTMIX, **QUARTER),
    "short best, CutMix, weak views": short(changes=fixmatch(view="weak")),
    "short best, CutMix, all at any angle, step and threshold of highest F1": short(
        changes=fixmatch(rotations="any"), **ANY, **CHOSEN),
    "short self-training": short("naive", SELF, teacher_share=0.5),
    "short unimatch, every pixel": short("unimatch", EVERY_PIXEL | QUARTERS),
}
# the strategies that came with a claimed gain
EIGHT = ("class_balanced", "limited", "curriculum", "low_threshold", "weighted", "ensemble", "mean_teacher", "pu")
ARMS |= {f"short {name}": short(name, teacher_share=0.5) for name in ("naive", *EIGHT)}


@dataclass(frozen=True)
class Cell:
    "One run of the study."
    dataset: str
    strategy: str # an arm
    labeled_ratio: float
    seed: int
    phase: str = "design"

    @property
    def steps(self) -> int: return round(ARMS[self.strategy].steps * STEPS[self.dataset])

    @property
    def key(self) -> tuple: return tuple(str(v) for v in (*asdict(self).values(), self.steps))

    def __str__(self): return f"{self.dataset}, {self.strategy}, {self.labeled_ratio:g}, seed {self.seed}, {self.phase}"


def own_validation(data, ratio: float, seed: int, phase: str): # Data -> Data
    """The data set as a run of the study may see it: as many validation images as labeled ones; what scores it as its
    test set."""
    from pseudolabel_nb.core import random_stream
    order = [data.val.ids[k] for k in random_stream(seed, "validation of the study").permutation(len(data.val))]
    n = min(max(1, round(ratio * len(data.train))), len(order) // 2)
    return replace(
        data, val=data.val.subset(order[:n]), test=data.val.subset(order[n:]) if phase == "design" else data.test)


def begun(cell: Cell, root: Path, work: Path, device: str) -> tuple: # Run, Data
    "The run of a cell and its images."
    import pseudolabel_nb as pnb
    from pseudolabel_nb.strategies.strategy import changed
    from pseudolabel_nb.training.task import begin
    arm, data = ARMS[cell.strategy], own_validation(
        pnb.open_images(root / cell.dataset), cell.labeled_ratio, cell.seed, cell.phase)
    settings = pnb.Settings(**BASE | TUNED.get(cell.dataset, {}) | arm.settings, steps=cell.steps)
    folder = (work / cell.phase / cell.dataset / f"{cell.labeled_ratio:g}" / f"seed-{cell.seed}"
              / cell.strategy.replace(" ", "-").replace(",", ""))
    return begin(data, changed(pnb.strategy(arm.strategy), arm.changes), folder, cell.labeled_ratio, cell.seed,
                 settings, device), data


def share_teacher(run) -> None:
    "The first teacher of another arm, where it is the same training."
    import pseudolabel_nb as pnb
    from pseudolabel_nb.training.rounds import adopt_teacher, first_training
    for other in sorted(run.folder.parent.iterdir()):
        if run.records() or other == run.folder or not (other / "rounds.jsonl").exists(): continue
        there = pnb.open_run(other)
        if there.records() and first_training(there.config) == first_training(run.config): adopt_teacher(run, there)


def do(cell: Cell, root: Path, work: Path, device: str) -> dict:
    "Train and score one run; its row."
    import torch

    from pseudolabel_nb.training.rounds import finish, rounds
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    run, data = begun(cell, root, work, device)
    share_teacher(run)
    for _ in rounds(run, data): pass
    r = finish(run, data)
    shutil.rmtree(run.folder / "predictions", ignore_errors=True)
    return dict(asdict(cell), steps=cell.steps,
                **{k: r[k] for k in ("precision", "recall", "f1", "best_round", "threshold", "seconds")},
                labeled=r["n_labeled"], chosen_on=len(run.split["val"]), scored_on=len(run.split["test"]))


def read_rows(path: Path = ROWS) -> list[dict]:
    "The runs that are done."
    if not path.exists(): return []
    with open(path, newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


def key_of(row: dict) -> tuple:
    "What tells one run from another."
    return tuple(row[k] for k in ("dataset", "strategy", "labeled_ratio", "seed", "phase", "steps"))


def compared(rows: list[dict]) -> list[dict]:
    """The rows beside supervised training of the same labels, seed and steps' unit, and beside all labels (mean over
    seeds); empty where that has not been run."""
    at = {(r["dataset"], r["labeled_ratio"], r["phase"], r["seed"]): float(r["f1"])
          for r in rows if r["strategy"] == "supervised"}
    full = lambda r: [
        f1 for (dataset, ratio, phase, _), f1 in at.items() if (dataset, float(ratio), phase) == (
            r["dataset"], 1.0, r["phase"])]
    return [r | _beside(float(r["f1"]), at.get((r["dataset"], r["labeled_ratio"], r["phase"], r["seed"])), full(r))
            for r in rows]


def _beside(f1: float, supervised: float | None, full: list[float]) -> dict:
    "What a score is worth: gain, and the share of the way to all labels."
    top = sum(full) / len(full) if full else None
    gain = None if supervised is None else f1 - supervised
    closed = None if gain is None or top is None or top <= supervised else gain / (top - supervised)
    return {k: "" if v is None else f"{v:.4f}"
            for k, v in dict(f1_supervised=supervised, f1_full=top, gain=gain, gap_closed=closed).items()}


def add_row(row: dict, path: Path = ROWS) -> None:
    "One more run, in a file that other processes may write, too."
    from filelock import FileLock
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        told = {k: f"{v:.4f}" if k in ("precision", "recall", "f1", "threshold") else str(v) for k, v in row.items()}
        rows = sorted(
            [r for r in read_rows(path) if key_of(r) != key_of(told)] + [told],
            key=lambda r: (r["phase"], r["dataset"], float(r["labeled_ratio"]), r["strategy"], int(r["seed"])))
        part = path.with_suffix(".part")
        with open(part, "w", newline="", encoding="utf-8") as f:
            w = csv.DictWriter(f, COLUMNS, lineterminator="\n")
            w.writeheader()
            w.writerows(compared(rows))
        part.replace(path)


def numbers(text: str) -> list[int]:
    "0-4 or 0,2,5."
    parts = [p.partition("-") for p in text.split(",")]
    return [k for a, _, b in parts for k in range(int(a), int(b or a) + 1)]


def cells(a: argparse.Namespace) -> Iterator[Cell]:
    "The runs that are asked for and have no row, seed by seed."
    done = {key_of(r) for r in read_rows()}
    for arm in a.arms:
        if arm not in ARMS: raise SystemExit(f"error: unknown arm {arm!r}; expected some of: {'; '.join(ARMS)}")
    for seed, dataset, ratio, arm in product(a.seeds, a.datasets, a.ratios, a.arms):
        cell = Cell(dataset, arm, ratio, seed, a.phase)
        if cell.key not in done: yield cell


def show(a: argparse.Namespace) -> None:
    "The arms and how many runs of each are done."
    rows = read_rows()
    for name, arm in ARMS.items():
        n = sum(r["strategy"] == name for r in rows)
        print(f"{name}: {arm.strategy}, {arm.steps:g} × the steps {json.dumps(arm.changes) if arm.changes else ''} "
              f"{json.dumps(arm.settings) if arm.settings else ''} — {n} runs done")


def describe(a: argparse.Namespace, path: Path | None = None) -> None:
    """A row a split: its images, their foreground, and the F1 of calling every pixel foreground, which needs no
    training."""
    import pseudolabel_nb as pnb
    from pseudolabel_nb.measures.metrics import all_foreground_f1, foreground_ratio
    path = path or ROWS.with_name("sets.csv")
    with open(path, "w", newline="", encoding="utf-8") as f:
        w = csv.writer(f, lineterminator="\n")
        w.writerow(("dataset", "split", "images", "foreground", "f1_all_foreground"))
        for dataset, split in product(a.datasets, ("train", "val", "test")):
            images = getattr(pnb.open_images(a.data / dataset), split)
            ratio = foreground_ratio(images.mask(i) for i in range(len(images)))
            w.writerow((dataset, split, len(images), f"{ratio:.4f}", f"{all_foreground_f1(ratio):.4f}"))
    print(f"written: {path}")


def main() -> None:
    "The command."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, help="the folder that holds the data sets")
    p.add_argument("--datasets", type=lambda t: t.split(","), default=list(DATASETS))
    p.add_argument("--ratios", type=lambda t: [float(x) for x in t.split(",")], default=[0.05])
    p.add_argument("--arms", type=lambda t: [x.strip() for x in t.split(";")], default=["supervised"],
                   help="divided by semicolons")
    p.add_argument("--seeds", type=numbers, default=[0])
    p.add_argument("--phase", choices=("design", "test"), default="design")
    p.add_argument(
        "--work", type=Path, default=Path("study"), help="folder of the runs, to go on with what was interrupted")
    p.add_argument("--workers", type=int, default=1, help="runs at a time, a thread each")
    p.add_argument("--device", default="cpu")
    p.add_argument("--list", action="store_true", help="show the arms and stop")
    p.add_argument("--sets", action="store_true", help="describe the data sets and stop")
    a = p.parse_args()
    if a.list: return show(a)
    if a.sets: return describe(a)
    with ProcessPoolExecutor(a.workers) as pool:
        waiting = {pool.submit(do, c, a.data, a.work, a.device): c for c in cells(a)}
        for done in as_completed(waiting):
            add_row(row := done.result())
            print(
                f"{time.strftime('%H:%M')}  {waiting[done]}: F1 {row['f1']:.4f} in {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__": main()
