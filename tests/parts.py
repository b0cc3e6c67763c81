"""What tests need of the machine, beside Python's packages."""

import os
from typing import NoReturn

import pytest


def is_missing(reason: str) -> NoReturn:
    """Skips the test, or the tests of a fixture; in CI, where every part has to be there, they fail.

    Args:
        reason: What is missing, and how it is installed.
    """
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
