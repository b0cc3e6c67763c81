"""The account that a session begins with: what its chain has spent, and what it has learned."""

from collections.abc import Mapping
from typing import Any

from perpetual_blocks.budget import Budget, Forecast, Limit, Quota, Record, Spend
from perpetual_blocks.session.chain import Chain
from perpetual_blocks.session.documents import chain_usage
from perpetual_blocks.session.ledger import Ledger
from perpetual_blocks.usage import RESOURCES


def budget_record(
    ledger: Ledger,
    chain: Chain,
    budget: Budget,
    now: float,
    *,
    before: int,
    forecasts: Mapping[str, Forecast] | None = None,
) -> Record:
    """What the ledger knows of a chain, for the session with the ordinal `before`, without that session's own spends.

    Forecasts are as the last session that ended in order saved them, and learn from what later ones had committed
    when they died; or as given.
    """
    sessions = [session for session in ledger.sessions(chain.name) if session.ordinal < before]
    since: dict[str, float] = {}
    for limit in budget:
        if limit.window is not None:
            begin = limit.window.since(now)
            since[limit.resource] = min(begin, since.get(limit.resource, begin))
    return Record(
        spends={name: ledger.spends(chain.name, name, begin) for name, begin in since.items()},
        totals=chain_usage(sessions),
        pooled={limit.name: pool_spends(ledger, limit, now) for limit in budget if limit.pool},
        forecasts=learned(ledger, chain) if forecasts is None else dict(forecasts),
        quotas={name: Quota(*quota) for name, quota in chain.quotas.items()},  # type: ignore[arg-type]
    )


def pool_spends(ledger: Ledger, limit: Limit, now: float) -> list[Spend]:
    """What everybody has spent of a limit's pool and still counts."""
    return ledger.pool_spends(limit, limit.window.since(now) if limit.window else 0.0)


def learned(ledger: Ledger, chain: Chain) -> dict[str, Forecast]:
    """The chain's forecasts, by resource."""
    saved, through = ledger.forecasts(chain.name)
    forecasts = _restored(saved or ledger.forecasts_of(chain.agent))
    for unit in ledger.unit_costs(chain.name, through):
        for name, cost in unit.usage.items():
            forecast = forecasts.setdefault(name, Forecast())
            forecast.learn(cost, unit.expectation.hint(name), finished=unit.finished)
    return forecasts


def learned_by(ledger: Ledger, agent: str) -> dict[str, Forecast]:
    """What the latest chain of an agent has learned, by resource."""
    return _restored(ledger.forecasts_of(agent))


def _restored(saved: dict[str, Any]) -> dict[str, Forecast]:
    return {name: Forecast.from_json(state) for name, state in saved.items() if name in RESOURCES}
