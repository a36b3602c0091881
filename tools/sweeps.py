"""One sweep done five ways, timed, and compared: one process, two worker processes, two killed and resumed, Dask, Dask killed and resumed.

    python tools/sweeps.py DATA_DIR --work FOLDER     about an hour for dsb2018

DATA_DIR holds the splits. A way that is done is not repeated, so an interrupted call is simply given again. Written to
nbs/benchmarks/results/sweep/: ways.csv, and results.csv, summary.csv of the first way.
"""
import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "nbs" / "benchmarks" / "results" / "sweep"
SWEEP = "--labeled-ratios 0.05,0.10 --strategy limited,class_balanced,pu --seeds 0,1,2 --learning-rates 0.003 --steps 300 --threads 1".split()
WAYS = dict(one=("1 process", False), two=("2 processes", False), two_killed=("2 processes", True), dask=("Dask, 2 workers", False), dask_killed=("Dask, 2 workers", True))
KILLED_AFTER = 6, 14 # finished runs


def command(way: str, data: Path, out: Path, address: str) -> list[str]:
    "The sweep, done this way."
    who = ["--dask", address] if way.startswith("dask") else ["--workers", "1" if way == "one" else "2"]
    return [sys.executable, "-c", "import sys; from pseudolabel_nb.cli import sweep; sys.exit(sweep())", "--data-dir", str(data), "--output-dir", str(out), *SWEEP, *who]


def finished(out: Path) -> int:
    "Runs that have their result."
    return len(list(out.glob("runs/*/result.json")))


def until(argv: list[str], out: Path, log, runs: int | None) -> bool:
    "Let the command work; True if it was killed, with all its processes, after so many runs."
    process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        if runs is not None and finished(out) >= runs:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.2)
    if process.returncode: raise SystemExit(f"error: {out}: the sweep ended with code {process.returncode}; look at {log.name}")
    return False


@contextmanager
def cluster(way: str):
    "The address of a Dask cluster of two processes, or nothing."
    if not way.startswith("dask"):
        yield ""
        return
    from distributed import LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c: yield c.scheduler_address


def do(way: str, data: Path, out: Path, killed: bool) -> tuple[float, int]: # seconds, times it was killed
    "Do the sweep from the beginning."
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with cluster(way) as address, open(out.with_suffix(".log"), "w") as log:
        argv, began = command(way, data, out, address), time.perf_counter()
        kills = sum(until(argv, out, log, runs) for runs in (*KILLED_AFTER * killed, None))
        return time.perf_counter() - began, kills


def table(path: Path) -> list[dict]:
    "A CSV as rows, without the seconds, which are never the same."
    with open(path, newline="") as f: return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def measure(way: str, data: Path, work: Path) -> None:
    "Do the sweep this way and write what it took."
    name, killed = WAYS[way]
    seconds, kills = do(way, data, work / way, killed)
    same = table(work / way / "results.csv") == table(work / "one" / "results.csv")
    with open(work / f"{way}.csv", "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([("way", "killed", "runs", "seconds", "same_results"), (name, kills, finished(work / way), round(seconds, 1), same)])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("--work", type=Path, default=Path("sweep-benchmark"), help="where the sweeps are done")
    a = p.parse_args()
    for way in WAYS:
        if not (a.work / f"{way}.csv").exists(): measure(way, a.data, a.work.absolute())
        print(way, (a.work / f"{way}.csv").read_text().splitlines()[1])
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [(a.work / f"{way}.csv").read_text().splitlines() for way in WAYS]
    (RESULTS / "ways.csv").write_text("\n".join([lines[0][0], *(body for _, body in lines)]) + "\n")
    for name in ("results.csv", "summary.csv"): shutil.copyfile(a.work / "one" / name, RESULTS / name)


if __name__ == "__main__": main()
