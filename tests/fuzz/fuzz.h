/* What the fuzz targets share: an input read as little numbers, and a check that ends the process.
 *
 * A target is a function over any bytes. It is linked by clang with libFuzzer, or by gcc with driver.c (the committed corpus, then mutations of it).
 * Most inputs are programs: a target decodes operations from them (build something right, damage it, repair a checksum so that the damage gets past
 * it, read), because bytes at random stop at the first checksum. An input that has run out reads as zeros. */
#ifndef FUZZ_H
#define FUZZ_H
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(cond) do { if (!(cond)) { fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond); abort(); } } while (0)

typedef struct input { const uint8_t *p; size_t left; } input;

static inline uint64_t take(input *in, unsigned bytes) {
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes && in->left; i++, in->p++, in->left--) v |= (uint64_t)*in->p << 8 * i;
    return v;
}
static inline uint8_t take8(input *in) { return (uint8_t)take(in, 1); }
static inline uint16_t take16(input *in) { return (uint16_t)take(in, 2); }
static inline uint32_t take32(input *in) { return (uint32_t)take(in, 4); }
static inline uint64_t take64(input *in) { return take(in, 8); }
/* A number whose size is drawn first: small ones are the likely ones, and all can be had. */
static inline uint64_t take_any(input *in) {
    uint8_t how = take8(in);
    uint64_t v = take(in, how & 7 ? how & 7 : 8);
    return how & 128 ? (uint64_t)0 - v : v;
}

/* Bytes that the optimiser may not leave unread. */
static inline void touch(const uint8_t *p, size_t n) {
    uint8_t s = 0;
    for (size_t i = 0; i < n; i++) s = (uint8_t)(s + p[i]);
    __asm__ __volatile__("" : : "r"(s));
}
#define INSIDE(p, n, from, size) MUST(!(p) || ((const uint8_t *)(p) >= (const uint8_t *)(from) && \
    (uint64_t)((const uint8_t *)(p) - (const uint8_t *)(from)) + (n) <= (uint64_t)(size)))
#endif
