/* What every other file leans on: the texts of the codes, this thread's errno, clocks, who a process is, failpoints.
 *
 * Nothing here keeps state but the thread-local errno (and, in test builds, the count of failpoint hits), so all of it may be called from any
 * thread and after a fork. */
#define _GNU_SOURCE
#include "atomic.h"
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static __thread int saved_errno_of_thread;

const char *sl_strerror(int code) {
    switch (code) {
    case SL_OK: return "success";
    case SL_E_AGAIN: return "nothing there yet";
    case SL_E_TIMEOUT: return "the deadline passed";
    case SL_E_INTR: return "interrupted by a signal while waiting";
    case SL_E_NOENT: return "no such object or file";
    case SL_E_VERSION: return "written by another layout or disk version";
    case SL_E_BOOT: return "memory of another boot";
    case SL_E_OWNER: return "belongs to another user";
    case SL_E_DAMAGED: return "a header or structure that cannot be right";
    case SL_E_HALFMADE: return "its maker has not finished, or died making it";
    case SL_E_SHM_FULL: return "/dev/shm or the memory budget is full";
    case SL_E_RING_FULL: return "the partition's ring is full";
    case SL_E_DISK_FULL: return "the disk is full";
    case SL_E_IO: return "input/output error on the disk";
    case SL_E_TOO_BIG: return "larger than the limit";
    case SL_E_CONFLICT: return "the log does not end at the expected offset";
    case SL_E_FENCED: return "the partition has no leader just now";
    case SL_E_DELETED: return "the topic was deleted";
    case SL_E_RANGE: return "offset out of range";
    case SL_E_CORRUPT: return "damaged record";
    case SL_E_INVALID: return "invalid argument";
    case SL_E_NOMEM: return "out of memory";
    case SL_E_NO_SLOT: return "a table of the cluster is full";
    case SL_E_SYS: return "system call failed";
    case SL_E_GONE: return "the cluster is down or going down";
    case SL_E_BEHIND: return "timed out because the disk is slower than the producers";
    case SL_E_NOT_ENOUGH_REPLICAS: return "fewer replicas are in sync than min.insync.replicas";
    case SL_E_FORKED: return "the handle was opened before a fork";
    case SL_E_LOST: return "records were lost";
    default: return "unknown code";
    }
}

int sl_last_errno(void) { return saved_errno_of_thread; }
void sl_set_errno(int saved_errno) { saved_errno_of_thread = saved_errno; }

static int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}
int64_t sl_monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
int64_t sl_wall_ns(void) { return clock_ns(CLOCK_REALTIME); }

/* A whole small file below /proc; returns how many bytes, -1 with errno. */
static ssize_t read_small(const char *path, char *to, size_t capacity) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    size_t done = 0;
    while (done < capacity) {
        ssize_t n = read(fd, to + done, capacity - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int saved = errno;
            close(fd);
            errno = saved;
            return -1;
        }
        if (n == 0) break;
        done += (size_t)n;
    }
    close(fd);
    return (ssize_t)done;
}

int sl_boot_id(uint8_t out[16]) {
    char text[64];
    ssize_t n = read_small("/proc/sys/kernel/random/boot_id", text, sizeof text);
    if (n < 0) {
        sl_set_errno(errno);
        return SL_E_SYS;
    }
    unsigned digits = 0;
    memset(out, 0, 16);
    for (ssize_t i = 0; i < n && digits < 32; i++) {
        char c = text[i];
        unsigned v;
        if (c >= '0' && c <= '9') v = (unsigned)(c - '0');
        else if (c >= 'a' && c <= 'f') v = (unsigned)(c - 'a') + 10;
        else if (c >= 'A' && c <= 'F') v = (unsigned)(c - 'A') + 10;
        else if (c == '-') continue;
        else break;
        out[digits / 2] = (uint8_t)(out[digits / 2] << 4 | v);
        digits++;
    }
    if (digits == 32) return SL_OK;
    sl_set_errno(EINVAL);
    return SL_E_SYS;
}

/* Fields 3 and 22 of /proc/<pid>/stat: state letter and start ticks; 0 ticks if there is no such process. */
static uint64_t read_stat(uint32_t pid, char *state) {
    char path[40], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    ssize_t n = read_small(path, text, sizeof text - 1);
    if (n <= 0) return 0;
    text[n] = 0;
    /* Field 2 is the program's name in parentheses and may itself hold spaces and parentheses: the last ')' ends it. */
    const char *p = strrchr(text, ')');
    if (!p) return 0;
    p++;
    for (int field = 3; field <= 22; field++) { /* p stands on the blank before this field */
        while (*p == ' ') p++;
        if (field == 3) *state = *p;
        if (field == 22) break;
        while (*p && *p != ' ') p++;
    }
    uint64_t ticks = 0;
    while (*p >= '0' && *p <= '9') ticks = ticks * 10 + (uint64_t)(*p++ - '0');
    return ticks;
}

uint64_t sl_start_ticks(uint32_t pid) {
    char state;
    return read_stat(pid, &state);
}

int sl_process_alive(uint32_t pid, uint64_t start_ticks) {
    char state = 'X';
    return pid != 0 && read_stat(pid, &state) == start_ticks && start_ticks != 0 && state != 'Z' && state != 'X' && state != 'x';
}

#ifdef SL_FAILPOINTS
/* SHMLOG_FAILPOINT="name:hit:action" fires at the hit-th time (1 = first) that this process passes the named place; action is kill, stop or
 * exit. "name:hit:action:path" fires from then on as soon as it is this process that removes that file: once for all processes that inherit the
 * variable, when a test has made the file, and no more when the test has removed it. The variable is read anew each time, so that a test can set it in
 * a forked child. */
void sl_failpoint_hit(const char *name) {
    static uint64_t hits;
    const char *wanted = getenv("SHMLOG_FAILPOINT");
    if (!wanted) return;
    size_t length = strlen(name);
    if (strncmp(wanted, name, length) != 0 || wanted[length] != ':') return;
    char *end;
    uint64_t hit = strtoull(wanted + length + 1, &end, 10);
    if (*end != ':') return;
    uint64_t passed = sl_fetch_add_relaxed(&hits, 1) + 1;
    const char *action = end + 1, *path = strchr(action, ':');
    size_t action_bytes = path ? (size_t)(path - action) : strlen(action);
    if (path ? passed < hit || unlink(path + 1) != 0 : passed != hit) return;
    if (action_bytes == 4 && memcmp(action, "kill", 4) == 0) kill(getpid(), SIGKILL);
    else if (action_bytes == 4 && memcmp(action, "stop", 4) == 0) kill(getpid(), SIGSTOP);
    else if (action_bytes == 4 && memcmp(action, "exit", 4) == 0) _exit(99);
    else {
        fprintf(stderr, "shmlog: SHMLOG_FAILPOINT=%s: the action is kill, stop or exit\n", wanted);
        abort();
    }
}
#endif
