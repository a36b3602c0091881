"""Look at every built page in Chromium: links, messages on the console, axe-core, texts of pictures, the width of a
phone.

    make docs && python tools/check_docs.py [PAGE ...]     pages as paths below _docs/html; without any, all

Links out of the site are listed and only their form is checked: nothing is fetched. The report is _docs/check.json; the
exit status is 1 where something is wrong.
"""
import functools
import http.server
import json
import re
import shutil
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

ROOT = Path(__file__).resolve().parents[1]
HTML, REPORT = ROOT / "_docs/html", ROOT / "_docs/check.json"
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"]
SERIOUS = ("serious", "critical")
ONLY = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}  # nothing else differs between the two
READ = """() => ({
  links: [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')),
  ids: [...document.querySelectorAll('[id], a[name]')].map(e => e.id || e.name),
  silent: [...document.querySelectorAll('img, svg[role=img]')].filter(e =>
    !(e.getAttribute('alt') || e.getAttribute('aria-label') || e.querySelector('title')
      || e.closest('[aria-hidden=true]'))).map(e => e.outerHTML.slice(0, 120)),
})"""
WIDER = """() => {
  const width = document.documentElement.clientWidth, page = document.scrollingElement.scrollWidth;
  if (page <= width) return null;
  const beyond = e => e.getBoundingClientRect().right > width + 1;
  const wide = [...document.querySelectorAll('main *')].filter(beyond).slice(0, 3);
  return `${page} px wide: ` + wide.map(e => e.tagName.toLowerCase() + '.' + e.className).join(', ');
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def serve(folder: Path) -> str:
    "The folder's address on this machine."
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def broken_links(pages: dict[str, dict], files: set[str]) -> dict[str, list[str]]:
    "page → its links into nothing: a file that is missing, or an anchor that the page there does not have."
    found = {}
    for page, seen in pages.items():
        for href in seen["links"]:
            if urlsplit(href).scheme or href.startswith("//"): continue
            target, anchor = urldefrag(urljoin(f"/{page}", href))
            name = unquote(target).lstrip("/") or "index.html"
            if name.endswith("/"): name += "index.html"
            missing = name not in files or (anchor and name in pages and unquote(anchor) not in pages[name]["ids"])
            if missing: found.setdefault(page, []).append(href)
    return found


def outside_links(pages: dict[str, dict]) -> tuple[list[str], list[str]]:
    "The links out of the site, and those of them that are malformed."
    links = sorted({href
                    for seen in pages.values()
                    for href in seen["links"] if urlsplit(href).scheme in ("http", "https") or href.startswith("//")})
    return links, [
        href for href in links if not re.fullmatch(r"https?://[\w.-]+\.[a-z]{2,}(:\d+)?(/[^\s<>\"]*)?", href)]


def look(page, address: str, axe) -> dict:
    "What one page holds and says, in light and dark and as wide as a phone."
    said = []
    listeners = {
        "console": lambda m: said.append(f"{m.text} ({m.location.get('url', '')})") if m.type == "error" else None,
        "pageerror": lambda e: said.append(str(e))}
    for event, listener in listeners.items(): page.on(event, listener)
    seen = {"axe": []}
    for scheme in ("light", "dark"):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.goto(address, wait_until="load")
        page.wait_for_timeout(150)  # colors have settled
        if scheme == "light": seen |= page.evaluate(READ)
        for v in axe.run(page, options={"preload": False} | ONLY[scheme]).response["violations"]:
            if v["impact"] in SERIOUS:
                seen["axe"].append(
                    f"{scheme}, {v['impact']}: {v['id']} ({len(v['nodes'])}): {v['nodes'][0]['html'][:160]}")
    page.set_viewport_size({"width": 390, "height": 844})
    seen |= {"wider": page.evaluate(WIDER), "console": said}
    for event, listener in listeners.items(): page.remove_listener(event, listener)
    return seen


@contextmanager
def chromium():
    "A headless Chromium."
    from playwright.sync_api import sync_playwright
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or sys.exit(
        "error: Chromium is missing; install it so that `chromium` is on the PATH (Debian: apt-get install chromium)")
    with sync_playwright() as p:
        opened = p.chromium.launch(executable_path=executable, args=CHROMIUM)
        try: yield opened
        finally: opened.close()


def look_at_all(names: list[str], browser) -> dict[str, dict]:
    "Every page, looked at."
    from axe_playwright_python.sync_playwright import Axe
    from tqdm import tqdm
    address, page = serve(HTML), browser.new_page()
    pages = {name: look(page, address + name, Axe()) for name in tqdm(names, "pages", disable=None)}
    page.close()
    return pages


def report(pages: dict[str, dict], files: set[str]) -> dict:
    "What is wrong, by kind and page, and the links that lead out."
    outside, malformed = outside_links(pages)
    wrong = {"links into nothing": broken_links(pages, files),
             "malformed links": {"all pages": malformed} if malformed else {}}
    for kind, key in {"console": "console", "axe-core": "axe", "pictures without a text": "silent",
                      "wider than a phone": "wider"}.items():
        wrong[kind] = {name: seen[key] for name, seen in pages.items() if seen[key]}
    return {"pages": len(pages), "wrong": wrong, "links out of the site": outside}


def main() -> int:
    if not (HTML / "index.html").exists(): sys.exit("error: _docs/html/index.html is missing; run `make docs` first")
    files = {p.relative_to(HTML).as_posix() for p in HTML.rglob("*") if p.is_file()}
    names = sys.argv[1:] or sorted(f for f in files if f.endswith(".html") and not f.startswith("_static/"))
    with chromium() as browser: found = report(look_at_all(names, browser), files)
    REPORT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for kind, where in found["wrong"].items():
        print(f"{kind}: {sum(len(v) if isinstance(v, list) else 1 for v in where.values())} on {len(where)} pages")
    print(f"{found['pages']} pages looked at; {len(found['links out of the site'])} links "
          f"lead out of the site. Written: {REPORT.relative_to(ROOT)}")
    return int(any(found["wrong"].values()))


if __name__ == "__main__":
    sys.exit(main())
