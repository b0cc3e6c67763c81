"""A local OpenAI-compatible model for tests, and the environment in which its clients find it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perpetual_blocks.cli.demos.http_server import served
from perpetual_blocks.cli.demos.model_server import MODEL, ModelHandler, ModelService

MODEL_NAME = f"openai-chat:{MODEL}"
KEY = "no-key-is-needed-here"


@contextmanager
def model_server(service: ModelService) -> Iterator[str]:
    """Serves the model; yields what OPENAI_BASE_URL is to be."""
    handler = type("Handler", (ModelHandler,), {"service": service})
    with served(handler) as address:
        yield f"{address}/v1"


@contextmanager
def model_in_environment(service: ModelService, patch: pytest.MonkeyPatch) -> Iterator[ModelService]:
    """The same, for clients in this process."""
    with model_server(service) as url:
        patch.setenv("OPENAI_BASE_URL", url)
        patch.setenv("OPENAI_API_KEY", KEY)
        yield service
