"""How much an hour with a widget makes a process grow.   python nbs/benchmarks/widget_memory.py [--only CASE ...]
[--out FILE]

An hour is counted in what is done in it, not in waiting: 1,000 moves of the explorer's slider, 200 changes of the
comparer's view, 720 looks (one every five seconds) at a folder of runs that go on, and 200 changes of round and image
in the stepper. Before anything is counted, each is done 50 times, since the first pictures fill caches once. The last
case moves the explorer's slider in a real JupyterLab in Chromium, and adds the growth of the page's JavaScript heap.
"""
import argparse, csv, gc, itertools, json, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("widget", "what is done", "times", "growth_mb", "page_growth_mb")


def resident_mb() -> float:
    "Memory of this process that is in RAM."
    gc.collect()
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 / 2**20 if pages.exists() else float("nan")


def growth(act, times: int) -> float: # MB
    "Do `act(k)` so many times, after 50 that do not count."
    for k in range(50): act(k)
    before = resident_mb()
    for k in range(times): act(k)
    return resident_mb() - before


def explorer(folder: Path):
    "An explorer of 300 made-up predictions of 512²; moving its slider."
    from latency import explorer
    view = explorer(300, 512, folder)
    return view, lambda k: setattr(view.sliders[1], "value", 0.3 + 0.6 * (k * 37 % 101) / 100)


def runs(folder: Path) -> Path:
    "Twenty runs, written by hand."
    sys.path.insert(0, str(ROOT / "tools"))
    from written_runs import write_run
    for seed, strategy in itertools.product(range(5), ("supervised", "naive", "class_balanced", "limited")):
        write_run(folder / "runs" / f"{strategy}-s{seed}", 0.5 + 0.01 * seed, strategy=strategy, seed=seed)
    return folder / "runs"


def comparer(folder: Path):
    "A comparer of twenty runs; other views, runs and pages."
    from pseudolabel_nb.widgets.comparer import RunComparer
    view = RunComparer(runs(folder))
    names = [f.name for f in view.state.facts]

    def act(k: int) -> None:
        view.state.change(view=("curves", "gain", "ratio")[k % 3], picked=tuple(names[k % 7:k % 7 + 8]), page=k % 2,
                          query=("", "naive", "seed=1")[k % 3])
    return view, act


def watching(folder: Path):
    "The comparer's looks at a folder of which a run goes on: each finds a new line."
    from pseudolabel_nb.widgets.comparer import RunComparer
    view = RunComparer(runs(folder))
    view.state.pick_found()
    log = next((folder / "runs").glob("naive-s0")) / "metrics.jsonl"

    def act(k: int) -> None:
        with open(log, "a") as f:
            f.write(json.dumps(dict(round=3, member=0, step=1000 + next(steps), loss=0.5, f1=0.5, precision=0.5,
                                    recall=0.5, threshold=0.4, predicted=0.04)) + "\n")
        view.state.refresh()
    steps = itertools.count()
    return view, act


def stepper(folder: Path):
    "A stepper over a short run; other rounds and images."
    import pseudolabel_nb as pnb
    run = pnb.run(pnb.micrographs(n_train=40), pnb.strategy("curriculum", rounds=3), folder / "run", labeled_ratio=0.2,
                  settings=pnb.Settings(steps=40, crop=64, batch_size=2, evaluations=1), device="cpu")
    view = pnb.CurriculumStepper(run)
    images = view.image.options
    return view, lambda k: view.state.change(round=k % 4, image=images[k % len(images)])


CASES = {
    "explorer": (explorer, "moves of a slider", 1000), "comparer": (comparer, "other views, runs, pages", 200),
    "comparer, live": (watching, "looks at runs that go on", 720), "stepper": (stepper, "other rounds and images", 200)}
IN_PAGE = "explorer, in JupyterLab"


def here(name: str) -> tuple:
    "One widget in this process, without a page."
    make, what, times = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        view, act = make(Path(folder))
        grown = growth(act, times)
        view.close()
    return name, what, times, f"{grown:.1f}", ""


SETUP = ("import sys; sys.path[:0] = [{tools!r}]\nfrom pathlib import Path; import tempfile\n"
         "from widget_memory import explorer, resident_mb\nview, act = explorer(Path(tempfile.mkdtemp()))\nview")
SAY = "print('MB', resident_mb())"


def in_a_page(chromium: str, times: int = 1000) -> tuple:
    "The explorer in JupyterLab: its slider moved by the keyboard."
    sys.path.insert(0, str(ROOT / "tools"))
    from browsing import chromium_browser, jupyterlab, notebook, run_notebook, watched
    with (tempfile.TemporaryDirectory() as folder, jupyterlab(Path(folder), Path(folder) / ".home") as address,
          chromium_browser(chromium) as browser):
        notebook(Path(folder) / "x.ipynb", SETUP.format(tools=str(Path(__file__).resolve().parent)), SAY)
        page = watched(browser)
        run_notebook(page, address, "x.ipynb")
        page.locator(".pseudolabel-live .widget-image").first.wait_for()
        measured = [(move(page, n), kernel_mb(page), page_mb(page))[1:] for n in (50, times)]
    (a, c), (b, d) = measured
    return (IN_PAGE, "moves of a slider", times, f"{b - a:.1f}", f"{d - c:.1f}")


def move(page, times: int) -> None:
    "Press an arrow key so often on the foreground's slider, as fast as the kernel follows."
    handle = page.locator(".pseudolabel-live .widget-slider").nth(1).locator(".noUi-handle")
    handle.focus()
    for k in range(times):
        page.keyboard.press("ArrowLeft" if k // 100 % 2 == 0 else "ArrowRight")
        page.wait_for_timeout(20)
    page.wait_for_function("document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status == 'idle'")
    page.wait_for_timeout(3000)


def kernel_mb(page) -> float:
    "What the second cell prints."
    cell = page.locator(".jp-CodeCell").nth(1)
    was = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("was => { const p = "
                           "document.querySelectorAll('.jp-CodeCell')[1].querySelector('.jp-InputPrompt').innerText;"
                           " return p != was && !p.includes('*') }",
                           arg=was, timeout=120_000)
    return float(cell.locator(".jp-OutputArea-output").last.inner_text().split()[1])


def page_mb(page) -> float:
    "The page's JavaScript heap, after its garbage was collected."
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    return session.send("Runtime.getHeapUsage")["usedSize"] / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=(*CASES, IN_PAGE), default=(*CASES, IN_PAGE), metavar="CASE",
        help=f"what to measure; rows of others stay as they are (default: all of {', '.join((*CASES, IN_PAGE))})")
    parser.add_argument(
        "--chromium", default="/usr/bin/chromium", help="for the case in JupyterLab (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("nbs/benchmarks/results/widget_memory.csv"),
                        help="CSV to write (default: %(default)s)")
    args = parser.parse_args()
    for name in args.only:
        row = in_a_page(args.chromium) if name == IN_PAGE else here(name)
        print(dict(zip(COLUMNS, row)), flush=True)
        keep(args.out, row)


def keep(out: Path, row: tuple) -> None:
    "Put a row into the CSV, in the place of the one of the same name."
    old = list(csv.reader(out.open()))[1:] if out.exists() else []
    rows = {r[0]: r for r in (*old, row)}
    with open(out, "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([COLUMNS, *(rows[n] for n in (*CASES, IN_PAGE) if n in rows)])


if __name__ == "__main__": main()
