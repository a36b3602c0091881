"The wheel, as a stranger gets it: built, looked into, and installed with nothing else into an empty environment."
import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import ROOT


def run(*command, cwd: Path | None = None, **kwargs) -> str:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


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
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt", built[1])
    return folder / "bin"


def outside(tmp_path: Path) -> dict:
    "Run elsewhere, without what would lead back to the checkout."
    return {"cwd": tmp_path, "env": {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}}


def test_the_source_distribution_can_be_built_from(built):
    names = {name.partition("/")[2] for name in tarfile.open(built[0]).getnames()}
    assert {"settings.ini", "setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "CHANGELOG.md", "pseudolabel_nb/core.py"} <= names


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[1]).namelist()
    assert {"pseudolabel_nb/__init__.py", "pseudolabel_nb/core.py", "pseudolabel_nb/py.typed"} <= set(names)
    assert {n.split("/")[0].split("-")[0] for n in names} == {"pseudolabel_nb"}
    in_checkout = {p.relative_to(ROOT).as_posix() for kind in ("*.py", "*.ipynb") for p in (ROOT / "pseudolabel_nb").rglob(kind) if ".ipynb_checkpoints" not in p.parts}
    assert in_checkout <= set(names), f"left out of the wheel: {in_checkout - set(names)}"


def test_the_metadata_say_what_settings_ini_says(built):
    wheel = zipfile.ZipFile(built[1])
    about = Parser().parsestr(wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))).decode())
    assert about["Name"] == "pseudolabel_nb"
    assert about["License-Expression"] == "Apache-2.0"
    assert about["License-File"] == "LICENSE"
    assert about["Requires-Python"] == ">=3.10"
    assert set(about.get_all("Provides-Extra")) == {"accelerate", "dask", "report", "track", "zarr", "lab", "docs", "dev"}
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
    everything = "import importlib, pkgutil, pseudolabel_nb as p; [importlib.import_module(m.name) for m in pkgutil.walk_packages(p.__path__, 'pseudolabel_nb.')]"
    run(python, "-W", "error::ImportWarning", "-c", everything, **outside(tmp_path))
    installed = run(python, "-m", "pip", "list", "--format", "freeze", **outside(tmp_path)).lower()
    assert "jupyterlab==" not in installed
    assert "nbdev==" not in installed


@pytest.mark.parametrize("command", ["pseudolabel-train", "pseudolabel-diagnose", "pseudolabel-predict"])
def test_the_commands_answer(empty_environment, tmp_path, command):
    assert "usage" in run(empty_environment / command, "--help", **outside(tmp_path)).lower()
