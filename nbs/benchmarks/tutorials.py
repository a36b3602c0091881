"""How long the tutorials take: each notebook of nbs/tutorials is run from top to bottom, in a Python of its own with
one thread.

    python nbs/benchmarks/tutorials.py                  all of them; writes nbs/benchmarks/results/tutorials.csv
    python nbs/benchmarks/tutorials.py 04_what_is_wrong only these; the other rows stay

`seconds` is by the clock, `cpu_seconds` what the notebook and its worker processes computed: on a machine that does
other things as well only the second is worth comparing.
"""
import argparse
import csv
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS, TIMES = ROOT / "nbs/tutorials", ROOT / "nbs/benchmarks/results/tutorials.csv"
COLUMNS = "tutorial", "seconds", "cpu_seconds"


def measure(path: Path) -> dict:
    "Run a notebook; its row. Ends the program where the notebook fails."
    env = dict(os.environ, MPLBACKEND="agg", OMP_NUM_THREADS="1")
    began, used = time.perf_counter(), children()
    done = subprocess.run([Path(sys.executable).parent / "nbdev-test", str(path), "--n-workers", "0"], cwd=ROOT,
                          env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(f"{path.name} failed:\n{done.stdout}{done.stderr}")
    return dict(zip(COLUMNS, (path.stem, round(time.perf_counter() - began, 1), round(children() - used, 1))))


def children() -> float:
    "CPU seconds of all processes that were started and have ended."
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def known() -> dict[str, dict]:
    "The rows that are there, of tutorials that are."
    if not TIMES.exists(): return {}
    with open(TIMES, newline="") as f: rows = list(csv.DictReader(line for line in f if not line.startswith("#")))
    return {row["tutorial"]: row for row in rows if (TUTORIALS / f"{row['tutorial']}.ipynb").exists()}


def write(rows: dict[str, dict]) -> None:
    "The table, below a line about the machine."
    with open(TIMES, "w", newline="") as f:
        f.write(f"# cores: {os.cpu_count()}; threads: 1; python: "
                f"{platform.python_version()}; system: {platform.system()}\n")
        table = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(rows[name] for name in sorted(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="tutorials without .ipynb; all if none")
    names = parser.parse_args().names or [p.stem for p in sorted(TUTORIALS.glob("*.ipynb"))]
    for name in names:
        row = measure(TUTORIALS / f"{name}.ipynb")
        print(*(f"{k} {v}" for k, v in row.items()), flush=True)
        write(known() | {name: row})


if __name__ == "__main__": main()
