"""The command line: what it prints, its exit codes, and that no mistake of a user ends in a traceback."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmlog import Admin, NewTopic, Producer, _binding
from shmlog.errors import IllegalArgumentError
from shmlog.tools import cli, produce_consume
from shmlog.tools.produce_consume import Place, Reach, compile_format, parse_offset, split_records, unescape
from shmlog.types import Record

DEADLINE_S = 60.0
COMMANDS = [
    "up", "down", "status", "top", "topic create", "topic list", "topic describe", "topic alter", "topic delete", "topic trim", "topic add-partitions",
    "topic elect", "topic move", "broker list", "broker add", "broker retire",
    "produce", "consume", "verify", "dump", "doctor", "logs", "config explain", "bench", "torture", "run",
]  # fmt: skip


def commands(group: click.Group = cli.cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


def one_line(result: Any) -> str:
    """The error of a result: one line, no traceback."""
    assert result.err.count("\n") == 1 and result.err.startswith("shmlog: ") and "Traceback" not in result.err, result
    return str(result.err)


# --- help, usage, version ----------------------------------------------------------------------------------------------


def test_there_are_the_commands_of_this_version_and_no_others() -> None:
    assert sorted(name for name, _ in commands()) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ["", "topic", "config", *COMMANDS])
def test_every_help_ends_with_examples_and_knows_json_and_cluster(run: Any, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.code == 0
    head, examples = result.out.split("Examples:\n")
    assert all("shmlog" in line for line in examples.splitlines() if line), examples
    assert "--json" in head and "--cluster" in head


def test_version_names_layout_and_binding(run: Any) -> None:
    assert all(word in run("--version").out for word in ("shmlog 0.", "layout 1", f"binding {_binding.name}"))


def test_a_wrong_command_line_exits_2_with_one_line(run: Any) -> None:
    for arguments in (["nothing"], ["produce"], ["consume", "t", "-p", "x"], ["topic", "create", "t", "-c", "novalue"], ["up", "--brokers", "0"]):
        result = run(*arguments)
        assert result.code == 2 and "--help" in one_line(result), result


def test_errors_are_json_where_json_is_asked_for(run: Any) -> None:
    result = run("status", "--json", SHMLOG_CLUSTER="nothing-here", XDG_STATE_HOME="/nonexistent")
    assert result.code == 3 and result.error.keys() == {"name", "code", "message", "hint", "retriable"} and result.error["name"] == "NoBrokersAvailable"
    assert run("nothing", "--json").error["name"] == "UsageError"


def test_a_command_group_alone_shows_its_commands(run: Any) -> None:
    assert "add-partitions" in run("topic").out


def test_config_explain_tells_type_default_and_limits(run: Any) -> None:
    result = run("config", "explain", "retention.ms")
    assert result.code == 0 and "604800000" in result.out
    assert run("config", "explain", "retention.ms", "--json").json["default"] == "604800000"
    assert "did you mean retention.ms" in one_line(run("config", "explain", "retention.mz"))


# --- no cluster --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["status", "status --check", "topic list", "topic create t", "topic describe", "topic describe t", "topic alter t -c retention.ms=1",
     "topic delete t", "topic trim t -p 0 -o 1", "topic add-partitions t 1", "produce t", "consume t", "consume t --wait", "verify"],
)  # fmt: skip
def test_without_a_cluster_every_command_says_what_to_run_and_exits_3(run: Any, command: str, tmp_path: Any) -> None:
    result = run(*command.split(), input=b"x\n", SHMLOG_CLUSTER="nothing-here", XDG_STATE_HOME=str(tmp_path))
    assert result.code == 3 and "shmlog up --cluster nothing-here" in one_line(result), result


def test_a_kafka_address_is_answered_in_a_sentence(run: Any) -> None:
    for command in (["status"], ["produce", "t"], ["consume", "t"], ["topic", "list"]):
        result = run(*command, "--cluster", "localhost:9092", input=b"x\n")
        assert result.code == 1 and "Kafka broker" in one_line(result) and "shm://" in result.err


def test_groups_are_answered_with_the_version_they_come_with(run: Any) -> None:
    for arguments in (["-g", "billing"], ["-o", "stored"]):
        result = run("consume", "t", *arguments, "--json")
        assert result.code == 1 and result.error["name"] == "UnsupportedVersionError" and "groups" in result.error["message"]


# --- formats, offsets, records: pure -----------------------------------------------------------------------------------

RECORD = Record("t", 3, 42, 1_700_000_000_123_456_789, key=b"k", value=b"v\xff", headers=[("a", b"1"), ("b", None)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%t-%p@%o %k=%s\\n", b"t-3@42 k=v\xff\n"), ("%T", b"1700000000123"), ("%S %K", b"2 1"), ("%h", b"a=1,b="), ("100%%\\t\\x41", b"100%\tA"),
        ("", b""), ("\\%s", b"\\v\xff"),
    ],
)  # fmt: skip
def test_format_is_kcats(text: str, expected: bytes) -> None:
    assert compile_format(text)(RECORD) == expected


def test_format_shows_null_as_nothing_of_size_minus_1() -> None:
    assert compile_format("[%k][%s]%K %S")(Record("t", 0, 0, 0)) == b"[][]-1 -1"


def test_format_refuses_what_it_does_not_know() -> None:
    for text in ("%x", "%"):
        with pytest.raises(IllegalArgumentError, match="means nothing"):
            compile_format(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("\\n", b"\n"), ("\\t", b"\t"), ("\\0", b"\0"), ("\\x1f", b"\x1f"), ("\\\\n", b"\\n"), (":", b":"), ("\\q", b"\\q")]
)
def test_escapes(text: str, expected: bytes) -> None:
    assert unescape(text) == expected


NOW = 1_000_000_000_000


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [
        ("start", Place("start"), None), ("beginning", Place("start"), None), ("end", Place("end"), None), ("7", Place("offset", 7), None),
        ("-7", Place("before_end", 7), None), ("+7", Place("after_start", 7), None), ("@5", Place("time", 5), None),
        ("@10m", Place("time", NOW - 600_000), None), ("@1h:@30m", Place("time", NOW - 3_600_000), Place("time", NOW - 1_800_000)),
        ("3:9", Place("offset", 3), Place("offset", 9)),
        (":9", Place("start"), Place("offset", 9)),
        ("9:", Place("offset", 9), Place("end")), ("-10:end", Place("before_end", 10), Place("end")),
        ("@2026-01-02T03:04:05+00:00", Place("time", 1_767_323_045_000), None),
        ("@2026-01-02T03:04:05+00:00:@2026-01-02T03:04:06+00:00", Place("time", 1_767_323_045_000), Place("time", 1_767_323_046_000)),
    ],
)  # fmt: skip
def test_offsets_as_people_write_them(text: str, start: Place, stop: Place | None) -> None:
    assert parse_offset(text, NOW) == Reach(start, stop)


@pytest.mark.parametrize("text", ["", ":", "x", "@", "@x", "--1", "1.5", "1:2:3", "@10y", "٣"])
def test_what_is_no_offset_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(IllegalArgumentError) as caught:
        parse_offset(text)
    assert "@TIME" in caught.value.hint


@given(st.lists(st.binary(max_size=5)), st.sampled_from([b"\n", b"ab", b"aa", b"\0"]), st.lists(st.integers(1, 7), min_size=1))
def test_records_do_not_depend_on_how_their_bytes_arrive(pieces: list[bytes], delimiter: bytes, sizes: list[int]) -> None:
    text = delimiter.join(pieces)
    position = 0
    turn = iter(range(10**9))

    def read(_: int) -> bytes:
        nonlocal position
        n = sizes[next(turn) % len(sizes)]
        position += n
        return text[position - n : position]

    expected = text.split(delimiter)
    if not expected[-1]:
        expected.pop()  # nothing behind the last delimiter is no record
    assert [record for block in split_records(read, delimiter) for record in block] == expected


def test_input_without_a_delimiter_does_not_eat_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce_consume, "RECORD_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="without a delimiter"):
        list(split_records(lambda n: bytes(600), b"\n"))


# --- produce and consume -----------------------------------------------------------------------------------------------


def test_what_is_produced_is_consumed(on: Any) -> None:
    assert on("produce", "greetings", input=b"hello\nworld\n").code == 0
    assert on("consume", "greetings", "-n", "1").out == "hello\n"
    assert on("consume", "greetings", "-c", "2").out == "hello\nworld\n"
    assert on("consume", "greetings", "-e").out == "hello\nworld\n"


def test_produce_tells_what_it_wrote_as_json(on: Any) -> None:
    on("topic", "create", "t", "-p", "2")
    assert on("produce", "t", "-p", "1", "--json", input=b"a\nbb\n").json == {"topic": "t", "records": 2, "bytes": 3, "partitions": {"1": [0, 1]}}


def test_a_consumed_record_as_json_has_every_field(on: Any) -> None:
    on("produce", "t", "-K:", "-H", "h=1", "-H", "u=ü", "-Z", input=b"k:v\nkey only:\nno key\n")
    on("produce", "t", input=b"\xff\xfe\n")
    first, second, third, fourth = on("consume", "t", "-e", "--json").lines
    assert first.keys() == {"topic", "partition", "offset", "timestamp_ms", "timestamp_ns", "key", "value", "headers"}
    assert (first["key"], first["value"], first["headers"], first["offset"]) == ("k", "v", [["h", "1"], ["u", "ü"]], 0)
    assert first["timestamp_ns"] // 1_000_000 == first["timestamp_ms"]
    assert (second["key"], second["value"]) == ("key only", None)
    assert (third["key"], third["value"]) == (None, "no key")
    assert "value" not in fourth and base64.b64decode(fourth["value_base64"]) == b"\xff\xfe"


def test_delimiters_keys_formats_and_raw(on: Any) -> None:
    on("produce", "t", "-D", "\\0", "-K", "\\t", input=b"a\t1\0b\t2\0")
    assert on("consume", "t", "-e", "-K", "=", "-D", ";").out == "a=1;b=2;"
    assert on("consume", "t", "-e", "-f", "%t %p %o %k %s\\n").out == "t 0 0 a 1\nt 0 1 b 2\n"
    assert on("consume", "t", "-e", "--raw").out == "12"


def test_a_file_is_read_with_l(on: Any, tmp_path: Any) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a\n\nb")
    assert on("produce", "t", "-l", str(path)).code == 0
    assert on("consume", "t", "-e").out == "a\n\nb\n"
    assert "No such file" in one_line(on("produce", "t", "-l", str(tmp_path / "nothing")))


@pytest.mark.parametrize("acks", ["0", "1", "all", "disk"])
def test_every_acks_is_offered(on: Any, acks: str) -> None:
    assert on("produce", "t", "--acks", acks, input=b"x\n").code == 0
    assert on("consume", "t", "-e").out == "x\n"


@pytest.mark.parametrize(
    ("offset", "expected"),
    [("start", "01234"), ("end", ""), ("2", "234"), ("-2", "34"), ("+1", "1234"), ("1:3", "12"), (":2", "01"), ("-2:end", "34"),
     ("@0", "01234"), ("-99", "01234"), ("5", "")],
)  # fmt: skip
def test_offsets_say_where_to_read(on: Any, offset: str, expected: str) -> None:
    on("produce", "t", input=b"0\n1\n2\n3\n4\n")
    assert on("consume", "t", "-e", "--raw", "-o", offset).out == expected


def test_times_say_where_to_read(on: Any, shmlog_cluster: Any) -> None:
    with Producer(shmlog_cluster.address) as producer:
        for second in range(5):
            producer.send("t", b"%d" % second, timestamp_ms=1_000_000 + second * 1000)
    assert on("consume", "t", "-e", "--raw", "-o", "@1002000").out == "234"
    assert on("consume", "t", "--raw", "-o", "@1001000:@1003000").out == "12"


def test_a_range_ends_by_itself_and_crosses_all_partitions(on: Any) -> None:
    on("topic", "create", "t", "-p", "3")
    for partition in "012":
        on("produce", "t", "-p", partition, input=b"a\nb\nc\n")
    assert on("consume", "t", "-o", "1:2", "-f", "%p%s").out.count("b") == 3
    assert sorted(on("consume", "t", "-o", "1:2", "-f", "%p%s ").out.split()) == ["0b", "1b", "2b"]
    assert on("consume", "t", "-p", "2", "-e", "-f", "%p%s ").out == "2a 2b 2c "


def test_many_lines_come_back_in_order_and_whole(on: Any) -> None:
    text = b"".join(b"line %d of many\n" % n for n in range(50_000))
    assert on("produce", "t", input=text).code == 0
    assert on("consume", "t", "-e").raw == text


def test_consume_with_a_timeout_exits_4_after_printing_what_came(on: Any) -> None:
    on("produce", "t", input=b"x\n")
    result = on("consume", "t", "-n", "2", "--timeout", "0.1")
    assert result.code == 4 and result.out == "x\n" and "1 of 2 records" in one_line(result)


def test_consume_waits_for_a_topic_when_asked(on: Any) -> None:
    assert on("consume", "later", "--wait", "--timeout", "0.1").code == 4


@contextlib.contextmanager
def running(command: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Popen's own exit waits for ever; a test that fails must not hang."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, **more) as process:
        try:
            yield process
        finally:
            process.kill()  # nothing, where it has ended


def start(shmlog_cluster: Any, *arguments: str, **more: Any) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "shmlog", *arguments, "--cluster", shmlog_cluster.address]
    return running(command, stderr=subprocess.PIPE, **more)


def test_ctrl_c_exits_130_in_silence(on: Any, shmlog_cluster: Any) -> None:
    on("produce", "t", input=b"x\n")
    with start(shmlog_cluster, "consume", "t") as process:
        assert process.stdout and process.stdout.readline() == b"x\n"  # flushed while it waits for more
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (130, b"")


def test_a_closed_pipe_is_silent(on: Any, shmlog_cluster: Any) -> None:
    on("produce", "t", input=b"".join(b"line %d\n" % n for n in range(200_000)))
    with start(shmlog_cluster, "consume", "t") as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == b""


def test_records_appear_while_produce_waits_for_more_input(on: Any, shmlog_cluster: Any) -> None:
    with start(shmlog_cluster, "produce", "t", stdin=subprocess.PIPE) as process:
        assert process.stdin
        process.stdin.write(b"first\n")
        process.stdin.flush()
        got = on("consume", "t", "--wait", "-n", "1", "--timeout", str(DEADLINE_S))
        assert got.code == 0, got
        assert got.out == "first\n"
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0


# --- topics ------------------------------------------------------------------------------------------------------------


def test_a_topics_life(on: Any) -> None:
    assert on("topic", "create", "t", "-p", "2", "-c", "retention.ms=5000").out == "created t: 2 partitions\n"
    assert on("topic", "list").out == "t\n"
    assert on("topic", "list", "--json").json == {"topics": ["t"]}
    described = on("topic", "describe", "t", "--json").json["topics"][0]
    assert described["config"] == {"retention.ms": "5000"} and len(described["partitions"]) == 2
    assert "retention.ms=5000" in on("topic", "describe").out
    assert on("topic", "alter", "t", "-c", "retention.ms=", "-c", "flush.ms=10").code == 0
    assert on("topic", "describe", "t", "--json").json["topics"][0]["config"] == {"flush.ms": "10"}
    assert on("topic", "add-partitions", "t", "2").out == "t has 4 partitions\n"
    on("produce", "t", "-p", "3", input=b"a\nb\nc\n")
    assert on("topic", "trim", "t", "-p", "3", "-o", "2").out == "t-3 now starts at offset 2\n"
    assert on("consume", "t", "-e").out == "c\n"
    assert on("topic", "trim", "t", "-p", "3", "-o", "end", "--json").json["log_start_offset"] == 3
    assert on("topic", "delete", "t").code == 0
    assert on("topic", "list").out == ""


def test_status_shows_a_topic_of_the_namespace(on: Any) -> None:
    on("produce", "t", input=b"a\nb\n")
    topic = on("status", "--topic", "t", "--json").json["topics"][0]
    assert topic["name"] == "t" and topic["partitions"][0]["log_end_offset"] == 2
    assert "broker 0" in on("status").out
    assert on("verify").code == 0


# --- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES = {
    "an unknown topic": ("consume nothing -e", 1, "no topic 'nothing'"),
    "an unknown topic to describe": ("topic describe nothing", 1, "no topic 'nothing'"),
    "an unknown topic to delete": ("topic delete nothing", 1, "nothing"),
    "an unknown topic to alter": ("topic alter nothing -c retention.ms=1", 1, "nothing"),
    "an unknown topic in status": ("status --topic nothing", 1, "no topic 'nothing'"),
    "a topic that exists": ("topic create there", 1, "there"),
    "a bad topic name": ("produce a/b", 1, "not a topic name"),
    "a bad topic name to create": ("topic create a:b", 1, "not a topic name"),
    "a bad topic name to consume": ("consume ../etc", 1, "not a topic name"),
    "an unknown config": ("topic create u -c retention.sm=1", 1, "did you mean"),
    "a bad config value": ("topic create u -c retention.ms=soon", 1, "not an integer"),
    "a config that forbids itself": ("topic create u -c min.compaction.lag.ms=10 -c max.compaction.lag.ms=9", 1, "is larger than"),
    "a bad value to alter": ("topic alter there -c segment.bytes=1", 1, "allowed is"),
    "a partition out of range to produce to": ("produce there -p 7", 1, "7"),
    "a partition out of range to read": ("consume there -p 7 -e", 1, "no partition 7"),
    "a partition out of range to trim": ("topic trim there -p 7 -o 0", 1, "no partition 7"),
    "an offset beyond the end": ("consume there -o 99 -e", 1, "holds 0 to 1"),
    "an offset beyond the end to trim": ("topic trim there -p 0 -o 99", 1, "99"),
    "an offset that is none": ("consume there -o soon", 1, "not an offset"),
    "an offset to trim that is none": ("topic trim there -p 0 -o x", 2, "not an offset"),
    "a format that is none": ("consume there -f %y", 1, "means nothing"),
    "a codec that is not there": ("produce there -z lzma", 1, "lzma"),
    "an empty delimiter": ("produce there -D ", 1, "delimiter is empty"),
    "a header that is none": ("produce there -H novalue", 2, "not key=value"),
    "a replication factor beyond the brokers": ("topic create u -r 9", 1, "9"),
    "a directory for a broker that cannot be made": ("broker add --data /proc/nothing", 1, "/proc/nothing"),
    "a move to nowhere": ("topic move there", 2, "either --to IDS or --cancel"),
    "a move to what is no broker": ("topic move there --to 0,x", 2, "not a list of broker ids"),
    "a move to a broker that is not there": ("topic move there --to 9", 1, "no broker 9, only [0]"),
    "a move of a partition that is not there": ("topic move there -p 7 --to 0", 1, "there-7"),
    "a move to take back that is none": ("topic move there --cancel", 1, "is being moved"),
    "a broker to retire that is not there": ("broker retire 7", 1, "no broker 7, only [0]"),
    "the only broker to retire": ("broker retire 0", 1, "no other broker is up"),
    "too many partitions": ("topic create u -p 99999", 1, "99999"),
    "a role that is none": ("logs nobody", 1, "no log of 'nobody'"),
    "a process that cannot be run": ("run broker", 1, "run coordinator"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_what_to_do(on: Any, name: str) -> None:
    arguments, code, words = MISTAKES[name]
    on("produce", "there", input=b"x\n")
    result = on(*arguments.split(" "), input=b"value\n")
    assert result.code == code and words in one_line(result), result


def test_a_record_that_is_too_large_is_told_with_its_size_and_what_is_written(on: Any) -> None:
    on("topic", "create", "t", "-c", "max.message.bytes=1000")
    result = on("produce", "t", "--json", input=b"small\n" + b"x" * 2000 + b"\n")
    assert result.code == 1 and result.error["name"] == "MessageSizeTooLargeError", result
    assert "1,000" in result.error["message"] or "1000" in result.error["message"]
    assert "records before it are written" in result.error["message"]


# --- a cluster's life, in processes of its own -------------------------------------------------------------------------


def test_the_tour(private: Any) -> None:
    began = private("up")
    assert began.code == 0, began
    for word in (private.name, "coordinator", "standby", "broker 0", private.state, "shmlog down"):
        assert word in began.out
    assert "nothing to do" in private("up").out
    assert private("produce", "greetings", input=b"hello\n").code == 0
    assert private("consume", "greetings", "-n", "1").out == "hello\n"
    status = private("status", "--json").json
    assert [p["state"] for p in status["processes"] if p["role"] in ("coordinator", "standby", "broker")].count("active") == 1
    assert private("status").code == 0 and private("status", "--check").code == 0
    assert private("verify").code == 0
    log = [os.path.join(d, n) for d, _, names in os.walk(private.state) for n in names if n.endswith(".log") and n.startswith("0000")]
    assert "broker" in private("logs", "broker-0", "-n", "0").out or private("logs", "broker-0").code == 0
    assert private("down").code == 0
    assert "was down already" in private("down").out
    assert private("status").code == 3
    assert private("verify").code == 0  # of what lies on disk
    for path in log:
        assert private("dump", path).code == 0
    assert private("up").code == 0
    assert private("consume", "greetings", "-e").out == "hello\n"
    assert private("down", "--wipe").code == 0
    assert not os.path.exists(os.path.join(private.state, "cluster.sqlite3"))


def test_up_with_other_options_than_it_runs_with_exits_1_with_the_difference(private: Any) -> None:
    private("up", "--data", "none", "-c", "num.partitions=3")
    assert private("up", "-c", "num.partitions=3").code == 0
    for arguments, words in ((["--brokers", "2"], "1 broker, not 2"), (["-c", "num.partitions=4"], "num.partitions=3, not 4")):
        result = private("up", *arguments)
        assert result.code == 1 and words in one_line(result)
    result = private("produce", "t", "--acks", "disk", "--json", input=b"x\n")
    assert result.code == 1 and result.error["name"] == "InvalidConfigurationError"  # --data none
    assert private("down").code == 0


def test_up_refuses_what_it_cannot_do(private: Any, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (["--data", str(tmp_path / "file")], str(tmp_path / "file")),
        (["--data", "/proc/nowhere"], "/proc/nowhere"),
        (["-c", "num.partitions=none"], "not an integer"),
        (["-c", "retention.ms=1"], "is a topic config"),
    ):
        result = private("up", *arguments)
        assert result.code == 1 and words in one_line(result), result
    result = private("up", "--data", "none", "--data", str(tmp_path))
    assert result.code == 2 and "stands alone" in one_line(result)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_up_in_a_directory_that_cannot_be_written_says_which(private: Any, tmp_path: Any) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    result = private("up", "--data", str(tmp_path / "closed" / "data"))
    assert result.code == 1 and "Permission denied" in one_line(result)


def test_status_and_verify_work_when_every_process_was_killed(private: Any) -> None:
    private("up")
    private("produce", "t", input=b"a\nb\nc\n")
    processes = private("status", "--json").json["processes"]
    # The spare and the coordinators first: they would start the others again.
    for p in sorted(processes, key=lambda p: p["role"] == "broker"):
        os.kill(p["pid"], signal.SIGKILL)
    deadline = time.monotonic() + DEADLINE_S
    while (seen := private("status", "--json").json)["running"] or any(p["state"] == "up" for p in seen["processes"]):
        for p in seen["processes"]:
            if p["state"] in ("up", "active"):
                os.kill(p["pid"], signal.SIGKILL)
        assert time.monotonic() < deadline
    assert seen["topics"][0]["partitions"][0]["log_end_offset"] == 3
    assert private("status", "--check").code == 1
    assert private("verify").code == 0
    assert "shmlog up" in private("status").out
    assert private("up").code == 0
    assert private("consume", "t", "-e").out == "a\nb\nc\n"
    assert private("down", "--wipe").code == 0


def test_up_in_the_foreground_ends_with_sigterm_and_leaves_nothing(private: Any, tmp_path: Any) -> None:
    environment = {**os.environ, "SHMLOG_CLUSTER": private.name, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "shmlog", "up", "--foreground", "--json"]
    with running(command, env=environment) as process:
        assert process.stdout and json.loads(process.stdout.readline())["started"] is True
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0


def test_a_cluster_that_goes_down_ends_its_consumers_with_3(private: Any, tmp_path: Any) -> None:
    private("up")
    private("produce", "t", input=b"x\n")
    environment = {**os.environ, "SHMLOG_CLUSTER": private.name, "XDG_STATE_HOME": str(tmp_path)}
    with running([sys.executable, "-m", "shmlog", "consume", "t"], stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"x\n"
        assert private("down").code == 0
        assert process.wait(DEADLINE_S) == 3
        assert process.stderr.read().count(b"\n") == 1


def test_logs_follow_what_is_written(private: Any, tmp_path: Any) -> None:
    private("up")
    result = private("logs", "--json")
    assert {line["log"] for line in result.lines} >= {"coordinator", "spare"}
    path = os.path.join(private.state, "logs", "coordinator.log")
    environment = {**os.environ, "SHMLOG_CLUSTER": private.name, "XDG_STATE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "shmlog", "logs", "-f", "coordinator", "-n", "1"]
    with running(command, env=environment) as process:
        assert process.stdout and process.stdout.readline()
        with open(path, "a") as log:
            log.write("a new line\n")
        while process.stdout.readline() != b"a new line\n":
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 130
    private("down", "--wipe")


def test_status_is_quick(private: Any) -> None:
    private("up")
    best = min(_seconds(private, "status") for _ in range(5))
    private("down", "--wipe")
    assert best < 0.2 * 20  # own weight: 200 ms on an idle machine


def _seconds(private: Any, *arguments: str) -> float:
    began = time.perf_counter()
    assert private(*arguments).code == 0
    return time.perf_counter() - began


def test_status_imports_neither_numpy_nor_zmq() -> None:
    code = (
        "import sys; from shmlog.tools import cli, status; print([m for m in ('numpy', 'zmq', 'rich', 'shmlog.client.producer') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_namespaces_are_apart(on: Any, shmlog_cluster: Any, run: Any) -> None:
    on("produce", "t", input=b"x\n")
    other = shmlog_cluster.namespace("elsewhere")
    assert run("topic", "list", "--cluster", other).out == ""
    with Admin(other) as admin:
        admin.create_topics([NewTopic("t")])
        assert run("consume", "t", "-e", "--cluster", other).out == ""
        admin.delete_topics(["t"])
