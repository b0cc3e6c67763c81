"""What a session does with its agent's files in a real git repository, whatever state that is in."""

import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from session_rig import Rig, tokens
from support import LEASE, FakeClock

from perpetual_blocks.adapters.saved_work import LocalSavedWork
from perpetual_blocks.agent import PerpetualAgent
from perpetual_blocks.checkpoint import digest
from perpetual_blocks.redaction import Redactor
from perpetual_blocks.session.chain import SessionState
from perpetual_blocks.telemetry import StepFailed
from perpetual_blocks.work import Unit, WorkItem

KEY = "canary of the block / 4711"


class Writer(PerpetualAgent):
    """Writes a file for each page."""

    repository: Path
    pages: int = 2
    text: str = "whole"
    dies_at: str = ""

    def plan(self) -> Iterable[WorkItem]:
        return [WorkItem(id=f"page-{n}") for n in range(self.pages)]

    def work_unit(self, unit: Unit) -> Any:
        page = self.repository / "notes" / unit.id
        page.parent.mkdir(exist_ok=True)
        if unit.id == self.dies_at:
            page.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        page.write_text(self.text)
        unit.spend(tokens=100, cost=0.25)

    def commit_changes(self) -> Iterable[Path]:
        return [self.repository / "notes"]


class Pusher(Writer):
    """And pushes them."""

    push_commits: ClassVar[bool] = True


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit has `notes/old`."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    folder = tmp_path / "repository"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes/old").write_text("old")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.org")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=first")
    return folder


def git(folder: Path, *arguments: str, ok: bool = True) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=ok, capture_output=True, text=True)
    return done.stdout.rstrip("\n")


def die(rig: Rig) -> None:
    """Runs the chain's first session in a process that is killed by SIGKILL, and lets its lease run out."""
    child = os.fork()
    if child == 0:
        try:
            rig.run()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    rig.clock.advance(2 * LEASE)  # the clock went on in there, too
    rig.started = 1


def rig_of(agent: PerpetualAgent, make_ledger: Any, clock: FakeClock) -> Rig:
    return Rig(make_ledger(), clock, agent, saved_work=LocalSavedWork())  # type: ignore[arg-type]


def test_state_n_belongs_to_commit_n(repository: Path, make_ledger: Any, clock: FakeClock) -> None:
    """One commit for each session that changed something; each names its checkpoint, and the handoff names both."""
    rig = rig_of(Writer(repository=repository, pages=3), make_ledger, clock)

    rig.run_chain(tokens(200))

    *commits, _first = git(repository, "rev-list", "HEAD").splitlines()
    assert len(commits) == 2
    for ordinal, commit in zip((2, 1), commits, strict=True):
        checkpoint = digest(rig.document("checkpoint", ordinal))
        trailers = git(repository, "log", "-1", "--format=%(trailers:only)", commit).splitlines()
        assert trailers[:2] == ["Perpetual-Chain: mine", f"Perpetual-Session: {ordinal}"]
        done = 2 if ordinal == 1 else 1
        assert trailers[3:5] == [f"Perpetual-Checkpoint: {checkpoint}", f"Perpetual-Units: {done}"]
        assert trailers[5] == f"Perpetual-Cost: {done * 0.25:g}"
        handoff = rig.document("handoff", ordinal)
        assert f"- Committed as `{commit}` with checkpoint {ordinal} (`{checkpoint[:16]}`)" in handoff


def test_a_killed_sessions_files_are_set_aside(repository: Path, make_ledger: Any, clock: FakeClock) -> None:
    """SIGKILL in the middle of a unit: what was there is on a branch, what a finished unit wrote stays in its place,
    and what is committed is whole."""
    agent = Writer(repository=repository, dies_at="page-1")
    rig = rig_of(agent, make_ledger, clock)
    die(rig)
    assert (repository / "notes/page-1").read_text() == "half"
    agent.dies_at = ""

    assert rig.run().state is SessionState.FINISHED

    assert git(repository, "show", "perpetual/mine/1:notes/page-0") == "whole"
    assert git(repository, "show", "perpetual/mine/1:notes/page-1") == "half"
    assert git(repository, "log", "--format=%s") == "mine: work of session 2\nfirst"
    assert [git(repository, "show", f"HEAD:notes/page-{n}") for n in (0, 1)] == ["whole", "whole"]
    assert git(repository, "status", "--porcelain") == ""
    assert [key.split("/")[-2] for key in rig.runner.ran] == ["page-1"], "the unit that had finished is not run again"
    said = "the uncommitted work of session 1 is set aside on the branch perpetual/mine/1"
    assert f"- {said}; the files are left as they were found" in rig.document("handoff", 2)


def spoil(repository: Path, how: str) -> None:
    """Makes it impossible to commit."""
    match how:
        case "hook":
            hook = repository / ".git/hooks/pre-commit"
            hook.parent.mkdir(exist_ok=True)
            hook.write_text("#!/bin/sh\necho 'no commits on Sundays' >&2\nexit 1\n")
            hook.chmod(0o755)
        case "conflict":
            git(repository, "checkout", "--quiet", "-b", "side")
            for branch in ("side", "main"):
                git(repository, "checkout", "--quiet", branch)
                (repository / "notes/old").write_text(branch)
                git(repository, "commit", "--quiet", "--all", f"--message={branch}")
            git(repository, "merge", "side", ok=False)
        case "damaged":
            (repository / ".git/HEAD").write_text("nonsense")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("hook", "no commits on Sundays"),
        ("conflict", "notes/old: in conflict"),
        ("damaged", "not a git repository"),
        ("secret", "notes/page-0: got a value of the agent's secret fields"),
    ],
)
def test_no_repository_stops_a_chain(
    repository: Path, make_ledger: Any, clock: FakeClock, how: str, error: str
) -> None:
    """The handoff says what kept the work from being committed; the chain goes on to its end, after a kill, too."""
    spoil(repository, how)
    agent = Writer(repository=repository, text=KEY if how == "secret" else "whole", pages=3, dies_at="page-1")
    rig = rig_of(agent, make_ledger, clock)
    die(rig)
    agent.dies_at = ""

    ends = [rig.run(tokens(100), redactor=Redactor([KEY])), rig.run(redactor=Redactor([KEY]))]

    assert [end.state for end in ends] == [SessionState.WRAPPED, SessionState.FINISHED]
    for handoff in (rig.document("handoff", 2), rig.document("handoff", 3)):
        assert "commit_changes: " in handoff
        assert error in handoff
        assert KEY not in handoff
    aside = "was not set aside" if how != "hook" else "is set aside on the branch perpetual/mine/1"
    assert f"the uncommitted work of session 1 {aside}" in rig.document("handoff", 2)
    assert [failed.step for failed in rig.told(StepFailed)] == ["commit_changes"] * 2


def test_commits_are_pushed_where_that_is_wanted(repository: Path, make_ledger: Any, clock: FakeClock) -> None:
    """A push that fails is said in the handoff and stops nothing; the next one makes up for it."""
    rig = rig_of(Pusher(repository=repository, pages=3), make_ledger, clock)
    rig.run(tokens(100))
    assert "- push: GitError: git push: fatal: No configured push destination" in rig.document("handoff", 1)
    remote = repository.with_name("remote.git")
    git(repository.parent, "init", "--quiet", "--bare", str(remote))
    git(repository, "remote", "add", "origin", str(remote))

    rig.run()

    assert git(remote, "log", "--format=%s", "main") == "mine: work of session 2\nmine: work of session 1\nfirst"
    assert [failed.step for failed in rig.told(StepFailed)] == ["push"]
