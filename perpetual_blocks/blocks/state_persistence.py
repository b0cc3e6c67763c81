"""Where a perpetual flow keeps its state, as a block."""

import os
from typing import Any, Literal

from prefect.blocks.core import Block
from prefect.settings import get_current_settings
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator, model_validator

from perpetual_blocks.adapters.database import DEFAULT_LEASE_SECONDS, SqlLedger
from perpetual_blocks.adapters.database.engine import parse_address
from perpetual_blocks.blocks.forms import filled
from perpetual_blocks.errors import InvalidInput

DEFAULT = "default"


def default_ledger() -> str:
    """The ledger that is used where nothing else is said: $PERPETUAL_LEDGER, or an SQLite file in Prefect's home."""
    return os.environ.get("PERPETUAL_LEDGER") or str(get_current_settings().home / "perpetual.db")


class StatePersistence(Block):
    """Where a perpetual flow keeps its state: the ledger database and the results storage.

    Attributes:
        ledger: The ledger database's address, as a secret because it may hold a password.
        result_storage: The storage block that outcomes and documents go to.
        backup_storage: A storage block for copies of each session's documents, and for what changed of the ledger's
            rows: `perpetual restore` rebuilds a lost ledger from it.
        durability: Whether every commit is synced to the disk.
        keep_checkpoints: How many checkpoints of a chain are kept.
        signing_secret: The Secret block with whose value checkpoints are signed.
    """

    # An address that is refused may hold a password, and pydantic would show it.
    model_config = ConfigDict(hide_input_in_errors=True)

    _block_type_name = "State Persistence"
    _block_type_slug = "state-persistence"
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/filesystem.png"
    )
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")
    _description = "Where a perpetual flow keeps its state: its ledger database and its results storage."

    # Required, or the run form could not submit the block; see `forms.filled`.
    ledger: SecretStr = Field(
        ...,
        title="Ledger",
        description='"default" for $PERPETUAL_LEDGER or an SQLite file in Prefect\'s home; a path; sqlite:///path; or '
        "postgresql://user:password@host/database.",
        json_schema_extra={"default": DEFAULT},
    )
    result_storage: str = Field(
        default="",
        title="Results storage",
        description="A storage block's name, as local-file-system/results; empty for Prefect's default.",
    )
    backup_storage: str = Field(
        default="",
        title="Backup storage",
        description="A storage block's name for copies of documents and of the ledger's rows; empty for none.",
    )
    durability: Literal["normal", "full"] = Field(
        default="normal",
        title="Durability",
        description="normal survives the death of a process; full also a loss of power at any moment.",
    )

    keep_checkpoints: int = Field(
        default=50,
        ge=2,
        title="Checkpoints to keep",
        description="Of each chain; older ones are deleted where the storage can. At least 2: the last may be damaged.",
    )

    signing_secret: str = Field(
        default="",
        title="Signing secret",
        description="A Secret block's name: checkpoints are signed with its value, and used only with its signature.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return filled(values, ledger=DEFAULT)

    @field_validator("ledger")
    @classmethod
    def _check_ledger(cls, value: SecretStr) -> SecretStr:
        address = value.get_secret_value()
        if not address.strip():
            raise InvalidInput.of("ledger", address, '"default", or the address of a database')
        if address != DEFAULT and parse_address(address).database in (None, "", ":memory:"):
            raise InvalidInput.of("ledger", address, "a database that outlives a process; this one is in memory")
        return value

    def get_address(self) -> str:
        """The ledger's address, with its password."""
        address = self.ledger.get_secret_value()
        return default_ledger() if address == DEFAULT else address

    def get_ledger(self, lease_seconds: float = DEFAULT_LEASE_SECONDS, patience_seconds: float = 0.0) -> SqlLedger:
        """Opens the ledger, making or migrating its tables.

        Args:
            lease_seconds: How long a session owns its chain without a heartbeat.
            patience_seconds: For how long each transaction is tried again while the database is away.

        Raises:
            LedgerError: the database cannot be used.
        """
        return SqlLedger(
            self.get_address(),
            durability=self.durability,
            lease_seconds=lease_seconds,
            patience_seconds=patience_seconds,
        )
