"""How long a slider of the explorer takes: from its move to the new picture and figures, over 200 moves.   python
nbs/benchmarks/latency.py [--out FILE]

Times the Python side (state, figures, picture encoded as PNG, all controls set), on made-up predictions of 300 images
of 512² and on one image of 4096²; what the browser adds to show the picture is not in it. Memory is the growth of the
process over 1,000 more moves.
"""
import argparse, csv, tempfile, time
from pathlib import Path

import numpy as np

from pseudolabel_nb.data.images import Data, from_arrays
from pseudolabel_nb.inference.predictions import Predictions, store
from pseudolabel_nb.widgets.explorer import PseudoLabelExplorer

COLUMNS = ("case", "images", "side_px", "moves", "median_ms", "p95_ms", "moves_for_memory", "growth_mb")


def resident_mb() -> float:
    "Memory of this process that is in RAM."
    pages = Path("/proc/self/statm")
    if not pages.exists(): return float("nan")
    return int(pages.read_text().split()[1]) * 4096 / 2**20


def blobs(rng: np.random.Generator, side: int) -> np.ndarray: # (side, side) float32 in [0, 1]
    "Probabilities as of a teacher: low nearly everywhere, high on some discs."
    y, x = np.mgrid[:side, :side] / side
    p = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 0.0008) for a, b in rng.random((20, 2)))
    return np.clip(p + rng.normal(0.05, 0.03, (side, side)), 0, 1).astype(np.float32)


def explorer(n: int, side: int, folder: Path) -> PseudoLabelExplorer:
    "On `n` predicted images; two labeled and ten validation images make all figures live."
    rng = np.random.default_rng(0)
    kinds = [blobs(rng, side) for _ in range(min(n, 10))]
    images = [(255 * p + rng.normal(0, 20, p.shape)).clip(0, 255).astype(np.uint8) for p in kinds]
    ids = [f"image_{k:03}" for k in range(n)]
    labels = [(p > 0.5).astype(np.uint8) for p in kinds]
    train = from_arrays([images[k % len(kinds)] for k in range(n)] + images[:1], [None] * n + labels[:1],
                        [*ids, "labeled"], name="train")
    val = from_arrays(images, labels, name="val")
    predictions = store(((id, kinds[k % len(kinds)][None]) for k, id in enumerate(ids)), folder / "p")
    validation: Predictions = store(((id, p[None]) for id, p in zip(val.ids, kinds)), folder / "v")
    return PseudoLabelExplorer(predictions, Data("made up", train, val), validation=validation)


def moves(view: PseudoLabelExplorer, n: int) -> np.ndarray: # (n,) seconds
    "The seconds that each of `n` moves of the foreground's slider takes."
    seconds = np.zeros(n)
    for k in range(n):
        value = 0.3 + 0.6 * (k * 37 % 101) / 100
        start = time.perf_counter()
        view.sliders[1].value = value
        seconds[k] = time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("nbs/benchmarks/results/widget_latency.csv"),
                        help="CSV to write (default: %(default)s)")
    out = parser.parse_args().out
    rows = []
    for case, n, side in (("300 images of 512²", 300, 512), ("one image of 4096²", 1, 4096)):
        with tempfile.TemporaryDirectory() as folder:
            view = explorer(n, side, Path(folder))
            moves(view, 20) # warm
            seconds, before = moves(view, 200), resident_mb()
            moves(view, 1000)
            rows.append((case, n, side, 200, *(f"{1e3 * np.percentile(seconds, q):.1f}" for q in (50, 95)), 1000,
                         f"{resident_mb() - before:.1f}"))
            print(dict(zip(COLUMNS, rows[-1])))
    with open(out, "w", newline="") as f: csv.writer(f, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"wrote {out}")


if __name__ == "__main__": main()
