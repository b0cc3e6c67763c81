"""Put `flows/` where Prefect puts it when it loads a flow: first on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "flows"))
