/* The checksum of the formats against published vectors and, in every length and alignment, against its table version; murmur2 as Kafka has it. */
#include "core.h"
#include "harness.h"

#include <sys/prctl.h>
#include <unistd.h>

TEST("crc32c gives the values of RFC 3720") {
    uint8_t b[48];
    memset(b, 0, 32);
    CHECK_EQ(sl_crc32c(0, b, 32), 0x8a9136aau);
    memset(b, 0xff, 32);
    CHECK_EQ(sl_crc32c(0, b, 32), 0x62a8ab43u);
    for (int i = 0; i < 32; i++) b[i] = (uint8_t)i;
    CHECK_EQ(sl_crc32c(0, b, 32), 0x46dd794eu);
    for (int i = 0; i < 32; i++) b[i] = (uint8_t)(31 - i);
    CHECK_EQ(sl_crc32c(0, b, 32), 0x113fdb5cu);
    CHECK_EQ(sl_crc32c(0, "123456789", 9), 0xe3069283u);
    CHECK_EQ(sl_crc32c_portable(0, "123456789", 9), 0xe3069283u);
    CHECK_EQ(sl_crc32c(0, b, 0), 0);
}

TEST("crc32c equals its table version for all lengths to 3000 and all alignments") {
    enum { MOST = 3000 };
    static uint8_t b[MOST + 16], t[MOST + 16];
    seed_random(20240501);
    for (size_t i = 0; i < sizeof b; i++) b[i] = (uint8_t)random_u64();
    for (size_t n = 0; n <= MOST; n++) {
        size_t at = n & 7;
        uint32_t from = (uint32_t)random_u64(), expected = sl_crc32c_portable(from, b + at, n);
        CHECK_EQ(sl_crc32c(from, b + at, n), expected);
        if (n % 7 == 0) for (at = 0; at < 8; at++) CHECK_EQ(sl_crc32c(from, b + at, n), sl_crc32c_portable(from, b + at, n));
        at = (n >> 3) & 7;
        memset(t, 0xee, n + 16);
        CHECK_EQ(sl_crc32c_copy(from, t + at, b + (n & 7), n), expected);
        CHECK_BYTES(t + at, b + (n & 7), n);
        CHECK_EQ(t[at + n], 0xee);
    }
}

TEST("crc32c equals its table version for large inputs and in pieces") {
    size_t most = 1 << 20;
    uint8_t *b = malloc(most);
    seed_random(20240502);
    for (size_t i = 0; i < most; i++) b[i] = (uint8_t)random_u64();
    for (int round = 0; round < 60; round++) {
        size_t n = random_below(most), cut = n ? random_below(n) : 0;
        uint32_t expected = sl_crc32c_portable(0, b, n);
        CHECK_EQ(sl_crc32c(0, b, n), expected);
        CHECK_EQ(sl_crc32c(sl_crc32c(0, b, cut), b + cut, n - cut), expected);
    }
    free(b);
}

TEST("murmur2 gives the values of Kafka's own tests") {
    static const struct { const char *text; int32_t hash; } known[] = {
        {"21", -973932308}, {"foobar", -790332482}, {"a-little-bit-long-string", -985981536}, {"a-little-bit-longer-string", -1486304829},
        {"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971}, {"abc", 479470107},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) CHECK_EQ((int32_t)sl_murmur2(known[i].text, strlen(known[i].text)), known[i].hash);
}

TEST("a process's start is known and nobody's is 0") {
    uint8_t a[16], b[16] = {0};
    uint64_t ticks = sl_start_ticks((uint32_t)getpid());
    CHECK(ticks > 0);
    prctl(PR_SET_NAME, "a) R 1 (b) 2"); /* a name that looks like more of the line */
    CHECK_EQ(sl_start_ticks((uint32_t)getpid()), ticks);
    CHECK_EQ(sl_start_ticks(0x7ffffff0), 0);
    CHECK_EQ(sl_boot_id(a), SL_OK);
    CHECK(memcmp(a, b, 16) != 0);
    for (int code = SL_E_FORKED; code <= SL_OK; code++) CHECK(strcmp(sl_strerror(code), sl_strerror(1)) != 0);
    sl_set_errno(5);
    CHECK_EQ(sl_last_errno(), 5);
    int64_t t = sl_monotonic_ns();
    CHECK_OP(sl_monotonic_ns(), >=, t);
}

HARNESS_MAIN
