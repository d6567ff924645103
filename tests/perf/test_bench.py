"""`shmlog bench`: does it run, is what it writes right, is nothing left behind? No test looks at how fast anything was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmlog.bench import harness, histogram, peers, targets
from shmlog.testing.waiting import until

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 300
QUESTIONS = ("latency", "rate", "paced", "batch", "large", "durable", "core", "fan", "growth", "faults", "weight")


def command(tmp_path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "shmlog", "bench", "--plan", "tiny", "--seconds", "0.02", "--rounds", "1", "--out", str(tmp_path / "out"), *arguments]


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "SHMLOG_BENCH_DIR": str(tmp_path / "runs"), **more}


def bench(tmp_path: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(tmp_path, *arguments), capture_output=True, text=True, timeout=DEADLINE_S, env=environment(tmp_path, **more), cwd=tmp_path
    )


def results(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "out" / "bench.json").read_text())


def marked(mark: str) -> list[str]:
    """Command lines of processes that carry this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass
    return found


def test_the_folder_perf_is_the_package_shmlog_bench() -> None:
    import shmlog.bench

    assert Path(shmlog.bench.__file__).parent == ROOT / "perf"


def test_a_run_writes_a_table_json_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    done = bench(tmp_path, "latency", "batch", "paced", "--peer", "shmlog", "--peer", "Pipe", "--peer", "faster")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert found["format"] == 1 and found["tool"] == "shmlog bench" and found["plan"]["name"] == "tiny"
    assert set(found["questions"]) == {"latency", "paced", "batch"}
    assert {"cpu", "cores", "kernel", "python", "disk"} <= set(found["machine"])
    assert {"stolen_percent", "strangers_percent", "rounds", "polluted", "failed", "cells_without_a_quiet_round"} == set(found["noise"])
    cells = {(c["question"], c["peer"]): c for c in found["cells"]}
    for key in (("latency", "shmlog"), ("latency", "multiprocessing.Pipe"), ("paced", "shmlog"), ("batch", "shmlog"), ("batch", "shmlog, views")):
        cell = cells[key]
        assert cell["error"] is None, cell
        assert all({"median", "low", "high", "rounds"} == set(f) and f["low"] <= f["median"] <= f["high"] for f in cell["figures"].values())
        assert all({"stolen_percent", "strangers_percent", "quiet", "seconds"} <= set(r) for r in cell["rounds"])
    assert cells["batch", "shmlog"]["figures"]["lost_percent"]["median"] == 0
    ping = cells["latency", "shmlog"]
    made = histogram.decode(ping["histogram"])
    used = [r for r in ping["rounds"] if r["quiet"]] or ping["rounds"]
    assert made.get_total_count() == sum(r["figures"]["round_trips"] for r in used)
    page = (tmp_path / "out" / "bench.html").read_text()
    assert page.count("<svg") > 3 and "prefers-color-scheme:dark" in page
    assert not [word for word in ("http://", "https://", "<script", "src=", "@import") if word in page]
    assert "Python, 64 B ping-pong" in done.stdout and str(tmp_path / "out" / "bench.html") in done.stdout
    assert not (tmp_path / "runs" / "scratch").exists() or not list((tmp_path / "runs" / "scratch").iterdir())


def test_json_on_stdout_is_the_whole(tmp_path: Path) -> None:
    done = bench(tmp_path, "latency", "--peer", "Pipe", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == results(tmp_path)


def test_a_run_that_was_interrupted_goes_on_behind_its_last_round(tmp_path: Path) -> None:
    arguments = ("latency", "rate", "--peer", "Pipe", "--peer", "zmq")
    assert bench(tmp_path, *arguments).returncode == 0
    (run,) = (tmp_path / "runs").glob("run-*.jsonl")
    lines = run.read_text().splitlines()
    head, rounds, end = lines[0], lines[1:-1], lines[-1]
    assert "head" in json.loads(head) and "ended" in json.loads(end)
    kept = [line for line in rounds if json.loads(line)["cell"] != json.loads(rounds[-1])["cell"]]
    run.write_text("\n".join([head, *kept, rounds[-1][:30]]))  # the last line cut off, as by a kill
    done = bench(tmp_path, *arguments, "--resume")
    assert done.returncode == 0 and f"{len(kept)} rounds are finished" in done.stderr
    again = run.read_text()
    ran = [json.loads(line)["cell"] for line in again.splitlines() if line.startswith('{"cell"') and line.endswith("}")]
    assert all(ran.count(json.loads(line)["cell"]) == sum(json.loads(k)["cell"] == json.loads(line)["cell"] for k in kept) for line in kept)
    assert all(line in again for line in kept) and json.loads(again.splitlines()[-1]).keys() == {"ended"}
    assert results(tmp_path)["begun"] == json.loads(head)["head"]["begun"]
    assert all(c["figures"] for c in results(tmp_path)["cells"])
    done = bench(tmp_path, *arguments, "--resume")  # what has ended is not gone on with
    assert done.returncode == 0 and "are finished" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped(tmp_path: Path, number: int) -> None:
    mark = f"SHMLOG_TEST_BENCH={os.getpid()}-{number}-{tmp_path.name}"
    key, _, value = mark.partition("=")
    arguments = ("rate", "--peer", "shmlog", "--seconds", "30", "--limit", "200")
    with open(tmp_path / "err", "wb") as err, open(tmp_path / "out.txt", "wb") as out:
        process = subprocess.Popen(
            command(tmp_path, *arguments), env=environment(tmp_path, **{key: value}), stdout=out, stderr=err, cwd=tmp_path, start_new_session=True
        )
    until(lambda: process.poll() is not None or sum("forkserver" in c for c in marked(mark)) >= 3, "two ends run")  # the server and its forks
    assert process.poll() is None, (tmp_path / "err").read_text()
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
    process.wait(DEADLINE_S)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert not list(Path("/dev/shm").glob(f"shmlog-bench-{process.pid}-*")) and not list((tmp_path / "runs" / "scratch").iterdir())
        assert "Traceback" not in (tmp_path / "err").read_text()
    until(lambda: not marked(mark), f"{marked(mark)} ended")
    if number == signal.SIGKILL:  # its directories could not go with it; the next run removes them
        left = [*Path("/dev/shm").glob(f"shmlog-bench-{process.pid}-*"), *(tmp_path / "runs" / "scratch").iterdir()]
        assert len(left) == 2
        assert bench(tmp_path, "latency", "--peer", "Pipe").returncode == 0
        assert not [directory for directory in left if directory.exists()]


def test_an_adapter_of_the_readers_own_takes_part(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import os
        from shmlog.bench.peers import Peer, Receiver, Sender

        class Fifo(Peer):
            name = "my fifo"
            can = frozenset({"latency"})
            def start(self):
                for c in range(self.task.channels):
                    os.mkfifo(f"{self.memory_directory}/{c}")
            def open(self, channel):
                return os.open(f"{self.memory_directory}/{channel}", os.O_RDWR)
            def sender(self, channel):
                fd, end = self.open(channel), Sender()
                end.send = lambda value: os.write(fd, value)
                return end
            def receiver(self, channels):
                fd, n, end = self.open(channels[0]), self.task.value_bytes, Receiver()
                end.receive = lambda: os.read(fd, n)
                return end

        class Stuck(Fifo):
            name = "stuck"
            def sender(self, channel):
                end = Sender()
                end.send = lambda value: None
                return end
    """)
    )
    done = bench(tmp_path, "latency", "--peer", "Pipe", "--adapter", "mine:Fifo", "--adapter", "mine:Stuck", "--limit", "10")
    assert done.returncode == 0, done.stderr
    cells = {c["peer"]: c for c in results(tmp_path)["cells"]}
    assert cells["my fifo"]["figures"]["p50_us"]["median"] > 0
    assert "was not done within 10 s" in cells["stuck"]["error"] and not cells["stuck"]["figures"]
    assert "stuck" in done.stdout and "failed" in done.stdout


def test_like_replays_the_sizes_of_a_topic(tmp_path: Path, shmlog_cluster: Any) -> None:
    from shmlog import Producer

    sizes = [10, 200, 30, 1000, 8] * 10
    with Producer() as producer:
        for i, n in enumerate(sizes):
            producer.send("mine", bytes(n - 2), key=b"k1", timestamp_ns=1_700_000_000_000_000_000 + i * 100_000)
    done = bench(tmp_path, "--like", "mine", "--cluster", shmlog_cluster.address, "--peer", "Pipe", "--peer", "zmq")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert {c["question"] for c in found["cells"]} == {"like"} and found["targets"] == []
    assert all(c["figures"]["lost_percent"]["median"] == 0 and "mine: 50 records, median 30 B" in c["case"] for c in found["cells"])
    means = [1e6 * r["figures"]["mb_per_s"] / r["figures"]["records_per_s"] for c in found["cells"] for r in c["rounds"]]
    assert means and all(abs(mean - sum(sizes) / len(sizes)) < 0.01 for mean in means)
    done = bench(tmp_path, "--like", "nosuch", "--cluster", shmlog_cluster.address)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nosuch" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "is no question"),
        (["--peer", "nobody"], "no peer is named like nobody"),
        (["--adapter", "json:JSONDecoder"], "not a subclass"),
        (["--adapter", "no_such_module:X"], "no_such_module"),
        (["--rounds", "0"], "--rounds is at least 1"),
        (["--frobnicate"], "--frobnicate"),
        (["--like", "t", "latency"], "leave the others out"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = bench(tmp_path, *arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_help_and_list_tell_what_there_is(tmp_path: Path) -> None:
    text = bench(tmp_path, "--help").stdout
    assert all(word in text for word in (*QUESTIONS, "--like", "--adapter", "--resume", "Examples:"))
    found = json.loads(bench(tmp_path, "--list", "--json").stdout)
    assert {p["name"] for p in found} >= {
        "shmlog",
        "multiprocessing.Pipe",
        "pyzmq ipc",
        "cloudtoid-interprocess",
        "NATS JetStream",
        "Redis Streams",
        "LMDB",
    }
    assert all(p["missing"] is None or isinstance(p["missing"], str) for p in found)


@pytest.mark.slow
def test_every_question_answers(tmp_path: Path) -> None:
    done = bench(tmp_path, "--peer", "shmlog", "--peer", "ring", "--peer", "Pipe", "--peer", "bare")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    assert {c["question"] for c in found["cells"]} == set(QUESTIONS)
    assert not [(c["id"], c["error"]) for c in found["cells"] if c["error"]]
    assert len(found["targets"]) > 25


# --- peers in Java ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["Aeron IPC (Java)", "Chronicle Queue (Java)"])
def java_peer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Where its jars were fetched already; a test does not use the network."""
    (peer,) = (p for p in peers.PEERS if p.name == request.param)
    if (why := peer.missing()) is not None:
        pytest.skip(f"{peer.name}: {why}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "jars").symlink_to(harness.results_directory().absolute() / "jars")
    return peer


def test_a_peer_in_java_takes_part_and_leaves_nothing(tmp_path: Path, java_peer: Any) -> None:
    mark = f"SHMLOG_TEST_BENCH={os.getpid()}-{tmp_path.name}"
    key, _, value = mark.partition("=")
    before = set(os.listdir("/dev/shm"))
    done = bench(tmp_path, "latency", "rate", "paced", "durable", "--peer", java_peer.name, "--peer", "Pipe", **{key: value})
    assert done.returncode == 0, done.stderr
    cells = [c for c in results(tmp_path)["cells"] if c["peer"] == java_peer.name]
    assert {c["question"] for c in cells} == {"latency", "rate", "paced"} | ({"durable"} & java_peer.can)
    assert not [(c["id"], c["error"]) for c in cells if c["error"]]
    for cell in cells:
        figures = {name: f["median"] for name, f in cell["figures"].items()}
        assert figures.get("lost_percent", 0) == 0 and figures.get("send_cpu_us", 0) >= 0, cell["id"]
        if cell["question"] in ("latency", "paced", "durable"):
            used = [r for r in cell["rounds"] if r["quiet"]] or cell["rounds"]
            count = histogram.decode(cell["histogram"]).get_total_count()
            assert count > 0 and (cell["question"] != "latency" or count == sum(r["figures"]["round_trips"] for r in used))
        else:
            assert figures["records_per_s"] > 0
    (about,) = (p for p in results(tmp_path)["peers"] if p["name"] == java_peer.name)
    assert about["version"] == java_peer.artifact.version and "in Java" in about["note"]
    until(lambda: not marked(mark), f"{marked(mark)} ended")
    assert not list((tmp_path / "runs" / "scratch").iterdir())
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "aeron" in name or f"shmlog-bench-{os.getpid()}" in name]


def test_ends_in_java_die_with_the_harness(tmp_path: Path, java_peer: Any) -> None:
    mark = f"SHMLOG_TEST_BENCH={os.getpid()}-{tmp_path.name}"
    key, _, value = mark.partition("=")
    arguments = ("rate", "--peer", java_peer.name, "--seconds", "30", "--limit", "200")
    with open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen(command(tmp_path, *arguments), env=environment(tmp_path, **{key: value}), stdout=err, stderr=err, cwd=tmp_path)
    until(lambda: process.poll() is not None or sum(" role=" in c for c in marked(mark)) == 2, "two ends run in Java")
    assert process.poll() is None, (tmp_path / "err").read_text()
    process.kill()
    process.wait(DEADLINE_S)
    until(lambda: not marked(mark), f"{marked(mark)} ended")
    harness.sweep()  # as the next run does: what it kept in memory
    assert not list(Path("/dev/shm").glob(f"shmlog-bench-{process.pid}-*"))


def test_an_end_in_java_that_fails_says_why(tmp_path: Path, java_peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMLOG_BENCH_DIR", str(tmp_path / "runs"))
    with harness.started(java_peer(peers.Task(64))) as peer:
        peer.library = "NoSuchEnds"
        end = peer.role("committer", {"seconds": 0.01})
        with pytest.raises(RuntimeError, match=r"Java ended: .*NoSuchEnds"):
            for _ in range(2):
                next(end)


def test_without_jars_or_java_a_peer_is_left_out_in_one_line(tmp_path: Path) -> None:
    def missing(**more: str) -> dict[str, str]:
        done = bench(tmp_path, "--list", "--json", **more)
        return {p["name"]: p["missing"] for p in json.loads(done.stdout)}

    nowhere = str(tmp_path / "nowhere")
    assert all("no program java, javac" in missing(PATH=nowhere)[name] for name in ("Aeron IPC (Java)", "Chronicle Queue (Java)"))
    (tmp_path / "bin").mkdir()
    for name in ("java", "javac"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    assert all("--fetch" in missing(PATH=str(tmp_path / "bin"))[name] for name in ("Aeron IPC (Java)", "Chronicle Queue (Java)"))
    told = bench(tmp_path, "--fetch", "--list", PATH=nowhere).stderr.splitlines()
    assert told == [f"without {name}: no program java, mvn" for name in ("Kafka", "Aeron", "Chronicle Queue")]


# --- what is computed ---------------------------------------------------------------------------------------------------


def test_a_histogram_of_an_array_is_what_recording_one_by_one_gives() -> None:
    from hdrh.histogram import HdrHistogram

    values = (np.random.default_rng(7).lognormal(8, 2, 3000)).astype(np.int64) + 1
    one_by_one = HdrHistogram(1, histogram.HIGHEST_NS, histogram.DIGITS)
    for v in values.tolist():
        one_by_one.record_value(v)
    made = histogram.make(values)
    assert made.get_total_count() == 3000
    for share in (0.0, 0.5, 0.9, 0.99, 0.999, 1.0):
        assert histogram.at(made, share) == one_by_one.get_value_at_percentile(100 * share)
    twice = histogram.merged([histogram.encode(made), histogram.encode(made)])
    assert twice.get_total_count() == 6000 and histogram.at(twice, 0.5) == histogram.at(made, 0.5)
    assert max(1 - p for p, _ in histogram.curve(made)) == 1 and min(1 - p for p, _ in histogram.curve(made)) >= 1 / 3000


def cell(question: str, case: str, peer: str, **figures: float) -> dict[str, Any]:
    return {"question": question, "case": case, "peer": peer, "figures": {k: {"median": v} for k, v in figures.items()}}


def test_a_target_is_met_by_its_ratio_inside_the_run() -> None:
    case = "10 k/s, receiver sleeping"
    cells = [cell("paced", case, "shmlog", p50_us=20.0), cell("paced", case, "pyzmq ipc", p50_us=60.0)]

    def verdict(*more: dict[str, Any]) -> str:
        (found,) = [r for r in targets.table([*cells, *more]) if "sleeping receiver" in r["what"] and "cffi" not in r["what"]]
        return str(found["verdict"])

    wake = "wake a sleeper, 10 k/s"
    assert verdict() == "met"  # the goal's counterpart was not measured
    assert verdict(cell("core", wake, "bare futex (C)", p50_us=19.0)) == "goal met"
    assert verdict(cell("core", wake, "bare futex (C)", p50_us=10.0)) == "met"
    cells[1]["figures"]["p50_us"]["median"] = 40.0
    assert verdict(cell("core", wake, "bare futex (C)", p50_us=19.0)) == "missed"
    assert {r["verdict"] for r in targets.table([])} == {"not measured"}
