"""The budget of a session, as a block."""

from typing import Literal

from prefect.blocks.core import Block
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, model_validator

from perpetual_blocks.budget import Budget, Limit


class LimitSettings(BaseModel):
    """One limit, as a row of the form."""

    model_config = ConfigDict(extra="forbid")

    resource: Literal["tokens", "cost", "calls", "seconds", "memory_mib"] = Field(
        default="tokens",
        title="Resource",
        description="What is limited; cost is in US dollars, memory in MiB of the process and its children.",
    )
    amount: float = Field(default=200_000, ge=0.000001, title="Amount", description="How much a session may use.")
    threshold: float = Field(
        default=0.85,
        ge=0.01,
        le=1,
        title="Threshold",
        description="The share of it at which the session wraps.",
    )

    def get_limit(self) -> Limit:
        """The limit in the core's units.

        Raises:
            InvalidInput: a value that is out of range.
        """
        if self.resource == "memory_mib":
            return Limit("memory", self.amount * 2**20, threshold=self.threshold)
        return Limit(self.resource, self.amount, threshold=self.threshold)


class ResourceBudget(Block):
    """What each session of a perpetual flow may use before it hands over to the next.

    Attributes:
        limits: One limit for each resource; the session wraps at the first that comes near.
    """

    _block_type_name = "Resource Budget"
    _block_type_slug = "resource-budget"
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/process.png"
    )
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "What each session of a perpetual flow may use: tokens, dollars, calls, seconds, memory."

    limits: list[LimitSettings] = Field(..., title="Limits", description="One row for each resource that is limited.")

    @model_validator(mode="after")
    def _check(self) -> "ResourceBudget":
        self.get_budget()
        return self

    def get_budget(self) -> Budget:
        """The budget.

        Raises:
            InvalidInput: a limit is wrong, or one resource has two.
        """
        return Budget(*(limit.get_limit() for limit in self.limits))
