"""A real JupyterLab or Voilà, and headless Chromium to use it with: for the tests in a browser and for the tools that
make pictures."""
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
LAB = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
       "--LabApp.expose_app_in_browser=True", "--IdentityProvider.token="]
SETTINGS = {"notebook-extension/tracker": '{"windowingMode": "none"}', # cells out of sight stay on the page
            "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}'}
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


def notebook(path: Path, *cells: str) -> Path:
    "Write a notebook of code cells that have not been run."
    made = [dict(cell_type="code", id=f"cell{k}", metadata={}, source=source.strip(), outputs=[], execution_count=None)
            for k, source in enumerate(cells)]
    kernel = dict(name="python3", display_name="python3", language="python")
    path.write_text(json.dumps(dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)))
    return path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(command: list[str], address: str, folder: Path, home: Path):
    "A server, with nothing of the user's own settings, until the block ends."
    home.mkdir(parents=True, exist_ok=True)
    for name, text in SETTINGS.items():
        path = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    own = dict(JUPYTER_CONFIG_DIR="config", JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces",
               JUPYTER_RUNTIME_DIR="runtime", IPYTHONDIR="ipython")
    variables = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1",
                     **{name: str(home / place) for name, place in own.items()})
    for name in ("MPLBACKEND", "IN_TEST"): variables.pop(name, None) # a notebook of a reader has neither
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try: urlopen(address, timeout=5).close(); break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError(f"{command[2]} ended:\n{(home / 'log').read_text()[-2000:]}") from None
                time.sleep(0.25)
        else: raise RuntimeError(f"{command[2]} did not start in a minute:\n{(home / 'log').read_text()[-2000:]}")
        yield
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def jupyterlab(folder: Path, home: Path):
    "JupyterLab in `folder`; yields its address."
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
               f"--ServerApp.root_dir={folder}", *LAB]
    with serving(command, f"http://127.0.0.1:{port}/api", folder, home): yield f"http://127.0.0.1:{port}"


@contextmanager
def voila(page: Path, home: Path, *options: str):
    "A notebook as a Voilà page; yields its address."
    port = free_port()
    command = [
        sys.executable, "-m", "voila", page.name, "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", *options]
    with serving(command, f"http://127.0.0.1:{port}/voila/static/voila.js", page.parent, home):
        yield f"http://127.0.0.1:{port}"


_driver = dict(running=None, users=0) # playwright's own process: there can be one in a process of ours


@contextmanager
def chromium_browser(path: str):
    "Headless Chromium, through playwright; several may be open at a time."
    from playwright.sync_api import sync_playwright
    if not _driver["users"]: _driver["running"] = sync_playwright().start()
    _driver["users"] += 1
    opened = _driver["running"].chromium.launch(executable_path=path, args=FLAGS)
    try: yield opened
    finally:
        opened.close()
        _driver["users"] -= 1
        if not _driver["users"]: _driver["running"].stop()


def watched(browser, width: int = 1280, height: int = 1500, **options):
    "A new page; `page.errors` holds what its console complained of."
    page = browser.new_page(viewport=dict(width=width, height=height), **options)
    page.set_default_timeout(60_000)
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" and "favicon" not in m.text else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    return page


def open_notebook(page, address: str, name: str, kernel: bool = True) -> None:
    "Open a notebook of the lab, and wait until its kernel answers."
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext")
    if kernel:
        page.evaluate("async () => { const s = window.jupyterapp.shell.currentWidget.sessionContext; await "
                      "s.ready; await s.session.kernel.info }")


def run_cells(page) -> None:
    "Run all cells, and wait until they are done."
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => null)")


def run_notebook(page, address: str, name: str) -> None:
    open_notebook(page, address, name)
    run_cells(page)


def save(page) -> None:
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => null)")


def shut_down(page) -> None:
    "End the notebook's kernel and close the page."
    page.evaluate(
        "async () => { const s = window.jupyterapp?.shell.currentWidget?.sessionContext; if (s) await s.shutdown() }")
    page.close()


def theme(page, name: str) -> None:
    "light or dark, in JupyterLab."
    page.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name}).then(() => null)",
                  THEMES[name])
    page.wait_for_function(
        "light => document.body.dataset.jpThemeLight == light", arg="true" if name == "light" else "false")
    page.wait_for_timeout(300)


def screenshots() -> Path:
    "Where pictures of the tests are kept: PSEUDOLABEL_SCREENSHOTS, else _screenshots, which git ignores."
    folder = Path(os.environ.get("PSEUDOLABEL_SCREENSHOTS") or ROOT / "_screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_screenshot(page, name: str) -> None:
    page.screenshot(path=screenshots() / f"{name}.png")


def without_panels(page) -> None:
    "Only the notebook: the file browser and the bars beside it are hidden."
    page.evaluate("() => { const app = window.jupyterapp; app.shell.collapseLeft(); app.shell.collapseRight() }")
