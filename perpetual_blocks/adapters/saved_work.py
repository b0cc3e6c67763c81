"""What becomes of an agent's work at the end of a session: a second copy, a commit, a page in the UI."""

from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from perpetual_blocks.adapters.git import commit_paths, find_repository, push, set_aside
from perpetual_blocks.adapters.prefect_runs import ask_for_api
from perpetual_blocks.errors import GitError, RunsUnavailable
from perpetual_blocks.patience import Patience
from perpetual_blocks.session.ports import Documents, Refuse

PUBLISH_SECONDS = 20.0
"""For how long Prefect's API is waited for to show a handoff."""


class LocalSavedWork:
    """Best-effort steps of the shutdown, for a session outside of Prefect.

    Args:
        second_storage: Where documents are copied to; None where there is no second storage.
    """

    def __init__(self, second_storage: Documents | None = None) -> None:
        self._second_storage = second_storage

    def backup(self, key: str, text: str) -> None:
        """Copies a document to the second storage."""
        if self._second_storage is not None:
            self._second_storage.write(key, text)

    def commit(self, paths: Sequence[Path], message: str, refuse: Refuse | None) -> str | None:
        """Commits these paths, and nothing else, to the repository that they are in.

        Raises:
            GitError: they are in no repository, or in several.
        """
        repository, absolute = _repository_of(paths)
        return commit_paths(repository, absolute, message, refuse=refuse)

    def set_aside(self, paths: Sequence[Path], branch: str, message: str, refuse: Refuse | None) -> str | None:
        """Commits what has changed at these paths to a branch of its own, and leaves all else as it is.

        Raises:
            GitError: as `commit`.
        """
        repository, absolute = _repository_of(paths)
        return set_aside(repository, absolute, branch, message, refuse=refuse)

    def push(self, paths: Sequence[Path]) -> None:
        """Pushes the current branch of the repository that these paths are in.

        Raises:
            GitError: as `commit`; the remote is away, or refuses.
        """
        push(_repository_of(paths)[0])

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None:
        """Does nothing: the handoff is in the results storage, and there is no page to show it on."""


class PrefectSavedWork(LocalSavedWork):
    """The same for a session that is a flow run: the handoff is an artifact of it."""

    def publish(self, chain: str, ordinal: int, markdown: str, description: str) -> None:
        """Makes the handoff an artifact of this run; one key for each chain gives it a history.

        Raises:
            RunsUnavailable: Prefect's API is away; the handoff is in the results storage all the same.
        """
        # The run's own client would try for a minute, which the end of the session need not wait for a page.
        Patience(PUBLISH_SECONDS)(ask_for_api, lambda error: isinstance(error, RunsUnavailable))
        create_markdown_artifact(
            markdown,
            key=f"handoff-{chain}",
            description=description,
            _sync=True,  # type: ignore[call-arg]
        )


def _repository_of(paths: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The repository that these paths are in, and the paths from the root on."""
    absolute = [Path(path).absolute() for path in paths]
    repositories = {find_repository(path) for path in absolute}
    repository = repositories.pop()
    if repository is None or repositories:
        raise GitError(f"commit_changes: got {[str(path) for path in paths]}; expected paths of one git repository")
    return repository, absolute
