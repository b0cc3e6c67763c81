import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from perpetual_blocks.adapters.git import commit_paths, current_commit, find_repository, was_deleted
from perpetual_blocks.errors import GitError


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_new_machine(monkeypatch)


def as_on_a_new_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git without any settings of the person who runs the tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")] + ["EMAIL"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A repository without any commit."""
    return make_empty(tmp_path / "repository")


def make_empty(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.org")
    return folder


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that most tests have a copy of."""
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_new_machine(patch)
        made = make_empty(tmp_path_factory.mktemp("committed") / "repository")
        (made / "kept.txt").write_text("first\n")
        (made / "gone.txt").write_text("first\n")
        git(made, "add", "--all")
        git(made, "commit", "--quiet", "--message=first")
    return made


@pytest.fixture
def repository(tmp_path: Path, committed: Path) -> Path:
    """A repository whose first commit has `kept.txt` and `gone.txt`."""
    copy = Path(shutil.copytree(committed, tmp_path / "repository"))
    git(copy, "update-index", "--refresh")  # or the index speaks of other files
    return copy


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)
    return os.fsdecode(done.stdout).rstrip("\n")


def names_in(repository: Path, commit: str | None) -> set[str]:
    """The files that the commit changed."""
    assert commit is not None
    shown = git(repository, "show", "--root", "--format=", "--name-only", "--no-renames", "-z", commit)
    return set(shown.split("\0")) - {""}


def status(repository: Path) -> set[str]:
    listed = git(repository, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    return set(listed.split("\0")) - {""}


def add_hook(repository: Path, name: str, script: str) -> None:
    hook = repository / ".git/hooks" / name
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\n{script}\n")
    hook.chmod(0o755)


def index_of(repository: Path) -> bytes:
    return (repository / ".git/index").read_bytes()


def locks(repository: Path) -> list[Path]:
    return sorted((repository / ".git").glob("**/*.lock"))


class TestFindRepository:
    def test_from_within(self, repository: Path) -> None:
        """The top level is found from itself, a folder, a file and a path that is not there yet."""
        (repository / "a/b").mkdir(parents=True)
        for path in (".", "a/b", "kept.txt", "a/not/yet.txt"):
            assert find_repository(repository / path) == repository

    def test_relative(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A relative path starts at the current folder."""
        monkeypatch.chdir(repository)
        assert find_repository(Path("kept.txt")) == repository

    def test_none(self, tmp_path: Path) -> None:
        """A folder that no repository holds gives None."""
        assert find_repository(tmp_path) is None

    def test_inner(self, repository: Path) -> None:
        """Of a repository within a repository, the inner one is found."""
        inner = repository / "inner"
        git(repository, "init", "--quiet", str(inner))
        assert find_repository(inner / "file") == inner

    def test_refused(self, repository: Path) -> None:
        """A repository that git does not open is an error, and is not taken for a folder without one."""
        (repository / ".git/config").write_text("not a configuration")
        with pytest.raises(GitError, match="config"):
            find_repository(repository)


class TestWasDeleted:
    """Tells a deletion that is to be committed from a name that never was."""

    def test_what_git_knows_and_the_disk_does_not(self, repository: Path) -> None:
        (repository / "gone.txt").unlink()

        assert was_deleted(repository / "gone.txt")

    def test_a_deletion_that_is_staged(self, repository: Path) -> None:
        git(repository, "rm", "--quiet", "gone.txt")

        assert was_deleted(repository / "gone.txt")

    def test_a_folder(self, repository: Path) -> None:
        (repository / "notes").mkdir()
        (repository / "notes" / "a.txt").write_text("a")
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message=second")
        shutil.rmtree(repository / "notes")

        assert was_deleted(repository / "notes")

    def test_what_is_there_or_never_was(self, repository: Path, tmp_path: Path) -> None:
        (repository / "kept.txt").write_text("second\n")

        assert not was_deleted(repository / "kept.txt")
        assert not was_deleted(repository / "ghost.txt")
        assert not was_deleted(tmp_path / "ghost.txt")


class TestCurrentCommit:
    def test_head(self, repository: Path) -> None:
        """It is the full id of HEAD."""
        assert current_commit(repository) == git(repository, "rev-parse", "HEAD")

    def test_none_yet(self, empty: Path) -> None:
        """Before the first commit it is None."""
        assert current_commit(empty) is None

    def test_no_repository(self, tmp_path: Path) -> None:
        """Outside of any repository it is an error."""
        with pytest.raises(GitError, match="not a git repository"):
            current_commit(tmp_path)


class TestWhatIsCommitted:
    def test_new_changed_deleted(self, repository: Path) -> None:
        """New, changed and deleted files are in one commit with the message, and its id is returned."""
        (repository / "new.txt").write_text("new\n")
        (repository / "kept.txt").write_text("second\n")
        (repository / "gone.txt").unlink()
        paths = [repository / name for name in ("new.txt", "kept.txt", "gone.txt")]

        commit = commit_paths(repository, paths, "Subject\n\n# A body, ünïcode\n")

        assert commit == git(repository, "rev-parse", "HEAD")
        assert names_in(repository, commit) == {"new.txt", "kept.txt", "gone.txt"}
        assert git(repository, "log", "-1", "--format=%B") == "Subject\n\n# A body, ünïcode\n".rstrip("\n")
        assert git(repository, "rev-list", "--count", "HEAD") == "2"
        assert status(repository) == set()
        assert locks(repository) == []

    def test_only_the_named(self, repository: Path) -> None:
        """What else is staged, changed, deleted or new stays as it was, to the byte that is staged."""
        (repository / "gone.txt").write_text("staged\n")
        git(repository, "add", "gone.txt")
        (repository / "gone.txt").write_text("changed after staging\n")
        (repository / "staged-new.txt").write_text("staged\n")
        git(repository, "add", "staged-new.txt")
        git(repository, "rm", "--quiet", "--cached", "kept.txt")
        (repository / "untracked.txt").write_text("untracked\n")
        before = status(repository)
        (repository / "mine.txt").write_text("mine\n")

        commit = commit_paths(repository, [repository / "mine.txt"], "mine")

        assert names_in(repository, commit) == {"mine.txt"}
        assert status(repository) == before
        assert git(repository, "show", ":gone.txt") == "staged"
        assert (repository / "gone.txt").read_text() == "changed after staging\n"

    def test_staged_part_of_named(self, repository: Path) -> None:
        """Of a named file that is staged in part, the file as it is now is committed."""
        (repository / "kept.txt").write_text("staged\n")
        git(repository, "add", "kept.txt")
        (repository / "kept.txt").write_text("now\n")

        commit_paths(repository, [repository / "kept.txt"], "now")

        assert git(repository, "show", "HEAD:kept.txt") == "now"
        assert status(repository) == set()

    def test_staged_deletion(self, repository: Path) -> None:
        """A file whose deletion is staged already is committed as deleted."""
        git(repository, "rm", "--quiet", "gone.txt")
        commit = commit_paths(repository, [repository / "gone.txt"], "gone")
        assert names_in(repository, commit) == {"gone.txt"}
        assert git(repository, "ls-tree", "--name-only", "HEAD") == "kept.txt"

    def test_staged_rename(self, repository: Path) -> None:
        """Of a file whose renaming is staged, both names can be committed."""
        git(repository, "mv", "gone.txt", "renamed.txt")
        paths = [repository / "gone.txt", repository / "renamed.txt"]
        assert names_in(repository, commit_paths(repository, paths, "renamed")) == {"gone.txt", "renamed.txt"}

    def test_folder(self, repository: Path) -> None:
        """A folder stands for all that is new, changed or deleted below it, and for nothing beside it."""
        (repository / "folder/deep").mkdir(parents=True)
        (repository / "folder/deep/old.txt").write_text("old\n")
        (repository / "folder/gone.txt").write_text("old\n")
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message=folder")
        (repository / "folder/deep/old.txt").write_text("changed\n")
        (repository / "folder/gone.txt").unlink()
        (repository / "folder/deep/new.txt").write_text("new\n")
        (repository / "folder-beside.txt").write_text("beside\n")

        commit = commit_paths(repository, [repository / "folder"], "folder")

        assert names_in(repository, commit) == {f"folder/{n}.txt" for n in ("deep/old", "deep/new", "gone")}
        assert status(repository) == {"?? folder-beside.txt"}

    def test_deleted_folder(self, repository: Path) -> None:
        """A folder that was deleted can be named."""
        (repository / "folder").mkdir()
        (repository / "folder/file.txt").write_text("old\n")
        commit_paths(repository, [repository / "folder"], "folder")
        shutil.rmtree(repository / "folder")
        assert names_in(repository, commit_paths(repository, [repository / "folder"], "gone")) == {"folder/file.txt"}

    def test_whole_repository(self, repository: Path) -> None:
        """The top level itself stands for everything."""
        (repository / "new.txt").write_text("new\n")
        (repository / "gone.txt").unlink()
        assert names_in(repository, commit_paths(repository, [repository], "all")) == {"new.txt", "gone.txt"}

    def test_relative(self, repository: Path) -> None:
        """A relative path starts at the top level, wherever the process is."""
        (repository / "new.txt").write_text("new\n")
        assert names_in(repository, commit_paths(repository, [Path("new.txt")], "new")) == {"new.txt"}

    def test_ignored(self, repository: Path) -> None:
        """Ignored files are not committed, whether named themselves or by their folder; the others are."""
        (repository / ".git/info/exclude").write_text("*.log\n")
        (repository / "out").mkdir()
        (repository / "out/run.log").write_text("log\n")
        (repository / "out/result.txt").write_text("result\n")

        commit = commit_paths(repository, [repository / "out", repository / "out/run.log"], "out")

        assert names_in(repository, commit) == {"out/result.txt"}
        assert commit_paths(repository, [repository / "out/run.log"], "log") is None

    def test_inner_repository(self, repository: Path) -> None:
        """A repository inside of a named folder is left out."""
        git(repository, "init", "--quiet", str(repository / "out/inner"))
        (repository / "out/inner/file.txt").write_text("inner\n")
        assert commit_paths(repository, [repository / "out/inner"], "inner") is None
        (repository / "out/mine.txt").write_text("mine\n")
        assert names_in(repository, commit_paths(repository, [repository / "out"], "out")) == {"out/mine.txt"}

    @pytest.mark.parametrize(
        "name",
        [
            "with space.txt",
            "*.txt",
            "[ab]?.txt",
            ":(exclude)kept.txt",
            "--all",
            "-",
            "größe–日本.txt",
            'quote".txt',
            "new\nline.txt",
            "tab\t.txt",
            os.fsdecode(b"latin-\xe9.txt"),
            "~",
            "#comment",
        ],
    )
    def test_names(self, repository: Path, name: str) -> None:
        """A name is that file's name and nothing else, as new, changed and deleted file."""
        (repository / "kept.txt").write_text("changed, not named\n")
        (repository / "a1.txt").write_text("new, not named\n")
        path = repository / name
        path.write_text("new\n")
        assert names_in(repository, commit_paths(repository, [path], "new")) == {name}
        path.write_text("changed\n")
        assert names_in(repository, commit_paths(repository, [path], "changed")) == {name}
        path.unlink()
        assert names_in(repository, commit_paths(repository, [path], "deleted")) == {name}
        assert status(repository) == {" M kept.txt", "?? a1.txt"}

    def test_link(self, repository: Path, tmp_path: Path) -> None:
        """A symbolic link is committed as a link, even if it leads out of the repository."""
        outside = tmp_path / "outside.txt"
        outside.write_text("outside\n")
        link = repository / "link"
        link.symlink_to(outside)
        commit_paths(repository, [link], "link")
        assert git(repository, "ls-tree", "HEAD", "link").startswith("120000 blob")

    def test_file_becomes_folder_becomes_link(self, repository: Path) -> None:
        """A path can change from a file to a folder, and to a link to a folder with the same files."""
        path = repository / "kept.txt"
        path.unlink()
        path.mkdir()
        (path / "inner.txt").write_text("inner\n")
        commit_paths(repository, [path], "folder")
        assert git(repository, "ls-tree", "-r", "--name-only", "HEAD") == "gone.txt\nkept.txt/inner.txt"

        path.rename(repository / "moved")
        path.symlink_to("moved")
        commit_paths(repository, [path], "link")
        assert git(repository, "ls-tree", "-r", "--name-only", "HEAD") == "gone.txt\nkept.txt"
        assert status(repository) == {"?? moved/inner.txt"}

    def test_through_linked_folder(self, repository: Path, tmp_path: Path) -> None:
        """Repository and paths may be given through a link to a folder."""
        link = tmp_path / "link"
        link.symlink_to(repository)
        (repository / "new.txt").write_text("new\n")
        assert names_in(repository, commit_paths(link, [link / "new.txt"], "new")) == {"new.txt"}
        (repository / "newer.txt").write_text("newer\n")
        assert names_in(repository, commit_paths(link, [link], "newer")) == {"newer.txt"}

    def test_many_files(self, repository: Path) -> None:
        """A folder with more files than fit on a command line is committed within the usual timeout."""
        folder = repository / ("long-name-" * 20)
        folder.mkdir()
        for number in range(12_000):
            (folder / f"{number}.txt").touch()
        assert len(names_in(repository, commit_paths(repository, [folder], "many"))) == 12_000

    def test_same_size_same_moment(self, repository: Path) -> None:
        """A file that changed in the moment of its last commit, so that only its bytes tell, is committed."""
        git(repository, "config", "core.trustCtime", "false")
        path, index = repository / "kept.txt", repository / ".git/index"
        path.write_text("before\n")
        moment = index.stat().st_mtime_ns - 10**11  # Long ago, so that the test's own speed makes no difference.
        os.utime(path, ns=(moment, moment))
        git(repository, "commit", "--quiet", "--all", "--message=before")
        os.utime(index, ns=(moment, moment))
        path.write_text("latest\n")
        os.utime(path, ns=(moment, moment))

        commit_paths(repository, [path], "latest")

        assert git(repository, "show", "HEAD:kept.txt") == "latest"

    def test_message_that_is_no_text(self, repository: Path) -> None:
        """Half a character, as a cut text may end with, does not keep the work from being committed."""
        (repository / "new.txt").write_text("new\n")
        assert commit_paths(repository, [repository / "new.txt"], "cut \ud83d") is not None


class TestNothingToCommit:
    def test_unchanged(self, repository: Path) -> None:
        """Paths without a change give None and no commit, and what else is staged is not touched."""
        (repository / "gone.txt").write_text("staged\n")
        git(repository, "add", "gone.txt")
        head, index = current_commit(repository), index_of(repository)

        assert commit_paths(repository, [repository / "kept.txt"], "nothing") is None

        assert current_commit(repository) == head
        assert index_of(repository) == index
        assert locks(repository) == []

    def test_no_paths(self, repository: Path) -> None:
        """No path means nothing, and not everything: not even the index is waited for."""
        (repository / "new.txt").write_text("new\n")
        (repository / ".git/index.lock").touch()
        assert commit_paths(repository, [], "nothing", timeout_seconds=0) is None
        assert status(repository) == {"?? new.txt"}

    def test_not_there(self, repository: Path) -> None:
        """A path that never was, or an empty folder, has no change, and does not stop another's commit."""
        (repository / "empty").mkdir()
        paths = [repository / "never.txt", repository / "empty", repository / "new"]
        assert commit_paths(repository, paths, "nothing") is None
        (repository / "new.txt").write_text("new\n")
        commit = commit_paths(repository, [*paths, repository / "new.txt"], "new")
        assert names_in(repository, commit) == {"new.txt"}

    def test_back_to_the_last_commit(self, repository: Path) -> None:
        """A file that is staged, but is again as in the last commit, is not committed."""
        (repository / "kept.txt").write_text("staged\n")
        git(repository, "add", "kept.txt")
        (repository / "kept.txt").write_text("first\n")
        (repository / "new.txt").touch()
        git(repository, "add", "new.txt")
        (repository / "new.txt").unlink()
        index = index_of(repository)
        assert commit_paths(repository, [repository / "kept.txt", repository / "new.txt"], "nothing") is None
        assert index_of(repository) == index

    def test_empty_repository(self, empty: Path) -> None:
        """Before the first commit, nothing is nothing too."""
        assert commit_paths(empty, [empty], "nothing") is None
        assert current_commit(empty) is None
        assert not (empty / ".git/index").exists()


class TestWhereHeadIs:
    def test_first_commit(self, empty: Path) -> None:
        """The first commit of a repository has the named files only."""
        (empty / "mine.txt").write_text("mine\n")
        (empty / "other.txt").write_text("other\n")
        git(empty, "add", "other.txt")
        commit = commit_paths(empty, [empty / "mine.txt"], "first")
        assert names_in(empty, commit) == {"mine.txt"}
        assert status(empty) == {"A  other.txt"}

    def test_first_commit_without_index(self, empty: Path) -> None:
        """A repository in which nothing was ever staged can be committed to."""
        (empty / "mine.txt").write_text("mine\n")
        assert names_in(empty, commit_paths(empty, [empty / "mine.txt"], "first")) == {"mine.txt"}
        assert status(empty) == set()

    def test_detached(self, repository: Path) -> None:
        """With a detached HEAD the commit goes to HEAD, and no branch moves."""
        git(repository, "checkout", "--quiet", "--detach")
        main = git(repository, "rev-parse", "main")
        (repository / "new.txt").write_text("new\n")
        commit = commit_paths(repository, [repository / "new.txt"], "new")
        assert commit == git(repository, "rev-parse", "HEAD") != main
        assert git(repository, "rev-parse", "main") == main

    def test_linked_work_tree(self, repository: Path, tmp_path: Path) -> None:
        """In a linked work tree its own branch and index are used."""
        tree = tmp_path / "tree"
        git(repository, "worktree", "add", "--quiet", "-b", "side", str(tree))
        index = index_of(repository)
        (tree / "new.txt").write_text("new\n")
        assert commit_paths(tree, [tree / "new.txt"], "new") == git(repository, "rev-parse", "side")
        assert status(tree) == set()
        assert index_of(repository) == index

    def test_started_from_a_hook(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The variables by which git tells a hook about its repository do not lead the commit astray."""
        monkeypatch.setenv("GIT_DIR", "/nowhere")
        monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
        monkeypatch.setenv("GIT_GLOB_PATHSPECS", "1")
        (repository / "new.txt").write_text("new\n")
        commit = commit_paths(repository, [repository / "new.txt"], "new")
        monkeypatch.undo()
        assert names_in(repository, commit) == {"new.txt"}


class TestIdentity:
    def committed_by(self, repository: Path) -> str:
        (repository / "new.txt").write_text("new\n")
        commit_paths(repository, [repository / "new.txt"], "new")
        return git(repository, "log", "-1", "--format=%an <%ae> / %cn <%ce>")

    def test_configured(self, repository: Path) -> None:
        """The configured identity is used."""
        assert self.committed_by(repository) == "Ada <ada@example.org> / Ada <ada@example.org>"

    def test_none(self, repository: Path) -> None:
        """Without one, the commit has an identity of our own, and nothing is configured by that."""
        git(repository, "config", "--remove-section", "user")
        configuration = (repository / ".git/config").read_bytes()
        ours = "Perpetual Blocks <perpetual-blocks@localhost>"
        assert self.committed_by(repository) == f"{ours} / {ours}"
        assert (repository / ".git/config").read_bytes() == configuration

    def test_guessed(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that git would guess from the machine's account is not used."""
        git(repository, "config", "--remove-section", "user")
        monkeypatch.setenv("EMAIL", "root@example.org")
        ours = "Perpetual Blocks <perpetual-blocks@localhost>"
        assert self.committed_by(repository) == f"{ours} / {ours}"

    def test_environment(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An author in the environment is kept; only the committer, who is missing, is our own."""
        git(repository, "config", "--remove-section", "user")
        monkeypatch.setenv("GIT_AUTHOR_NAME", "Eve")
        monkeypatch.setenv("GIT_AUTHOR_EMAIL", "eve@example.org")
        ours = "Perpetual Blocks <perpetual-blocks@localhost>"
        assert self.committed_by(repository) == f"Eve <eve@example.org> / {ours}"


class TestRefusals:
    @pytest.mark.parametrize("outside", ["../outside.txt", "../repository-2/file.txt", "a/../../outside.txt"])
    def test_outside(self, repository: Path, outside: str) -> None:
        """A path outside of the repository is named by the error, and nothing is committed."""
        path = repository / outside
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("outside\n")
        (repository / "new.txt").write_text("new\n")
        head = current_commit(repository)
        with pytest.raises(GitError) as caught:
            commit_paths(repository, [repository / "new.txt", path], "outside")
        assert str(path) in str(caught.value)
        assert current_commit(repository) == head

    def test_outside_through_link(self, repository: Path, tmp_path: Path) -> None:
        """A path that leaves the repository through a linked folder is outside."""
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/file.txt").write_text("outside\n")
        (repository / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(GitError, match=r"link/file\.txt: outside of the repository"):
            commit_paths(repository, [repository / "link/file.txt"], "outside")

    def test_no_repository(self, tmp_path: Path) -> None:
        """A folder that is in no repository is named by the error."""
        with pytest.raises(GitError, match=str(tmp_path)):
            commit_paths(tmp_path, [tmp_path / "file"], "none")

    def test_failing_hook(self, repository: Path) -> None:
        """A hook that fails is reported with its last line; HEAD and the index are as they were."""
        add_hook(repository, "pre-commit", "echo 'checking' >&2; echo 'no tabs, please' >&2; exit 1")
        (repository / "gone.txt").write_text("staged\n")
        git(repository, "add", "gone.txt")
        (repository / "new.txt").write_text("new\n")
        before, head, index = status(repository), current_commit(repository), index_of(repository)

        with pytest.raises(GitError, match=r"^git commit: no tabs, please$"):
            commit_paths(repository, [repository / "new.txt"], "new")

        assert (status(repository), current_commit(repository)) == (before, head)
        assert index_of(repository) == index
        assert locks(repository) == []

    def test_silent_hook(self, repository: Path) -> None:
        """A hook that fails without a word is reported by git's exit code."""
        add_hook(repository, "pre-commit", "exit 1")
        (repository / "new.txt").write_text("new\n")
        with pytest.raises(GitError, match="exit code 1"):
            commit_paths(repository, [repository / "new.txt"], "new")

    def test_hooks_see_the_commit(self, repository: Path) -> None:
        """A hook sees as staged what will be committed, and nothing else."""
        add_hook(repository, "pre-commit", "git diff --cached --name-only > seen.txt")
        (repository / "gone.txt").write_text("staged\n")
        git(repository, "add", "gone.txt")
        (repository / "new.txt").write_text("new\n")
        commit_paths(repository, [repository / "new.txt"], "new")
        assert (repository / "seen.txt").read_text() == "new.txt\n"

    def test_conflict(self, repository: Path) -> None:
        """A file in conflict is not committed with its markers; a file beside it is."""
        (repository / "kept.txt").write_text("stashed\n")
        git(repository, "stash", "--quiet")
        (repository / "kept.txt").write_text("committed\n")
        git(repository, "commit", "--quiet", "--all", "--message=other")
        subprocess.run(["git", "stash", "pop", "--quiet"], cwd=repository, check=False, capture_output=True)
        before, index = status(repository), index_of(repository)
        assert before == {"UU kept.txt"}

        with pytest.raises(GitError, match=r"kept\.txt: in conflict"):
            commit_paths(repository, [repository / "kept.txt"], "conflict")
        assert index_of(repository) == index

        (repository / "new.txt").write_text("new\n")
        assert names_in(repository, commit_paths(repository, [repository / "new.txt"], "new")) == {"new.txt"}
        assert status(repository) == before

    def test_during_a_merge(self, repository: Path) -> None:
        """A merge under way is not concluded: the error has git's words, and the index is as it was."""
        git(repository, "checkout", "--quiet", "-b", "side")
        (repository / "kept.txt").write_text("side\n")
        git(repository, "commit", "--quiet", "--all", "--message=side")
        git(repository, "checkout", "--quiet", "main")
        git(repository, "merge", "--quiet", "--no-ff", "--no-commit", "side")
        (repository / "new.txt").write_text("new\n")
        index = index_of(repository)
        with pytest.raises(GitError, match="cannot do a partial commit during a merge"):
            commit_paths(repository, [repository / "new.txt"], "new")
        assert index_of(repository) == index

    def test_vanishing_file(self, repository: Path) -> None:
        """A new file that vanishes while it is being committed is an error, and not taken for no change."""
        git(repository, "config", "filter.vanish.clean", "rm -f b.txt; cat")
        (repository / ".git/info/attributes").write_text("a.txt filter=vanish\n")
        paths = [repository / "a.txt", repository / "b.txt"]
        for path in paths:
            path.write_text("new\n")
        with pytest.raises(GitError, match="did not match"):
            commit_paths(repository, paths, "new")

    def test_empty_message(self, repository: Path) -> None:
        """A commit without a message is refused in git's words, and does not open an editor."""
        (repository / "new.txt").write_text("new\n")
        with pytest.raises(GitError, match="empty commit message"):
            commit_paths(repository, [repository / "new.txt"], " \n")

    def test_no_git(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine without git gives an error of ours."""
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(GitError, match="git"):
            commit_paths(repository, [repository / "new.txt"], "new")


class TestWaiting:
    def test_lock_is_waited_for(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """While another process holds the index, the commit waits, and is made as soon as it lets go."""
        (repository / "new.txt").write_text("new\n")
        lock = repository / ".git/index.lock"
        lock.touch()
        waiting = threading.Event()
        touch = Path.touch

        def observed_touch(self: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
            try:
                touch(self, mode, exist_ok)
            except FileExistsError:
                waiting.set()
                raise

        monkeypatch.setattr(Path, "touch", observed_touch)
        commits: list[str | None] = []
        thread = threading.Thread(
            target=lambda: commits.append(commit_paths(repository, [repository / "new.txt"], "new"))
        )
        thread.start()
        assert waiting.wait(30)
        assert commits == []
        lock.unlink()
        thread.join(30)
        assert commits == [git(repository, "rev-parse", "HEAD")]

    def test_lock_is_not_waited_for_forever(self, repository: Path) -> None:
        """A lock that stays is the error's subject after the timeout, and is left to its holder."""
        (repository / "new.txt").write_text("new\n")
        lock = repository / ".git/index.lock"
        lock.write_text("somebody's")
        started = time.monotonic()
        with pytest.raises(GitError, match=r"index\.lock: still held by another git process"):
            commit_paths(repository, [repository / "new.txt"], "new", timeout_seconds=0.2)
        assert 0.2 <= time.monotonic() - started < 10
        assert lock.read_text() == "somebody's"

    def test_others_wait_for_us(self, repository: Path) -> None:
        """While the commit is made, another git process cannot write the index."""
        add_hook(repository, "post-commit", "unset GIT_INDEX_FILE; git add other.txt 2> denied.txt; touch done.txt")
        (repository / "other.txt").write_text("other\n")
        (repository / "new.txt").write_text("new\n")
        commit_paths(repository, [repository / "new.txt"], "new")
        assert "index.lock" in (repository / "denied.txt").read_text()
        assert "?? other.txt" in status(repository)

    def test_next_holder_keeps_the_lock(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A lock that somebody takes as soon as the commit lets go of it is left alone."""
        replace = Path.replace

        def replace_then_lock(self: Path, target: Path) -> Path:
            moved = replace(self, target)
            self.write_text("somebody's")
            return moved

        monkeypatch.setattr(Path, "replace", replace_then_lock)
        (repository / "new.txt").write_text("new\n")
        assert commit_paths(repository, [repository / "new.txt"], "new") is not None
        assert (repository / ".git/index.lock").read_text() == "somebody's"

    def test_left_over_by_a_killed_process(self, repository: Path) -> None:
        """The lock of our copy of the index, left by a process that was killed, does not stand in the way."""
        (repository / ".git/index.lock.lock").touch()
        (repository / "new.txt").write_text("new\n")
        assert commit_paths(repository, [repository / "new.txt"], "new") is not None

    def test_hanging_hook(self, repository: Path, tmp_path: Path) -> None:
        """A hook that does not end is ended with its children at the timeout; the index is as it was."""
        os.mkfifo(tmp_path / "never-written")
        os.mkfifo(tmp_path / "held")
        held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
        script = f"trap '' TERM; exec 3> {tmp_path}/held; echo started >&3; cat {tmp_path}/never-written"
        add_hook(repository, "pre-commit", script)
        (repository / "new.txt").write_text("new\n")
        before, head, index = status(repository), current_commit(repository), index_of(repository)
        started = time.monotonic()

        with pytest.raises(GitError, match="not finished in time"):
            commit_paths(repository, [repository / "new.txt"], "new", timeout_seconds=1)

        assert time.monotonic() - started < 20
        assert (status(repository), current_commit(repository)) == (before, head)
        assert index_of(repository) == index
        assert locks(repository) == []
        # The hook and its `cat` hold this pipe: its end comes when both are gone.
        os.set_blocking(held, True)
        with os.fdopen(held) as pipe:
            assert pipe.read() == "started\n"

    def test_hanging_post_commit_hook(self, repository: Path, tmp_path: Path) -> None:
        """When the commit was made before the time was over, the index agrees with it all the same."""
        os.mkfifo(tmp_path / "never-written")
        add_hook(repository, "post-commit", f"cat {tmp_path}/never-written")
        (repository / "new.txt").write_text("new\n")
        with pytest.raises(GitError, match="not finished in time"):
            commit_paths(repository, [repository / "new.txt"], "new", timeout_seconds=1)
        assert names_in(repository, "HEAD") == {"new.txt"}
        assert status(repository) == set()
        assert locks(repository) == []

    def test_background_process_of_a_hook(self, repository: Path, tmp_path: Path) -> None:
        """What a hook leaves running in the background is not waited for."""
        os.mkfifo(tmp_path / "never-written")
        add_hook(repository, "post-commit", f"cat {tmp_path}/never-written & echo $! > {tmp_path}/pid")
        (repository / "new.txt").write_text("new\n")
        try:
            assert commit_paths(repository, [repository / "new.txt"], "new", timeout_seconds=20) is not None
        finally:
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)

    def test_signing(self, repository: Path, tmp_path: Path) -> None:
        """A repository that signs its commits does not make a session wait for a passphrase."""
        program = tmp_path / "gpg"
        program.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(tmp_path / 'asked'))}\nexit 1\n")
        program.chmod(0o755)
        git(repository, "config", "commit.gpgSign", "true")
        git(repository, "config", "gpg.program", str(program))
        (repository / "new.txt").write_text("new\n")
        assert commit_paths(repository, [repository / "new.txt"], "new") is not None
        assert not (tmp_path / "asked").exists()

    def test_nobody_is_asked(self, repository: Path) -> None:
        """Even in a terminal, hooks have no terminal and no input, and are told not to prompt."""
        opened = f"{shlex.quote(sys.executable)} -c 'open(\"/dev/tty\")'"
        script = f"{opened} 2> tty.txt; cat > input.txt; echo $GIT_TERMINAL_PROMPT > prompt.txt"
        add_hook(repository, "pre-commit", script)
        (repository / "new.txt").write_text("new\n")
        session = f"""
            from pathlib import Path
            from perpetual_blocks.adapters.git import commit_paths
            open("/dev/tty").close()
            commit_paths(Path({str(repository)!r}), [Path("new.txt")], "new")
        """
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(session)])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(terminal)
        assert "OSError" in (repository / "tty.txt").read_text()
        assert (repository / "input.txt").read_text() == ""
        assert (repository / "prompt.txt").read_text() == "0\n"

    def test_sessions_at_once(self, repository: Path) -> None:
        """Sessions that end at the same time in one repository all get their own commit."""
        names = [f"{number}.txt" for number in range(6)]
        commits: dict[str, str | None] = {}

        def end_session(name: str) -> None:
            (repository / name).write_text(name)
            commits[name] = commit_paths(repository, [repository / name], name)

        threads = [threading.Thread(target=end_session, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert {name: names_in(repository, commit) for name, commit in commits.items()} == {
            name: {name} for name in names
        }
        assert status(repository) == set()


class TestHostileNames:
    """What a user or a repository names is never taken for an option, a pattern or a command."""

    @pytest.mark.parametrize(
        "name",
        [
            "--upload-pack=touch pwned",
            "-c",
            "--",
            "--exec=x",
            ":(top)",
            ":!x",
            "*",
            "$(touch pwned)",
            "`touch pwned`;",
            "a\nb",
        ],
    )
    def test_a_file_is_committed_under_its_very_name(self, repository: Path, name: str) -> None:
        """And nothing else is."""
        (repository / name).write_text("work\n")
        (repository / "other").write_text("left alone\n")

        commit = commit_paths(repository, [Path(name)], "work\n")

        assert names_in(repository, commit) == {name}
        assert not (repository / "pwned").exists()

    @pytest.mark.parametrize("message", ["--amend", "-m x", "# no comment", "$(touch pwned)"])
    def test_a_message_is_only_text(self, repository: Path, message: str) -> None:
        """It is read from a file, whatever it begins with."""
        (repository / "kept.txt").write_text("second\n")

        commit_paths(repository, [Path("kept.txt")], message)

        assert git(repository, "log", "-1", "--format=%B").strip() == message
        assert git(repository, "rev-list", "--count", "HEAD") == "2"
        assert not (repository / "pwned").exists()

    def test_a_branch_is_only_a_name(self, repository: Path) -> None:
        """Also one that looks like an option to git's commands."""
        git(repository, "update-ref", "refs/heads/--upload-pack=x", "HEAD")
        git(repository, "symbolic-ref", "HEAD", "refs/heads/--upload-pack=x")
        (repository / "kept.txt").write_text("second\n")

        assert commit_paths(repository, [Path("kept.txt")], "work\n") == current_commit(repository)

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("GIT_DIR", "elsewhere"),
            ("GIT_WORK_TREE", "elsewhere"),
            ("GIT_INDEX_FILE", "elsewhere"),
            ("GIT_OBJECT_DIRECTORY", "elsewhere"),
            ("GIT_COMMON_DIR", "elsewhere"),
            ("GIT_NAMESPACE", "elsewhere"),
            ("GIT_SHALLOW_FILE", "elsewhere"),
            ("GIT_GRAFT_FILE", "elsewhere"),
            ("GIT_QUARANTINE_PATH", "elsewhere"),
            ("GIT_IMPLICIT_WORK_TREE", "0"),
            ("GIT_GLOB_PATHSPECS", "1"),
        ],
    )
    def test_the_variables_of_another_repository_do_not_count(
        self, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        """A session that a hook has started commits to the repository of its paths."""
        monkeypatch.setenv(variable, str(tmp_path / value) if value == "elsewhere" else value)
        (repository / "kept.txt").write_text("second\n")

        commit = commit_paths(repository, [Path("kept.txt")], "work\n")

        monkeypatch.delenv(variable)
        assert names_in(repository, commit) == {"kept.txt"}
        assert not (tmp_path / "elsewhere").exists()
