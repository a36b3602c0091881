"What tests share: where the repository is, and real data where someone has it."
import importlib.util
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools")) # `browsing`, which the tools that take pictures use as well


def discs(n: int, seed: int, size: int = 24):
    "Noisy images, each with a disc, as an `ImageSet`."
    from pseudolabel_nb.data.images import from_arrays
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    masks = [
        (np.hypot(x - rng.uniform(4, size - 4), y - rng.uniform(4, size - 4)) < 3).astype("uint8") for _ in range(n)]
    return from_arrays([(m + 0.5 * rng.standard_normal(m.shape)).astype("float32") for m in masks], masks)


@contextmanager
def tool_module(name: str):
    "NAME.py of the tools, or of the benchmarks, as a module, inside the block."
    path = next(p for p in (ROOT / "tools" / f"{name}.py", ROOT / "nbs/benchmarks" / f"{name}.py") if p.exists())
    spec = importlib.util.spec_from_file_location(f"{name}_tool", path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[made.__name__] = made # dataclasses look their module up
    spec.loader.exec_module(made)
    try: yield made
    finally: del sys.modules[made.__name__]


@pytest.fixture(scope="module")
def one_thread():
    """torch computes with one thread: small tensors gain nothing by a second, it changes the last bits of a sum, and a
    forked process would wait for threads it has not."""
    import torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder of real data sets; the test is skipped where there is none."
    folder = os.environ.get("PSEUDOLABEL_DATA")
    if not folder:
        pytest.skip("needs real data: set PSEUDOLABEL_DATA to the folder that holds vnc_mito, ldc_cells, dsb2018")
    if not Path(folder).is_dir(): pytest.fail(f"PSEUDOLABEL_DATA={folder}: no such folder; correct it or unset it")
    return Path(folder)


@pytest.fixture(scope="session")
def chromium() -> str:
    "The path of a Chromium to look at pages with; the test is skipped where there is none."
    import shutil
    pytest.importorskip("playwright", reason="needs playwright: run `make browser`, or pip install -e .[browser]")
    return shutil.which("chromium") or shutil.which("chromium-browser") or pytest.skip(
        "needs Chromium: run `make browser`, or install it so that `chromium` is on the PATH")


@pytest.fixture(scope="session")
def browser(chromium):
    "Headless Chromium, one for all tests."
    from browsing import chromium_browser
    with chromium_browser(chromium) as opened: yield opened


@pytest.fixture(scope="session")
def lab(chromium, tmp_path_factory):
    "A JupyterLab in an empty folder, one for all tests: (address, folder)."
    pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install -e .[lab]")
    from browsing import jupyterlab
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder, tmp_path_factory.mktemp("home")) as address: yield address, folder


@pytest.fixture
def decisions(monkeypatch) -> list[float]:
    "What the selectors `Threshold` and `Limited` are told as the teacher's decision threshold, call by call."
    from pseudolabel_nb.strategies.limited import Limited
    from pseudolabel_nb.strategies.threshold import Threshold
    told = []
    for cls in (Threshold, Limited):
        def noted(self, members, context, honest=cls.fit):
            told.append(context.decision)
            return honest(self, members, context)
        monkeypatch.setattr(cls, "fit", noted)
    return told
