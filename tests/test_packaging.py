"The wheel, as a stranger gets it: built, looked into, and installed with nothing else into an empty environment."
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import ROOT

COMMANDS = [line.split(" = ")[0].strip()
            for line in re.search(r"^console_scripts =\n((?:    .*\n)+)",
                                  (ROOT / "settings.ini").read_text(encoding="utf-8"), re.M)[1].splitlines()]


def run(*command, cwd: Path | None = None, **kwargs) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, (
        f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def package_files() -> set[str]:
    "The package's files in the checkout: modules, the report's notebook, what was measured, the mark of types."
    found = [p for kind in ("*.py", "*.ipynb", "*.csv", "py.typed") for p in (ROOT / "pseudolabel_nb").rglob(kind)]
    return {p.relative_to(ROOT).as_posix() for p in found if not {".ipynb_checkpoints", "__pycache__"} & set(p.parts)}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    "A source distribution of the files git knows, and the wheel built from it."
    folder = tmp_path_factory.mktemp("build")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if not (ROOT / name).is_file(): continue
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "copy")
    return next((folder / "dist").glob("*.tar.gz")), next((folder / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def empty_environment(built, tmp_path_factory) -> Path:
    "The `bin` folder of a virtual environment that holds the wheel and what it requires, and no more."
    folder = tmp_path_factory.mktemp("empty") / "venv"
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint",
        ROOT / "constraints.txt", built[1])
    return folder / "bin"


def outside(tmp_path: Path) -> dict:
    "Run elsewhere, without what would lead back to the checkout."
    return {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}}


def test_the_source_distribution_holds_what_a_build_needs_and_nothing_else(built):
    with tarfile.open(built[0]) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    about = {"settings.ini", "setup.py", "setup.cfg", "pyproject.toml", "constraints.txt", "MANIFEST.in", "README.md",
             "CHANGELOG.md", "CITATION.cff", "LICENSE", "PKG-INFO"}
    beside = {n for n in names if not n.startswith(("pseudolabel_nb/", "pseudolabel_nb.egg-info/"))}
    assert beside == about, f"too many: {beside - about}; missing: {about - beside}"
    assert {n for n in names if n.startswith("pseudolabel_nb/")} == package_files()


def test_twine_finds_nothing_wrong(built):
    assert run(sys.executable, "-m", "twine", "check", "--strict", *built).count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[1]).namelist()
    about = {n.partition(".dist-info/")[2] for n in names if ".dist-info/" in n}
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    files = {n for n in names if ".dist-info/" not in n}
    assert files == package_files(), f"too many: {files - package_files()}; left out: {package_files() - files}"
    assert {"pseudolabel_nb/core/files.py", "pseudolabel_nb/py.typed",
            "pseudolabel_nb/experiments/report_template.ipynb"} <= files


def test_the_metadata_say_what_settings_ini_says(built):
    wheel = zipfile.ZipFile(built[1])
    about = Parser().parsestr(
        wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))).decode())
    assert about["Name"] == "pseudolabel_nb"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["License-File"] == "LICENSE"
    assert about["Requires-Python"] == ">=3.10"
    assert set(about.get_all("Provides-Extra")) == {
        "accelerate", "cryo", "dask", "report", "track", "zarr", "lab", "docs", "dev"}
    base = [r for r in about.get_all("Requires-Dist") if "extra ==" not in r]
    assert "torch" in base
    assert not {"jupyterlab", "nbdev", "sphinx"} & set(base)
    scripts = wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode()
    assert "pseudolabel-train = pseudolabel_nb.cli:train" in scripts
    assert "pseudolabel_nb = pseudolabel_nb._modidx:d" in scripts


def test_it_installs_where_there_is_nothing(empty_environment, tmp_path):
    python = empty_environment / "python"
    run(python, "-m", "pip", "check", **outside(tmp_path))
    where = run(python, "-c", "import pseudolabel_nb; print(pseudolabel_nb.__file__)", **outside(tmp_path)).strip()
    assert Path(where).is_relative_to(empty_environment.parent)
    everything = ("import importlib, pkgutil, pseudolabel_nb as p; [importlib.import_module(m.name) for m "
                  "in pkgutil.walk_packages(p.__path__, 'pseudolabel_nb.')]")
    run(python, "-W", "error::ImportWarning", "-c", everything, **outside(tmp_path))
    installed = {
        line.split("==")[0]
        for line in run(python, "-m", "pip", "list", "--format", "freeze", **outside(tmp_path)).lower().splitlines()}
    assert not installed & {"jupyterlab", "nbdev", "ipykernel", "notebook", "sphinx", "pytest"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_answer(empty_environment, tmp_path, command):
    assert "usage" in run(empty_environment / command, "--help", **outside(tmp_path)).lower()


HEADLESS = """
import sys
class Refused:  # what a cluster's node does not have
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("IPython", "jupyterlab", "nbdev", "fastcore"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refused())
from pseudolabel_nb.cli import train
sys.exit(train())
"""


def test_it_trains_without_a_notebook_and_without_a_screen(empty_environment, tmp_path):
    "A few steps on the built-in micrographs; IPython (which ipywidgets brings along) is kept from being imported, too."
    settings = outside(tmp_path)
    settings["env"] = (
        {k: v for k, v in settings["env"].items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
        | {"OMP_NUM_THREADS": "1"})
    said = run(empty_environment / "python", "-c", HEADLESS, "--demo", "--steps", "6", "--crop", "32", "--n-iterations",
               "1", "--strategy", "naive", "--seeds", "0", "--learning-rates", "0.003", "--device", "cpu",
               "--output-dir", "out", **settings)
    assert "one seed: no evidence" in said
    assert {"results.csv", "summary.csv", "runs"} <= {p.name for p in (tmp_path / "out").iterdir()}
