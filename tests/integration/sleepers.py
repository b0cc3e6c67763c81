"""The flows of agents of which one unit sleeps longer than any session lasts."""

from sleeping import Dreamers, Sleepers

from perpetual_blocks import Budget

sleepers = Sleepers.as_flow(name="sleepers", budget=Budget(seconds=8))
dreamers = Dreamers.as_flow(name="dreamers", budget=Budget(seconds=4))
