"""Servers of peers: started on a unix socket or a free port of the loopback, ended by pid, dead with the harness.

Those in Java come from Maven Central, fetched once by `shmlog bench --fetch` and kept beside the results.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import DIRECTORY, Failed, no_interrupt, results_directory, scratch
from .worker import die_with_parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Server:
    def __init__(self, command: list[Any], directory: str, **environment: str) -> None:
        self.log = f"{directory}/server.log"
        self.name = os.path.basename(command[0])
        with open(self.log, "wb") as log, no_interrupt():
            self.process = subprocess.Popen(
                command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment},
                preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, where: str | int, limit_s: float = 30) -> None:
        """Until it takes a connection on this unix socket or port."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            family, address = (socket.AF_UNIX, where) if isinstance(where, str) else (socket.AF_INET, ("127.0.0.1", where))
            with contextlib.suppress(OSError), socket.socket(family) as s:
                s.connect(address)
                return
            time.sleep(0.01)
        with open(self.log, errors="replace") as log:
            last = log.read().strip().splitlines()[-1:]
        self.stop()
        raise Failed(f"{self.name} did not start: {' '.join(last)}")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


# --- Java --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artifact:
    """Its version pins those of all that it needs, which its own POM names."""

    group: str
    name: str
    version: str
    without: tuple[str, ...] = ()  # group:name

    def pom(self) -> str:
        exclusion = "<exclusion><groupId>{}</groupId><artifactId>{}</artifactId></exclusion>"
        exclusions = "".join(exclusion.format(*w.split(":")) for w in self.without)
        return f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>shmlog</groupId><artifactId>bench</artifactId><version>1</version><dependencies><dependency>
<groupId>{self.group}</groupId><artifactId>{self.name}</artifactId><version>{self.version}</version>
<exclusions>{exclusions}</exclusions></dependency></dependencies></project>"""


KAFKA = Artifact("org.apache.kafka", "kafka_2.13", "4.1.1")
AERON = Artifact("io.aeron", "aeron-driver", "1.51.0")
CHRONICLE = Artifact("net.openhft", "chronicle-queue", "2026.4", without=("net.openhft:chronicle-analytics",))  # it would tell its makers of each start


def jars(artifact: Artifact) -> Path:
    """Where an artifact and all that it needs is, if it was fetched."""
    return results_directory() / "jars" / f"{artifact.name}-{artifact.version}"


def fetch(artifact: Artifact, limit_s: float = 600) -> Path:
    to = jars(artifact)
    if to.exists():
        return to
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as directory:
        Path(directory, "pom.xml").write_text(artifact.pom())
        command = ["mvn", "-q", "-B", "-C", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"]
        try:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            raise Failed(f"mvn did not fetch {artifact.name} within {limit_s:g} s") from None
        if done.returncode:
            raise Failed(f"mvn could not fetch {artifact.name}: {' '.join((done.stdout + done.stderr).strip().splitlines()[:1])[:200]}")
        Path(directory, "jars").rename(to)
    return to


class Kafka:
    """One node, KRaft, on the loopback. Starting takes seconds, so there is one for all rounds of a run."""

    running: Kafka | None = None

    @classmethod
    def get(cls) -> Kafka:
        if cls.running is None or cls.running.server.process.poll() is not None:
            cls.running = cls()
            atexit.register(cls.running.stop)
        return cls.running

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix=f"{DIRECTORY}{os.getpid()}-kafka-", dir=scratch())
        self.port, controller = free_port(), free_port()
        config = f"{self.directory}/server.properties"
        Path(config).write_text(f"""
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
controller.quorum.voters=1@127.0.0.1:{controller}
log.dirs={self.directory}/logs
offsets.topic.replication.factor=1
group.initial.rebalance.delay.ms=0
""")
        java = ["java", "-Xms256m", "-Xmx512m", "-cp", f"{jars(KAFKA)}/*"]
        cluster_id = base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")
        command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id.replace("-", "A"), "-c", config]
        made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if made.returncode:
            raise Failed(f"Kafka's storage was not formatted: {' '.join((made.stdout + made.stderr).strip().splitlines()[-1:])}")
        self.server = Server([*java, "kafka.Kafka", config], self.directory)
        self.server.wait_for(self.port, 120)

    def stop(self) -> None:
        if self.server.process.poll() is None:
            self.server.process.kill()  # its data is of no use to anybody
            self.server.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
