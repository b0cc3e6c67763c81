"""What is decided about a chain whose total is gone; whoever decides first has decided."""

from dataclasses import replace
from typing import Any

from sqlalchemy import update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import latest_session, lock_chain
from perpetual_blocks.adapters.database.control import ChainControl
from perpetual_blocks.adapters.database.patient import patient
from perpetual_blocks.errors import UnknownChain
from perpetual_blocks.session.approval import Approval
from perpetual_blocks.session.asking import check_open, reason_after
from perpetual_blocks.session.chain import Chain, ChainStatus


@patient()
class ChainApproval(ChainControl):
    """The transactions of asking and approving."""

    def ask(self, chain: str, ordinal: int, until: float) -> bool:
        with self._writing() as connection:
            row = lock_chain(connection, chain)
            if row is None or (row.ordinal, row.status) != (ordinal, ChainStatus.EXHAUSTED):
                return False
            if any(one.session == ordinal for one in row.approvals):
                return False
            connection.execute(update(t.chains).where(t.chains.c.name == chain).values(asks_until=until))
            return True

    def approve(self, chain: str, approval: Approval) -> Chain:
        with self._writing(synced=True) as connection:
            row = lock_chain(connection, chain)
            if row is None:
                raise UnknownChain(f"chain: got {chain!r}; expected one of the ledger's chains")
            if any(one.key == approval.key for one in row.approvals):
                return row
            check_open(row, approval)
            now = self._now(connection)
            decided = (*row.approvals, replace(approval, at=now))
            values: dict[str, Any] = {
                "approvals": [one.to_json() for one in decided],
                "asks_until": None,
                "updated_at": now,
            }
            latest, follows = latest_session(connection, chain), False
            if approval.goes_on:
                follows = self._record_next(connection, row, latest, now)
                values |= {"status": ChainStatus.WAITING, "attended": row.ordinal, "resume_at": None}
            why = latest.stop_message if latest is not None else None
            values["reason"] = reason_after(approval, chain, why or row.reason, follows=follows)
            connection.execute(update(t.chains).where(t.chains.c.name == chain).values(**values))
            found = lock_chain(connection, chain)
            assert found is not None
            return found
