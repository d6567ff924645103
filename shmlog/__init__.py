"""shmlog: Kafka's model in shared memory on one machine.

The public names are imported on first use (PEP 562): `import shmlog` costs next to nothing, and a program that only reads
`shmlog.__version__` or catches `shmlog.ShmlogError` never pays for numpy, ZeroMQ or the extension.
"""

from __future__ import annotations

TYPE_CHECKING = False  # not typing's: that import alone costs 5 ms
if TYPE_CHECKING:
    from typing import Any

    from shmlog.client.admin import Admin as Admin
    from shmlog.client.admin import Admin as KafkaAdminClient
    from shmlog.client.consumer import Consumer as Consumer
    from shmlog.client.consumer import Consumer as KafkaConsumer
    from shmlog.client.consumer import RecordBatch as RecordBatch
    from shmlog.client.producer import Delivery as Delivery
    from shmlog.client.producer import Producer as KafkaProducer
    from shmlog.client.producer import Producer as Producer
    from shmlog.embedded import Cluster as Cluster
    from shmlog.errors import KafkaError as KafkaError
    from shmlog.errors import ShmlogError as ShmlogError
    from shmlog.types import NewPartitions as NewPartitions
    from shmlog.types import NewTopic as NewTopic
    from shmlog.types import OffsetAndMetadata as OffsetAndMetadata
    from shmlog.types import OffsetAndTimestamp as OffsetAndTimestamp
    from shmlog.types import Record as Record
    from shmlog.types import RecordMetadata as RecordMetadata
    from shmlog.types import TopicPartition as TopicPartition

__version__ = "0.1.0"

# Public name -> (module, name there). kafka-python's class names are aliases of ours.
_EXPORTS = {
    "Producer": ("shmlog.client.producer", "Producer"),
    "KafkaProducer": ("shmlog.client.producer", "Producer"),
    "Delivery": ("shmlog.client.producer", "Delivery"),
    "Consumer": ("shmlog.client.consumer", "Consumer"),
    "KafkaConsumer": ("shmlog.client.consumer", "Consumer"),
    "RecordBatch": ("shmlog.client.consumer", "RecordBatch"),
    "Admin": ("shmlog.client.admin", "Admin"),
    "KafkaAdminClient": ("shmlog.client.admin", "Admin"),
    "Cluster": ("shmlog.embedded", "Cluster"),
    "KafkaError": ("shmlog.errors", "ShmlogError"),
    "ShmlogError": ("shmlog.errors", "ShmlogError"),
    "NewPartitions": ("shmlog.types", "NewPartitions"),
    "NewTopic": ("shmlog.types", "NewTopic"),
    "OffsetAndMetadata": ("shmlog.types", "OffsetAndMetadata"),
    "OffsetAndTimestamp": ("shmlog.types", "OffsetAndTimestamp"),
    "Record": ("shmlog.types", "Record"),
    "RecordMetadata": ("shmlog.types", "RecordMetadata"),
    "TopicPartition": ("shmlog.types", "TopicPartition"),
}

__all__ = ["__version__", "get_include", *_EXPORTS]  # noqa: PLE0604 (the names are strings, ruff cannot see it)


def get_include() -> str:
    """The directory of shmlog.h, for C programs: `cc -I$(python -c 'import shmlog; print(shmlog.get_include())')`. The library is `make install-c`."""
    import os

    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "include")


def __getattr__(name: str) -> Any:
    import sys

    if name in _EXPORTS:
        module, attribute = _EXPORTS[name]
        __import__(module)
        value = getattr(sys.modules[module], attribute)
    elif name in ("errors", "events", "types"):  # `import shmlog; except shmlog.errors.X` needs no import of its own
        value = __import__(f"shmlog.{name}", fromlist=["*"])
    else:
        raise AttributeError(f"module 'shmlog' has no attribute {name!r}")
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
