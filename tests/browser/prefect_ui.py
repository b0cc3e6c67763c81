"""Both of Prefect's UIs, as a person uses them: v2 at /v2, and v1 at /."""

import re
from abc import ABC, abstractmethod
from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Route, TimeoutError, WebError, expect

PATIENCE_SECONDS = 60.0
"""For a page that draws a graph without a graphics card, on a machine that tests other things too."""

BUSY, REFUSED = 503, 409

LOGO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 48">
<rect width="48" height="48" rx="8" fill="#1d4ed8"/>
<path d="M24 12a12 12 0 1 1-11 7M13 10v9h9" fill="none" stroke="#fff" stroke-width="4" stroke-linecap="round"/></svg>"""

PREFECTS_OWN = re.compile(
    r"/favicon\.ico$|/[a-z-]*\.svg$|/ico/[a-z]*\.svg$"  # icons that v1 asks for and the server does not have
    r"|/block_documents/name/[^/]+$"  # v2 asks whether a new block's name is still free
    r"|/task_runs/filter$"  # v2 asks for the task run of an artifact that a flow made, whose id is empty
)
"""Addresses of which both UIs complain on their own, whatever is shown."""

PREFECTS_GRAPH = re.compile(
    r"of null \((reading|setting) '(x|y|position)'\).*/assets/(flow-run-graph|index)-", re.DOTALL
)
"""What draws a run's graph moves on, frame by frame, what it has just taken away: the error is raised by the drawing
library or by the graph itself, and the graph is always among those who called."""


class PrefectUi(ABC):
    """One of them, in a page of its own.

    Args:
        context: The browser's.
        server: The server's address.
        prefix: Where this UI is on it.
    """

    prefix = ""
    save_block = "Create"
    name_of_block = "Block Name"
    resume = "Submit"

    def __init__(self, context: BrowserContext, server: str) -> None:
        self.server = server
        self.complaints: list[str] = []
        self._refused = 0
        context.route(lambda address: not address.startswith(server), self._elsewhere)
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        expect.set_options(timeout=PATIENCE_SECONDS * 1000)
        context.on("console", self._hear)
        context.on("weberror", self._hear_error)
        self.page: Page = context.new_page()

    def open(self, path: str) -> None:
        """Opens a page of this UI, and does not wait for its pictures."""
        self.page.goto(f"{self.server}{self.prefix}{path}", wait_until="commit")

    def follow(self, link: str) -> None:
        """Clicks a link of a document; v1 opens those in a new tab, which is looked at from then on."""
        found = self.page.get_by_role("link", name=link, exact=True)
        if found.get_attribute("target") != "_blank":
            found.click()
            return
        with self.page.expect_popup() as opened:
            found.click()
        self.page = opened.value

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def press(self, name: str, end: str, *, opened_by: str | None = None) -> Any:
        """Presses a form's button until the server has answered.

        v2 wants to be pressed twice once it has refused a value. On SQLite the server says 503 while another write goes
        on: a dialog closes with that, and is opened again by the button named here.
        """
        patience = PATIENCE_SECONDS * 1000 / 6
        for _ in range(5):
            if opened_by is not None and not self.button(name).is_visible():
                self.button(opened_by).click()
            try:
                with self.page.expect_request(
                    lambda asked: asked.method == "POST" and asked.url.endswith(end), timeout=patience
                ) as sent:
                    self.button(name).click(timeout=patience)
            except TimeoutError:
                continue
            answer = sent.value.response()
            assert answer is not None, sent.value.failure
            if answer.status == BUSY:
                continue
            assert answer.ok, answer.text()
            return answer.json()
        raise AssertionError(f"{name}: {end} did not take it\n{self.page.locator('body').aria_snapshot()}")

    def saved_block(self) -> Any:
        """Saves the form of a block."""
        return self.press(self.save_block, "/block_documents/")

    def submitted(self) -> Any:
        """Submits the form of a run."""
        return self.press("Submit", "/create_flow_run")

    # What the two do in different ways -----------------------------------------------------------------------------

    @abstractmethod
    def field(self, label: str) -> Locator:
        """The input that has this label."""

    @abstractmethod
    def limits(self, amount: str) -> None:
        """Sets the amount of the only limit in a budget's form."""

    @abstractmethod
    def refusal(self, label: str) -> str:
        """What it says of a field's value."""

    @abstractmethod
    def refusal_of_run(self, label: str) -> str:
        """What it says when a run is submitted with a wrong value of this parameter, and that nothing else is wrong."""

    @abstractmethod
    def choose_block(self, parameter: str, kind: str, name: str) -> None:
        """Chooses a block in a run's form."""

    @abstractmethod
    def chosen_block(self, parameter: str) -> str:
        """The name of the block that a run's form shows as chosen."""

    @abstractmethod
    def name_chain(self, name: str) -> None:
        """Writes the chain's name in a run's form."""

    @abstractmethod
    def cancel_run(self) -> None:
        """Cancels the run that is shown."""

    @abstractmethod
    def resume_form(self) -> Locator:
        """The form of the suspended run that is shown."""

    @abstractmethod
    def decide(self, form: Locator, decision: str) -> None:
        """Chooses a decision in it."""

    @abstractmethod
    def add_hourly_schedule(self) -> None:
        """Adds the schedule that the dialog proposes: each 60 minutes."""

    @abstractmethod
    def schedule_switch(self) -> Locator:
        """What pauses and resumes the only schedule of the deployment that is shown."""

    @abstractmethod
    def run_menu(self, name: str) -> None:
        """Takes one of the ways to run the deployment that is shown."""

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type != "error":
            return
        address = said.location["url"].partition("?")[0]
        if any(f"status of {status} " in said.text for status in (BUSY, REFUSED)):
            self._refused += 1
        elif "/assets/" in address and self._refused:
            self._refused -= 1  # the page's own words for a request that was refused
            return
        if not PREFECTS_OWN.search(address) and f"status of {BUSY} " not in said.text:
            self.complaints.append(f"{said.text} ({said.location['url']})")

    def _hear_error(self, said: WebError) -> None:
        if PREFECTS_GRAPH.search(said.error.stack or "") is None:
            self.complaints.append(f"{said.error} {said.error.stack}")

    @staticmethod
    def _elsewhere(route: Route) -> None:
        """Nobody else is asked: neither for logos, instead of which there is a plain one, nor by v2's statistics."""
        if route.request.resource_type == "image":
            route.fulfill(content_type="image/svg+xml", body=LOGO)
        else:
            route.fulfill(body="")


class V2(PrefectUi):
    prefix = "/v2"
    save_block = "Save"
    name_of_block = "Name"
    resume = "Resume"

    def field(self, label: str) -> Locator:
        return self.page.get_by_label(re.compile(rf"^{label}( \(Optional\))?$"))

    def limits(self, amount: str) -> None:
        self.field("Amount").fill(amount)

    def refusal(self, label: str) -> str:
        field = self.field(label)
        by_browser = str(field.evaluate("field => field.validationMessage || ''"))
        return by_browser or field.locator("xpath=ancestor::*[.//p][2]").inner_text()

    def refusal_of_run(self, label: str) -> str:
        self.button("Submit").click()
        return self.refusal(label)

    def choose_block(self, parameter: str, kind: str, name: str) -> None:
        self.page.get_by_role("tab", name=kind).click()
        self.page.get_by_role("tabpanel", name=kind).get_by_label("Select a block").click()
        self.page.get_by_role("option", name=name, exact=True).click()

    def chosen_block(self, parameter: str) -> str:
        kind = {"budget": "ResourceBudget", "store": "StatePersistence"}[parameter]
        return self.page.get_by_role("tabpanel", name=kind).get_by_label("Select a block").inner_text()

    def name_chain(self, name: str) -> None:
        self.page.get_by_role("tab", name="str").click()
        self.page.get_by_role("tabpanel", name="str").get_by_role("textbox").fill(name)

    def cancel_run(self) -> None:
        self.page.get_by_role("main").get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name="Cancel").click()
        self.button("Cancel Flow Run").click()

    def resume_form(self) -> Locator:
        self.page.get_by_role("main").get_by_role("button", name="Open menu").first.click()
        self.page.get_by_role("menuitem", name="Resume").click()
        return self.page.get_by_role("dialog")

    def decide(self, form: Locator, decision: str) -> None:
        form.get_by_text("Select", exact=True).click()
        self.page.get_by_role("option", name=decision, exact=True).click()

    def add_hourly_schedule(self) -> None:
        self.press("Save", "/schedules", opened_by="Schedule")
        self.page.get_by_role("dialog").wait_for(state="hidden")

    def schedule_switch(self) -> Locator:
        return self.page.get_by_role("switch", name=re.compile("^toggle"))

    def run_menu(self, name: str) -> None:
        self.button("Run").click()
        self.page.get_by_role("menuitem", name=name).click()


class V1(PrefectUi):
    def field(self, label: str) -> Locator:
        return self._labelled(label).locator("input:visible, textarea, .cm-content").first

    def limits(self, amount: str) -> None:
        self.field("Limits").fill(f'[{{"resource": "tokens", "amount": {amount}}}]')

    def refusal(self, label: str) -> str:
        return self._labelled(label).locator(".p-label__message").inner_text()

    def refusal_of_run(self, label: str) -> str:
        # v1 does not look at the parameters itself: the server refuses them, of which the console tells too.
        before = len(self.complaints)
        with self.page.expect_response(lambda answer: answer.url.endswith("/create_flow_run")) as one:
            self.button("Submit").click()
        assert one.value.status == REFUSED, one.value.text()
        said = self.page.locator(".p-toast-container").filter(has_text=label).first.inner_text()
        self.complaints[before:] = [text for text in self.complaints[before:] if str(REFUSED) not in text]
        return said

    def choose_block(self, parameter: str, kind: str, name: str) -> None:
        self.button(kind).click()
        select = self._labelled(parameter).locator(".p-select-button__control")
        option = self.page.get_by_role("option", name=name, exact=True)
        select.click()
        select.press("ArrowDown")
        option.click()

    def chosen_block(self, parameter: str) -> str:
        return self._labelled(parameter).locator(".p-select-button__control").inner_text()

    def name_chain(self, name: str) -> None:
        self.button("str").click()
        self.field("chain").fill(name)

    def cancel_run(self) -> None:
        self.button("Cancel").first.click()
        self.page.locator(".p-modal").get_by_role("button", name="Confirm").click()

    def resume_form(self) -> Locator:
        self.button("Resume").first.click()
        return self.page.locator(".p-modal")

    def decide(self, form: Locator, decision: str) -> None:
        select = form.locator(".p-select-button__control").first
        select.click()
        select.press("ArrowDown")
        self.page.get_by_role("option", name=decision, exact=True).click()

    def add_hourly_schedule(self) -> None:
        self.press("Save", "/schedules", opened_by="Schedule")
        self.page.locator(".p-modal").wait_for(state="hidden")

    def schedule_switch(self) -> Locator:
        return self.page.locator("#app").get_by_role("switch")

    def run_menu(self, name: str) -> None:
        self.button("Run").click()
        self.page.locator(".p-overflow-menu-item", has_text=name).click()

    def _labelled(self, label: str) -> Locator:
        """v1's labels are not tied to their inputs."""
        exact = self.page.locator("label", has_text=re.compile(rf"^{label}( \(Optional\))?$"))
        return self.page.locator(".p-label, .schema-form-property").filter(has=exact).last
