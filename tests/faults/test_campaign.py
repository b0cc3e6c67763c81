"""The kill campaign in short; `python tests/faults/campaign.py --kills 1000` is the long form."""

import campaign
from prefect_server import PrefectServer


def test_a_short_campaign(prefect_server: PrefectServer) -> None:
    """Processes of a served chain on SQLite are killed at named points and from outside: nothing is lost, doubled or
    stuck, and no follow-on is superfluous."""
    found = campaign.run(kills=8, seed=11, lanes=[("serve", "sqlite")], server=prefect_server, items=12, every=2.0)

    assert found["kills"] >= 8
    assert {name: found[name] for name in ("lost", "doubled", "stuck", "superfluous", "no_handoff")} == dict.fromkeys(
        ("lost", "doubled", "stuck", "superfluous", "no_handoff"), 0
    ), found["found"]
