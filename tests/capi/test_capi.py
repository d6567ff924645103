"""The library for C programs as its users get it: installed by `make install-c`, found by pkg-config, talking to Python and dying like any program."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

import shmlog
from shmlog import Admin, Cluster, Consumer, NewTopic, Producer, TopicPartition, messages
from shmlog._ffi import lib
from shmlog.client.session import attach
from shmlog.testing.processes import kill_all
from shmlog.testing.waiting import until

ROOT = Path(__file__).parent.parent.parent
PREFIX = "/opt/shmlog"
DEADLINE_S = 120


class Installed:
    """`make install-c` below a directory of the test's, and what pkg-config says of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lib = root / PREFIX[1:] / "lib"
        found = {"PKG_CONFIG_SYSROOT_DIR": root, "PKG_CONFIG_LIBDIR": self.lib / "pkgconfig", "LD_LIBRARY_PATH": self.lib}
        self.env = {**os.environ, **{name: str(path) for name, path in found.items()}}
        self._run("make", "-C", ROOT, "install-c", f"DESTDIR={root}", f"PREFIX={PREFIX}")

    def _run(self, *command: object, **more: Any) -> str:
        done = subprocess.run([str(c) for c in command], env=self.env, capture_output=True, text=True, timeout=DEADLINE_S, check=False, **more)
        assert done.returncode == 0, f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def build(self, source: Path, compiler: str = "gcc", *flags: str) -> Path:
        program = self.root / source.stem
        given = self._run("pkg-config", "--cflags", "--libs", "shmlog").split()
        strict = ("-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
        self._run(compiler, *(flags or ("-std=c11", "-Wpedantic")), *strict, "-o", program, source, *given)
        return program

    def start(self, program: Path, *arguments: object, **more: Any) -> subprocess.Popen[str]:
        env = {**self.env, "SHMLOG_CLUSTER": os.environ["SHMLOG_CLUSTER"]}
        return subprocess.Popen([str(program), *map(str, arguments)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)

    def run(self, program: Path, *arguments: object, stdin: str = "") -> str:
        process = self.start(program, *arguments, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=DEADLINE_S)
        assert process.returncode == 0, f"{program.name} {' '.join(map(str, arguments))}: exit {process.returncode}\n{out}{err}"
        return out


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is missing: sudo apt-get install -y pkg-config")
    return Installed(tmp_path_factory.mktemp("install-c"))


@pytest.fixture(scope="session")
def talk(installed: Installed) -> Path:
    return installed.build(ROOT / "examples" / "c" / "talk.c")


@pytest.fixture(scope="session")
def calls(installed: Installed) -> Path:
    return installed.build(Path(__file__).with_name("calls.c"))


def read(topic: str, n: int) -> list[Any]:
    with Consumer(topic, auto_offset_reset="earliest", consumer_timeout_ms=DEADLINE_S * 1000) as consumer:
        return [next(consumer) for _ in range(n)]


def send_one() -> None:
    with Producer() as producer:
        producer.send("t", b"x")


# --- what is installed -------------------------------------------------------------------------------------------------


def test_library_exports_what_the_header_declares_and_nothing_else(installed: Installed) -> None:
    exported = {line.split()[-1] for line in installed._run("nm", "-D", "--defined-only", installed.lib / "libshmlog.so").splitlines()}
    header = (installed.root / PREFIX[1:] / "include" / "shmlog.h").read_text()
    declared = {line.split("(")[0].split()[-1].lstrip("*") for line in header.splitlines() if line.startswith("SHMLOG_API ")}
    assert exported == declared and len(declared) > 20


def test_header_is_cpp_and_is_what_get_include_names(installed: Installed, tmp_path: Path) -> None:
    assert (Path(shmlog.get_include()) / "shmlog.h").read_text() == (ROOT / "csrc" / "shmlog.h").read_text()
    if shutil.which("g++") is None:
        pytest.skip("g++ is missing: sudo apt-get install -y g++")
    source = tmp_path / "plus.cc"
    source.write_text("#include <shmlog.h>\nint main() { return shmlog_api_version() == SHMLOG_API_VERSION ? 0 : 1; }\n")
    program = installed.build(source, "g++", "-std=c++17", "-Wpedantic")
    assert subprocess.run([program], env=installed.env, check=False).returncode == 0


def test_codes_of_the_header_are_those_of_the_core() -> None:
    header = (ROOT / "csrc" / "shmlog.h").read_text()
    codes = {name: int(code) for name, code in re.findall(r"^#define SHMLOG_(E_\w+) \((-\d+)\)", header, re.MULTILINE)}
    core = {name[3:]: getattr(lib, name) for name in dir(lib) if name.startswith("SL_E_") and name != "SL_E_LOST"}  # that is verify's
    assert {name: code for name, code in codes.items() if name != "E_REFUSED"} == core
    assert codes["E_REFUSED"] not in core.values()


# --- with Python at the other end ----------------------------------------------------------------------------------------


def test_python_reads_what_the_example_produces(shmlog_cluster: Any, installed: Installed, talk: Path) -> None:
    assert installed.run(talk, "produce", "numbers", stdin="one\ntwo\n\n") == "0\n1\n2\n"  # the topic is made
    assert [(r.offset, r.key, r.value) for r in read("numbers", 3)] == [(0, None, b"one"), (1, None, b"two"), (2, None, b"")]


def test_example_reads_what_python_sends_while_it_waits(shmlog_cluster: Any, installed: Installed, talk: Path) -> None:
    consumer = installed.start(talk, "consume", "numbers", 502)  # before there is such a topic
    with Producer() as producer:
        producer.send("numbers", b"one")
        producer.send_many("numbers", [b"%d" % i for i in range(500)])
        producer.send("numbers", b"last")
        out, err = consumer.communicate(timeout=DEADLINE_S)
    assert consumer.returncode == 0, err
    assert out.splitlines() == ["0 one", *(f"{i + 1} {i}" for i in range(500)), "501 last"]


def test_c_reads_from_the_files_what_memory_no_longer_holds(shmlog_cluster: Any, installed: Installed, talk: Path) -> None:
    with Admin() as admin:
        admin.create_topics([NewTopic("numbers", config={"shmlog.memory.bytes": "65536"})])
    with Producer() as producer:
        for i in range(100):
            producer.send("numbers", b"%d " % i + bytes(20_000))
    out = installed.run(talk, "consume", "numbers", 100)
    assert [line.split()[:2] for line in out.splitlines()] == [[str(i), str(i)] for i in range(100)]


def test_headers_of_python_are_read_in_c(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    with Producer() as producer:
        producer.send("t", b"a", headers=[("x", b"1"), ("y", None)])
        producer.send("t", b"b")
        producer.send("t", b"c", headers=[("long", b"v" * 200)])
    assert installed.run(calls, "print_headers", "t").splitlines() == ["a: x=1 y=null", "b:", "c: long=" + "v" * 200]


def test_headers_and_tombstones_of_c_are_read_in_python(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    installed.run(calls, "headers", "t")
    (record,) = read("t", 1)
    assert (record.key, record.value, record.timestamp_ns) == (b"key", None, 1700000000123456789)
    assert record.headers == [("one", b"1"), ("none", None), ("", b"")]


def test_loans_are_published_whole_truncated_or_not_at_all(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    installed.run(calls, "loan", "t")
    assert [(r.key, r.value) for r in read("t", 3)] == [(b"k", b"x" * 99_999), (b"k", b"the last"), (b"k", b"")]


@pytest.mark.parametrize("scenario", ["conflict", "seek", "wait_and_wake", "after_fork", "refusals", "durable", "pass_damage"])
def test_scenario_in_c(shmlog_cluster: Any, installed: Installed, calls: Path, scenario: str) -> None:
    installed.run(calls, scenario, "t")


def test_topic_that_is_not_to_be_made_is_refused_in_a_sentence(installed: Installed, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(config={"auto.create.topics.enable": "false"}) as cluster:
        monkeypatch.setenv("SHMLOG_CLUSTER", cluster.name)
        process = installed.start(talk, "produce", "nowhere", stdin=subprocess.DEVNULL)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1 and err == "talk: there is no topic 'nowhere', and auto.create.topics.enable is false\n"


# --- signals, deaths, ends -----------------------------------------------------------------------------------------------


def told(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    return out.splitlines()[-1]


def reading(installed: Installed, calls: Path) -> subprocess.Popen[str]:
    process = installed.start(calls, "read_until_told", "t")
    assert process.stdout is not None and process.stdout.readline() == "reading\n"
    return process


def test_wait_in_c_ends_with_a_signal(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    send_one()
    process = reading(installed, calls)
    while process.poll() is None:  # one that comes before it waits is no interruption
        process.send_signal(signal.SIGUSR1)
        threading.Event().wait(0.01)
    assert told(process).startswith(f"{lib.SL_E_INTR} ")


def test_reader_in_c_learns_that_its_topic_was_deleted(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    send_one()
    process = reading(installed, calls)
    with Admin() as admin:
        admin.delete_topics(["t"])
    assert told(process).startswith(f"{lib.SL_E_DELETED} ")


def test_reader_in_c_learns_that_its_cluster_was_shut_down(installed: Installed, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as cluster:
        monkeypatch.setenv("SHMLOG_CLUSTER", cluster.name)
        send_one()
        process = reading(installed, calls)
    assert told(process).startswith(f"{lib.SL_E_GONE} ")


def test_c_producer_goes_on_when_coordinator_and_broker_are_killed(installed: Installed, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as cluster:
        monkeypatch.setenv("SHMLOG_CLUSTER", cluster.name)
        for turn in range(3):
            cluster.kill("coordinator")
            if turn:
                cluster.kill("broker", 0)
            assert installed.run(talk, "produce", "t", stdin="x\n" * 100).split()[-1] == str(100 * turn + 99)
        assert len(read("t", 300)) == 300


def test_killed_c_producer_leaves_whole_records_and_its_row(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    with installed.start(calls, "append_for_ever", "t") as process:
        assert process.stdout is not None
        for _ in range(2000):
            process.stdout.readline()
        process.kill()
        acknowledged = 2000 + sum(line.endswith("\n") for line in process.stdout)
    consumer = Consumer()
    tp = TopicPartition("t", 0)
    end = consumer.end_offsets([tp])[tp]
    consumer.close()
    assert acknowledged <= end <= acknowledged + 1
    assert [int(r.value) for r in read("t", end)] == list(range(end))
    with attach(shmlog_cluster.address) as session:

        def words() -> list[Any]:
            rows = [lib.sl_cluster_row(session.cluster, i) for i in range(lib.sl_cluster_rows_used(session.cluster))]
            return [r for r in rows if r.pid == process.pid and (r.state != lib.SL_ROW_FREE or any(r.view_pins) or any(r.hazard))]

        until(lambda: not words(), "the row of the killed program is free and clear")


def test_rows_are_given_back_with_the_last_handle_while_the_program_lives_on(shmlog_cluster: Any, installed: Installed, calls: Path) -> None:
    with attach(shmlog_cluster.address) as session:
        before = session.request(messages.DescribeCluster()).rows
        with installed.start(calls, "live_on", "t", stdin=subprocess.PIPE) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "open\n"
            assert session.request(messages.DescribeCluster()).rows == before + 4
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "closed\n"
            assert session.request(messages.DescribeCluster()).rows == before
            process.stdin.write("\n")


def test_a_thread_that_waits_for_the_coordinator_holds_up_no_other(installed: Installed, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as cluster:
        monkeypatch.setenv("SHMLOG_CLUSTER", cluster.name)
        send_one()
        with installed.start(calls, "wait_beside_a_request", "t", stdin=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            stopped = [pid for role in ("spare", "standby", "coordinator") if (pid := cluster.pid(role))]
            try:
                for pid in stopped:
                    os.kill(pid, signal.SIGSTOP)
                _, err = process.communicate("\n", timeout=DEADLINE_S)
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
        assert process.returncode == 0, err


def kill_everything(cluster: Cluster) -> None:
    """Also what is started in place of what was killed, until nobody is left to do so."""
    while not kill_all(cluster.name):
        pass


def test_cluster_whose_processes_are_dead_is_told_at_once(installed: Installed, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as cluster:
        monkeypatch.setenv("SHMLOG_CLUSTER", cluster.name)
        kill_everything(cluster)
        process = installed.start(talk, "produce", "t", stdin=subprocess.DEVNULL)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1 and err.startswith(f"talk: no process of cluster {cluster.name} lives any more"), err


def test_reader_in_c_learns_that_every_process_was_killed(installed: Installed, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster() as cluster:
        monkeypatch.setenv("SHMLOG_CLUSTER", cluster.name)
        send_one()
        process = reading(installed, calls)
        kill_everything(cluster)
        assert told(process).startswith(f"{lib.SL_E_GONE} no process of cluster {cluster.name} lives any more")
