"""A chain's documents, which lie in the storage: the ledger points at them."""

from sqlalchemy import and_, delete, literal, select, update

from perpetual_blocks.adapters.database import schema as t
from perpetual_blocks.adapters.database.chains import lock_chain
from perpetual_blocks.adapters.database.engine import insert_if_new
from perpetual_blocks.adapters.database.patient import patient, patiently
from perpetual_blocks.adapters.database.writer import LedgerWriter
from perpetual_blocks.errors import LedgerError
from perpetual_blocks.session.ledger import Document, Fence


@patient(but=["forget_checkpoints"])
class DocumentWriter(LedgerWriter):
    """The transactions of checkpoints, handoffs and backups."""

    def record_document(self, fence: Fence, document: Document) -> None:
        with self._writing() as connection:
            now = self._pass_fence(connection, fence)
            if document.kind == "backup":
                # Its place is one of two that are written in turn, so what the row before says does not hold any more.
                connection.execute(
                    delete(t.documents).where(t.documents.c.chain == fence.chain, t.documents.c.kind == "backup")
                )
            this = {"chain": fence.chain, "kind": document.kind, "ordinal": document.ordinal}
            content = {"key": document.key, "digest": document.digest, "size": document.size}
            if insert_if_new(connection, t.documents, **this, **content, at=now):
                return
            rows = select(literal(1)).where(
                *(t.documents.c[name] == value for name, value in {**this, **content}.items())
            )
            if connection.execute(rows).first() is None:
                has = f"session {document.ordinal} of {fence.chain} has another {document.kind}"
                raise LedgerError(f"ledger: {has} than {document.key}")

    def add_document(self, chain: str, document: Document) -> bool:
        with self._writing() as connection:
            lock_chain(connection, chain)
            values = {name: getattr(document, name) for name in ("kind", "ordinal", "key", "digest", "size")}
            return insert_if_new(connection, t.documents, chain=chain, at=self._now(connection), **values)

    def forget_checkpoints(self, fence: Fence, keep: int) -> list[str]:
        forgotten: dict[str, None] = {}
        self._forget_checkpoints(fence, keep, forgotten)
        return list(forgotten)

    @patiently
    def _forget_checkpoints(self, fence: Fence, keep: int, forgotten: dict[str, None]) -> None:
        checkpoints = and_(t.documents.c.chain == fence.chain, t.documents.c.kind == "checkpoint")
        rows = select(t.documents.c.key, t.documents.c.pinned).where(checkpoints)
        latest_first = rows.order_by(t.documents.c.ordinal.desc())
        with self._writing() as connection:
            self._pass_fence(connection, fence)
            older = connection.execute(latest_first).all()[max(1, keep) :]
            old = [key for key, pinned in older if not pinned]
            forgotten.update(dict.fromkeys(old))
            connection.execute(delete(t.documents).where(t.documents.c.key.in_(old)))

    def pin_checkpoint(self, chain: str, ordinal: int, *, pinned: bool) -> bool:
        of_session = and_(t.documents.c.chain == chain, t.documents.c.ordinal == ordinal)
        with self._writing() as connection:
            lock_chain(connection, chain)
            changed = connection.execute(
                update(t.documents).where(of_session, t.documents.c.kind == "checkpoint").values(pinned=pinned)
            )
            return changed.rowcount == 1
