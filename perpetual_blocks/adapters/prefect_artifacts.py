"""Pages in Prefect's UI: artifacts of a flow run, made and changed through its API."""

from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate


class RunArtifacts:
    """The artifacts of one flow run, from whichever thread; keys are of lowercase letters, digits and dashes."""

    def __init__(self, flow_run_id: str) -> None:
        self._run = UUID(flow_run_id)
        self._made: dict[str, UUID] = {}

    def show_progress(self, key: str, share: float, description: str) -> None:
        """The run's progress under this key: made at the first time, then changed.

        Args:
            share: From 0 to 1.
            description: Plain text.
        """
        self._show(key, "progress", round(100 * min(1.0, max(0.0, share)), 1), description)

    def show_markdown(self, key: str, markdown: str, description: str) -> None:
        """A page under this key: made at the first time, then changed. Other runs' pages of the key are its history."""
        self._show(key, "markdown", markdown, description)

    def _show(self, key: str, kind: str, data: Any, description: str) -> None:
        with get_client(sync_client=True) as client:
            if (known := self._made.get(key)) is not None:
                client.update_artifact(known, ArtifactUpdate(data=data, description=description))
                return
            wanted = ArtifactCreate(type=kind, key=key, data=data, description=description, flow_run_id=self._run)
            self._made[key] = client.create_artifact(wanted).id
