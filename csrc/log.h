/* Between append.c and log.c: one thread's hold on the active segment of a partition. */
#ifndef SHMLOG_LOG_H
#define SHMLOG_LOG_H
#include "core.h"

/* What a row knows of the segment it is attached to. Everything here is private to the thread; it is valid only under the segment number it was
 * taken under (step 5), and only while a hazard word names that segment. */
typedef struct sl_hold {
    sl_cluster *cluster;
    sl_row *row;
    sl_partition *p;
    sl_waits *waits;
    uint32_t row_index, block;
    uint8_t topic_id[16];
    uint32_t h;             /* which hazard word names `number` while held */
    uint64_t cur;           /* the whole word as it was when the hold was taken */
    uint64_t number;        /* 0: nothing remembered */
    sl_map *map;
    uint64_t base;          /* offset of the segment's first record */
    uint32_t index;         /* the first cell that may be empty; all below are filled */
    uint64_t prev;          /* cells[index - 1], 0 when index is 0 */
} sl_hold;

int sl_hold_init(sl_hold *hold, sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t *topic_id);
/* Steps 1-4. any: also a fenced or deleted partition (sealers, fencers). SL_OK, SL_E_FENCED, SL_E_DELETED, SL_E_DAMAGED... */
int sl_hold_take(sl_hold *hold, int any);
/* Clears the hazard word (step 7): an idle thread holds nothing. The remembered segment stays remembered. */
static inline void sl_hold_drop(sl_hold *hold);
void sl_hold_forget(sl_hold *hold);   /* unmaps what is remembered */

/* Walks to the first empty cell. 1: hold->index is empty and hold->prev its predecessor; 0: a SEAL is there (hold->prev); SL_E_DAMAGED. */
int sl_hold_walk(sl_hold *hold);
/* Writes SEAL into the first empty cell, by whomever (step "seal"). Then hold->prev is the SEAL. */
int sl_hold_seal(sl_hold *hold);
/* Steps 8-11: the held segment is sealed. SL_OK cur has moved (by whomever), SL_E_AGAIN no successor is ready. The caller takes a new hold. */
int sl_hold_rotate(sl_hold *hold);

#include "atomic.h"
static inline void sl_hold_drop(sl_hold *hold) {
    SL_FAILPOINT(hazard_clear);
    sl_store_release(&hold->row->hazard[hold->h], 0); /* SYNC hazard_clear: after the last use; pairs with the recycler's scan (acquire) */
}

/* Is a cell believable as the successor of one that ended at end_rel, in this life of the segment? Foreign bytes: reported, never asserted. */
static inline int sl_cell_plausible(uint64_t w, uint64_t number, uint32_t end_rel) {
    uint32_t type = sl_cell_type(w);
    return sl_cell_tag(w) == (number & 15) && sl_cell_rel(w) == end_rel &&
           ((type == SL_CELL_SEAL && sl_cell_count(w) == 0) || ((type == SL_CELL_DATA || type == SL_CELL_CONTROL) && sl_cell_count(w) != 0));
}
#endif
