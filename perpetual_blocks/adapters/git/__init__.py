"""Git, as far as a session needs it: its agent's work is committed when the session ends."""

from perpetual_blocks.adapters.git.aside import set_aside
from perpetual_blocks.adapters.git.commit import commit_paths
from perpetual_blocks.adapters.git.push import push
from perpetual_blocks.adapters.git.repository import current_commit, find_repository, was_deleted
from perpetual_blocks.adapters.git.worktrees import worktree

__all__ = [
    "commit_paths",
    "current_commit",
    "find_repository",
    "push",
    "set_aside",
    "was_deleted",
    "worktree",
]
