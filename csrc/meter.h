/* Between meter.c and reader.c: what a poll leaves behind for `shmlog top`. */
#ifndef SHMLOG_METER_H
#define SHMLOG_METER_H
#include "atomic.h"
#include "core.h"

#define SL_METER_EVERY 16u               /* a poll of few records looks at the clock this rarely: 2 ns a record, not 30 */
#define SL_METER_MANY 64                 /* ... and each of as many as this */
#define SL_METER_RETRY 64u               /* polls that brought something until a reader without a meter looks for one again */

sl_meter *sl_meter_take(sl_cluster *cluster, uint32_t row, uint32_t block);   /* NULL: none is free */
void sl_meter_give(sl_meter *meter, uint32_t row, uint32_t block);
void sl_meter_clean(sl_cluster *cluster, uint32_t row);                        /* after the row's death, or when it is given back */

/* Only the owner writes: a load and a store are enough. */
static inline void sl_meter_note(sl_meter *m, uint64_t position, uint64_t records) {
    sl_store_relaxed(&m->position, position);
    sl_store_relaxed(&m->records, m->records + records);
}
static inline void sl_meter_age(sl_meter *m, int64_t ns) {
    uint32_t *count = &m->counts[sl_meter_bucket(ns)];
    sl_store_relaxed(count, *count + 1);
}
#endif
