"""What puts a chain right that no session works on: it is rebuilt from its backup, or what a verification found is."""

from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Select, delete, literal, select

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import lock_chain
from perpetual_blocks.adapters.database.examine import repair_items
from perpetual_blocks.adapters.database.export import pause_restored, put_rows
from perpetual_blocks.adapters.database.patient import patient
from perpetual_blocks.adapters.database.queues import lock_queue, names_on
from perpetual_blocks.adapters.database.rows import find_chain
from perpetual_blocks.adapters.database.tallies import recount
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.errors import InvalidInput, Superseded
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.session.ledger import Document, Row


@patient()
class ChainRepair(LedgerWriter):
    """The transactions of restoring and of repair."""

    def rebuild(self, chain: str, segments: Iterable[Iterable[Row]], reason: str) -> None:
        with self._writing(synced=True) as connection:
            if lock_chain(connection, chain) is not None:
                raise InvalidInput.of("chain", chain, "a chain that this ledger does not have")
            put_rows(connection, segments)
            row = find_chain(connection, chain)
            if row is not None and find_chain(connection, row.queue) is None:
                expected = f"the chain whose queue it works on first: `perpetual restore {row.queue}`"
                raise InvalidInput.of("chain", chain, expected)
            pause_restored(connection, chain, reason, self._now(connection))
            recount(connection, chain)

    def repair_items(self, chain: str, ids: Sequence[str]) -> None:
        with self._writing() as connection:
            self._at_rest(connection, names_on(chain))
            lock_queue(connection, chain)
            repair_items(connection, chain, ids, self._now(connection))
            recount(connection, chain)

    def forget_document(self, chain: str, document: Document) -> None:
        with self._writing() as connection:
            self._at_rest(connection, select(literal(chain)))
            connection.execute(
                delete(t.documents).where(t.documents.c.chain == chain, t.documents.c.key == document.key)
            )

    def _at_rest(self, connection: Connection, names: Select[tuple[str]]) -> None:
        """Refuses to change the rows of chains that a session works on; none begins until this transaction ends."""
        # Not as a `Chain`, which a row that is broken may not make.
        rows = select(t.chains.c.name, t.chains.c.lease_until).where(t.chains.c.name.in_(names))
        found = connection.execute(rows.order_by(t.chains.c.name).with_for_update(key_share=True)).all()
        for chain, lease_until in found:
            running = select(literal(1)).where(t.sessions.c.chain == chain, t.sessions.c.state == SessionState.RUNNING)
            if lease_until > self._now(connection) and connection.execute(running).first():
                raise Superseded(f"a session of {chain} is at work; nothing is repaired meanwhile")
