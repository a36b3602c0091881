"""nbs/images/explorer.png, the explorer's picture for README: a short run on built-in data, shown in JupyterLab.
python tools/picture.py [--chromium PATH] [--out FILE]"""
import argparse, io, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from browsing import chromium_browser, jupyterlab, notebook, run_notebook, watched, without_panels

CODE = """
import tempfile
import pseudolabel_nb as pnb
from pseudolabel_nb.widgets.dashboard import explore
data = pnb.micrographs(n_train=60, n_val=12, n_test=4, size=256)
run = pnb.run(data, pnb.strategy("curriculum", rounds=2), tempfile.mkdtemp() + "/curriculum", labeled_ratio=0.1,
              settings=pnb.Settings(steps=400, crop=64), device="cpu")
explorer = explore(run, data)
"""
SHOW = """
explorer.state.at_best_f1()
explorer.state.change(order="foreground ratio")
explorer.state.change(image=explorer.state.order()[0])
explorer
"""


def small(png: bytes) -> bytes:
    "With 64 colors, which nobody sees in a picture of noise and lines."
    from PIL import Image
    to = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(to, "PNG", optimize=True)
    return to.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="a Chromium (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("nbs/images/explorer.png"), help="PNG to write (default: %(default)s)")
    args = parser.parse_args()
    with (tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder), Path(folder) / ".home") as address,
          chromium_browser(args.chromium) as browser):
        notebook(Path(folder) / "x.ipynb", CODE, SHOW)
        page = watched(browser, 1200, 1200)
        run_notebook(page, address, "x.ipynb")
        without_panels(page)
        page.wait_for_function("[...document.querySelectorAll('.widget-image')].some(i => i.naturalWidth >= 512)")
        page.wait_for_timeout(1000)
        png = small(page.locator(".pseudolabel-live").screenshot())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(png)
    print(f"wrote {args.out}, {len(png) / 1000:.0f} kB")


if __name__ == "__main__": main()
