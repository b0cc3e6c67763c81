"""The budget of a session, as a block."""

from typing import Any, Literal

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator
from pydantic.config import JsonDict

from perpetual_blocks.blocks.forms import filled
from perpetual_blocks.budget import Budget, Limit
from perpetual_blocks.budget.limits import DEFAULT_THRESHOLD, Rule, Scope
from perpetual_blocks.session.manners import ASK_HOURS, MOST_ASK_HOURS, Manners

FIRST_ROW: JsonDict = {"resource": "tokens", "amount": 200_000, "scope": "session"}
"""The limit that a new form shows. The v1 UI shows rows as JSON, and this is where one sees how they are written."""


class LimitSettings(BaseModel):
    """One limit, as a row of the form."""

    model_config = ConfigDict(extra="forbid")

    resource: Literal["tokens", "cost", "calls", "seconds", "memory_mib", "cpu_seconds"] = Field(
        default="tokens",
        title="Resource",
        description="What is limited; cost in US dollars, memory in MiB. Memory and CPU of children count too.",
    )
    amount: float = Field(default=200_000, ge=0.000001, title="Amount", description="How much may be used.")
    threshold: float = Field(
        default=DEFAULT_THRESHOLD,
        ge=0.01,
        le=1,
        title="Threshold",
        description="With the rule fixed: the share of it from which on nothing is started.",
    )
    # Prefect's checksum of a block's form depends on the order: new fields come last.
    scope: Scope = Field(
        default="session", title="Scope", description="What it is for: each session, each window, or all in total."
    )
    window: str = Field(
        default="",
        pattern=r"^$|^(minute|hour|day|week|month)( \S+)?$|^[1-9][0-9]{0,8}[smhd]$",
        title="Window",
        description='With the scope window: "day", "month America/Los_Angeles", or the last "5h" or "7d".',
    )
    rule: Rule = Field(
        default="predictive",
        title="Rule",
        description="predictive: when the next unit would probably not fit; adaptive: 90, 85 or 80 % by complexity.",
    )
    pool: str = Field(
        default="", title="Pool", description="A name: all chains that give the same one share a window or a total."
    )
    share: float = Field(
        default=0, ge=0, le=1, title="Share", description="With a pool: the share of it that is kept for this chain."
    )
    priority: int = Field(
        default=0, title="Priority", description="With a pool: may borrow what is kept for lower ones."
    )

    def get_limit(self) -> Limit:
        """The limit in the core's units.

        Raises:
            InvalidInput: a value that is out of range.
        """
        in_mib = self.resource == "memory_mib"
        return Limit(
            "memory" if in_mib else self.resource,
            self.amount * 2**20 if in_mib else self.amount,
            scope=self.scope,
            window=self.window or None,
            threshold=self.threshold if self.rule == "fixed" else None,
            rule=self.rule,
            pool=self.pool or None,
            share=self.share,
            priority=self.priority,
        )


class ResourceBudget(Block):
    """What a perpetual flow may use: in each session before it hands over to the next, in each quota window, in all.

    Attributes:
        limits: The session wraps at the first that comes near; the follow-on waits for windows; a total ends the chain.
    """

    _block_type_name = "Resource Budget"
    _block_type_slug = "resource-budget"
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/process.png"
    )
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = (
        "What a perpetual flow may use, in a session, a quota window or in total: tokens, dollars, calls, time, memory."
    )

    # Required, or the run form could not submit the block; see `forms.filled`.
    limits: list[LimitSettings] = Field(
        ...,
        title="Limits",
        description="One row for each limit; an empty list for none.",
        json_schema_extra={"default": [FIRST_ROW]},
    )
    max_sessions: int = Field(
        default=0, ge=0, title="Most sessions", description="Of a chain in all; 0 for any number."
    )
    unattended_sessions: int = Field(
        default=0,
        ge=0,
        title="Most unattended sessions",
        description="That follow by themselves after a person has started or resumed the chain; 0 for any number.",
    )
    unattended_cost: float = Field(
        default=0, ge=0, title="Most unattended cost", description="US dollars that these may spend; 0 for any amount."
    )
    quiet_hours: str = Field(
        default="",
        pattern=r"^$|^\d\d:\d\d-\d\d:\d\d( \S+)?$",
        title="Quiet hours",
        description='When nothing starts by itself, as "09:00-17:30 Europe/Berlin"; empty for none.',
    )

    ask_hours: float = Field(
        default=ASK_HOURS,
        ge=0,
        le=MOST_ASK_HOURS,
        title="Hours to ask",
        description="For which a run whose total is gone waits for a person to approve more; 0 to end at once.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return filled(values, limits=[FIRST_ROW])

    @model_validator(mode="after")
    def _check(self) -> "ResourceBudget":
        self.get_budget()
        self.get_manners()
        return self

    def get_manners(self) -> Manners:
        """How far a chain may go by itself.

        Raises:
            InvalidInput: a value that is out of range.
        """
        return Manners(
            max_sessions=self.max_sessions or None,
            unattended_sessions=self.unattended_sessions or None,
            unattended_cost=self.unattended_cost or None,
            quiet_hours=self.quiet_hours or None,
            ask_hours=self.ask_hours,
        )

    def get_budget(self) -> Budget:
        """The budget.

        Raises:
            InvalidInput: a limit is wrong, contradicts another one, or is there twice.
        """
        return Budget(*(limit.get_limit() for limit in self.limits))
