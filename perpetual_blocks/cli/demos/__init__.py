"""The five applications of `perpetual demo NAME`: each on a stage of real parts, with the pattern and without it."""

from importlib import import_module

from perpetual_blocks.cli.demos.application import Application

_HOMES = {
    "tokens": "tokens.Tokens",
    "memory": "memory.Memory",
    "time": "machines.Time",
    "quota": "quota.Quota",
    "cost": "cost.Cost",
}

NAMES = tuple(_HOMES)


def application(name: str) -> type[Application]:
    """The application of this name."""
    module, _, kind = _HOMES[name].partition(".")
    found: type[Application] = getattr(import_module(f"{__name__}.{module}"), kind)
    return found
