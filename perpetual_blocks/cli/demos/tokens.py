"""The tokens: an LLM agent reads 30 modules of the standard library, with a model whose window holds eight of them."""

import hashlib
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perpetual_blocks.cli.demos.application import Application
from perpetual_blocks.cli.demos.http_server import served
from perpetual_blocks.cli.demos.model_server import MODEL, ModelHandler, ModelService

DOCUMENTS, LEAST_BYTES, MOST_BYTES = 30, 6_000, 24_000
WINDOW = 32_000
REQUESTS, SECONDS = 60, 5.0


class Tokens(Application):
    """Reads the documents with a local model that counts tokens, and refuses what its window does not hold."""

    name = "tokens"
    flow = "token_agent.py:research"
    needs = ("pydantic_ai", "openai")
    limit = f"a context window of {WINDOW:,} tokens"

    @contextmanager
    def parts(self) -> Iterator[None]:
        """The documents, and the model's server."""

        class Handler(ModelHandler):
            service = ModelService(window=WINDOW, requests=REQUESTS, seconds=SECONDS)

        self._service = Handler.service
        self._corpus.mkdir(exist_ok=True)
        for path in documents():
            shutil.copyfile(path, self._corpus / path.name)
        with served(Handler) as address:
            self._address = address
            yield

    def parameters(self) -> dict[str, Any]:
        return {
            "corpus": str(self._corpus),
            "findings": str(self._findings),
            "model": f"openai-chat:{MODEL}",
            "window": WINDOW,
        }

    def environment(self) -> dict[str, str]:
        return {"OPENAI_BASE_URL": f"{self._address}/v1", "OPENAI_API_KEY": "no-key-is-needed-here"}

    def expected(self) -> int:
        return len(documents())

    def results(self) -> dict[str, str]:
        return {file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in self._findings.rglob("*.md")}

    def overruns(self) -> int:
        return self._service.refused["context_length_exceeded"]

    @staticmethod
    def plain(parameters: Mapping[str, Any]) -> Iterator[None]:
        """One conversation for all documents, as the library's own example has it."""
        from pydantic_ai import Agent
        from pydantic_ai.messages import ModelMessage

        def read_document() -> str:
            """Read the document at hand."""
            return path.read_text(errors="replace")

        agent = Agent(parameters["model"], tools=[read_document])
        messages: list[ModelMessage] = []
        for path in sorted(Path(parameters["corpus"]).iterdir()):
            prompt = f"Read the document {path.name} with read_document, and say what you find."
            answer = agent.run_sync(prompt, message_history=messages)
            messages = answer.all_messages()
            yield

    @property
    def _corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def _findings(self) -> Path:
        return self.folder / "findings"


def documents() -> list[Path]:
    """Modules of Python's standard library that are neither short nor long."""
    library = Path(sysconfig.get_path("stdlib"))
    fitting = [path for path in sorted(library.glob("*.py")) if LEAST_BYTES <= path.stat().st_size <= MOST_BYTES]
    return fitting[:DOCUMENTS]
