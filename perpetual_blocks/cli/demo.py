"""`perpetual demo`: the whole pattern on this machine, with nothing to set up."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from perpetual_blocks.cli.output import Json, Where

HERE = Where()


def demo(
    name: Literal["docs", "tokens", "memory", "time", "quota", "cost"] = "docs",
    *,
    folder: Path = Path("perpetual-demo"),
    json: Json = False,
    where: Where = HERE,
) -> int:
    """See on this machine how work outlives its limits. Starts a local Prefect server if none is configured.

    docs: mine Python's standard library into a knowledge base, in a chain of runs of a served deployment.

    The others do the same work twice, with the pattern and in a plain loop, under a limit that is really there:

    tokens: an LLM agent with tools, whose model has a small context window.

    memory: many Parquet files, in a container that is smaller than they are.

    time: a long computation on machines that end after a few seconds.

    quota: an API that answers 429 to one call too many.

    cost: object storage and a model, on an account with little credit.

    Example: perpetual demo quota

    Args:
        name: Which one.
        folder: Where everything goes that it writes.
        json: Print one JSON object, and nothing else: of docs, the chain's status; of the others, both runs.
    """
    chain = f"{'demo' if name == 'docs' else name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    folder = (folder / chain).absolute()
    folder.mkdir(parents=True)
    if name == "docs":
        from perpetual_blocks.cli.demos.docs import mine_docs

        return mine_docs(chain, folder, where, json=json)
    from perpetual_blocks.cli.demos.comparison import compare

    return compare(name, chain, folder, where, json=json)
