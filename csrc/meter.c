/* The log measures itself: how old records are when they are read, and how far readers are.
 *
 * A meter belongs to one reader of one partition: it alone writes it, on lines of its own, with plain stores; `shmlog top` reads. It takes one when it has
 * read something for the first time, and lets go of it when it closes; after its death sl_row_clean() does. What is left if it dies between two stores is a
 * count that lacks one. Nobody waits for a meter: where none is free the reader goes unmeasured and looks again later.
 *
 *   owner   {row + 1 : 32 | block : 32}, by CAS from 0        SYNC meter_owner: contents are of this owner behind an acquire of it, and of `claims`
 *   claims  +1 by whoever takes it, before it clears the counts: a reader of meters that sees another number begins anew */
#include <string.h>

#include "meter.h"

#define SUB_BITS 2u                      /* buckets an octave: 4, so that a percentile is right within 10 % */

uint32_t sl_meter_bucket(int64_t ns) {
    if (ns < (INT64_C(1) << SL_METER_LOW_BITS)) return 0; /* also what a clock that was set back makes of it */
    uint32_t e = 63 - (uint32_t)__builtin_clzll((uint64_t)ns);
    uint32_t sub = (uint32_t)(ns >> (e - SUB_BITS)) & 3;
    uint32_t bucket = ((e - SL_METER_LOW_BITS) << SUB_BITS) + sub + 1;
    return bucket < SL_METER_BUCKETS ? bucket : SL_METER_BUCKETS - 1;
}

int64_t sl_meter_bound_ns(uint32_t bucket) {
    if (bucket == 0) return 0;
    bucket--;
    return (int64_t)(4 + (bucket & 3)) << ((bucket >> SUB_BITS) + SL_METER_LOW_BITS - SUB_BITS);
}

sl_meter *sl_meter_take(sl_cluster *cluster, uint32_t row, uint32_t block) {
    uint32_t n = sl_cluster_meters(cluster);
    for (uint32_t i = 0; i < n; i++) {
        sl_meter *m = sl_cluster_meter(cluster, i);
        uint64_t none = 0;
        if (!m || sl_load_relaxed(&m->owner) || !sl_cas_sc(&m->owner, &none, ((uint64_t)(row + 1) << 32) | block)) continue;
        sl_fetch_add_sc(&m->claims, 1);
        sl_store_relaxed(&m->position, 0);
        sl_store_relaxed(&m->records, 0);
        for (uint32_t b = 0; b < SL_METER_BUCKETS; b++) sl_store_relaxed(&m->counts[b], 0);
        return m;
    }
    return NULL;
}

void sl_meter_give(sl_meter *m, uint32_t row, uint32_t block) {
    uint64_t mine = ((uint64_t)(row + 1) << 32) | block;
    sl_cas_sc(&m->owner, &mine, 0); /* SYNC meter_owner: unless the row was cleaned before, and it is another's by now */
}

void sl_meter_clean(sl_cluster *cluster, uint32_t row) {
    for (uint32_t i = 0, n = sl_cluster_meters(cluster); i < n; i++) {
        sl_meter *m = sl_cluster_meter(cluster, i);
        uint64_t owner = m ? sl_load_acquire(&m->owner) : 0;
        if (owner >> 32 == row + 1) sl_cas_sc(&m->owner, &owner, 0);
    }
}

uint32_t sl_meters_taken(sl_cluster *cluster) {
    uint32_t taken = 0;
    for (uint32_t i = 0, n = sl_cluster_meters(cluster); i < n; i++) {
        sl_meter *m = sl_cluster_meter(cluster, i);
        if (m && sl_load_relaxed(&m->owner)) taken++;
    }
    return taken;
}
