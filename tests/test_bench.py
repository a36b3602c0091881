"`make bench` works; what it finds depends on the machine and is not asserted."
import csv
import math
import os
import subprocess
import sys

import pytest
from conftest import ROOT

COLUMNS = ["what", "value", "goal", "limit", "unit", "ours", "bare", "of", "low", "high", "repeats"]


def read(path) -> tuple[str, list[dict]]:
    "The line of facts, and the rows."
    with open(path, encoding="utf-8", newline="") as f:
        facts = f.readline()
        return facts, list(csv.DictReader(f))


def check(path) -> None:
    facts, rows = read(path)
    assert facts.startswith("# ") and all(f"{k}: " in facts for k in ("cores", "threads", "torch", "python"))
    assert list(rows[0]) == COLUMNS
    for subject in ("training steps", "a step of naive", "a step of mean_teacher", "a step of fixmatch",
                    "a step of cps", "pseudo-labeling", "import pseudolabel_nb", "--help"):
        assert any(subject in r["what"] for r in rows)
    assert sum("pseudo-labeling" in r["what"] for r in rows) == 2
    for r in rows:
        value, low, high = (float(r[k]) for k in ("value", "low", "high"))
        assert math.isfinite(value) and low <= value <= high and int(r["repeats"]) >= 1
        if r["unit"] == "ratio":
            assert value == pytest.approx(float(r["ours"]) / float(r["bare"]), rel=2e-3) and value > 0
        if "modules of torch" in r["what"]: assert value == 0


def test_the_benchmark_writes_its_table(tmp_path):
    out = tmp_path / "speed.csv"
    done = subprocess.run(
        [sys.executable, str(ROOT / "nbs" / "benchmarks" / "bench.py"), "--quick", "--threads", "1", "--out", str(out)],
        capture_output=True, text=True, timeout=240, env=dict(os.environ, OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    check(out)
    for row in read(out)[1]: assert row["what"] in done.stdout


def test_the_stored_table_is_whole():
    path = ROOT / "nbs" / "benchmarks" / "results" / "speed.csv"
    check(path)
    assert any(
        "3,000" in r["what"] for r in read(path)[1]), "the stored table comes from a quick run; give `make bench`"
