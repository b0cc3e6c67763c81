import gc
import os
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from perpetual_blocks.adapters import process
from perpetual_blocks.adapters.process import (
    CpuMeter,
    MemoryMeter,
    container_memory_limit,
    container_memory_used,
    garbage_of_its_own,
    holder_id,
    host_name,
    is_alive,
    machine,
    process_started,
    tree_memory,
)

MIB = 2**20


def test_garbage_of_its_own() -> None:
    """What was there before is not looked at; it is again, afterwards."""
    with garbage_of_its_own():
        assert gc.get_freeze_count() > 10_000
        gone = weakref.ref(Loop())
        gc.collect()
        assert gone() is None
    assert gc.get_freeze_count() == 0


class Loop:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


HOLD = """
import sys
block = b"x" * {size}
print("holding", flush=True)
sys.stdin.read()
"""

PASS_ON = """
import subprocess, sys
subprocess.run([sys.executable, "-c", {code!r}])
"""


@contextmanager
def running(code: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has said that it is ready, and that ends when its input does."""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "holding\n"
        yield child


class TestTreeMemory:
    def test_this_process(self) -> None:
        """Memory that this process takes and touches is counted."""
        before = tree_memory()
        block = b"x" * (64 * MIB)
        assert tree_memory() - before > 60 * MIB
        assert len(block) == 64 * MIB

    def test_child(self) -> None:
        """A child's memory is counted while the child lives."""
        before = tree_memory()
        with running(HOLD.format(size=64 * MIB)):
            assert tree_memory() - before > 60 * MIB
        assert tree_memory() - before < 32 * MIB

    def test_grandchild(self) -> None:
        """A child's child is counted too."""
        before = tree_memory()
        with running(PASS_ON.format(code=HOLD.format(size=64 * MIB))):
            assert tree_memory() - before > 60 * MIB

    def test_vanishing_children(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child that ends between being listed and being measured is left out."""
        listed = psutil.Process.children

        with running(HOLD.format(size=64 * MIB)) as doomed:

            def list_then_end(self: psutil.Process, recursive: bool = False) -> list[psutil.Process]:
                children = listed(self, recursive)
                assert doomed.pid in {child.pid for child in children}
                doomed.kill()
                doomed.wait()
                # Without a server that another test has started, and that would be measured too.
                return [child for child in children if child.pid == doomed.pid]

            monkeypatch.setattr(psutil.Process, "children", list_then_end)
            own = psutil.Process().memory_info().rss
            assert abs(tree_memory() - own) < 32 * MIB


class TestContainerMemoryLimit:
    def place(self, root: Path, cgroup: str, files: dict[str, str]) -> Path:
        """Writes a file tree as the kernel shows it."""
        for name, text in {"proc/self/cgroup": cgroup, **files}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    def test_version_2(self, tmp_path: Path) -> None:
        """Version 2's limit of the process's own group is read."""
        files = {"sys/fs/cgroup/pod/job/memory.max": f"{300 * MIB}\n"}
        assert container_memory_limit(self.place(tmp_path, "0::/pod/job\n", files)) == 300 * MIB

    def test_version_2_in_its_namespace(self, tmp_path: Path) -> None:
        """A container that sees its own group as the top one finds its limit there."""
        files = {"sys/fs/cgroup/memory.max": f"{300 * MIB}\n"}
        assert container_memory_limit(self.place(tmp_path, "0::/\n", files)) == 300 * MIB

    @pytest.mark.parametrize(("own", "above"), [(300, 200), (200, 300)])
    def test_smallest_on_the_way_up(self, tmp_path: Path, own: int, above: int) -> None:
        """The smallest limit from the own group to the top counts, and not that of a group beside."""
        files = {
            "sys/fs/cgroup/pod/job/memory.max": f"{own * MIB}\n",
            "sys/fs/cgroup/pod/memory.max": f"{above * MIB}\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/pod/other/memory.max": f"{100 * MIB}\n",
            "sys/fs/memory.max": f"{50 * MIB}\n",
        }
        assert container_memory_limit(self.place(tmp_path, "0::/pod/job\n", files)) == 200 * MIB

    @pytest.mark.parametrize("lowest", ["", "a/", "a/b/", "a/b/c/"])
    def test_nested_groups(self, tmp_path: Path, lowest: str) -> None:
        """At whatever level the smallest limit is, it counts, in both versions."""
        sizes = {level: f"{(100 if level == lowest else 200) * MIB}\n" for level in ("", "a/", "a/b/", "a/b/c/")}
        version_1 = {f"sys/fs/cgroup/memory/{level}memory.limit_in_bytes": size for level, size in sizes.items()}
        version_2 = {f"sys/fs/cgroup/{level}memory.max": size for level, size in sizes.items()}
        assert container_memory_limit(self.place(tmp_path / "1", "4:memory:/a/b/c\n", version_1)) == 100 * MIB
        assert container_memory_limit(self.place(tmp_path / "2", "0::/a/b/c\n", version_2)) == 100 * MIB

    def test_level_at_which_a_group_is_slowed_down(self, tmp_path: Path) -> None:
        """Version 2's `memory.high` slows a group down and ends no process of it: it is no limit."""
        files = {"sys/fs/cgroup/job/memory.max": "max\n", "sys/fs/cgroup/job/memory.high": f"{100 * MIB}\n"}
        assert container_memory_limit(self.place(tmp_path, "0::/job\n", files)) is None

    def test_both_versions(self, tmp_path: Path) -> None:
        """Where version 2 is mounted beside version 1 and has no memory controller, version 1's limit counts."""
        files = {
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{300 * MIB}\n",
            "sys/fs/cgroup/unified/job/cgroup.procs": "1\n",
        }
        assert container_memory_limit(self.place(tmp_path, "4:memory:/job\n0::/job\n", files)) == 300 * MIB

    def test_group_outside_of_its_namespace(self, tmp_path: Path) -> None:
        """A group that lies outside of what the process sees still has the limit of what it sees."""
        files = {"sys/fs/cgroup/memory.max": f"{300 * MIB}\n"}
        assert container_memory_limit(self.place(tmp_path, "0::/../other\n", files)) == 300 * MIB

    def test_version_1(self, tmp_path: Path) -> None:
        """Version 1's limit is read in the hierarchy of the memory controller."""
        cgroup = "5:cpu,cpuacct:/cpu\n4:hugetlb,memory:/docker/a:b\n1:name=systemd:/x\n0::/unified\n"
        files = {
            "sys/fs/cgroup/memory/docker/a:b/memory.limit_in_bytes": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/cpu/memory.limit_in_bytes": f"{100 * MIB}\n",
        }
        assert container_memory_limit(self.place(tmp_path, cgroup, files)) == 300 * MIB

    def test_version_1_mounted_as_the_top(self, tmp_path: Path) -> None:
        """Where the process's group is named by the host's path, but mounted as the top, the top is read."""
        files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{300 * MIB}\n"}
        assert container_memory_limit(self.place(tmp_path, "4:memory:/docker/abc\n", files)) == 300 * MIB

    @pytest.mark.parametrize("text", ["max", str(2**60), "9223372036854771712", str(psutil.virtual_memory().total)])
    def test_no_limit(self, tmp_path: Path, text: str) -> None:
        """No limit, in either version's words, and a limit that the machine cannot reach, are None."""
        files = {
            "sys/fs/cgroup/job/memory.max": f"{text}\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{text}\n",
        }
        assert container_memory_limit(self.place(tmp_path, "4:memory:/job\n0::/job\n", files)) is None

    def test_no_files(self, tmp_path: Path) -> None:
        """A group without a limit's file, and a system without control groups, are None."""
        assert container_memory_limit(tmp_path) is None
        assert container_memory_limit(self.place(tmp_path, "0::/job\n", {})) is None

    def test_this_machine(self) -> None:
        """On the machine that runs the test, the limit is None or less than the machine's memory."""
        limit = container_memory_limit()
        assert limit is None or 0 < limit < psutil.virtual_memory().total


class TestMemoryMeter:
    def test_level(self) -> None:
        """The level is the memory of this process and its children, at each call."""
        meter = MemoryMeter()
        before = meter.level()
        with running(HOLD.format(size=64 * MIB)):
            assert meter.level() - before > 60 * MIB

    def test_limit_is_read_once(self, tmp_path: Path) -> None:
        """The container's limit counts as it was when the meter was made."""
        place = TestContainerMemoryLimit().place
        place(tmp_path, "0::/\n", {"sys/fs/cgroup/memory.max": f"{300 * MIB}\n"})
        meter = MemoryMeter(tmp_path)
        place(tmp_path, "0::/\n", {"sys/fs/cgroup/memory.max": f"{200 * MIB}\n"})
        assert meter.capacity() == 300.0 * MIB

    @pytest.mark.parametrize(
        ("cgroup", "files"),
        [
            ("0::/\n", {"memory.max": 900, "memory.current": 700, "memory.stat": "inactive_file {}\nother 1"}),
            (
                "4:memory:/\n",
                {
                    "memory/memory.limit_in_bytes": 900,
                    "memory/memory.usage_in_bytes": 700,
                    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file {}",
                },
            ),
        ],
        ids=["version 2", "version 1"],
    )
    def test_others_in_the_container(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: str, files: dict[str, int | str]
    ) -> None:
        """What other processes of the container use is not ours to use; files that nobody needs are."""
        texts = {
            f"sys/fs/cgroup/{name}": str(text * MIB) if isinstance(text, int) else text.format(300 * MIB)
            for name, text in files.items()
        }
        place = TestContainerMemoryLimit().place(tmp_path, cgroup, texts)
        assert container_memory_used(place) == 400 * MIB
        monkeypatch.setattr(process, "tree_memory", lambda: 100 * MIB)
        assert MemoryMeter(place).capacity() == (900 - (400 - 100)) * MIB

    def test_no_capacity(self, tmp_path: Path) -> None:
        """Without a container's limit there is no capacity."""
        assert MemoryMeter(tmp_path).capacity() is None


CPU_PREAMBLE = """
import os, subprocess, sys, time
from perpetual_blocks.adapters.process import cpu_seconds

BURN = '''
import sys, time
while time.process_time() < 0.4:
    pass
print("holding", flush=True)
sys.stdin.read()
'''

def start(code):
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "holding\\n"
    return child

def say():
    print(cpu_seconds() - before)

before = cpu_seconds()
"""


class TestCpuSeconds:
    def readings(self, code: str) -> list[float]:
        """What a process of its own says, whose only children are those of the test."""
        command = [sys.executable, "-c", CPU_PREAMBLE + code]
        repository = Path(__file__).parents[2]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=repository)
        return [float(line) for line in done.stdout.splitlines()]

    def test_this_process(self) -> None:
        """What this process uses counts, and waiting does not."""
        code = """
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
say()
time.sleep(0.3)
say()
"""
        assert self.readings(code) == pytest.approx([0.3, 0.3], abs=0.2)

    def test_child_from_start_to_end(self) -> None:
        """A child counts once: while it runs, when nobody has waited for it yet, and after that."""
        code = """
child = start(BURN)
say()
child.stdin.close()
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # Awaits the end and leaves the zombie.
say()
child.wait()
say()
"""
        assert self.readings(code) == pytest.approx([0.4] * 3, abs=0.3)

    def test_grandchild(self) -> None:
        """A child's child counts once: while it runs, when its parent has waited for it, and after both."""
        code = """
child = start(f'''
import subprocess, sys
pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
grandchild = subprocess.Popen([sys.executable, "-c", {BURN!r}], **pipes)
print(grandchild.stdout.readline(), end="", flush=True)
sys.stdin.readline()
grandchild.stdin.close()
grandchild.wait()
print("waited", flush=True)
sys.stdin.read()
''')
say()
child.stdin.write("\\n")
child.stdin.flush()
assert child.stdout.readline() == "waited\\n"
say()
child.stdin.close()
child.wait()
say()
"""
        assert self.readings(code) == pytest.approx([0.4] * 3, abs=0.3)

    def test_vanishing_children(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child that ends between being listed and being measured is left out."""
        with running(HOLD.format(size=1)) as doomed:
            child = psutil.Process(doomed.pid)
            doomed.kill()
            doomed.wait()
            monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [child])
            assert process.cpu_seconds() > 0


class TestCpuMeter:
    def test_since_it_was_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seconds count from the meter's making on, and do not go down when a child is missing."""
        readings = iter([10.0, 10.5, 12.0, 11.0, 13.0])
        monkeypatch.setattr(process, "cpu_seconds", lambda: next(readings))
        meter = CpuMeter()
        assert [meter.level() for _ in range(4)] == [0.5, 2.0, 2.0, 3.0]

    def test_of_real_processes(self) -> None:
        """Over some short children, asked at any time, the seconds only go up."""
        meter = CpuMeter()
        seen = [meter.level()]
        for _ in range(5):
            with subprocess.Popen([sys.executable, "-c", "sum(range(10**6))"]) as child:
                while child.poll() is None:
                    seen.append(meter.level())
        assert seen == sorted(seen)
        assert seen[-1] > seen[0] >= 0

    def test_capacity_of_a_limited_process(self) -> None:
        """What `ulimit -t` leaves to the process, read once; None without a limit, and never 0."""
        code = """if True:
            import resource
            from perpetual_blocks.adapters.process import CpuMeter
            print(CpuMeter().capacity())
            resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))
            meter = CpuMeter()
            sum(range(10**6))
            print(meter.capacity() == meter.capacity(), 900 < meter.capacity() <= 1000)
        """
        said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert said.stdout.split() == ["None", "True", "True"]

    def test_no_capacity_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process at its limit has next to nothing, which is not the same as no limit."""
        monkeypatch.setattr(process, "cpu_seconds_left", lambda: 0.0)
        assert 0 < (CpuMeter().capacity() or 0) < 0.01


class TestHolderId:
    def test_form(self) -> None:
        """It tells the host and the process, and ends with 16 hexadecimal digits."""
        expected = rf"{re.escape(host_name())}:{os.getpid()}:[0-9a-f]{{16}}"
        assert re.fullmatch(expected, holder_id())

    def test_unique(self) -> None:
        """No two calls give the same."""
        assert len({holder_id() for _ in range(1000)}) == 1000

    def test_host_name(self) -> None:
        """The host's name is the one that the operating system gives, and is not empty."""
        assert host_name() == os.uname().nodename != ""


class TestIsAlive:
    def test_this_process(self) -> None:
        """This process is alive by its own number and start time."""
        assert is_alive(machine(), os.getpid(), process_started()) is True

    def test_other_host(self) -> None:
        """Nothing is known of another machine's process, even one with our number and start time."""
        assert is_alive("elsewhere/" + machine(), os.getpid(), process_started()) is None

    def test_child_from_start_to_end(self) -> None:
        """A child is alive until it ends: not as a zombie that nobody has waited for, and not after that."""
        with running(HOLD.format(size=1)) as child:
            started = psutil.Process(child.pid).create_time()
            assert is_alive(machine(), child.pid, started) is True
            os.kill(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # Awaits the end and leaves the zombie.
            assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
            assert is_alive(machine(), child.pid, started) is False
        assert not psutil.pid_exists(child.pid)
        assert is_alive(machine(), child.pid, started) is False

    @pytest.mark.parametrize(("shift", "alive"), [(-2.0, False), (-0.9, True), (0.9, True), (2.0, False)])
    def test_number_given_again(self, shift: float, alive: bool) -> None:
        """A process with the number, but started more than a second before or after, is another one."""
        assert is_alive(machine(), os.getpid(), process_started() + shift) is alive

    def test_start_time_of_this_process(self) -> None:
        """This process's start time, as another process sees it."""
        code = f"import psutil; print(psutil.Process({os.getpid()}).create_time())"
        seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert float(seen) == pytest.approx(process_started(), abs=0.5)
