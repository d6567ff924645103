/* A fuzzer without clang: runs every file of the corpus, then mutations of them that follow from a printed seed.
 *
 *   ./frame <corpus directory or file>...      RUNS=n mutations (0: only the corpus), SECONDS=n at most, SEED=n, LAST=file
 *
 * An input that crashes or takes 20 seconds of CPU is left in the file LAST: run the program with that file alone. Of CPU, because a loop without end takes it,
 * and a machine that stands still for half a minute does not; who sleeps is found by a clock of ten minutes. */
#define _GNU_SOURCE
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define MAX_BYTES 16384
#define HANG_SECONDS 20
#define ASLEEP_SECONDS 600

typedef struct entry { uint8_t *bytes; size_t n; } entry;
static entry *corpus;
static size_t corpus_n, corpus_room;

static uint64_t state;
static uint64_t draw(void) { /* xorshift64*: the same numbers on every machine */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}
static uint64_t below(uint64_t n) { return n ? (draw() >> 8) % n : 0; }

static uint64_t number_of(const char *name, uint64_t otherwise) {
    const char *given = getenv(name);
    return given && *given ? strtoull(given, NULL, 0) : otherwise;
}

static void add_file(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) { perror(path); exit(2); }
    entry e = {malloc(MAX_BYTES), 0};
    e.n = fread(e.bytes, 1, MAX_BYTES, f);
    fclose(f);
    if (corpus_n == corpus_room) corpus = realloc(corpus, (corpus_room = corpus_room ? 2 * corpus_room : 256) * sizeof *corpus);
    corpus[corpus_n++] = e;
}

static void add(const char *path) {
    struct stat s;
    if (stat(path, &s) != 0) { perror(path); exit(2); }
    if (!S_ISDIR(s.st_mode)) { add_file(path); return; }
    struct dirent **names;
    int n = scandir(path, &names, NULL, alphasort); /* in one order everywhere, or the seed would mean nothing */
    for (int i = 0; i < n; i++) {
        char full[4096];
        snprintf(full, sizeof full, "%s/%s", path, names[i]->d_name);
        if (names[i]->d_name[0] != '.') add_file(full);
        free(names[i]);
    }
    free(names);
}

static const uint8_t *running;
static size_t running_n, executed;

/* An input that ends us is kept, by whatever it does so: called by the sanitizers, and by the two signals that are ours. */
static void keep(void) {
    const char *path = getenv("LAST");
    int fd = running && path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    if (fd < 0) return;
    if (write(fd, running, running_n) == (ssize_t)running_n) fprintf(stderr, "the input is in %s\n", path);
    close(fd);
    running = NULL;
}
static void on_signal(int number) {
    if (number == SIGPROF) fprintf(stderr, "one input takes more than %d s of CPU\n", HANG_SECONDS);
    if (number == SIGALRM) fprintf(stderr, "asleep for %d s\n", ASLEEP_SECONDS);
    keep();
    signal(SIGABRT, SIG_DFL);
    abort();
}
void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

static void run(const uint8_t *bytes, size_t n) {
    uint8_t *exact = malloc(n ? n : 1); /* of its very size: reading on is found */
    memcpy(exact, bytes, n);
    running = exact;
    running_n = n;
    setitimer(ITIMER_PROF, &(struct itimerval){.it_value.tv_sec = HANG_SECONDS}, NULL);
    if (executed++ % 1024 == 0) alarm(ASLEEP_SECONDS);
    LLVMFuzzerTestOneInput(exact, n);
    running = NULL;
    free(exact);
}

static size_t mutate(uint8_t *b, size_t n) {
    static const uint64_t interesting[] = {0, 1, 2, 7, 8, 27, 28, 63, 64, 127, 128, 255, 256, 4095, 4096, 16383, 16384, 32767, 65535, 65536, 0x3fffff, 0x7fffffff,
        0x80000000, 0xffffffff, UINT64_C(0x100000000), UINT64_C(0xffffffffff), UINT64_C(0x7fffffffffffffff), UINT64_C(0x8000000000000000), UINT64_MAX};
    for (uint64_t k = 1 + below(6); k; k--) {
        size_t at = (size_t)below(n ? n : 1), m;
        switch (below(9)) {
        case 0: if (n) b[at] ^= (uint8_t)(1 << below(8)); break;
        case 1: if (n) b[at] = (uint8_t)draw(); break;
        case 2: if (n) b[at] = (uint8_t)(b[at] + below(17) - 8); break;
        case 3: { /* a number that tends to matter */
            uint64_t v = interesting[below(sizeof interesting / sizeof *interesting)] + below(3) - 1;
            m = (size_t)1 << below(4);
            if (n >= m) memcpy(b + below(n - m + 1), &v, m);
            break;
        }
        case 4: /* cut out */
            m = (size_t)below(n - at > 32 ? 32 : n - at + 1);
            memmove(b + at, b + at + m, n - at - m);
            n -= m;
            break;
        case 5: /* put in */
            m = (size_t)below(16) + 1;
            if (n + m > MAX_BYTES) break;
            memmove(b + at + m, b + at, n - at);
            for (size_t i = 0; i < m; i++) b[at + i] = (uint8_t)(below(4) ? draw() : 0);
            n += m;
            break;
        case 6: { /* a part of itself again */
            m = (size_t)below(n - at > 64 ? 64 : n - at + 1);
            size_t to = (size_t)below(n ? n : 1);
            if (n + m > MAX_BYTES) break;
            uint8_t part[65];
            memcpy(part, b + at, m);
            memmove(b + to + m, b + to, n - to);
            memcpy(b + to, part, m);
            n += m;
            break;
        }
        case 7: { /* the rest of another one */
            entry *e = &corpus[below(corpus_n)];
            size_t from = (size_t)below(e->n + 1);
            m = e->n - from;
            if (at + m > MAX_BYTES) m = MAX_BYTES - at;
            memcpy(b + at, e->bytes + from, m);
            n = at + m;
            break;
        }
        default: n = n ? at + 1 : 0; /* cut off */
        }
    }
    return n;
}

int main(int argc, char **argv) {
    uint64_t runs = number_of("RUNS", 0), seconds = number_of("SECONDS", 0), seed = number_of("SEED", 20240520), done = 0;
    struct timespec now;
    for (int i = 1; i < argc; i++) add(argv[i]);
    if (!corpus_n) add_file("/dev/null");
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);
    signal(SIGPROF, on_signal);
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(keep);
    printf("%s: %zu inputs, then %" PRIu64 " mutations, SEED=%" PRIu64 "\n", argv[0], corpus_n, runs, seed);
    fflush(stdout);
    for (size_t i = 0; i < corpus_n; i++) run(corpus[i].bytes, corpus[i].n);
    state = seed ? seed : 1;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t until = now.tv_sec + (int64_t)seconds;
    uint8_t b[MAX_BYTES];
    for (; done < runs; done++) {
        if (seconds && done % 64 == 0) {
            clock_gettime(CLOCK_MONOTONIC, &now);
            if (now.tv_sec >= until) break;
        }
        entry *e = &corpus[below(corpus_n)];
        memcpy(b, e->bytes, e->n);
        run(b, mutate(b, e->n));
    }
    alarm(0);
    setitimer(ITIMER_PROF, &(struct itimerval){0}, NULL);
    printf("%s: %" PRIu64 " executions\n", argv[0], corpus_n + done);
    return 0;
}
