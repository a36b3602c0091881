"""Three pickers on the micrographs of EMPIAR-10017, and what a network learns from them.

    python nbs/benchmarks/consensus.py DATA/empiar_10017             writes consensus.csv: pickers and rules against the
    masks
    python nbs/benchmarks/consensus.py DATA/empiar_10017 --train     writes training.csv as well: networks trained on a
    consensus, and on labels

DATA/empiar_10017 holds images/, masks/ and picks/PICKER/*.box; one micrograph's particles in a .star. The masks serve
to score, and for the baselines.
"""
import argparse
import csv
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pseudolabel_nb.data.coordinates import read_coordinates
from pseudolabel_nb.data.images import Data, ImageSet
from pseudolabel_nb.data.orientation import Orientation, read_picks
from pseudolabel_nb.data.preparation import Preparation, mark_picks, picks_to_mask, prepare
from pseudolabel_nb.data.sources import open_images
from pseudolabel_nb.inference.consensus import as_labels, consensus, picker_predictions
from pseudolabel_nb.inference.ensembles import combine, combined_planes
from pseudolabel_nb.inference.predictions import levels
from pseudolabel_nb.measures.metrics import all_foreground_f1, confusion, scores
from pseudolabel_nb.measures.particles import match_picks, particle_scores

OUT = Path(__file__).resolve().parent / "results" / "empiar_10017"
DIAMETER = 108 # px, of β-galactosidase on these micrographs
RULES = ("majority", "weighted", "unanimous")
LONGEST, STEPS, SEEDS = 512, 300, (0, 1, 2) # of the training


def read_pickers(folder: Path, images: ImageSet) -> tuple[dict, dict]:
    "Picks by picker and image, turned as the images are; and how that was found out."
    read = {p.name: read_picks(p, images, diameter=DIAMETER) for p in sorted((folder / "picks").iterdir())}
    return {name: picks for name, (picks, _) in read.items()}, {name: found for name, (_, found) in read.items()}


def pixel_row(images: ImageSet, planes: Iterable[np.ndarray]) -> dict:
    "Pooled scores of predictions (uint16, an image each), and what of the pixels is foreground, background or neither."
    counts, kept = np.zeros((2, 3), np.int64), np.zeros(3)
    for i, q in enumerate(planes):
        counts += confusion((q > levels / 2).astype(np.uint8), images.mask(i))
        kept += [np.mean(q >= 0.51 * levels), np.mean(q <= 0.49 * levels),
                 np.mean((q < 0.51 * levels) & (q > 0.49 * levels))]
    s = scores(counts)
    return dict(precision=s.precision, recall=s.recall, f1=s.f1, foreground=kept[0] / len(images),
                background=kept[1] / len(images), undecided=kept[2] / len(images))


def particle_row(folder: Path, images: ImageSet, picks: dict) -> dict:
    "One-to-one scores on the micrograph whose particles are listed."
    (id, truth), = read_coordinates(next(folder.glob("*.star")), images, diameter=DIAMETER).items()
    s = particle_scores(match_picks(picks[id], truth))
    return dict(particle_precision=s.precision, particle_recall=s.recall, particle_f1=s.f1)


def picker_row(folder: Path, images: ImageSet, name: str, picks: dict, o: Orientation) -> dict:
    "What one picker found, and what it would be worth had nobody looked which way y points."
    discs = lambda p, i: levels * picks_to_mask(p, images.shape(i)).astype(np.uint16)
    upside_down = pixel_row(images, (discs(picks[id].flipped(), i) for i, id in enumerate(images.ids)))
    return dict(what=name, kind="picker", y=o.y, z_down=o.z_down, z_up=o.z_up, picks=sum(map(len, picks.values())),
                **pixel_row(images, (discs(picks[id], i) for i, id in enumerate(images.ids))),
                f1_as_they_stand=upside_down["f1"], **particle_row(folder, images, picks))


def rule_row(images: ImageSet, members: list, how: str, weights: list[float]) -> dict:
    "What a rule makes of the pickers."
    return dict(what=how, kind="rule",
                **pixel_row(images, (combined_planes(members, i, how, weights)[0] for i in range(len(images)))))


def table(folder: Path, images: ImageSet, scratch: Path) -> list[dict]:
    "A row a picker and a rule."
    pickers, found = read_pickers(folder, images)
    for name, o in found.items(): print(f"{name}: {o}")
    members = [picker_predictions(images, p, scratch / name, name) for name, p in pickers.items()]
    chance = dict(what="everything", kind="chance",
                  f1=all_foreground_f1(np.mean([images.mask(i).mean() for i in range(len(images))])))
    rows = [picker_row(folder, images, name, picks, found[name]) for name, picks in pickers.items()]
    return [chance, *rows, *(rule_row(images, members, how, [r["f1"] for r in rows]) for how in RULES)]


def arms(data: Data, pickers: dict, scratch: Path) -> dict[str, tuple[ImageSet, str, float]]:
    "What the networks are trained on: images with masks, strategy, share of labeled images."
    images = data.train
    together, members = consensus(images, pickers, scratch / "consensus")
    unanimous = combine(members, scratch / "unanimous", "unanimous")
    return {"one labeled": (images, "supervised", 1 / len(images)),
            "one labeled, class_balanced": (images, "class_balanced", 1 / len(images)),
            "consensus, majority": (as_labels(images, together), "supervised", 1.0),
            "consensus, unanimous": (as_labels(images, unanimous), "supervised", 1.0),
            "all labeled": (images, "supervised", 1.0),
            **{f"{name} alone": (mark_picks(images, pickers[name]), "supervised", 1.0) for name in pickers}}


def no_network(test: ImageSet, pickers: dict, scratch: Path) -> dict:
    "What the majority of the pickers itself is worth on the test micrographs."
    together, _ = consensus(test, pickers, scratch / "consensus-test")
    return dict(trained_on="no network: majority of the pickers",
                **{k: v
                   for k, v in pixel_row(test, (together.quantized(i)[0] for i in range(len(test)))).items()
                   if k in ("precision", "recall", "f1")})


def train(folder: Path, images: ImageSet, scratch: Path, device: str) -> list[dict]:
    """A row an arm and a seed: trained on micrographs 0 to 5, threshold and best step chosen on 6 and 7, tested on 8 to
    11."""
    import pseudolabel_nb as pnb
    pickers, _ = read_pickers(folder, images)
    small = prepare(images, Preparation(longest=LONGEST), scratch / "prepared")
    data = Data("empiar_10017", *(small.subset(small.ids[a:b]) for a, b in ((0, 6), (6, 8), (8, 12))))
    settings, rows = pnb.Settings(steps=STEPS), [no_network(data.test, pickers, scratch)]
    for name, (labeled, strategy, ratio) in arms(data, pickers, scratch).items():
        for seed in SEEDS:
            run = pnb.run(replace(data, train=labeled, notes=(name,)), strategy,
                          scratch / "runs" / f"{name}-{seed}".replace(" ", "-"), labeled_ratio=ratio, seed=seed,
                          settings=settings, device=device)
            r = run.result
            rows.append(dict(trained_on=name, strategy=strategy, seed=seed, labeled=len(run.split["labeled"]),
                             precision=r["precision"], recall=r["recall"], f1=r["f1"], threshold=r["threshold"]))
            print(f"{name}, seed {seed}: test F1 {r['f1']:.3f}", flush=True)
    return rows


def write(path: Path, rows: list[dict]) -> None:
    "A table of all columns that some row has, numbers to four digits."
    columns = list(dict.fromkeys(c for r in sorted(rows, key=len, reverse=True) for c in r))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as f:
        w = csv.DictWriter(f, columns, lineterminator="\n")
        w.writeheader()
        w.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    print(f"written: {path}")


def main() -> None:
    "The command."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, help="the folder empiar_10017")
    p.add_argument("--out", type=Path, default=OUT, help="folder of the tables")
    p.add_argument("--train", action="store_true", help="train networks as well (about ten minutes on two cores)")
    p.add_argument("--only-train", action="store_true", help="leave consensus.csv as it is")
    p.add_argument("--scratch", type=Path,
                   help="folder for predictions, prepared images and runs, kept; a temporary one if not given")
    p.add_argument("--device", default="auto", help="cpu, cuda, …")
    a = p.parse_args()
    images = open_images(a.data).train
    with tempfile.TemporaryDirectory() as temporary:
        scratch = a.scratch or Path(temporary)
        if not a.only_train: write(a.out / "consensus.csv", table(a.data, images, scratch / "pickers"))
        if a.train or a.only_train: write(a.out / "training.csv", train(a.data, images, scratch, a.device))


if __name__ == "__main__": main()
