"""Bring what is generated in step with the notebooks: modules, cleaned notebooks, the report's notebook in the package,
README.

    python tools/sync.py            do it here
    python tools/sync.py --check    do it in a copy and fail if anything would change; your files stay as they are
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS = (
    ["nbdev-export"], ["nbdev-clean"], [sys.executable, "tools/report_template.py"], [sys.executable, "docs/readme.py"])


def sync(root: Path) -> None:
    "Run every step in `root`."
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    for step in STEPS: subprocess.run(step, cwd=root, env=env, check=True)


def sources() -> list[Path]:
    "The files git tracks or would track, relative to the root."
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            check=True, capture_output=True, text=True)
    return [Path(name) for name in sorted(set(listed.stdout.split("\0"))) if name and (ROOT / name).is_file()]


def contents(root: Path) -> dict[str, bytes]:
    "Every file under `root` with its bytes, without caches."
    return {p.relative_to(root).as_posix(): p.read_bytes()
            for p in sorted(root.rglob("*")) if p.is_file() and "__pycache__" not in p.parts}


def changed() -> list[str]:
    "The files that a sync in a copy of the working tree adds, changes or removes."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for name in sources():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        before = contents(copy)
        sync(copy)
        after = contents(copy)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a sync would")
    if not parser.parse_args().check:
        sync(ROOT)
        return 0
    stale = changed()
    if stale:
        print(f"error: out of step with the notebooks: {', '.join(stale)}; run `make sync` and look at the difference",
              file=sys.stderr)
    else: print("Modules, notebooks and README are in step.")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
