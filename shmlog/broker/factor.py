"""From one replica to several, and back, while records come: what `high_watermark` means for readers.

With one replica the end of the log is visible at once, and nobody moves the word `high_watermark`; with several readers stop at it. Which of the two
holds is SL_PF_REPLICATED. The coordinator says so for a new topic; afterwards the leader's broker does, when it opens the partition under a new leader
epoch as one that has followers, or has none any more: only then the word can be made true first.

Several (before the opening): nobody may append (the fence) -> the word is moved to the end, which readers may have seen -> the flag. So no reader ever
finds a committed end below one that it saw before. One (after the opening): the flag goes -> the word is moved to the end, for those who wait for it
already; whoever begins to wait later finds that appended is committed.

Killed anywhere in between: whoever opens the partition next finds the flag as it was, or the word that goes with it, and does the same again."""

from __future__ import annotations

from typing import Any

from shmlog._ffi import check, ffi, lib

OFFSET_MASK = 2**48 - 1


def before_opening(cluster: Any, row: int, block: int, leader_epoch: int, in_memory: bool) -> None:
    """For a partition with several replicas. Idempotent; nothing if readers know already. in_memory: it has a segment, so there may be records that
    were seen; without one the opening itself says what is committed."""
    words = lib.sl_cluster_partition(cluster, block)
    if words.flags & lib.SL_PF_REPLICATED:
        return
    if in_memory:
        check(lib.sl_log_fence(cluster, row, block, leader_epoch), f"block {block} cannot be fenced for leader epoch {leader_epoch}")
        _commit_to_end(cluster, row, block, leader_epoch)
    _set_replicated(words, True)


def after_opening(cluster: Any, row: int, block: int, leader_epoch: int) -> None:
    """For a partition with one replica that is open. Without the flag a predecessor may have died behind taking it away; a word that was never moved
    says that there were never several."""
    words = lib.sl_cluster_partition(cluster, block)
    if words.flags & lib.SL_PF_REPLICATED:
        _set_replicated(words, False)
    elif not words.high_watermark & OFFSET_MASK:
        return
    _commit_to_end(cluster, row, block, leader_epoch)
    lib.sl_wake_all(cluster, block)


def _commit_to_end(cluster: Any, row: int, block: int, leader_epoch: int) -> None:
    offsets = ffi.new("sl_offsets *")
    check(lib.sl_log_offsets(cluster, row, block, offsets), f"the end of block {block} cannot be read")
    for word in (lib.SL_WORD_HIGH_WATERMARK, lib.SL_WORD_LAST_STABLE):
        check(lib.sl_log_advance(cluster, block, word, leader_epoch, offsets.end))


def _set_replicated(words: Any, replicated: bool) -> None:
    """By CAS on {flags, max_message_bytes}: the coordinator changes the other flags (its Memory.write_block())."""
    word = ffi.cast("uint64_t *", ffi.addressof(words, "flags"))
    while True:
        seen = lib.sl_get64(word)
        now = seen | lib.SL_PF_REPLICATED if replicated else seen & ~lib.SL_PF_REPLICATED
        if lib.sl_swap64(word, seen, now):
            return
