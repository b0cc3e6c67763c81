"""A LangGraph graph that goes through one trivial node again and again, each time saved by the SQLite checkpointer.

python langgraph_steps.py STEPS   # prints the seconds that the graph took as JSON
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph


class Progress(TypedDict):
    """The graph's state."""

    number: int
    text: str


def step(state: Progress) -> Progress:
    return {"number": state["number"] + 1, "text": "done"}


def main(steps: int) -> None:
    """Runs the graph, and prints how long it took."""
    builder = StateGraph(Progress)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: "step" if state["number"] < steps else END)
    with (
        TemporaryDirectory(prefix="perpetual-bench-") as folder,
        SqliteSaver.from_conn_string(str(Path(folder) / "langgraph.db")) as saver,
    ):
        graph = builder.compile(checkpointer=saver)
        started = time.perf_counter()
        graph.invoke(
            {"number": 0, "text": ""},
            {"configurable": {"thread_id": "bench"}, "recursion_limit": steps + 10},
            # Each step is saved before the next begins; "async", the default, saves it beside the next.
            durability="sync",
        )
        seconds = time.perf_counter() - started
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]))
