/* The floor: a single-producer single-consumer byte ring with in-band commit words and nothing else (no offsets, no groups, no CRC, no disk, no second
 * producer, no crash safety). What shmlog costs above this is what its promises cost. */
#ifndef MINIMAL_RING_H
#define MINIMAL_RING_H
#include <stdint.h>
#include <string.h>

#ifndef RING_BYTES
#define RING_BYTES (UINT64_C(2) << 20)
#endif

typedef struct ring {
    uint64_t head;               /* consumer's position, written now and then */
    uint8_t pad0[120];
    uint64_t written;            /* producer's, private in effect */
    uint64_t head_seen;
    uint8_t pad1[112];
    uint8_t bytes[RING_BYTES];   /* records: u64 {length + 1, stored last}, payload, padded to 64; 0 = not there yet */
} ring;

static inline uint64_t ring_slot(uint32_t bytes) { return (8 + (uint64_t)bytes + 63) & ~UINT64_C(63); }

static inline int ring_put(ring *r, const void *data, uint32_t bytes) {
    uint64_t slot = ring_slot(bytes), at = r->written % RING_BYTES;
    uint64_t pad = at + slot > RING_BYTES ? RING_BYTES - at : 0;
    if (r->written + pad + slot + 64 - r->head_seen > RING_BYTES) {
        r->head_seen = __atomic_load_n(&r->head, __ATOMIC_ACQUIRE);
        if (r->written + pad + slot + 64 - r->head_seen > RING_BYTES) return 0;
    }
    if (pad) { __atomic_store_n((uint64_t *)(r->bytes + at), UINT64_MAX, __ATOMIC_RELEASE); r->written += pad; at = 0; }
    uint64_t next = (at + slot) % RING_BYTES;
    __atomic_store_n((uint64_t *)(r->bytes + next), 0, __ATOMIC_RELAXED);
    memcpy(r->bytes + at + 8, data, bytes);
    __atomic_store_n((uint64_t *)(r->bytes + at), (uint64_t)bytes + 1, __ATOMIC_RELEASE);
    r->written += slot;
    return 1;
}

/* Returns the length (payload at *data), -1 nothing. `position` is the consumer's own. */
static inline int64_t ring_get(ring *r, uint64_t *position, const uint8_t **data) {
    for (;;) {
        uint64_t at = *position % RING_BYTES, w = __atomic_load_n((uint64_t *)(r->bytes + at), __ATOMIC_ACQUIRE);
        if (w == 0) return -1;
        if (w == UINT64_MAX) { *position += RING_BYTES - at; continue; }
        *data = r->bytes + at + 8;
        *position += ring_slot((uint32_t)(w - 1));
        return (int64_t)w - 1;
    }
}
static inline void ring_release(ring *r, uint64_t position) { __atomic_store_n(&r->head, position, __ATOMIC_RELEASE); }
#endif
