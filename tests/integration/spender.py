"""The agent of the approval test: ten tokens a unit, of a total that is gone after four units."""

from pathlib import Path

from perpetual_blocks import Budget, Limit, PerpetualAgent, WorkItem


class Spender(PerpetualAgent):
    """Note the numbers below n."""

    notes: Path
    n: int = 8

    def plan(self):
        for number in range(self.n):
            yield WorkItem(id=f"n/{number}", payload={"number": number}, bound={"tokens": 10})

    def work_unit(self, unit):
        with self.notes.open("a") as notes:
            notes.write(f"{unit.id}\n")
        unit.spend(tokens=10)


spender = Spender.as_flow(name="spender", budget=Budget(Limit("tokens", 45, scope="total")))

if __name__ == "__main__":
    spender.serve(name="served")
