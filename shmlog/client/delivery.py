"""What send() and send_many() return: the place of what was appended, and whether `acks` is satisfied.

A Delivery is made by each send(), so it is small and knows nothing: the Producer does the waiting.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

from shmlog import errors
from shmlog._binding import fast, in_c
from shmlog.types import RecordMetadata

if TYPE_CHECKING:
    from shmlog.client.acknowledging import Acknowledging
    from shmlog.client.append import Place


@in_c
class Delivery:
    """One append: a record, or with send_many() a batch of `count` records at `offset`, `offset + 1`, ...

    `topic`, `partition`, `offset` and `timestamp_ns` are known from the start, because the append has happened. `done` says whether `acks` is
    satisfied too. A class of its own and not a concurrent.futures.Future, whose making costs more than the append. Any thread may use it.
    """

    __slots__ = ("topic", "partition", "offset", "timestamp_ns", "count", "_producer", "_place", "_error", "_seen", "_callbacks")

    topic: str
    partition: int
    offset: int
    timestamp_ns: int
    count: int
    _place: Place  # while acks is awaited

    def __init__(self, topic: str, partition: int, offset: int, timestamp_ns: int, count: int = 1) -> None:
        self.topic = topic
        self.partition = partition
        self.offset = offset
        self.timestamp_ns = timestamp_ns
        self.count = count
        self._producer: Acknowledging | None = None  # None: acknowledged (or failed)
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether result() returns or raises without waiting."""
        producer = self._producer
        if producer is not None:
            producer._settle(self)
        return self._producer is None

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Waits up to `timeout` seconds (default: the producer's delivery_timeout_ms) until acks is satisfied.

        Raises KafkaTimeoutError (ask again: the record is in the log and may be acknowledged later), UnknownTopicOrPartitionError when the topic was
        deleted before that, BrokerNotRunningError, StorageError.
        """
        producer = self._producer
        if producer is not None:
            producer._await(self, timeout)
        if self._error is not None:
            self._seen = True
            raise self._error
        return RecordMetadata(self.topic, self.partition, self.offset, self.timestamp_ns // 1_000_000)

    get = result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What result() would raise, None if it would return. A timeout is raised, not returned."""
        try:
            self.result(timeout)
        except errors.KafkaTimeoutError:
            if self._producer is not None:
                raise
        except errors.ShmlogError:
            pass
        return self._error

    def add_callback(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Self:
        """Calls function(*args, RecordMetadata, **kwargs) when acknowledged: at once if it is so already, else from whichever call of this producer
        finds out (send, flush, close, result); there is no thread in the background. An exception in it is logged, not raised (as in
        kafka-python)."""
        return self._on_done(True, function, args, kwargs)

    def add_errback(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Self:
        """Calls function(*args, exception, **kwargs) if it fails. The failure then counts as looked at."""
        return self._on_done(False, function, args, kwargs)

    def add_both(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> Self:
        return self.add_callback(function, *args, **kwargs).add_errback(function, *args, **kwargs)

    def succeeded(self) -> bool:
        return self.done and self._error is None

    def failed(self) -> bool:
        return self.done and self._error is not None

    @property
    def is_done(self) -> bool:  # kafka-python's name
        return self.done

    def _on_done(self, success: bool, function: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Self:
        entry = (success, function, args, kwargs)
        try:
            self._callbacks.append(entry)
        except AttributeError:
            self._callbacks: deque[tuple[bool, Callable[..., object], tuple[Any, ...], dict[str, Any]]] = deque([entry])
        if self._producer is None:
            self._call_back()
        return self

    def _call_back(self) -> None:
        callbacks = self._callbacks
        while True:
            try:
                success, function, args, kwargs = callbacks.popleft()  # each once, whichever thread comes first
            except IndexError:
                return
            if success != (self._error is None):
                continue
            if self._error is not None:
                self._seen = True
            outcome = self._error or RecordMetadata(self.topic, self.partition, self.offset, self.timestamp_ns // 1_000_000)
            try:
                function(*args, outcome, **kwargs)
            except Exception:
                import logging

                logging.getLogger("shmlog.producer").exception("a callback of %r raised", self)

    def __repr__(self) -> str:
        state = "pending" if self._producer is not None else "done" if self._error is None else f"failed: {self._error}"
        more = f" +{self.count}" if self.count != 1 else ""
        return f"<Delivery {self.topic}-{self.partition}@{self.offset}{more} {state}>"


class Deliveries(Sequence[Delivery]):
    """What send_many() wrote, in order: a Delivery for each batch. Each batch is in the log wholly."""

    __slots__ = ("_items",)

    def __init__(self, items: list[Delivery]) -> None:
        self._items = items

    @property
    def count(self) -> int:  # type: ignore[override]
        """Records in all batches."""  # shadows Sequence.count(x), which has no use here
        return sum(d.count for d in self._items)

    @property
    def offset(self) -> int:
        """Offset of the first record of the first batch."""
        return self._items[0].offset

    @property
    def partition(self) -> int:
        """Partition of the first batch."""
        return self._items[0].partition

    @property
    def done(self) -> bool:
        return all(d.done for d in self._items)

    def result(self, timeout: float | None = None) -> list[RecordMetadata]:
        """Waits for all of them, together up to `timeout` seconds; the metadata of each batch's first record."""
        if timeout is None:
            return [d.result() for d in self._items]
        deadline = time.monotonic() + timeout
        return [d.result(max(0.0, deadline - time.monotonic())) for d in self._items]

    get = result

    @overload
    def __getitem__(self, index: int) -> Delivery: ...
    @overload
    def __getitem__(self, index: slice) -> list[Delivery]: ...
    def __getitem__(self, index: int | slice) -> Delivery | list[Delivery]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Deliveries({self._items!r})"


if fast is not None:
    fast.use(deliveries=Deliveries)
