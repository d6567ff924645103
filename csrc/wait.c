/* Sleeping and waking between processes.
 *
 * A sleeper is a row. It owns a futex word (sl_row.wake) and one bit in the bitmap of every partition it waits for, so one sleep covers many
 * partitions. Protocol (steps 34-36 of tests/models/PROTOCOL.md, modelled in wakeup.pml there):
 *
 *   sleeper: s = ++wake; sleeping = how; set own bit everywhere (sc); look again (sc); futex_wait(wake, s); clear own bits
 *   waker:   make the thing true (sc: a CAS); load the bitmap (sc); for each bit: ++wake of that row, futex_wake
 *
 * Both sides store, then load: one of them sees the other. Only the sleeper clears its bit (the broker after its death), so a waker that is killed
 * half-way takes nobody's wake with it. `wake` grows with every sleep, so a value names one sleep: a thread that has completed a wake of this very
 * sleep may skip it (skip rule), never because somebody else has begun one.
 *
 * Rows 0..254 have a bit each; later rows share the last bit, which stays set as long as one of them sleeps anywhere: wakers then look at the
 * `sleeping` word of all of them, and it is the broker that clears it (sl_bits_sweep), waking whoever sleeps in between. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "atomic.h"
#include "core.h"

#define OWN_BITS (SL_WAIT_WORDS * 64 - 1) /* rows with a bit of their own; the bit after them is shared */

int sl_futex_wait(uint32_t *word, uint32_t seen, int64_t deadline_ns) {
    struct timespec ts = {.tv_sec = deadline_ns / 1000000000, .tv_nsec = deadline_ns % 1000000000};
    /* FUTEX_WAIT_BITSET takes an absolute CLOCK_MONOTONIC deadline. Not PRIVATE: the word is shared between processes. */
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, &ts, NULL, FUTEX_BITSET_MATCH_ANY);
    if (r == 0 || errno == EAGAIN) return SL_OK;
    if (errno == ETIMEDOUT) return SL_E_TIMEOUT;
    if (errno == EINTR) return SL_E_INTR;
    sl_set_errno(errno);
    return SL_E_SYS;
}

void sl_futex_wake(uint32_t *word, int n) { syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0); }

uint32_t sl_sleep_begin(sl_row *row, uint32_t how) {
    /* Owner: this row's thread; wakers add to `wake` too, so it is an RMW. */
    uint32_t s = sl_fetch_add_sc(&row->wake, 1) + 1;
    sl_store_sc(&row->sleeping, how); /* SYNC announce: before the bits; pairs with wake_row() */
    SL_FAILPOINT(wait_announce);
    return s;
}

void sl_sleep_end(sl_row *row) { sl_store_release(&row->sleeping, SL_AWAKE); }

void sl_bits_set(uint64_t *bits, uint32_t row) {
    uint32_t b = row < OWN_BITS ? row : OWN_BITS;
    sl_fetch_or_sc(&bits[b / 64], UINT64_C(1) << (b % 64));
    /* SYNC announce: then the sleeper looks again, at words of many kinds; the fence keeps each of these looks behind the bit, whatever its own order (an
     * acquire load may pass the store half of an RMW on ARM). Pairs with the load after cell_cas. */
    sl_fence_sc();
    SL_FAILPOINT(announce_bit);
}

void sl_bits_clear(uint64_t *bits, uint32_t row) {
    if (row < OWN_BITS) sl_fetch_and_sc(&bits[row / 64], ~(UINT64_C(1) << (row % 64)));
}

/* The path of the FIFO by which a row in select() or asyncio is woken: nobody can signal another process's eventfd. */
static void fifo_write(sl_cluster *cluster, uint32_t index) {
    char path[160];
    snprintf(path, sizeof path, "/dev/shm%s/w%u", sl_cluster_prefix(cluster), index);
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC); /* not only to write: SIGPIPE would kill us if the reader closed it just now */
    if (fd < 0) return; /* the reader is gone, and its FIFO */
    if (write(fd, "", 1) < 0) { /* full: the reader has enough to wake up for */ }
    close(fd);
}

/* The last sleep of each row that this thread has completed a wake for: {wake value after our add}. The skip rule above. */
static __thread struct { uint64_t cluster; uint32_t value[64]; uint32_t row[64]; } woken; /* cluster: its serial */

static void wake_row(sl_cluster *cluster, uint32_t index) {
    sl_row *row = sl_cluster_row(cluster, index);
    if (!row) return;
    uint32_t how = sl_load_sc(&row->sleeping); /* SYNC announce */
    if (how == SL_AWAKE) return; /* it has not slept yet and looks again after its announcement, or is awake already */
    uint32_t slot = index % 64, now = sl_load_sc(&row->wake);
    uint64_t serial = sl_cluster_serial(cluster);
    if (woken.cluster == serial && woken.row[slot] == index + 1 && woken.value[slot] == now) return;
    now = sl_fetch_add_sc(&row->wake, 1) + 1;
    SL_FAILPOINT(wake_counted);
    sl_futex_wake(&row->wake, INT_MAX);
    if (how == SL_SLEEPS_POLLER) fifo_write(cluster, index);
    if (woken.cluster != serial) { memset(&woken, 0, sizeof woken); woken.cluster = serial; }
    woken.row[slot] = index + 1;
    woken.value[slot] = now;
}

void sl_wake_bits(sl_cluster *cluster, uint64_t *bits) {
    for (int w = 0; w < SL_WAIT_WORDS; w++) {
        uint64_t set = sl_load_sc(&bits[w]); /* SYNC announce: after cell_cas (sc); pairs with sl_bits_set() */
        while (set) {
            uint32_t b = (uint32_t)(w * 64 + __builtin_ctzll(set));
            set &= set - 1;
            if (b < OWN_BITS) { wake_row(cluster, b); continue; }
            for (uint32_t r = OWN_BITS, used = sl_cluster_rows_used(cluster); r < used; r++) wake_row(cluster, r);
        }
    }
}

/* Clears the shared bit if no row behind it sleeps: first the bit, then everybody who sleeps is woken and announces anew. Called by the broker. */
void sl_bits_sweep(sl_cluster *cluster, uint64_t *bits) {
    uint64_t shared = UINT64_C(1) << (OWN_BITS % 64);
    if (!(sl_load_relaxed(&bits[SL_WAIT_WORDS - 1]) & shared)) return;
    sl_fetch_and_sc(&bits[SL_WAIT_WORDS - 1], ~shared);
    for (uint32_t r = OWN_BITS, used = sl_cluster_rows_used(cluster); r < used; r++) wake_row(cluster, r);
}

void sl_row_wakeup(sl_cluster *cluster, uint32_t index) {
    sl_row *row = sl_cluster_row(cluster, index);
    if (!row) return;
    uint32_t how = sl_load_sc(&row->sleeping);
    sl_fetch_add_sc(&row->wake, 1); /* even if awake: a sleep that begins later counts on, but one in preparation does not begin */
    sl_futex_wake(&row->wake, INT_MAX);
    if (how == SL_SLEEPS_POLLER) fifo_write(cluster, index);
}

void sl_wake_all(sl_cluster *cluster, uint32_t block) {
    if (block != UINT32_MAX) {
        sl_waits *w = sl_cluster_waits(cluster, block);
        if (!w) return;
        sl_wake_bits(cluster, w->data);
        sl_wake_bits(cluster, w->commit);
        return;
    }
    sl_control *control = sl_cluster_control(cluster);
    sl_futex_wake(&control->view_changes, INT_MAX);
    for (uint32_t r = 0, used = sl_cluster_rows_used(cluster); r < used; r++) wake_row(cluster, r);
}

void sl_bell_ring(sl_cluster *cluster, uint32_t process) {
    if (process >= SL_MAX_PROCESSES) return;
    sl_process *p = &sl_cluster_control(cluster)->processes[process];
    sl_fetch_add_sc(&p->bell, 1); /* SYNC bell: then look for a sleeper; pairs with the broker's announce (bell_sleeping = 1, look again) */
    if (sl_load_sc(&p->bell_sleeping)) sl_futex_wake(&p->bell, INT_MAX);
}

int sl_view_wait(sl_cluster *cluster, uint32_t seen, int64_t deadline_ns) {
    sl_control *control = sl_cluster_control(cluster);
    if (sl_load_acquire(&control->view_changes) != seen) return SL_OK;
    return sl_futex_wait(&control->view_changes, seen, deadline_ns);
}
