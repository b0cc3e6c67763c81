"""Makes the README's pictures from the real UI, of a real chain: `python tests/browser/pictures.py`.

They go to tests/browser/pictures/. Prefect's v2 UI is shown, as it is the one that people see first.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent / "integration"))

# ruff: noqa: E402 - the paths come first
from chromium import launched
from playwright.sync_api import Browser, FloatRect, Locator, Page, expect
from prefect_server import running_prefect
from prefect_ui import V2
from workbench import REPOSITORY, Site, site_on

from perpetual_blocks import ResourceBudget, StatePersistence

PICTURES = HERE / "pictures"
WIDTH = 1180
MOST_BYTES = 150_000
CHAIN = "docs"


def main() -> None:
    """Mines Python's standard library in a chain, and looks at it."""
    PICTURES.mkdir(exist_ok=True)
    with mining() as site, launched() as browser:
        context = browser.new_context(viewport={"width": WIDTH, "height": 760}, color_scheme="light")
        ui = V2(context, site.api.removesuffix("/api"))
        start_from_form(ui, site)
        site.chain_over(CHAIN, seconds=400)
        show_runs(ui)
        show_handoff(ui)
        show_report(browser, site)


@contextmanager
def mining() -> Iterator[Site]:
    """A server with both blocks, where the doc-miner is served."""
    with tempfile.TemporaryDirectory(prefix="pictures-") as name:
        folder = Path(name)
        with running_prefect(folder / "prefect") as server, site_on(server.api, server.home, folder) as site:
            with server.here():
                ResourceBudget(limits=[{"resource": "tokens", "amount": 800_000}]).save("small", _sync=True)
                StatePersistence(ledger=site.environment["PERPETUAL_LEDGER"]).save("here", _sync=True)
            site.serve(REPOSITORY / "flows" / "doc_miner.py")
            yield site


def start_from_form(ui: V2, site: Site) -> None:
    """The run form, with both blocks chosen."""
    deployment = site.call("GET", "/deployments/name/mine-docs/doc-miner")["id"]
    ui.open(f"/deployments/deployment/{deployment}/run")
    ui.button("Submit").wait_for()
    ui.field("knowledge").fill(str(site.folder / "knowledge"))
    ui.choose_block("budget", "ResourceBudget", "small")
    ui.choose_block("store", "StatePersistence", "here")
    ui.name_chain(CHAIN)
    ui.page.set_viewport_size({"width": WIDTH, "height": 1400})
    take(ui, "run-form", ui.page.get_by_text("chain (Optional)"), ui.page.get_by_text("store (Optional)"), below=150)
    ui.submitted()


def show_runs(ui: V2) -> None:
    """The runs of the chain: their states tell the story."""
    ui.page.set_viewport_size({"width": WIDTH, "height": 1400})
    ui.open(f"/runs?tags=chain:{CHAIN}&tag=chain:{CHAIN}")
    first, last = (ui.page.get_by_role("link", name=f"{CHAIN} · {number}", exact=True) for number in (1, 2))
    expect(first).to_be_visible()
    expect(last).to_be_visible()
    take(ui, "runs", ui.page.get_by_text("Flow runs", exact=False).last, first, below=70)


def show_handoff(ui: V2) -> None:
    """The handoff of the latest session, as its page shows it."""
    ui.open(f"/artifacts/key/handoff-{CHAIN}")
    ui.page.locator('a[href*="/artifacts/artifact/"]').first.click()
    heading = ui.page.get_by_role("heading", name=f"{CHAIN} · session")
    expect(heading).to_be_visible()
    ui.page.set_viewport_size({"width": WIDTH, "height": 1100})
    take(ui, "handoff", heading, ui.page.get_by_role("heading", name="Done", exact=True), below=-50)


def show_report(browser: Browser, site: Site) -> None:
    """The upper part of the chain's report."""
    report = site.folder / "report.html"
    site.perpetual("report", CHAIN, "--html", str(report))
    page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
    page.goto(report.as_uri())
    save(page, "report", {"x": 120, "y": 0, "width": WIDTH - 240, "height": 740})


def take(ui: V2, name: str, first: Locator, last: Locator, below: float = 10) -> None:
    """A picture of the page's main part from one thing on it to another, in pixels."""
    ui.page.wait_for_load_state("networkidle")
    boxes = [shown.bounding_box() for shown in (ui.page.get_by_role("main"), first, last)]
    main_part, top, end = (box for box in boxes if box is not None)
    y = max(0.0, top["y"] - 24)
    height = end["y"] + end["height"] + below - y
    save(ui.page, name, {"x": main_part["x"], "y": y, "width": main_part["width"], "height": height})


def save(page: Page, name: str, clip: FloatRect) -> None:
    """That part of the page, as a file that is not too large for a repository."""
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path, clip=clip)
    size = path.stat().st_size
    print(f"{path.relative_to(REPOSITORY)}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{path.name}: got {size:,} bytes; expected at most {MOST_BYTES:,}")


if __name__ == "__main__":
    main()
