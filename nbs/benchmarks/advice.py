"""Advice against the truth: how far the advised strategy is from the best one, over all results that are committed.

    python nbs/benchmarks/advice.py            writes nbs/benchmarks/results/advice.csv
    python nbs/benchmarks/advice.py --table    writes pseudolabel_nb/diagnostics/trials.csv, which the package reads

Every results.csv below nbs/benchmarks/results is read, so a new study counts from the moment its file lies there. What
a strategy is expected to bring on a data set is taken from the other data sets alone.
"""
import argparse
import csv
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pseudolabel_nb.diagnostics.advice import Advice, rank_strategies
from pseudolabel_nb.diagnostics.expectations import Trial, expectations
from pseudolabel_nb.diagnostics.rules import Examined, apply_rules
from pseudolabel_nb.strategies.strategy import strategies, strategy

RESULTS = Path(__file__).resolve().parent / "results"
TRIALS = Path(__file__).resolve().parents[2] / "pseudolabel_nb" / "diagnostics" / "trials.csv"
# folder -> data set and steps; None: the first seed of `micrographs` once more
KNOWN = {"demo": None, "vnc_mito_2000": ("vnc_mito", 2000), "sweep": ("dsb2018", 300), "story": ("micrographs", 1200)}
SAME = {"every": "first"} # a study that adds strategies to the runs of another
STEPS = 1200 # of a run, where neither file nor folder says otherwise
CLASSIC = "naive" # the strategy that is diagnosed
FIXED = ("limited", "class_balanced", "mean_teacher") # policies that look at nothing
FEWEST = 3 # strategies beside the baseline that make a choice
WITHIN = 0.01 # 1 F1
COLUMNS = ("data", "labeled_ratio", "steps", "seeds", "strategies", "findings", "advised", "gain_advised", "best",
           "gain_best", "gap", "within", "gap_supervised", *(f"gap_{n}" for n in FIXED), "gap_any")


@dataclass(frozen=True)
class Cell:
    "The runs of one data set, label ratio and number of steps in one study: strategy -> seed -> row of the file."
    data: str
    ratio: float
    steps: int
    study: str # first folder below the results
    runs: dict

    @property
    def gains(self) -> dict[str, float]:
        "Strategy -> mean paired gain on the test set over its seeds, as a share."
        return {name: mean(float(r["gain"]) for r in seeds.values())
                for name, seeds in self.runs.items() if name != "supervised"}


def mean(values) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def place(path: Path, study: str, row: dict) -> tuple[str, float, int, str] | None:
    "Data set, label ratio, steps and study of a row; None where it repeats what another file has."
    known = KNOWN.get(path.parent.name, (path.parent.name, STEPS))
    if known is None or row.get("phase", "test") != "test": return None
    return (row.get("dataset") or known[0], float(row["labeled_ratio"]), int(float(row.get("steps") or known[1])),
            SAME.get(study, study))


def read_cells(folder: Path = RESULTS) -> list[Cell]:
    "All committed runs, cell by cell; a run that stands in two files counts once."
    found = defaultdict(lambda: defaultdict(dict))
    for path in sorted(folder.rglob("results.csv")):
        with open(path, newline="", encoding="utf-8") as f:
            for row in csv.DictReader(f):
                if {"strategy", "seed", "labeled_ratio",
                        "gain"} <= set(row) and (at := place(path, path.relative_to(folder).parts[0], row)):
                    found[at][row["strategy"]].setdefault(int(row["seed"]), row)
    return [Cell(*at, runs) for at, runs in sorted(found.items())]


def trials_of(cells: list[Cell]) -> tuple[Trial, ...]:
    "What the strategies brought, as the package keeps it."
    made = []
    for c in cells:
        by_seeds = defaultdict(dict)
        for name, gain in c.gains.items():
            # an arm of the study that is no strategy cannot be advised
            if name in strategies: by_seeds[len(c.runs[name])][name] = round(gain, 4)
        made += [Trial(c.data, c.ratio, c.steps, n, gains) for n, gains in sorted(by_seeds.items())]
    return tuple(made)


def write_trials(cells: list[Cell], path: Path = TRIALS) -> None:
    "The trials as the file that the package reads."
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("data", "labeled_ratio", "steps", "seeds", "strategy", "gain"))
        writer.writerows(
            (t.data, t.ratio, t.steps, t.seeds, name, gain) for t in trials_of(cells) for name, gain in t.gains.items())


def number(row: dict, name: str) -> float:
    return float(row.get(name) or "nan")


def examined(cell: Cell) -> list[Examined]:
    "What is known of the classic run of each seed, without its test scores."
    return [Examined(strategy(CLASSIC), number(r, "particle_ratio_real"), number(r, "particle_ratio_pseudo"),
                     number(r, "n_labeled"), number(r, "n_pseudo"))
            for r in cell.runs[CLASSIC].values()]


def advice_for(cell: Cell, cells: list[Cell]) -> tuple[Advice, list]:
    """What is advised to someone who has trained the baseline and the classic strategy on this data set; what others
    say of it is not known."""
    elsewhere = expectations(trials_of([c for c in cells if c.data != cell.data]))
    findings = [f for f in apply_rules(examined(cell)) if f.remedy]
    return rank_strategies(findings, expected=elsewhere), findings


def judge(cell: Cell, cells: list[Cell]) -> dict:
    "A row of advice.csv."
    gains = {"supervised": 0.0, **cell.gains}
    advice, findings = advice_for(cell, cells)
    advised = next(r.strategy for r in advice.rows if r.strategy in gains and not r.changes)
    best = max(gains, key=lambda name: gains[name])
    gap = lambda name: round(gains[best] - gains[name], 6) if name in gains else ""
    row = dict(data=cell.data, labeled_ratio=cell.ratio, steps=cell.steps, seeds=len(cell.runs["supervised"]),
               strategies=len(gains) - 1, findings="; ".join(dict.fromkeys(f"{f.topic} {f.figure}" for f in findings)))
    row |= dict(advised=advised, gain_advised=round(gains[advised], 6), best=best, gain_best=round(gains[best], 6),
                gap=gap(advised), within=gap(advised) <= WITHIN)
    return row | dict(gap_supervised=gap("supervised"), **{f"gap_{n}": gap(n) for n in FIXED},
                      gap_any=round(gains[best] - mean(gains.values()), 6))


def judge_all(folder: Path = RESULTS) -> list[dict]:
    "A row for each cell in which the classic strategy was run and there is a choice."
    cells = read_cells(folder)
    return [judge(c, cells) for c in cells if CLASSIC in c.runs and "supervised" in c.runs and len(c.gains) >= FEWEST]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--table", action="store_true",
        help="write the trials that the package reads, pseudolabel_nb/diagnostics/trials.csv, and nothing else")
    p.add_argument("--out", type=Path, default=RESULTS / "advice.csv")
    a = p.parse_args()
    if a.table: return write_trials(read_cells())
    rows = judge_all()
    with open(a.out, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{sum(r['within'] for r in rows)} of {len(rows)} cells within 1 F1 of the best strategy; written: {a.out}")


if __name__ == "__main__": main()
