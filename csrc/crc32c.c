/* CRC32C (Castagnoli) and murmur2, the two hashes that stand in formats.
 *
 * CRC32C is chosen at run time: SSE4.2 and PCLMULQDQ on x86-64 (neither is baseline), the CRC and PMULL extensions on ARMv8, else slicing by
 * eight. The instruction takes three cycles and one can start per cycle, so from a few words on three stretches of the input run side by side;
 * multiplying the first two by x^(bits behind them) modulo the polynomial (one carry-less multiplication each, reduced together by one more crc
 * instruction) makes the three one. The powers stand in a table by number of words, so any length splits in three, not only fixed blocks. */
#define _GNU_SOURCE
#include "atomic.h"
#include "core.h"

#include <pthread.h>
#include <string.h>

/* ---- portable -------------------------------------------------------------------------------------------------------------------------- */

static uint32_t slices[8][256];
static pthread_once_t slices_made = PTHREAD_ONCE_INIT;

static void make_slices(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ UINT32_C(0x82f63b78) : c >> 1;
        slices[0][i] = c;
    }
    for (int s = 1; s < 8; s++)
        for (uint32_t i = 0; i < 256; i++) slices[s][i] = slices[s - 1][i] >> 8 ^ slices[0][slices[s - 1][i] & 255];
}

static inline uint64_t load64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

uint32_t sl_crc32c_portable(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *p = data;
    uint32_t c = ~crc;
    pthread_once(&slices_made, make_slices);
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint64_t w = load64(p) ^ c;
        c = slices[7][w & 255] ^ slices[6][w >> 8 & 255] ^ slices[5][w >> 16 & 255] ^ slices[4][w >> 24 & 255] ^ slices[3][w >> 32 & 255]
            ^ slices[2][w >> 40 & 255] ^ slices[1][w >> 48 & 255] ^ slices[0][w >> 56];
    }
    for (; bytes; bytes--) c = c >> 8 ^ slices[0][(c ^ *p++) & 255];
    return ~c;
}

static uint32_t copy_portable(uint32_t crc, void *to, const void *from, size_t bytes) {
    if (bytes) memcpy(to, from, bytes);
    return sl_crc32c_portable(crc, to, bytes);
}

/* ---- hardware -------------------------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#include <immintrin.h>
#define HARDWARE __attribute__((target("sse4.2,pclmul")))
#define crc_word(c, w) _mm_crc32_u64((c), (w))
#define crc_half(c, w) _mm_crc32_u32((uint32_t)(c), (w))
#define crc_byte(c, b) _mm_crc32_u8((uint32_t)(c), (b))
#define crc_multiply(a, b) \
    ((uint64_t)_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)(a)), _mm_cvtsi64_si128((int64_t)(b)), 0)))
static int hardware_there(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <arm_neon.h>
#include <sys/auxv.h>
#ifndef HWCAP_PMULL
#define HWCAP_PMULL (1 << 4)
#endif
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#define HARDWARE __attribute__((target("+crc+crypto")))
#define crc_word(c, w) ((uint64_t)__crc32cd((uint32_t)(c), (w)))
#define crc_half(c, w) __crc32cw((uint32_t)(c), (w))
#define crc_byte(c, b) __crc32cb((uint32_t)(c), (b))
#define crc_multiply(a, b) ((uint64_t)vmull_p64((poly64_t)(a), (poly64_t)(b)))
static int hardware_there(void) {
    unsigned long has = getauxval(AT_HWCAP);
    return (has & HWCAP_CRC32) && (has & HWCAP_PMULL);
}
#endif

#ifdef HARDWARE
#define STREAM_WORDS_MIN 5    /* three streams win from 120 bytes on, combining included (measured: 120 B 7.8 ns, one stream 10.9) */
#define STREAM_WORDS_MAX 1024
#define FUSED_COPY_MAX 128

/* powers[i] = x^(64 i - 33) modulo the polynomial, bit-reflected: times crc, through one crc instruction, it appends i words of zeros. */
static uint32_t powers[2 * STREAM_WORDS_MAX + 1];

HARDWARE static void make_powers(void) {
    powers[1] = 1; /* x^31 */
    for (size_t i = 2; i <= 2 * STREAM_WORDS_MAX; i++) powers[i] = (uint32_t)crc_word(powers[i - 1], 0);
}

HARDWARE static uint32_t crc_hardware(uint32_t crc, const void *data, size_t bytes) {
    const uint8_t *p = data;
    uint64_t c = (uint32_t)~crc;
    while (bytes >= 24 * STREAM_WORDS_MIN) {
        size_t words = bytes / 24;
        if (words > STREAM_WORDS_MAX) words = STREAM_WORDS_MAX;
        const uint8_t *q = p + 8 * words, *r = q + 8 * words, *end = q;
        uint64_t c1 = 0, c2 = 0;
        for (; p != end; p += 8, q += 8, r += 8) {
            c = crc_word(c, load64(p));
            c1 = crc_word(c1, load64(q));
            c2 = crc_word(c2, load64(r));
        }
        c = crc_word(0, crc_multiply(c, powers[2 * words]) ^ crc_multiply(c1, powers[words])) ^ c2;
        p = r;
        bytes -= 24 * words;
    }
    for (; bytes >= 8; p += 8, bytes -= 8) c = crc_word(c, load64(p));
    if (bytes & 4) {
        uint32_t h;
        memcpy(&h, p, 4);
        c = crc_half(c, h);
        p += 4;
    }
    for (bytes &= 3; bytes; bytes--) c = crc_byte(c, *p++);
    return ~(uint32_t)c;
}

/* Small copies go through the register that the CRC is taken from: no load waits for a store that has not left the store buffer yet, and the
 * CRC is of what was stored even if another thread changes `from` meanwhile. */
HARDWARE static uint32_t copy_hardware(uint32_t crc, void *to, const void *from, size_t bytes) {
    if (bytes > FUSED_COPY_MAX) {
        memcpy(to, from, bytes);
        return crc_hardware(crc, to, bytes);
    }
    const uint8_t *p = from;
    uint8_t *t = to;
    uint64_t c = (uint32_t)~crc;
    for (; bytes >= 32; p += 32, t += 32, bytes -= 32) {
#pragma GCC unroll 4
        for (int i = 0; i < 32; i += 8) { /* unrolled, and word by word: a vector would go to the stack and back to be summed */
            uint64_t w = load64(p + i);
            memcpy(t + i, &w, 8);
            c = crc_word(c, w);
        }
    }
    for (; bytes >= 8; p += 8, t += 8, bytes -= 8) {
        uint64_t w = load64(p);
        memcpy(t, &w, 8);
        c = crc_word(c, w);
    }
    if (bytes & 4) {
        uint32_t h;
        memcpy(&h, p, 4);
        memcpy(t, &h, 4);
        c = crc_half(c, h);
        p += 4;
        t += 4;
    }
    for (bytes &= 3; bytes; bytes--) {
        uint8_t b = *p++;
        *t++ = b;
        c = crc_byte(c, b);
    }
    return ~(uint32_t)c;
}
#endif

/* ---- dispatch -------------------------------------------------------------------------------------------------------------------------- */

typedef uint32_t crc_function(uint32_t, const void *, size_t);
typedef uint32_t copy_function(uint32_t, void *, const void *, size_t);
static crc_function crc_first;
static copy_function copy_first;
/* Set by the constructor, before there are threads; the *_first functions serve a constructor of somebody else that runs before ours. */
static crc_function *crc_chosen = crc_first;
static copy_function *copy_chosen = copy_first;

__attribute__((constructor)) static void choose(void) {
#ifdef HARDWARE
    if (hardware_there()) {
        make_powers();
        crc_chosen = crc_hardware;
        copy_chosen = copy_hardware;
        return;
    }
#endif
    crc_chosen = sl_crc32c_portable;
    copy_chosen = copy_portable;
}

static uint32_t crc_first(uint32_t crc, const void *data, size_t bytes) {
    choose();
    return crc_chosen(crc, data, bytes);
}
static uint32_t copy_first(uint32_t crc, void *to, const void *from, size_t bytes) {
    choose();
    return copy_chosen(crc, to, from, bytes);
}

uint32_t sl_crc32c(uint32_t crc, const void *data, size_t bytes) { return crc_chosen(crc, data, bytes); }
uint32_t sl_crc32c_copy(uint32_t crc, void *to, const void *from, size_t bytes) { return copy_chosen(crc, to, from, bytes); }

/* ---- murmur2 --------------------------------------------------------------------------------------------------------------------------- */

uint32_t sl_murmur2(const void *data, size_t bytes) {
    const uint8_t *p = data;
    const uint32_t m = UINT32_C(0x5bd1e995);
    uint32_t h = UINT32_C(0x9747b28c) ^ (uint32_t)bytes;
    for (; bytes >= 4; p += 4, bytes -= 4) {
        uint32_t k;
        memcpy(&k, p, 4);
        k *= m;
        k ^= k >> 24;
        k *= m;
        h = h * m ^ k;
    }
    if (bytes == 3) h ^= (uint32_t)p[2] << 16;
    if (bytes >= 2) h ^= (uint32_t)p[1] << 8;
    if (bytes >= 1) h = (h ^ p[0]) * m;
    h ^= h >> 13;
    h *= m;
    return h ^ h >> 15;
}
