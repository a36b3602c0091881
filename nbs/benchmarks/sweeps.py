"""One sweep done five ways and compared: one process, two worker processes, two killed and resumed, Dask, Dask killed
and resumed. Then a smaller one, timed.

    python nbs/benchmarks/sweeps.py DATA_DIR --work FOLDER               about an hour for dsb2018
    python nbs/benchmarks/sweeps.py DATA_DIR --work FOLDER --only times  the timing alone: 5 minutes, on a machine that
    does nothing else

DATA_DIR holds the splits. What is done is not repeated, so an interrupted call is simply given again. Written to
nbs/benchmarks/results/sweep/: ways.csv, times.csv, and results.csv, summary.csv of the first way.
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

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "nbs" / "benchmarks" / "results" / "sweep"
WHOLE = ("--labeled-ratios 0.05,0.10 --strategy limited,class_balanced,pu "
         "--seeds 0,1,2 --learning-rates 0.003 --steps 300 --threads 1").split()
SMALL = (
    "--labeled-ratios 0.10 --strategy limited --seeds 0,1,2,3 --learning-rates 0.003 --steps 200 --threads 1".split())
WAYS = dict(
    one="1 process", two="2 processes", two_killed="2 processes", dask="Dask, 2 workers", dask_killed="Dask, 2 workers")
KILLED_AFTER = 6, 14 # finished runs
REPEATS = 1


def command(way: str, sweep: list[str], data: Path, out: Path, address: str) -> list[str]:
    "The sweep, done this way."
    who = ["--dask", address] if way.startswith("dask") else ["--workers", "1" if way == "one" else "2"]
    return [sys.executable, "-c", "import sys; from pseudolabel_nb.cli import sweep; sys.exit(sweep())", "--data-dir",
            str(data), "--output-dir", str(out), *sweep, *who]


def finished(out: Path) -> int:
    "Runs that have their result."
    return len(list(out.glob("runs/*/result.json")))


def until(argv: list[str], out: Path, log, runs: int | None) -> bool:
    "Let the command work; True if it was killed, with all its processes, after so many runs."
    process = subprocess.Popen(
        argv, stdout=log, stderr=log, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while process.poll() is None:
        if runs is not None and finished(out) >= runs:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"error: {out}: the sweep ended with code {process.returncode}; look at {log.name}")
    return False


@contextmanager
def cluster(way: str):
    "The address of a Dask cluster of two processes, or nothing."
    if not way.startswith("dask"):
        yield ""
        return
    import dask
    from distributed import LocalCluster
    # without its MALLOC_TRIM_THRESHOLD_, which makes training slow
    dask.config.set({"distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1}})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as c: yield c.scheduler_address


def do(way: str, sweep: list[str], data: Path, out: Path) -> tuple[float, int]: # seconds, times it was killed
    "Do the sweep from the beginning. The cluster is there before the clock starts."
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    with cluster(way) as address, open(out.with_suffix(".log"), "w") as log:
        argv, began = command(way, sweep, data, out, address), time.perf_counter()
        kills = sum(until(argv, out, log, runs) for runs in (*KILLED_AFTER * way.endswith("killed"), None))
        return time.perf_counter() - began, kills


def table(path: Path) -> list[dict]:
    "A CSV as rows, without the seconds, which are never the same."
    with open(path, newline="") as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def write(path: Path, rows: list[tuple]) -> None:
    with open(path, "w", newline="") as f: csv.writer(f, lineterminator="\n").writerows(rows)


def compare_ways(data: Path, work: Path) -> None:
    "Do the whole sweep every way that is not done yet; write how the results compare."
    rows = [("way", "killed", "runs", "same_results")]
    for way, name in WAYS.items():
        if not (work / f"{way}.kills").exists():
            (work / f"{way}.kills").write_text(str(do(way, WHOLE, data, work / way)[1]))
        same = table(work / way / "results.csv") == table(work / "one" / "results.csv")
        rows.append((name, (work / f"{way}.kills").read_text(), finished(work / way), same))
        print(*rows[-1])
    write(RESULTS / "ways.csv", rows)
    for name in ("results.csv", "summary.csv"): shutil.copyfile(work / "one" / name, RESULTS / name)


def time_ways(data: Path, work: Path) -> None:
    "Do the small sweep in turns with one process, two, and Dask; write the seconds."
    rows = [("way", "repeat", "runs", "seconds")]
    for repeat in range(REPEATS):
        for way in ("one", "two", "dask"):
            seconds, _ = do(way, SMALL, data, work / f"small-{way}")
            rows.append((WAYS[way], repeat, finished(work / f"small-{way}"), round(seconds, 1)))
            print(*rows[-1])
    write(RESULTS / "times.csv", rows)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("--work", type=Path, default=Path("sweep-benchmark"), help="where the sweeps are done")
    p.add_argument("--only", choices=("ways", "times"))
    a = p.parse_args()
    work = a.work.absolute()
    for folder in (work, RESULTS): folder.mkdir(parents=True, exist_ok=True)
    if a.only != "times": compare_ways(a.data, work)
    if a.only != "ways": time_ways(a.data, work)


if __name__ == "__main__": main()
