"""An agent whose sessions end only when somebody ends them: squares without a budget."""

from squares import Squares

steady = Squares.as_flow(name="steady")

if __name__ == "__main__":
    steady.serve(name="served", limit=40)
