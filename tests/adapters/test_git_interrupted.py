"""Git and what goes wrong around it: sessions that are killed, secrets, remotes that are away, agents that share."""

# ruff: noqa: F811 - fixtures

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_git import (
    add_hook,
    committed,  # noqa: F401 - a fixture
    empty,  # noqa: F401 - a fixture
    environment,  # noqa: F401 - a fixture
    git,
    index_of,
    locks,
    names_in,
    repository,  # noqa: F401 - a fixture
    status,
)

from perpetual_blocks.adapters.git import commit_paths, current_commit, push, set_aside, worktree
from perpetual_blocks.errors import GitError, InvalidInput
from perpetual_blocks.redaction import Redactor

KEY = "canary of the block / 4711"
refuse = Redactor([KEY]).refuse


def killed(call: str, repository: Path) -> None:
    """Runs a call in a process of its own that is killed by SIGKILL; hooks know it as $SESSION."""
    code = f"""
import os
from pathlib import Path
from perpetual_blocks.adapters.git import commit_paths, worktree
os.environ["SESSION"] = str(os.getpid())
repository = Path({str(repository)!r})
{call}
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


class TestKilledWhileItCommits:
    """SIGKILL leaves `index.lock` behind, which would keep every later session from committing."""

    CALL = 'commit_paths(repository, [Path("new.txt")], "first try", timeout_seconds=3)'

    def test_with_its_git(self, repository: Path) -> None:
        """Nothing was committed: the lock is removed, and the next session commits all of it."""
        add_hook(repository, "pre-commit", "kill -9 $SESSION 0")
        (repository / "new.txt").write_text("half")
        before, index = current_commit(repository), index_of(repository)
        killed(self.CALL, repository)
        assert (repository / ".git/index.lock").exists()
        assert (current_commit(repository), index_of(repository)) == (before, index)
        add_hook(repository, "pre-commit", "exit 0")
        (repository / "new.txt").write_text("whole")

        commit = commit_paths(repository, [Path("new.txt")], "second try")

        assert names_in(repository, commit) == {"new.txt"}
        assert git(repository, "show", "HEAD:new.txt") == "whole"
        assert (status(repository), locks(repository)) == (set(), [])

    def test_after_the_commit_was_made(self, repository: Path) -> None:
        """The index is made to agree with the commit; or else the next one that a person makes would revert it."""
        add_hook(repository, "post-commit", "kill -9 $SESSION 0")
        (repository / "new.txt").write_text("new")
        killed(self.CALL, repository)
        assert status(repository) == {"D  new.txt", "?? new.txt"}
        add_hook(repository, "post-commit", "exit 0")

        assert commit_paths(repository, [Path("new.txt")], "second try") is None

        assert (status(repository), locks(repository)) == (set(), [])
        assert git(repository, "log", "-1", "--format=%s") == "first try"

    def test_while_its_git_lives_on(self, repository: Path, tmp_path: Path) -> None:
        """The git process that outlives the session has its time to end, and its commit stands."""
        os.mkfifo(tmp_path / "go")
        add_hook(repository, "pre-commit", f"kill -9 $SESSION; cat {tmp_path}/go")
        (repository / "new.txt").write_text("new")
        killed(self.CALL, repository)
        (repository / "other.txt").write_text("other")
        commits: list[str | None] = []
        following = threading.Thread(
            target=lambda: commits.append(commit_paths(repository, [Path("other.txt")], "next", timeout_seconds=20))
        )
        following.start()
        (tmp_path / "go").write_text("")
        add_hook(repository, "pre-commit", "exit 0")
        following.join(30)

        assert git(repository, "log", "--format=%s") == "next\nfirst try\nfirst"
        assert names_in(repository, commits[0]) == {"other.txt"}
        assert (status(repository), locks(repository)) == (set(), [])

    def test_the_lock_of_somebody_else(self, repository: Path) -> None:
        """One that another git process has made since is not taken for the killed session's."""
        add_hook(repository, "pre-commit", "kill -9 $SESSION 0")
        (repository / "new.txt").write_text("new")
        killed(self.CALL, repository)
        lock = repository / ".git/index.lock"
        lock.unlink()  # as git's own message says
        (repository / ".git/index.perpetual").write_text(json.dumps({"until": time.time()}))
        lock.write_text("somebody's")

        with pytest.raises(GitError, match="still held by another git process"):
            commit_paths(repository, [Path("new.txt")], "new", timeout_seconds=0.2)
        assert lock.read_text() == "somebody's"


class TestSetAside:
    """What a killed session has left goes to a branch, and nothing else changes."""

    def test_only_the_branch_changes(self, repository: Path) -> None:
        """HEAD, the index, what is staged and all files stay, and no hook runs; the branch has the named files."""
        add_hook(repository, "pre-commit", "exit 1")
        (repository / "kept.txt").write_text("half")
        (repository / "gone.txt").unlink()
        (repository / "out/deep").mkdir(parents=True)
        (repository / "out/deep/new.txt").write_text("half")
        (repository / "staged.txt").write_text("a person's")
        git(repository, "add", "staged.txt")
        (repository / "index.lock").touch()
        before = status(repository), index_of(repository), current_commit(repository)
        (repository / ".git/index.lock").touch()  # somebody is at work

        paths = [Path("kept.txt"), Path("gone.txt"), Path("out")]
        commit = set_aside(repository, paths, "perpetual/mine/3", "left")

        (repository / ".git/index.lock").unlink()
        assert (status(repository), index_of(repository), current_commit(repository)) == before
        assert commit == git(repository, "rev-parse", "perpetual/mine/3")
        assert names_in(repository, commit) == {"kept.txt", "gone.txt", "out/deep/new.txt"}
        assert git(repository, "show", f"{commit}:out/deep/new.txt") == "half"
        assert git(repository, "rev-parse", f"{commit}^") == before[2]
        assert (repository / "kept.txt").read_text() == "half"

    def test_nothing_to_set_aside(self, repository: Path) -> None:
        """Without a change at the paths, there is no branch."""
        (repository / "new.txt").write_text("new")
        assert set_aside(repository, [Path("kept.txt")], "perpetual/mine/3", "left") is None
        assert git(repository, "branch", "--list", "perpetual/*") == ""

    def test_a_branch_that_is_there(self, repository: Path) -> None:
        """A chain of the same name may have had such a session before: what is on the branch is not lost."""
        (repository / "kept.txt").write_text("one")
        first = set_aside(repository, [repository], "perpetual/mine/3", "left")
        (repository / "kept.txt").write_text("two")
        second = set_aside(repository, [repository], "perpetual/mine/3", "left")
        assert git(repository, "rev-parse", f"{second}^2") == first
        assert git(repository, "show", "perpetual/mine/3:kept.txt") == "two"

    def test_before_the_first_commit(self, empty: Path) -> None:
        """A repository without a commit gets a branch that begins there."""
        (empty / "new.txt").write_text("new")
        assert names_in(empty, set_aside(empty, [empty], "perpetual/mine/1", "left")) == {"new.txt"}
        assert current_commit(empty) is None

    def test_file_becomes_folder(self, repository: Path) -> None:
        """The folder's files are there in place of the file."""
        (repository / "kept.txt").unlink()
        (repository / "kept.txt").mkdir()
        (repository / "kept.txt/inner.txt").write_text("inner")
        commit = set_aside(repository, [repository], "perpetual/mine/1", "left")
        assert git(repository, "ls-tree", "-r", "--name-only", str(commit)) == "gone.txt\nkept.txt/inner.txt"


@pytest.mark.parametrize("put", [commit_paths, lambda *these, **more: set_aside(*these[:2], "aside", "left", **more)])
class TestSecrets:
    """A file that holds a secret of the agent's is named, and nothing is committed."""

    @pytest.mark.parametrize(
        "text",
        [
            f"the key is {KEY}\n".encode(),
            b"\xff\x00" * 40 + KEY.encode(),
            b"x" * ((1 << 20) - 5) + KEY.encode(),
        ],
        ids=["text", "binary", "across chunks"],
    )
    def test_a_secret_in_a_file(self, repository: Path, put: Callable[..., object], text: bytes) -> None:
        (repository / "clean.txt").write_text("clean")
        (repository / "leak.txt").write_bytes(text)
        before = status(repository), index_of(repository), current_commit(repository)
        with pytest.raises(InvalidInput, match=r"^leak\.txt: ") as raised:
            put(repository, [repository], "new", refuse=refuse)
        assert KEY not in str(raised.value)
        assert (status(repository), index_of(repository), current_commit(repository)) == before
        assert git(repository, "branch", "--list", "aside") == ""

    def test_a_link_is_not_followed(self, repository: Path, tmp_path: Path, put: Callable[..., object]) -> None:
        """The link is what is committed, not the file that it leads to."""
        (tmp_path / "secrets").write_text(KEY)
        (repository / "link").symlink_to(tmp_path / "secrets")
        assert put(repository, [repository], "new", refuse=refuse) is not None


class TestPush:
    @pytest.fixture
    def remote(self, repository: Path, tmp_path: Path) -> Path:
        git(tmp_path, "init", "--quiet", "--bare", "remote.git")
        git(repository, "remote", "add", "origin", str(tmp_path / "remote.git"))
        return tmp_path / "remote.git"

    def test_a_branch_that_is_nowhere_yet(self, repository: Path, remote: Path) -> None:
        push(repository)
        assert git(remote, "rev-parse", "main") == current_commit(repository)

    def test_refused_by_the_remote(self, repository: Path, remote: Path) -> None:
        """What somebody else has pushed is not overwritten, and the error says that it was the push."""
        push(repository)
        git(repository, "commit", "--quiet", "--allow-empty", "--message=theirs")
        theirs = current_commit(repository)
        push(repository)
        git(repository, "reset", "--quiet", "--hard", "HEAD^")
        git(repository, "commit", "--quiet", "--allow-empty", "--message=ours")
        with pytest.raises(GitError, match=r"^git push: .*failed to push"):
            push(repository)
        assert git(remote, "rev-parse", "main") == theirs

    def test_no_remote(self, repository: Path) -> None:
        with pytest.raises(GitError, match=r"^git push: fatal: No configured push destination"):
            push(repository)


class TestWorktree:
    """Agents that share a repository each have their own files, index and branch."""

    def test_made_once(self, repository: Path) -> None:
        """The same branch has the same folder, from wherever it is asked for; the repository itself stays as it is."""
        tree = worktree(repository, "agents/a")
        assert tree == repository.with_name("repository.worktrees") / "agents/a"
        assert (tree / "kept.txt").read_text() == "first\n"
        assert worktree(tree, "agents/a") == tree
        assert worktree(tree, "main") == repository
        assert worktree(str(tree), "agents/b") == tree.with_name("b")
        assert status(repository) == set()

    def test_each_commits_to_its_branch(self, repository: Path) -> None:
        """Also while the index of another is locked, and with the same file."""
        trees = [worktree(repository, name) for name in ("a", "b")]
        (repository / ".git/index.lock").touch()
        for tree in trees:
            (tree / "kept.txt").write_text(tree.name)
            assert names_in(tree, commit_paths(tree, [tree / "kept.txt"], "work", timeout_seconds=5)) == {"kept.txt"}
        assert [git(repository, "show", f"{name}:kept.txt") for name in ("a", "b", "main")] == ["a", "b", "first"]

    def test_several_at_once(self, repository: Path) -> None:
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(worktree(repository, "a"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == [repository.with_name("repository.worktrees") / "a"] * 4

    def test_a_folder_that_was_deleted(self, repository: Path) -> None:
        """It is made again, with what the branch has."""
        tree = worktree(repository, "a")
        (tree / "new.txt").write_text("new")
        commit_paths(tree, [tree / "new.txt"], "work")
        tree.rename(tree.with_name("moved"))
        assert (worktree(repository, "a") / "new.txt").read_text() == "new"

    def test_killed_while_it_is_made(self, repository: Path) -> None:
        """A work tree that is not whole is never given to an agent, who would commit that files are gone."""
        (repository / ".git/info/attributes").write_text("* filter=deadly\n")
        git(repository, "config", "filter.deadly.smudge", "kill -9 $SESSION 0")
        killed('worktree(repository, "a")', repository)
        assert "locked" in git(repository, "worktree", "list", "--porcelain")
        git(repository, "config", "--unset", "filter.deadly.smudge")

        tree = worktree(repository, "a", timeout_seconds=0.3)

        assert sorted(path.name for path in tree.iterdir()) == [".git", "gone.txt", "kept.txt"]
        assert status(tree) == set()

    @pytest.mark.parametrize("name", ["..", "-b", "a b", "a/../../c", ""])
    def test_what_is_no_branch(self, repository: Path, name: str) -> None:
        """Is refused in git's words, and nothing is made."""
        with pytest.raises(GitError):
            worktree(repository, name)
        assert [path.name for path in repository.parent.iterdir()] == ["repository"]
