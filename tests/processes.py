"""Where tests start many processes at once from."""

import multiprocessing

_FORKS = "forkserver" in multiprocessing.get_all_start_methods()

MANY = multiprocessing.get_context("forkserver" if _FORKS else "spawn")
"""For processes that have nothing of this one. What they import is imported once, where each of sixteen would take most
of a second for it."""

MANY.set_forkserver_preload(["perpetual_blocks.adapters.database.pool", "perpetual_blocks.testing", "psycopg"])
