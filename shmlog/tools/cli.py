"""The command `shmlog`. Commands parse, call one function of this package or of the public client, and print; what they do stands there.

Here stands what all commands share: --cluster and --json at any place, examples under every --help, and errors. An error that a user can cause is one
line on stderr (what, numbers, what to do) and an exit code, never a traceback; a bug is a traceback. Modules are imported where a command needs them:
`shmlog status` must not pay for what `shmlog produce` uses.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from shmlog import config, errors

if TYPE_CHECKING:
    from shmlog.client.admin import Admin

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_NOT_RUNNING, EXIT_TIMEOUT, EXIT_DAMAGED, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


def exit_code(exc: BaseException) -> int:
    if isinstance(exc, errors.NoBrokersAvailable | errors.ClosedError):  # closed: the cluster was shut down under a running command
        return EXIT_NOT_RUNNING
    if isinstance(exc, errors.KafkaTimeoutError):
        return EXIT_TIMEOUT
    if isinstance(exc, errors.CorruptRecordError):
        return EXIT_DAMAGED
    return EXIT_ERROR


# --- what all commands share -------------------------------------------------------------------------------------------


class Settings:
    """The two options that may stand anywhere."""

    def __init__(self) -> None:
        self.cluster: str | None = None
        self.json = False

    @property
    def address(self) -> config.Address:
        """--cluster NAME, NAME/NAMESPACE or shm://..., else $SHMLOG_CLUSTER. A Kafka address is answered in a sentence of its own."""
        if self.cluster is None:
            return config.Address(config.default_cluster())
        return config.parse_address(self.cluster if ":" in self.cluster else f"shm://{self.cluster}")

    @property
    def name(self) -> str:
        """The cluster alone, for commands that have nothing to do with a namespace."""
        return self.address.cluster


def settings() -> Settings:
    return click.get_current_context().find_root().ensure_object(Settings)


def _keep_cluster(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.find_root().ensure_object(Settings).cluster = value


def _keep_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().ensure_object(Settings).json = True


def _shared_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--cluster"],
            metavar="NAME",
            expose_value=False,
            callback=_keep_cluster,
            is_eager=True,
            help="Which cluster; default $SHMLOG_CLUSTER, else 'default'.",
        ),
        click.Option(["--json"], is_flag=True, expose_value=False, callback=_keep_json, is_eager=True, help="Output, and errors, as JSON."),
    ]


class _WithExamples(click.Command):
    """Adds the shared options, and examples at the end of --help."""

    examples: tuple[str, ...] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as exc:
            exc.ctx = exc.ctx or ctx  # click's parser does not say whose option it was, and the hint names the command
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Command(_WithExamples, click.Command):
    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params += _shared_options()


class Group(_WithExamples, click.Group):
    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.params += _shared_options()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order a person meets them, which is that of this file


Group.group_class = Group


class Root(Group):
    """The whole command line: makes exit codes and one-line errors of what the commands raise."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> NoReturn:
        if "_SHMLOG_COMPLETE" in os.environ:  # the shell asks for completions
            super().main(args, prog_name or "shmlog", *rest, **extra)
        args = list(sys.argv[1:] if args is None else args)
        try:
            code = self._run(args, prog_name or "shmlog")
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough; that is no error, and Python shall not complain at its exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = EXIT_OK
        sys.exit(code)

    def _run(self, args: list[str], prog_name: str) -> int:
        as_json = "--json" in args
        try:
            with self.make_context(prog_name, args) as ctx:
                self.invoke(ctx)
            return EXIT_OK
        except click.exceptions.Exit as exc:
            return exc.exit_code
        except click.UsageError as exc:
            if type(exc).__name__ == "NoArgsIsHelpError":  # a group alone: its help (click before 8.2 prints it by itself)
                print(exc.format_message())
                return EXIT_USAGE
            path = exc.ctx.command_path if exc.ctx else prog_name
            error = {
                "name": "UsageError",
                "code": 42,
                "message": exc.format_message().rstrip("."),
                "hint": f"`{path} --help` shows how",
                "retriable": False,
            }
            _print_error(error, as_json)
            return EXIT_USAGE
        except (click.Abort, KeyboardInterrupt):
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            raise
        except errors.ShmlogError as exc:
            _print_error(errors.to_json(exc)["error"], as_json)
            return exit_code(exc)
        except OSError as exc:  # a file that the user named
            what = f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror or exc)
            _print_error({**errors.to_json(exc)["error"], "message": what}, as_json)
            return EXIT_ERROR


def _print_error(error: dict[str, Any], as_json: bool) -> None:
    sys.stdout.flush()  # what came before the error is shown before it
    if as_json:
        import json

        print(json.dumps({"error": error}), file=sys.stderr)
        return
    message, hint = " ".join(error["message"].split()), " ".join(error["hint"].split())
    command = hint.split("`")[1] if hint.count("`") >= 2 else hint
    between = " " if message.endswith("?") else "; "
    print(f"shmlog: {message}" + (f"{between}{hint}" if hint and command not in message else ""), file=sys.stderr)


def show(data: Any) -> None:
    """An object of --json."""
    import msgspec

    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.json.encode(data) + b"\n")
    sys.stdout.buffer.flush()


def _mark(**style: Any) -> Callable[[str], str]:
    return (lambda text: click.style(text, **style)) if sys.stdout.isatty() and "NO_COLOR" not in os.environ else str


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def pairs(given: Sequence[str], option: str = "-c") -> dict[str, str]:
    """key=value options."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{option} {text}: not key=value")
        found[key] = value
    return found


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from shmlog import __version__, _binding
    from shmlog._ffi import lib

    if settings().json or "--json" in sys.argv:
        show({"version": __version__, "layout_version": lib.SL_LAYOUT_VERSION, "disk_version": lib.SL_DISK_VERSION, "binding": _binding.name})
    else:
        versions = f"layout {lib.SL_LAYOUT_VERSION}, disk {lib.SL_DISK_VERSION}"
        print(f"shmlog {__version__} ({versions}, binding {_binding.name}, Python {sys.version.split()[0]})")
    ctx.exit()


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    examples=("shmlog up", "echo hello | shmlog produce greetings", "shmlog consume greetings -n 1", "shmlog status", "shmlog down"),
)
@click.option("--version", is_flag=True, expose_value=False, callback=_show_version, help="Version, layout and binding.")
def cli() -> None:
    """Kafka's model in shared memory on one machine.

    Exit codes: 0 ok, 1 error, 2 usage, 3 cluster not running, 4 timeout, 5 damage found, 130 Ctrl-C.
    """


def main() -> None:
    cli()


# --- the cluster -------------------------------------------------------------------------------------------------------


@cli.command(
    short_help="Start the cluster and return when it is ready.",
    examples=(
        "shmlog up                                 # data below ~/.local/state/shmlog/default",
        "shmlog up --brokers 3 --data /srv/shmlog",
        "shmlog up --data none                     # memory only: survives kill -9, not a reboot",
        "shmlog up -c memory.max.bytes=1073741824",
    ),
)
@click.option("--brokers", type=click.IntRange(1, 60), metavar="N", help="How many brokers; default 1, or as many as before.")
@click.option("--data", "data_dirs", multiple=True, metavar="DIR", help="Where the logs lie; several spread the brokers. 'none' keeps nothing on disk.")
@click.option("-c", "configs", multiple=True, metavar="KEY=VALUE", help="A cluster config; `shmlog config explain KEY`.")
@click.option("--foreground", is_flag=True, help="Stay until Ctrl-C or SIGTERM, then shut down.")
def up(brokers: int | None, data_dirs: tuple[str, ...], configs: tuple[str, ...], foreground: bool) -> None:
    """Start the cluster: coordinator, standby and brokers in the background. Returns when it is ready; again, it does nothing and says so."""
    from shmlog.tools import cluster

    directories = None if not data_dirs else () if data_dirs == ("none",) else data_dirs
    if directories and "none" in directories:
        raise click.UsageError("--data none stands alone")
    name = settings().name

    def begin() -> None:
        started = cluster.up(name, brokers, directories, pairs(configs))
        if settings().json:
            show(started)
            return
        for line in cluster.up_lines(started, bold=_mark(bold=True)):
            print(line)
        sys.stdout.flush()

    if foreground:
        cluster.stay(name, begin)
    else:
        begin()


@cli.command(
    short_help="Write everything to disk and end the cluster.",
    examples=(
        "shmlog down",
        "shmlog down --wipe        # and remove the data",
        "shmlog down --force       # even if the disk refuses the last records",
    ),
)
@click.option("--wipe", is_flag=True, help="Remove the data too.")
@click.option("--force", is_flag=True, help="Give up records that cannot be written to disk.")
@click.option(
    "--data",
    "data_dirs",
    multiple=True,
    metavar="DIR",
    help="With --wipe: where the data of a cluster lies that is down already, unless at its default place.",
)
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, metavar="S", help="How long writing the rest may take.")
def down(wipe: bool, force: bool, data_dirs: tuple[str, ...], timeout: float) -> None:
    """Shut the cluster down: everything is written and synced first, then nothing of it is left in /dev/shm. Fine when it is down already."""
    from shmlog.tools import cluster

    result = cluster.down(settings().name, wipe=wipe, force=force, timeout=timeout, data_dirs=data_dirs)
    if settings().json:
        show(result)
    else:
        print(cluster.down_line(result))


@cli.command(
    short_help="Processes, topics, partitions, memory and disk.",
    examples=(
        "shmlog status",
        "shmlog status --topic orders --json",
        "shmlog status --check       # exit code 0 when all is well, 1 and the reasons when not",
    ),
)
@click.option("--check", is_flag=True, help="Health check: exit 0, or 1 with the reasons.")
@click.option("--topic", metavar="T", help="Only this topic.")
def status(check: bool, topic: str | None) -> None:
    """Processes, topics, partitions, memory and disk, from shared memory and files alone; works when every process is dead."""
    from shmlog.tools import status as module

    seen = module.collect(settings().address, topic)
    wrong = module.problems(seen) if check else []
    if settings().json:
        show({**seen, "healthy": not wrong, "problems": wrong} if check else seen)
    elif check:
        print("\n".join(wrong) if wrong else f"{seen['cluster']}: all is well")
    else:
        for line in module.lines(seen, bold=_mark(bold=True), red=_mark(fg="red"), dim=_mark(dim=True)):
            print(line)
    if wrong:
        sys.stdout.flush()
        click.get_current_context().exit(EXIT_ERROR)
    if not check and seen["state"] == "down" and not seen["processes"]:
        raise module.no_cluster(seen["cluster"])


@cli.command(
    short_help="Rates, lag, latency and memory, live.",
    examples=("shmlog top", "shmlog top --interval 0.2", "shmlog top --json -n 1 | jq .latency_p99_us"),
)
@click.option("--interval", type=click.FloatRange(min=0.05), default=1.0, show_default=True, metavar="S", help="Between two looks.")
@click.option("-n", "count", type=click.IntRange(min=1), metavar="COUNT", help="End after so many intervals.")
def top(interval: float, count: int | None) -> None:
    """Rates, lag of readers, append-to-read latency, memory and CPU, live, from shared memory alone: nobody is asked, no probe runs. q leaves.

    Latency is measured by the readers themselves, sampled: from a record's timestamp to its being read, of what is read from memory.
    """
    from shmlog.tools import top as module

    if settings().json:
        for seen in module.run(settings().address, interval, count):
            show(seen)
    else:
        module.show(settings().address, interval, count)


# --- topics ------------------------------------------------------------------------------------------------------------


def _admin() -> Admin:
    from shmlog.client.admin import Admin

    return Admin(str(settings().address))


def _say(sentence: str, **fields: Any) -> None:
    if settings().json:
        show(fields)
    else:
        print(sentence)


@cli.group(examples=("shmlog topic create orders -p 4", "shmlog topic list", "shmlog topic describe orders", "shmlog topic delete orders"))
def topic() -> None:
    """Make, look at, change and delete topics."""


@topic.command(
    examples=(
        "shmlog topic create orders -p 4",
        "shmlog topic create ticks -c shmlog.spill=false -c shmlog.full=drop_oldest",
        "shmlog topic create audit -c retention.ms=-1 -c flush.messages=1",
    )
)
@click.argument("name")
@click.option("-p", "--partitions", type=click.IntRange(min=1), metavar="N", help="Default: num.partitions of the cluster, 1.")
@click.option("-r", "--replication-factor", type=click.IntRange(min=1), metavar="RF", help="Default: default.replication.factor of the cluster, 1.")
@click.option("-c", "configs", multiple=True, metavar="KEY=VALUE", help="A topic config; `shmlog config explain KEY`.")
def create(name: str, partitions: int | None, replication_factor: int | None, configs: tuple[str, ...]) -> None:
    """Make a topic."""
    from shmlog.types import NewTopic

    wanted = NewTopic(name, partitions or -1, replication_factor or -1, config=pairs(configs))
    config.topic_config(wanted.config)  # a mistyped key is found before anything is asked
    with _admin() as admin:
        made = admin.create_topics([wanted])["topics"][0]
    count = made["num_partitions"]
    _say(f"created {name}: {_count(count, 'partition')}", topic=name, partitions=count, topic_id=made.get("topic_id"))


@topic.command("list", examples=("shmlog topic list", "shmlog topic list --json | jq -r .topics[]"))
def list_topics() -> None:
    """Names of all topics, one a line."""
    with _admin() as admin:
        names = admin.list_topics()
    if settings().json:
        show({"topics": names})
    elif names:
        print("\n".join(names))


@topic.command(
    short_help="Partitions, offsets, configs and places of topics.",
    examples=("shmlog topic describe orders", "shmlog topic describe --json"),
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
def describe(names: tuple[str, ...]) -> None:
    """Partitions, offsets, configs and places of topics; all of them unless named."""
    from shmlog.tools import status as module

    address = settings().address
    with module.Attached(address.cluster):  # a description of what lies on disk would not be of a running cluster
        seen = [t for name in names or [None] for t in module.collect(address, name)["topics"]]
    if settings().json:
        show({"topics": seen})
        return
    bold = _mark(bold=True)
    for n, t in enumerate(seen):
        if n:
            print()
        for line in module.topic_lines(t, bold=bold):
            print(line)


@topic.command(
    examples=("shmlog topic alter orders -c retention.ms=86400000", "shmlog topic alter orders -c retention.ms=        # back to the default")
)
@click.argument("name")
@click.option("-c", "configs", multiple=True, required=True, metavar="KEY=VALUE", help="What to set; an empty value gives the key back to its default.")
def alter(name: str, configs: tuple[str, ...]) -> None:
    """Change configs of a topic; keys that are not named stay."""
    changes = {key: value or None for key, value in pairs(configs).items()}
    config.topic_config({key: value for key, value in changes.items() if value is not None})
    with _admin() as admin:
        admin.alter_topic_configs({name: changes})
    _say(
        f"altered {name}: " + ", ".join(f"{k}={v}" if v is not None else f"{k} back to its default" for k, v in changes.items()),
        topic=name,
        config=changes,
    )


@topic.command(examples=("shmlog topic delete orders", "shmlog topic delete a b c"))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete(names: tuple[str, ...]) -> None:
    """Delete topics with all their records."""
    with _admin() as admin:
        admin.delete_topics(list(names))
    _say(f"deleted {', '.join(names)}", topics=list(names))


@topic.command(examples=("shmlog topic trim orders -p 0 -o 1000     # offsets below 1000 go", "shmlog topic trim orders -p 0 -o end"))
@click.argument("name")
@click.option("-p", "--partition", type=click.IntRange(min=0), required=True, metavar="P")
@click.option("-o", "--offset", required=True, metavar="OFFSET", help="The first offset that stays; 'end' removes all.")
def trim(name: str, partition: int, offset: str) -> None:
    """Delete the oldest records of a partition."""
    from shmlog.types import TopicPartition

    if offset != "end" and not (offset.isascii() and offset.isdigit()):
        raise click.UsageError(f"-o {offset}: not an offset; a number, or 'end'")
    tp = TopicPartition(name, partition)
    with _admin() as admin:
        start = admin.delete_records({tp: -1 if offset == "end" else int(offset)})[tp]["low_watermark"]
    _say(f"{name}-{partition} now starts at offset {start}", topic=name, partition=partition, log_start_offset=start)


@topic.command("add-partitions", examples=("shmlog topic add-partitions orders 2        # two more than it has",))
@click.argument("name")
@click.argument("count", type=click.IntRange(min=1), metavar="N")
def add_partitions(name: str, count: int) -> None:
    """Give a topic N more partitions. Keys then go to other partitions than before."""
    from shmlog.types import NewPartitions

    with _admin() as admin:
        total = len(admin.describe_topics([name])[0]["partitions"]) + count
        admin.create_partitions({name: NewPartitions(total)})
    _say(f"{name} has {total} partitions", topic=name, partitions=total)


@topic.command(examples=("shmlog topic elect             # all partitions", "shmlog topic elect orders -p 0", "shmlog topic elect orders --unclean"))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-p", "--partition", type=click.IntRange(min=0), metavar="P", help="Only this partition.")
@click.option("--unclean", is_flag=True, help="Where no in-sync replica lives, let any lead; what only the others had is lost.")
def elect(names: tuple[str, ...], partition: int | None, unclean: bool) -> None:
    """Give partitions back to their first replica. It must be in sync."""
    if partition is not None and not names:
        raise click.UsageError("-p needs the name of a topic")
    with _admin() as admin:
        known = {t["name"]: t["partitions"] for t in admin.describe_topics(list(names) or None)}
        wanted = {name: [partition] if partition is not None else [p["partition"] for p in found] for name, found in known.items()}
        outcome = admin.elect_leaders("unclean" if unclean else "preferred", wanted, raise_errors=False)
        after = {(t["name"], p["partition"]): p["leader"] for t in admin.describe_topics(list(names) or None) for p in t["partitions"]}
    elected = [{"topic": tp.topic, "partition": tp.partition, "leader": after[tp]} for tp, o in outcome.items() if not o["error_code"]]
    fine = (0, errors.ElectionNotNeededError.code)
    failed = [f"{tp.topic}-{tp.partition}: {o['error_message']}" for tp, o in outcome.items() if o["error_code"] not in fine]
    if settings().json:
        show({"elected": elected, "failed": failed})
    else:
        for e in elected:
            print(f"{e['topic']}-{e['partition']} is led by broker {e['leader']} now")
        for line in failed:
            print(line)
        if not elected and not failed:
            print("nothing to elect: every partition is led by the replica that should")
    if failed:
        raise click.exceptions.Exit(1)


def _broker_ids(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of broker ids, such as 0,1,2")
    return [int(part) for part in parts]


@topic.command(
    short_help="Give partitions other replicas while records come.",
    examples=(
        "shmlog topic move orders --to 1,2,3         # all partitions; the first id is who should lead",
        "shmlog topic move orders -p 0 --to 2",
        "shmlog topic move orders --cancel           # back to the replicas that they had",
        "shmlog topic move orders --to 1,2 --no-wait",
    ),
)
@click.argument("name")
@click.option("-p", "--partition", "partitions", type=click.IntRange(min=0), multiple=True, metavar="P", help="Only this one; may be repeated.")
@click.option("--to", metavar="IDS", callback=_broker_ids, help="The brokers that shall have a replica; more or fewer change the replication factor.")
@click.option("--cancel", is_flag=True, help="Take back the moves that are under way.")
@click.option("--no-wait", is_flag=True, help="Return when the moves are begun; they go on by themselves.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="Wait no longer; the moves go on.")
def move(name: str, partitions: tuple[int, ...], to: list[int] | None, cancel: bool, no_wait: bool, timeout: float | None) -> None:
    """Give partitions other replicas while records come: the new ones copy and come in sync, one of them leads if the leader leaves, the old ones go.

    It is durable and goes on without this command; Ctrl-C only leaves.
    """
    from shmlog.tools import moves as module
    from shmlog.types import TopicPartition

    if (to is None) == (not cancel):
        raise click.UsageError("either --to IDS or --cancel")
    address = settings().address
    with _admin() as admin:
        known = {p["partition"]: p for p in admin.describe_topics([name])[0]["partitions"]}
        under_way = {tp.partition for tp in admin.list_partition_reassignments() if tp.topic == name}
        chosen = list(dict.fromkeys(partitions)) or [n for n in known if not cancel or n in under_way]
        if not chosen:
            raise errors.NoReassignmentInProgressError(f"no partition of {name} is being moved", topic=name)
        admin.reassign_partitions({TopicPartition(name, n): to for n in chosen})
    wanted = [(name, n) for n in chosen]
    shown = module.Shown(f"moving {name}", show if settings().json else None)
    if no_wait:
        _say(f"{_count(len(chosen), 'partition')} of {name} on the way; `shmlog topic describe {name}` shows how far", topic=name, partitions=chosen)
        return
    result = module.wait_moved(address.cluster, address.namespace, wanted, timeout, shown)
    if len(result) < len(wanted):
        raise errors.UnknownTopicOrPartitionError(f"{name} was deleted while it moved", topic=name)
    for moved in result:
        if settings().json:
            show(moved.to_json())
        else:
            print(moved)
        if to is not None and set(moved.view.replicas) != set(to):  # by another command, meanwhile
            raise errors.IllegalStateError(
                f"{moved.topic}-{moved.partition} has replicas {list(moved.view.replicas)}, not {to}: its move was taken back or changed meanwhile",
                hint=f"`shmlog topic describe {name}`",
            )


@cli.group(examples=("shmlog broker list", "shmlog broker add", "shmlog broker retire 2"))
def broker() -> None:
    """Look at the brokers, add one, retire one."""


@broker.command("list", examples=("shmlog broker list", "shmlog broker list --json"))
def list_brokers() -> None:
    """Each broker: its process, directory and partitions."""
    with _admin() as admin:
        brokers = admin.describe_cluster()["brokers"]
        partitions = [p for t in admin.describe_topics() for p in t["partitions"]]
    rows = [
        {
            "broker_id": b["broker_id"], "pid": b["pid"], "state": b["state"], "broker_epoch": b["broker_epoch"], "directory": b["directory"],
            "retiring": b["retiring"],
            "leads": sum(p["leader"] == b["broker_id"] for p in partitions),
            "follows": sum(b["broker_id"] in p["replicas"] and p["leader"] != b["broker_id"] for p in partitions),
            "out_of_sync": sum(b["broker_id"] in p["replicas"] and b["broker_id"] not in p["isr"] for p in partitions),
            "adding": sum(b["broker_id"] in p["adding_replicas"] for p in partitions),
            "removing": sum(b["broker_id"] in p["removing_replicas"] for p in partitions),
        }
        for b in brokers
    ]  # fmt: skip
    if settings().json:
        show({"brokers": rows})
        return
    from shmlog.tools.status import table

    moving = ("adding", "removing") if any(row["adding"] or row["removing"] for row in rows) else ()
    numbers = ("broker_epoch", "leads", "follows", "out_of_sync", *moving)
    head = ("BROKER", "PID", "STATE", "EPOCH", "LEADS", "FOLLOWS", "OUT OF SYNC", *map(str.upper, moving), "DIRECTORY")
    states = ["retiring" if row["retiring"] and row["state"] == "up" else row["state"] for row in rows]
    lines = [(str(row["broker_id"]), str(row["pid"]), state, *(str(row[k]) for k in numbers)) for row, state in zip(rows, states, strict=True)]
    cells = [head, *((*line, row["directory"] or "memory only") for line, row in zip(lines, rows, strict=True))]
    for text in table(cells, _mark(bold=True), right=(0, 1, *range(3, 7 + len(moving))), mark=lambda row: None):
        print(text)


@broker.command(examples=("shmlog broker add", "shmlog broker add --data /mnt/disk2"))
@click.option("--data", "data_dir", metavar="DIR", help="Where its logs lie; default: beside those of the others.")
def add(data_dir: str | None) -> None:
    """Start a further broker. It stays: `up` brings it again after a `down`. `topic move` and new topics give it partitions."""
    with _admin() as admin:
        added = admin.add_broker(data_dir)
    where = f"data in {added['directory']}" if added["directory"] else "memory only"
    _say(f"broker {added['broker_id']} is up: pid {added['pid']}, {where}", **added)


@broker.command(
    short_help="Give a broker's partitions to others, then end it.",
    examples=("shmlog broker retire 2", "shmlog broker retire 2 --force       # even if partitions then have fewer replicas"),
)
@click.argument("broker_id", type=click.IntRange(min=0), metavar="ID")
@click.option("--force", is_flag=True, help="Let replica lists get shorter where no other broker can take the partition; never the last replica.")
@click.option("--no-wait", is_flag=True, help="Return when it is begun; it goes on by itself.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="Wait no longer; it goes on.")
def retire(broker_id: int, force: bool, no_wait: bool, timeout: float | None) -> None:
    """Give a broker's partitions and leaderships to others, end its process, and forget it; its directory stays on disk.

    It is durable and goes on without this command; Ctrl-C only leaves.
    """
    from shmlog.tools import moves as module

    with _admin() as admin:
        directory = next((b["directory"] for b in admin.describe_cluster()["brokers"] if b["broker_id"] == broker_id), None)
        admin.retire_broker(broker_id, force)
    result = {"broker_id": broker_id, "directory": directory, "retired": not no_wait}
    if no_wait:
        _say(f"broker {broker_id} retires; `shmlog broker list` shows it until it is gone", **result)
        return
    module.wait_retired(settings().name, broker_id, timeout, module.Shown(f"broker {broker_id} retires", show if settings().json else None))
    _say(f"broker {broker_id} has retired" + (f"; its directory stays: {directory}" if directory else ""), **result)


# --- records -----------------------------------------------------------------------------------------------------------


@cli.command(
    examples=(
        "echo hello | shmlog produce greetings",
        "shmlog produce orders -K: < orders.txt           # key before the first colon",
        "shmlog produce orders -l orders.txt -H source=file --acks disk",
        r"printf 'a\0b\0' | shmlog produce blobs -D '\0'",
    )
)
@click.argument("topic")
@click.option("-p", "--partition", type=click.IntRange(min=0), metavar="P", help="Default: by key, else sticky.")
@click.option("-K", "key_delimiter", metavar="DELIM", help="Key and value are separated by this; a line without it has no key.")
@click.option("-D", "delimiter", metavar="DELIM", default=r"\n", show_default=True, help=r"Between records; \n \t \0 \xNN.")
@click.option("-H", "headers", multiple=True, metavar="K=V", help="A header for every record.")
@click.option("-Z", "null_if_empty", is_flag=True, help="An empty value is sent as null (a tombstone).")
@click.option("-z", "codec", metavar="CODEC", help="Only 'none': records are kept as they are sent.")
@click.option("-l", "path", metavar="FILE", help="Read this file instead of stdin.")
@click.option("--acks", type=click.Choice(["0", "1", "all", "disk"]), default="all", show_default=True, help="disk: synced at every replica.")
def produce(
    topic: str,
    partition: int | None,
    key_delimiter: str | None,
    delimiter: str,
    headers: tuple[str, ...],
    null_if_empty: bool,
    codec: str | None,
    path: str | None,
    acks: str,
) -> None:
    """Append a record for each line of stdin. A topic that does not exist is made."""
    from shmlog.client.producer import Producer
    from shmlog.tools import produce_consume as module

    config.topic_name(topic)
    fields = [(key, value.encode(errors="surrogateescape")) for key, value in pairs(headers, "-H").items()]
    with (
        open(path, "rb", buffering=0) if path else contextlib.nullcontext(sys.stdin.buffer) as source,
        Producer(str(settings().address), acks=int(acks) if acks.isdigit() else acks, compression_type=codec) as producer,
    ):
        progress = module.Progress(f"producing to {topic}", os.path.getsize(path) if path and os.path.isfile(path) else None)
        try:
            done = module.produce(
                producer,
                topic,
                module.split_records(getattr(source, "read1", source.read), module.unescape(delimiter)),
                partition=partition,
                key_delimiter=None if key_delimiter is None else module.unescape(key_delimiter),
                headers=fields,  # type: ignore[arg-type]
                null_if_empty=null_if_empty,
                progress=progress,
            )
        finally:
            progress.close()
    if settings().json:
        show(
            {
                "topic": topic,
                "records": done.records,
                "bytes": done.bytes,
                "partitions": {str(p): list(ends) for p, ends in sorted(done.partitions.items())},
            }
        )


@cli.command(
    examples=(
        "shmlog consume greetings -n 1",
        "shmlog consume orders -o end                     # what comes from now on, until Ctrl-C",
        "shmlog consume orders -o -10 -e                  # the last ten of each partition",
        "shmlog consume orders -o @10m:@5m --json",
        r"shmlog consume orders -e -f '%t-%p@%o %T %k=%s\n'",
    )
)
@click.argument("topic")
@click.option("-p", "--partition", "partitions", type=click.IntRange(min=0), multiple=True, metavar="P", help="Only this one; may be repeated.")
@click.option("-o", "offset", metavar="OFFSET", help="start | end | N | -N | +N | @TIME | A:B; @TIME is ms, ISO, or 10m (ago). Default: start.")
@click.option("-n", "-c", "count", type=click.IntRange(min=0), metavar="COUNT", help="Stop after so many records.")
@click.option("-e", "stop_at_end", is_flag=True, help="Stop at what is the end now.")
@click.option("-g", "group", metavar="GROUP", help="As a member of this group (not in this version).")
@click.option("-f", "format", metavar="FORMAT", help="%t topic %p partition %o offset %k key %s value %T time %S %K sizes %h headers.")
@click.option("-D", "delimiter", metavar="DELIM", default=r"\n", show_default=True, help="Behind each record.")
@click.option("-K", "key_delimiter", metavar="DELIM", help="Print the key too, separated from the value by this.")
@click.option("--raw", is_flag=True, help="The values' bytes and nothing else.")
@click.option("--wait", is_flag=True, help="Wait for a topic that does not exist yet.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="Give up after so many seconds (exit code 4).")
def consume(
    topic: str,
    partitions: tuple[int, ...],
    offset: str | None,
    count: int | None,
    stop_at_end: bool,
    group: str | None,
    format: str | None,
    delimiter: str,
    key_delimiter: str | None,
    raw: bool,
    wait: bool,
    timeout: float | None,
) -> None:
    """Print records, from the start of the topic, and wait for more."""
    from shmlog.tools import produce_consume as module

    config.topic_name(topic)
    if group is not None or offset == "stored":
        raise errors.UnsupportedVersionError(
            f"-g {group}: consumer groups come with a later version of shmlog"
            if group is not None
            else "-o stored: consumer groups come with a later version of shmlog",
            hint="leave it out and say where to begin with -o",
        )
    reach = module.parse_offset("start" if offset is None else offset)
    write = module.writer(
        sys.stdout.buffer,
        as_json_lines=settings().json,
        format=format,
        delimiter=b"" if raw else module.unescape(delimiter),
        key_delimiter=None if key_delimiter is None or raw else module.unescape(key_delimiter),
    )
    from shmlog.client.consumer import Consumer

    with Consumer(bootstrap_servers=str(settings().address), auto_offset_reset="earliest", missing="wait" if wait else "raise") as consumer:
        done = module.consume(
            consumer, topic, reach, write, sys.stdout.buffer.flush, partitions=list(partitions), count=count, stop_at_end=stop_at_end, timeout=timeout
        )
    if done.timed_out:
        raise module.timed_out(topic, done.records, count, timeout or 0.0)


# --- looking under the hood --------------------------------------------------------------------------------------------


@cli.command(
    examples=(
        "shmlog verify                       # the running cluster, memory and disk; or its disk when it is down",
        "shmlog verify /srv/shmlog/broker-0 --json",
    )
)
@click.argument("path", required=False)
def verify(path: str | None) -> None:
    """Check every invariant of memory and disk, and the replicas against each other. Never writes. Exit code 0: clean; 5: damage, listed; 1: could not
    check."""
    from shmlog.tools import inspect as module

    report = module.verify_path(path) if path else module.verify_cluster(settings().address)
    if settings().json:
        show(report.as_dict())
    else:
        red, dim = _mark(fg="red"), _mark(dim=True)
        for note in report.notes:
            print(dim(f"note: {note}"))
        for problem in report.problems:
            print(red(str(problem)))
        c = report.counts
        verdict = _count(len(report.problems), "problem") if report.problems else "clean"
        memory = f"{_count(c['segments'], 'segment')} with {_count(c['frames_in_memory'], 'frame')} in memory"
        disk = f"{_count(c['files'], 'file')} with {_count(c['frames_on_disk'], 'frame')} on disk"
        compared = f", {_count(c['records_compared'], 'record')} the same at all replicas" if c["records_compared"] and not report.problems else ""
        print(f"{verdict}: {_count(c['partitions'], 'partition')}, {memory}, {disk}{compared}")
    if report.problems:
        sys.stdout.flush()
        click.get_current_context().exit(EXIT_DAMAGED)


@cli.command(
    short_help="Show what stands in a segment, past damage.",
    examples=(
        "shmlog dump ~/.local/state/shmlog/default/broker-0/orders-0-1a2b3c4d/00000000000000000000-1.log",
        "shmlog dump /dev/shm/shmlog.1000.default.s3 --json",
    ),
)
@click.argument("path")
def dump(path: str) -> None:
    """Decode a segment, in memory (an object in /dev/shm) or on disk (a .log file), going on past damage."""
    from shmlog.tools import dump as module

    bold, red = _mark(bold=True), _mark(fg="red")
    if settings().json:
        import msgspec

        encode = msgspec.json.Encoder().encode
        for entry in module.dump(path):
            sys.stdout.buffer.write(encode(entry) + b"\n")
        sys.stdout.buffer.flush()
        return
    for entry in module.dump(path):
        for line in module.dump_line(entry, bold=bold, red=red):
            print(line)


@cli.command(
    short_help="Check this machine; each finding comes with its fix.",
    examples=("shmlog doctor", "shmlog doctor --fix        # also remove what dead clusters left in /dev/shm"),
)
@click.option("--fix", is_flag=True, help="Remove what dead clusters left in /dev/shm.")
def doctor(fix: bool) -> None:
    """Check this machine: /dev/shm, limits, permissions, RemoveIPC, disk, the cluster's data directories, dead clusters. Exit code 1 when something
    must be mended."""
    from shmlog.tools import doctor as module

    findings = list(module.examine(fix, settings().name))
    if settings().json:
        show({"findings": [f._asdict() for f in findings]})
    else:
        marks = {module.OK: _mark(fg="green")("ok  "), module.WARNING: _mark(fg="yellow")("warn"), module.PROBLEM: _mark(fg="red")("FAIL")}
        for f in findings:
            print(f"{marks[f.level]}  {f.check:<14} {f.what}")
            if f.fix:
                print(f"      {'':<14} -> {f.fix}")
    if any(f.level == module.PROBLEM for f in findings):
        sys.stdout.flush()
        click.get_current_context().exit(EXIT_ERROR)


@cli.command(
    short_help="What the processes of the cluster logged.",
    examples=("shmlog logs                # the last lines of every process", "shmlog logs -f broker-0"),
)
@click.argument("role", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on as lines are written.")
@click.option("-n", "count", type=click.IntRange(min=0), default=20, show_default=True, metavar="N", help="Lines of each log.")
def logs(role: str | None, follow: bool, count: int) -> None:
    """What the processes of the cluster logged; ROLE is coordinator, spare, broker or broker-N."""
    from shmlog.tools import cluster

    for name, line in cluster.log_lines(settings().name, role, count, follow):
        if settings().json:
            show({"log": name, "line": line})
        else:
            print(f"{name}: {line}" if name else line, flush=follow)


@cli.group("config", examples=("shmlog config explain retention.ms",))
def config_group() -> None:
    """What the configs of topics and clusters mean."""


@config_group.command(examples=("shmlog config explain retention.ms", "shmlog config explain memory.max.bytes"))
@click.argument("key")
def explain(key: str) -> None:
    """What a config means, its default and what is allowed."""
    text = config.explain(key)
    if settings().json:
        row = config.TOPIC_KEYS.get(key) or config.CLUSTER_KEYS.get(key)
        fields = {"scope": row.scope, "type": row.kind, "default": row.default_text, "unit": row.unit, "allowed": row.allowed.words} if row else {}
        show({"key": key, "text": text, **fields})
    else:
        print(text)


@cli.command(examples=("shmlog run coordinator           # stands by while another is active, else starts brokers and a standby",))
@click.argument("role")
def run(role: str) -> None:
    """Run one process in the foreground, for supervisors like systemd. ROLE is coordinator: it starts what else is needed."""
    from shmlog.tools import cluster

    click.get_current_context().exit(cluster.run(settings().name, role))


@cli.command(
    short_help="Kill it, and see what holds.",
    examples=(
        "shmlog torture                      # a minute on a cluster of its own; nothing of yours is touched",
        "shmlog torture --minutes 60 --brokers 5 --keep /tmp/histories",
        "shmlog torture --seed 1234 --json",
    ),
)
@click.option("--minutes", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="N", help="How long, about.")
@click.option("--brokers", type=click.IntRange(1, 16), default=3, show_default=True, metavar="N", help="Replication factor is 3, or N if that is less.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Which faults in which order; default: another each time, printed.")
@click.option("--keep", type=click.Path(file_okay=False), metavar="DIR", help="Keep data and histories there; else only what did not hold is kept.")
def torture(minutes: float, brokers: int, seed: int | None, keep: str | None) -> None:
    """Kill and stop random processes of a private cluster that is in use, then print what was promised and what was observed; beside it what the same
    kills do to a multiprocessing.Queue. Exit code 5: something did not hold."""
    from shmlog.tools import torture as module

    report = module.run(minutes, brokers, seed, keep, show_progress=not settings().json and sys.stderr.isatty())
    if settings().json:
        show(module.as_dict(report))
    else:
        green, red, dim = _mark(fg="green"), _mark(fg="red"), _mark(dim=True)
        for line in module.lines(report, held=green, broken=red, dim=dim):
            print(line)
    if not report.held:
        sys.stdout.flush()
        click.get_current_context().exit(EXIT_DAMAGED)


@cli.command("bench", short_help="Measure it beside other ways.", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Latency and throughput of ways to get bytes from one process to another here, with shmlog among them: a table, JSON and a page."""
    from shmlog.bench.__main__ import main as run_bench

    click.get_current_context().exit(run_bench(arguments, settings().json, settings().cluster))
