"""How good is the expected quality of pseudo-labels? Train short supervised teachers, estimate, and look at the hidden
labels.

python nbs/benchmarks/expected_quality.py [--data FOLDER] [--seeds 0,1,2] [--steps 400] [--work FOLDER] [--out
nbs/benchmarks/results/expected_quality.csv]

FOLDER holds vnc_mito, dsb2018 and ldc_cells; without it, only the built-in micrographs are used. A teacher that is in
--work already is not trained again.
"""
import argparse
from pathlib import Path

from pseudolabel_nb.core import write_text
from pseudolabel_nb.data.sources import open_images
from pseudolabel_nb.data.synthetic import micrographs
from pseudolabel_nb.diagnostics.gather import from_run
from pseudolabel_nb.diagnostics.known import units
from pseudolabel_nb.measures.calibration import calibrations, expected_quality, quality_names, true_quality
from pseudolabel_nb.training.rounds import run
from pseudolabel_nb.runs.settings import Settings

GROUPS = {"vnc_mito": r"_(r\d+_c\d+)", "dsb2018": None, "ldc_cells": None}
THRESHOLDS = (0.5, 0.7, 0.9)


def data_sets(folder: str | None):
    "Name, data and share of labels of each set."
    yield "micrographs", micrographs(), 0.05
    for name, regex in GROUPS.items() if folder else ():
        yield name, open_images(Path(folder) / name, group_regex=regex), 0.10 if name != "ldc_cells" else 0.05


def rows_of(name: str, known, f1: float, seed: int, steps: int):
    "Estimate, interval and truth for every threshold, calibration and measure."
    validation, pixels = units(known.validation, known.validation_groups), units(known.pixels, known.pixel_groups)
    for t in THRESHOLDS:
        truth = dict(zip(quality_names, true_quality(known.truth.sum(0), (t, t))))
        for method in calibrations:
            e = expected_quality(validation, pixels, (t, t), method)
            for m in quality_names:
                yield [name, seed, steps, round(f1, 4), t, method, m,
                       *(f"{x:.4f}" for x in (e.value[m], e.low[m], e.high[m], truth[m]))]


def main():
    "Train, estimate, compare, write."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data")
    p.add_argument("--seeds", default="0,1,2")
    p.add_argument("--steps", type=int, default=400)
    p.add_argument("--work", default="expected-quality")
    p.add_argument("--out", default="nbs/benchmarks/results/expected_quality.csv")
    a = p.parse_args()
    lines = [
        ["data", "seed", "steps", "val_f1", "threshold", "calibration", "measure", "estimate", "low", "high", "truth"]]
    for name, data, ratio in data_sets(a.data):
        for seed in map(int, a.seeds.split(",")):
            crop = 64 if name == "micrographs" else 128
            done = run(data, "supervised", Path(a.work) / f"{name}-{seed}", labeled_ratio=ratio, seed=seed,
                       settings=Settings(steps=a.steps, crop=crop), device="cpu")
            known = from_run(done, data, oracle=True, limit=100)
            lines += list(rows_of(name, known, done.best().f1, seed, a.steps))
            print(name, seed, f"validation F1 {done.best().f1:.3f}", flush=True)
            write_text(Path(a.out), "".join(",".join(map(str, line)) + "\n" for line in lines))


if __name__ == "__main__":
    main()
