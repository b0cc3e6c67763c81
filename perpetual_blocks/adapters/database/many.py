"""Statements for many rows, of which a batch of units has hundreds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from sqlalchemy import JSON, Connection, Insert, Update
from sqlalchemy.engine import Dialect

from perpetual_blocks.adapters.database.json_text import write_json


class ForMany:
    """A statement that the driver itself executes for many rows: SQLAlchemy would spend more on the parameters of each
    row than SQLite does on the row.

    Args:
        statement: An UPDATE or INSERT of one table.
        columns: What it sets. Its other parameters are those of its conditions.
    """

    def __init__(self, statement: Insert | Update, *columns: str) -> None:
        self._statement = statement
        self._columns = columns
        table = statement.table
        self._json = [name for name in columns if isinstance(table.c[name].type, JSON)]
        self._forms: dict[str, _Form] = {}

    def __call__(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> int:
        """Executes it with each of the rows, which are changed by it; returns how many rows of the table it met."""
        if not rows:
            return 0
        for name in self._json:
            for row in rows:
                row[name] = write_json(row[name])
        form = self._form(connection.dialect)
        if form.constants:
            rows = [{**form.constants, **row} for row in rows]
        values: Any = list(map(form.in_order, rows)) if form.in_order else rows
        return connection.exec_driver_sql(form.sql, values).rowcount

    def _form(self, dialect: Dialect) -> "_Form":
        if dialect.name not in self._forms:
            compiled = self._statement.compile(dialect=dialect, column_keys=list(self._columns))
            constants = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
            names = getattr(compiled, "positiontup", None)
            self._forms[dialect.name] = _Form(str(compiled), constants, itemgetter(*names) if names else None)
        return self._forms[dialect.name]


@dataclass(frozen=True, slots=True)
class _Form:
    """A statement in the words of a dialect.

    Attributes:
        constants: Parameters that are the same for every row.
        in_order: A row's parameters in their order; None where the dialect takes them by name.
    """

    sql: str
    constants: dict[str, Any]
    in_order: Callable[[dict[str, Any]], tuple[Any, ...]] | None
