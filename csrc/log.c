/* A partition's ring of segments: hold the active one, seal it, move on, reuse what nobody needs.
 *
 * `cur` names the active segment by a number that never repeats; dir[number mod 32] says in which buffer it lies. Whoever touches a segment first
 * publishes its number in a hazard word (producers, helpers, sealers) or a pin (readers) and then looks again.
 *
 * Recycling is by claim, and may be done by anybody with a row: the broker ahead of use, or a producer that finds no successor (memory-only topics at
 * full rate cannot wait for a third process to get a CPU). The buffer's own `claim` word {phase, row, number} says whose it is:
 *
 *   FREE -> HELD(me, 0)       CAS by its maker, who is about to publish it; back to FREE if there is no place for it
 *   HELD -> LIVE(n)           before dir[n] names it
 *   FREE, LIMBO -> DEAD       CAS by a broker that unlinks it (ring.c)
 *   LIVE(r) -> HELD(r, me)    CAS, once `cur` moved past r and r is wholly spilled; memory-only in two steps, LIVE -> TRY -> HELD, with a look at the
 *                             tethers between them, because a consumer that registers looks at the phase after it stored its tether. Anybody may undo a TRY
 *   HELD: dir[r] = none(r)    by the holder, or for him by whoever needs that slot: a holder that is stopped holds up one buffer and not the ring
 *   HELD: scan                after that; named by somebody alive: LIMBO, by somebody dead: DEAD
 *   HELD -> LIVE(n)           reset, then dir[n]: none(n - 32) -> n
 *   LIMBO -> HELD             whoever looks again
 *   -> DEAD                   the broker, after the death certificate of the row that the word names (sl_segment_audit): unlinked, never reused
 *
 * Since r never returns, a CAS on the claim word cannot be fooled by another life. tests/models/ checks these steps, everybody killable and stoppable at each.
 *
 *   word               written by                        orders                               left if the writer dies
 *   cur                helpers, the new leader; CAS      cur_cas sc                           the old or the new segment is active; anybody helps
 *   seg.base           helpers, CAS from UNSET           base_cas sc                          all compute the same value
 *   seg.claim          as above                          recycle_claim sc                     sl_segment_audit()
 *   dir[]              holders, helpers, publishers; CAS recycle_takeout, _publish sc         old or new
 *   seg header, cells  the holder, exclusively           plain, before recycle_publish        as seg.claim
 *   words "@"          the leader's broker, CAS + epoch  release / acquire                    an older true value
 */
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "meter.h"

static int topic_is(const sl_hold *s) { return memcmp(s->p->topic_id, s->topic_id, 16) == 0; }

int sl_hold_init(sl_hold *s, sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t *topic_id) {
    memset(s, 0, sizeof *s);
    int rc = sl_cluster_check(cluster);
    if (rc < 0) return rc;
    s->cluster = cluster;
    s->row_index = row;
    s->block = block;
    s->row = sl_cluster_row(cluster, row);
    s->p = sl_cluster_partition(cluster, block);
    s->waits = sl_cluster_waits(cluster, block);
    if (!s->row || !s->p || !s->waits) return SL_E_INVALID;
    if (topic_id) memcpy(s->topic_id, topic_id, 16);
    return SL_OK;
}

void sl_hold_forget(sl_hold *s) {
    if (s->map) sl_map_put(s->cluster, s->map);
    s->map = NULL;
    s->number = 0;
}

uint32_t sl_log_buffer(sl_partition *p, uint64_t number) {
    uint64_t d = sl_load_sc(&p->dir[number % SL_DIR_SLOTS]); /* SYNC recycle_publish */
    return sl_dir_number(d) == (number & 0xffff) ? sl_dir_buffer(d) : 0;
}

int sl_log_ready(sl_cluster *cluster, uint32_t block) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    if (!p) return SL_E_INVALID;
    uint64_t n = sl_cur_number(sl_load_acquire(&p->cur));
    int ready = 0;
    while (ready < SL_DIR_SLOTS && sl_log_buffer(p, n + 1 + (uint64_t)ready)) ready++;
    return ready;
}

int sl_hold_take(sl_hold *s, int any) {
    int rc = sl_cluster_check(s->cluster);
    if (sl_unlikely(rc < 0)) return rc;
    for (int turn = 0;; turn++) {
        SL_FAILPOINT(attach_load_cur);
        uint64_t c = sl_load_acquire(&s->p->cur);
        uint64_t n = sl_cur_number(c);
        /* After `cur`: a block given to another topic has its new id before its new `cur`. */
        if (!any) {
            if (sl_unlikely(sl_load_acquire(&s->p->state) != SL_PARTITION_LIVE || !topic_is(s))) return SL_E_DELETED;
            /* Given up by force, or swept away after all its processes were dead: this memory has no name any more, nobody would ever read it. */
            if (sl_unlikely(sl_load_acquire(&sl_cluster_control(s->cluster)->cluster_state) == SL_CLUSTER_DOWN)) return SL_E_GONE;
            if (sl_unlikely(sl_cur_fenced(c) || n == 0)) return SL_E_FENCED;
        } else if (n == 0) return SL_E_NOENT;
        sl_map *fresh = NULL;
        if (n != s->number) {
            uint32_t buffer = sl_log_buffer(s->p, n);
            rc = buffer ? sl_map_get(s->cluster, buffer, 1, &fresh) : SL_E_NOENT;
            if (rc < 0) { /* `cur` moved on between the two loads, or memory is damaged: then it does not get better */
                if (turn < 1000 && (rc == SL_E_NOENT || rc == SL_E_HALFMADE)) { sl_pause(); continue; }
                return rc == SL_E_NOENT ? SL_E_DAMAGED : rc;
            }
        }
        SL_FAILPOINT(attach_hazard);
        /* SYNC attach_hazard: store, then load `cur`; pairs with the recycler: take-out, then scan */
        sl_store_sc(&s->row->hazard[s->h], sl_pin_make(s->block, n));
        SL_FAILPOINT(attach_recheck);
        if (sl_unlikely(sl_load_sc(&s->p->cur) != c)) {
            sl_hold_drop(s);
            if (fresh) sl_map_put(s->cluster, fresh);
            continue;
        }
        s->cur = c;
        if (!fresh) return SL_OK;
        /* From here the segment cannot be recycled: what its header says of this life is stable. */
        sl_segment *seg = fresh->segment;
        uint64_t base = sl_load_acquire(&seg->base); /* SYNC base_cas */
        uint64_t hint = sl_load_acquire(&seg->hint); /* SYNC hint_store */
        uint64_t prev = 0;
        if (sl_load_relaxed(&seg->number) != n || sl_word_tag(base) != (n & 0xffff) || sl_word_offset(base) == SL_BASE_UNSET || hint >= fresh->cell_count ||
            (hint && (prev = sl_load_acquire(&fresh->cells[hint - 1])) == 0)) {
            sl_hold_drop(s);
            sl_map_put(s->cluster, fresh);
            return SL_E_DAMAGED;
        }
        sl_hold_forget(s);
        s->map = fresh;
        s->number = n;
        s->base = sl_word_offset(base);
        s->index = (uint32_t)hint;
        s->prev = prev;
        return SL_OK;
    }
}

/* ---- seal and rotate ---- */

int sl_hold_walk(sl_hold *s) {
    uint32_t last = s->map->cell_count - 1, i = s->index;
    uint64_t prev = s->prev;
    for (;; i++) {
        if (i > last) return SL_E_DAMAGED;
        uint64_t w = sl_load_acquire(&s->map->cells[i]); /* SYNC cell_cas */
        if (w != 0 && !sl_cell_plausible(w, s->number, i == 0 ? 0 : sl_cell_end(prev))) return SL_E_DAMAGED;
        if (w == 0) { s->index = i; s->prev = prev; return 1; }
        if (sl_cell_type(w) == SL_CELL_SEAL) { s->index = i; s->prev = prev; return 0; }
        prev = w;
    }
}

int sl_hold_seal(sl_hold *s) {
    for (;;) {
        int rc = sl_hold_walk(s);
        if (rc <= 0) return rc;
        uint64_t w = 0;
        uint32_t rel = s->index == 0 ? 0 : sl_cell_end(s->prev);
        SL_FAILPOINT(seal_cas);
        if (sl_cas_sc(&s->map->cells[s->index], &w, sl_cell_make(SL_CELL_SEAL, 0, rel, 0, s->number))) return SL_OK; /* SYNC seal_cas: pairs as cell_cas */
    }
}

int sl_hold_rotate(sl_hold *s) {
    uint64_t next = s->number + 1;
    uint32_t end_rel = s->index == 0 ? 0 : sl_cell_end(s->prev);
    uint32_t buffer = sl_log_buffer(s->p, next);
    if (!buffer) return sl_load_sc(&s->p->cur) == s->cur ? SL_E_AGAIN : SL_OK;
    sl_map *m;
    int rc = sl_map_get(s->cluster, buffer, 1, &m);
    if (rc == SL_E_NOENT) /* recycled meanwhile: then `cur` has moved; taken away with its topic: out of the directory first. Else its name is gone for good */
        return sl_load_sc(&s->p->cur) == s->cur && sl_log_buffer(s->p, next) == buffer ? SL_E_DAMAGED : SL_OK;
    if (rc < 0) return rc;
    uint32_t other = 1 - s->h;
    SL_FAILPOINT(rotate_hazard_next);
    sl_store_sc(&s->row->hazard[other], sl_pin_make(s->block, next)); /* SYNC rotate_hazard_next: a helper names what it writes into (flaw F2); pairs with recycle_scan */
    SL_FAILPOINT(rotate_recheck);
    rc = SL_OK;
    if (sl_load_sc(&s->p->cur) == s->cur) {
        uint64_t base = sl_word_make((uint32_t)next, SL_BASE_UNSET), mine = sl_word_make((uint32_t)next, s->base + end_rel);
        if (m->segment->number != next) rc = SL_E_DAMAGED;
        SL_FAILPOINT(base_cas);
        if (rc == SL_OK && !sl_cas_sc(&m->segment->base, &base, mine) && base != mine) rc = SL_E_DAMAGED; /* SYNC base_cas: all helpers compute the same */
        uint64_t c = s->cur;
        SL_FAILPOINT(cur_cas);
        if (rc == SL_OK) sl_cas_sc(&s->p->cur, &c, sl_cur_make(sl_cur_epoch(c), 0, next)); /* SYNC cur_cas: failure: somebody else moved it, or fenced */
    }
    sl_store_release(&s->row->hazard[other], 0); /* SYNC hazard_clear */
    sl_map_put(s->cluster, m);
    return rc;
}

int sl_log_seal(sl_cluster *cluster, uint32_t row, uint32_t block, uint64_t number) {
    sl_hold s;
    int rc = sl_hold_init(&s, cluster, row, block, NULL);
    if (rc < 0) return rc;
    rc = sl_hold_take(&s, 1);
    if (rc < 0) return rc;
    if (number == 0 || s.number == number) {
        rc = sl_hold_seal(&s);
        if (rc == SL_OK && !sl_cur_fenced(s.cur)) rc = sl_hold_rotate(&s);
        if (rc == SL_E_AGAIN) rc = SL_OK;
    }
    sl_hold_drop(&s);
    sl_hold_forget(&s);
    return rc;
}

/* ---- recycling ---- */

int64_t sl_segment_end(const sl_map *m, uint64_t number, uint32_t *end_rel, int *sealed) {
    uint64_t hint = sl_load_acquire(&m->segment->hint), prev = 0;
    if (hint >= m->cell_count) return SL_E_DAMAGED;
    if (hint && (prev = sl_load_acquire(&m->cells[hint - 1])) == 0) return SL_E_DAMAGED;
    for (uint32_t i = (uint32_t)hint; i < m->cell_count; i++) {
        uint64_t w = sl_load_acquire(&m->cells[i]);
        *end_rel = i == 0 ? 0 : sl_cell_end(prev);
        *sealed = 0;
        if (w == 0) return i;
        if (!sl_cell_plausible(w, number, *end_rel)) return SL_E_DAMAGED;
        if (sl_cell_type(w) == SL_CELL_SEAL) { *sealed = 1; return i; }
        prev = w;
    }
    return SL_E_DAMAGED;
}

/* Step 16. Who names this segment? 0 nobody, 1 a living row, 2 a row whose owner is dead (a certificate was seen). */
static int named(sl_cluster *cluster, uint64_t pin) {
    uint32_t used = sl_cluster_rows_used(cluster); /* now, not earlier: a row may have been registered since (flaw F1) */
    int by_dead = 0;
    for (uint32_t r = 0; r < used; r++) {
        sl_row *row = sl_cluster_row(cluster, r);
        if (!row) continue;
        int found = sl_load_acquire(&row->hazard[0]) == pin || sl_load_acquire(&row->hazard[1]) == pin || sl_load_acquire(&row->poll_pin) == pin;
        for (int i = 0; i < SL_VIEW_PINS; i++) found |= sl_load_acquire(&row->view_pins[i]) == pin;
        if (!found) continue;
        if (sl_load_acquire(&row->state) != SL_ROW_DEAD) return 1;
        by_dead = 1;
    }
    return by_dead ? 2 : 0;
}

/* A tether at or below `number`: memory-only topics with shmlog.full=block keep what a tethered consumer has not passed. */
static int tethered(sl_waits *waits, uint64_t number) {
    for (int i = 0; i < SL_TETHERS; i++) {
        uint64_t t = sl_load_sc(&waits->tethers[i]); /* SYNC tether: pairs with sl_reader_tether(): store, then look at the directory word */
        if (t && (t & SL_NUMBER_MASK) <= number) return 1;
    }
    return 0;
}

/* Step 18: nobody names it, we alone own it. Zeroes what was used and nothing more. */
static void reset(sl_map *m) {
    sl_segment *seg = m->segment;
    SL_FAILPOINT(recycle_reset);
    uint32_t used = 0;
    while (used < m->cell_count && m->cells[used] != 0) used++;
    memset(m->cells, 0, (size_t)used * 8);
    seg->hint = 0;
    seg->alloc_units = 0;
    seg->first_append_ns = 0;
    seg->tainted = 0;
    seg->lives++;
}

static uint64_t claim_of(sl_cluster *cluster, uint32_t row_index, uint32_t phase, uint64_t number) {
    sl_row *row = sl_cluster_row(cluster, row_index);
    return sl_claim_make(phase, row ? sl_load_relaxed(&row->generation) : 0, row_index, number);
}
static void set_claim(sl_map *m, uint64_t claim) { sl_store_release(&m->segment->claim, claim); } /* by the holder alone */

/* The offset behind the sealed segment r: from its cells, or, where those are damaged, from where its successor begins. 1 known; 0 not. */
static int end_offset(sl_cluster *cluster, sl_partition *p, uint64_t r, const sl_map *m, uint64_t *end) {
    uint32_t end_rel = 0;
    int sealed = 0;
    uint64_t base = sl_load_acquire(&m->segment->base);
    if (m->segment->number == r && sl_segment_end(m, r, &end_rel, &sealed) >= 0 && sealed) { *end = sl_word_offset(base) + end_rel; return 1; }
    sl_map *next;
    uint32_t buffer = sl_log_buffer(p, r + 1);
    if (!buffer || sl_map_get(cluster, buffer, 0, &next) < 0) return 0;
    base = sl_load_acquire(&next->segment->base); /* SYNC base_cas */
    int known = next->segment->number == r + 1 && sl_word_tag(base) == ((r + 1) & 0xffff) && sl_word_offset(base) != SL_BASE_UNSET;
    sl_map_put(cluster, next);
    *end = sl_word_offset(base);
    return known;
}

/* Step 15, by the holder of segment r or by a helper: takes it out of the directory while it is named there. Of a memory-only topic the log start moves
 * first (step 14): what leaves memory is gone, and says so. As long as the directory names r nobody resets it, so its end can be read. */
static void take_out(sl_cluster *cluster, uint32_t block, sl_partition *p, uint64_t r, sl_map *m) {
    uint64_t *slot = &p->dir[r % SL_DIR_SLOTS], d = sl_load_sc(slot);
    SL_FAILPOINT(recycle_takeout);
    while (sl_dir_number(d) == (r & 0xffff) && sl_dir_buffer(d) == m->buffer) {
        uint64_t end;
        if (!(sl_load_relaxed(&p->flags) & SL_PF_SPILL) && end_offset(cluster, p, r, m, &end)) {
            uint64_t from = sl_word_offset(sl_load_acquire(&p->log_start));
            if (sl_load_sc(slot) != d) { d = sl_load_sc(slot); continue; } /* out already: what we read may be another life */
            if (end > from) {
                /* FENCED: a new leader is just moving the words to its epoch, which it has announced before. */
                for (int turn = 0; turn < 1000; turn++)
                    if (sl_log_advance(cluster, block, SL_WORD_LOG_START, sl_load_acquire(&p->leader_epoch), end) != SL_E_FENCED) break;
                sl_fetch_add_relaxed(&p->dropped_records, end - from);
            }
        }
        if (sl_cas_sc(slot, &d, sl_dir_make(sl_dir_epoch(d), r, 0))) return; /* SYNC recycle_takeout: then scan; pairs with pin_store */
    }
}

/* The slot for number n still holds n - 32. If its holder was stopped there, do it for him. 1 look again, 0 it is in use. */
static int help_slot(sl_cluster *cluster, uint32_t block, sl_partition *p, uint64_t n) {
    uint64_t r = n - SL_DIR_SLOTS;
    uint32_t buffer = sl_log_buffer(p, r);
    sl_map *m;
    if (!buffer || sl_map_get(cluster, buffer, 1, &m) < 0) return 0;
    uint64_t w = sl_load_acquire(&m->segment->claim);
    int helped = 0;
    if (sl_claim_number(w) == r && sl_claim_phase(w) == SL_SEGMENT_HELD) { take_out(cluster, block, p, r, m); helped = 1; }
    else if (sl_claim_number(w) == r && sl_claim_phase(w) == SL_SEGMENT_TRY) sl_cas_sc(&m->segment->claim, &w, sl_claim_as(w, SL_SEGMENT_LIVE));
    sl_map_put(cluster, m);
    return helped;
}

/* Step 19: gives a reset buffer that we alone own the next number and puts it into the directory. The first absent number: one that is skipped would
 * never come. SL_OK; SL_E_AGAIN: there is no free slot, or the topic is gone; the buffer is FREE. */
static int publish(sl_cluster *cluster, uint32_t row, uint32_t block, sl_partition *p, sl_map *m) {
    sl_segment *seg = m->segment;
    memcpy(seg->topic_id, p->topic_id, 16);
    seg->partition = p->partition;
    sl_store_relaxed(&seg->block, block); /* a broker that has a stale entry of this buffer looks at it: ring.c elsewhere() */
    for (;;) {
        uint64_t n = sl_cur_number(sl_load_acquire(&p->cur)) + 1;
        while (sl_log_buffer(p, n)) n++;
        SL_FAILPOINT(recycle_choose_slot);
        uint64_t *slot = &p->dir[n % SL_DIR_SLOTS], d = sl_load_acquire(slot);
        if (sl_load_acquire(&p->state) != SL_PARTITION_LIVE) { set_claim(m, claim_of(cluster, row, SL_SEGMENT_FREE, 0)); return SL_E_AGAIN; }
        if (sl_dir_number(d) != ((n - SL_DIR_SLOTS) & 0xffff)) { /* published, or even gone, since we looked; or turns of the ring ago */
            if (sl_log_buffer(p, n) || sl_cur_number(sl_load_sc(&p->cur)) >= n) continue;
            set_claim(m, claim_of(cluster, row, SL_SEGMENT_FREE, 0)); /* the directory was emptied (sl_ring_discard): there is no log to publish into */
            return SL_E_AGAIN;
        }
        if (sl_dir_buffer(d) != 0) {
            if (help_slot(cluster, block, p, n)) continue;
            set_claim(m, claim_of(cluster, row, SL_SEGMENT_FREE, 0));
            return SL_E_AGAIN;
        }
        seg->number = n;
        seg->leader_epoch = sl_load_acquire(&p->leader_epoch);
        sl_store_relaxed(&seg->base, sl_word_make((uint32_t)n, SL_BASE_UNSET));
        set_claim(m, claim_of(cluster, row, SL_SEGMENT_LIVE, n)); /* before the directory names it: nobody may find it HELD there */
        SL_FAILPOINT(recycle_publish);
        if (sl_cas_sc(slot, &d, sl_dir_make(sl_dir_epoch(d), n, m->buffer))) return SL_OK; /* SYNC recycle_publish: releases the reset; pairs with sl_log_buffer() */
        set_claim(m, claim_of(cluster, row, SL_SEGMENT_HELD, n)); /* another took n; ours was never there */
    }
}

/* Steps 16-18 for a buffer we hold and that is out of the directory. 1: reset and ours; 0: left in LIMBO or DEAD. */
static int scan(sl_cluster *cluster, uint32_t row, uint32_t block, uint64_t r, sl_map *m) {
    sl_fence_sc();
    SL_FAILPOINT(recycle_scan);
    int who = named(cluster, sl_pin_make(block, r));
    if (who == 0 && sl_load_acquire(&m->segment->tainted)) who = 2;
    if (who) { set_claim(m, claim_of(cluster, row, who == 1 ? SL_SEGMENT_LIMBO : SL_SEGMENT_DEAD, r)); return 0; }
    reset(m);
    return 1;
}

/* Claims segment r if nobody needs it. 1: HELD by us. 0: somebody needs it. -1: not this one (claimed by another, gone). */
static int claim(sl_cluster *cluster, uint32_t row_index, sl_row *row, uint32_t block, sl_partition *p, sl_waits *waits, uint64_t r, uint64_t d, sl_map *m) {
    uint64_t *slot = &p->dir[r % SL_DIR_SLOTS], w = sl_load_acquire(&m->segment->claim);
    uint32_t flags = sl_load_relaxed(&p->flags);
    if (sl_claim_number(w) == r && sl_claim_phase(w) == SL_SEGMENT_TRY && sl_cas_sc(&m->segment->claim, &w, sl_claim_as(w, SL_SEGMENT_LIVE)))
        w = sl_claim_as(w, SL_SEGMENT_LIVE); /* somebody stopped over it */
    if (sl_claim_number(w) != r || sl_claim_phase(w) != SL_SEGMENT_LIVE) return -1;
    if (flags & SL_PF_SPILL) { /* step 14; its end is read under a hazard word, as any reader would */
        sl_store_sc(&row->hazard[0], sl_pin_make(block, r)); /* SYNC attach_hazard */
        uint64_t end = 0;
        int there = sl_load_sc(slot) == d, known = there && end_offset(cluster, p, r, m, &end);
        sl_store_release(&row->hazard[0], 0);
        if (!known) return -1; /* taken out meanwhile; or damaged, with a successor that is not there: the others are not held up */
        uint64_t safe = sl_word_offset(sl_load_acquire((flags & SL_PF_SYNC_RECYCLE) ? &p->durable : &p->spilled)); /* SYNC advance */
        if (end > safe && end > sl_word_offset(sl_load_acquire(&p->log_start))) return 0;
        SL_FAILPOINT(recycle_claim);
        return sl_cas_sc(&m->segment->claim, &w, claim_of(cluster, row_index, SL_SEGMENT_HELD, r)) ? 1 : -1; /* SYNC recycle_claim: one wins */
    }
    int lossless = !(flags & SL_PF_FULL_DROP); /* with drop_oldest a tether holds nothing */
    if (lossless && tethered(waits, r)) return 0;
    uint64_t mine = claim_of(cluster, row_index, SL_SEGMENT_TRY, r);
    SL_FAILPOINT(recycle_claim);
    if (!sl_cas_sc(&m->segment->claim, &w, mine)) return -1; /* SYNC recycle_claim: then look at the tethers; pairs with sl_reader_tether() */
    int needed = lossless && tethered(waits, r);
    SL_FAILPOINT(recycle_tethers);
    int won = sl_cas_sc(&m->segment->claim, &mine, sl_claim_as(mine, needed ? SL_SEGMENT_LIVE : SL_SEGMENT_HELD));
    return needed ? 0 : won ? 1 : -1; /* lost: somebody undid it */
}

/* Steps 13-19 on the oldest segment that nobody needs. republish: as the next segment, else it is left FREE for its maker's pool (also when the
 * directory is full). Returns its buffer id, 0 nothing to do; *republished. */
static int64_t recycle(sl_cluster *cluster, uint32_t row_index, uint32_t block, int republish, int *republished) {
    *republished = 0;
    int rc = sl_cluster_check(cluster);
    if (rc < 0) return rc;
    sl_partition *p = sl_cluster_partition(cluster, block);
    sl_waits *waits = sl_cluster_waits(cluster, block);
    sl_row *row = sl_cluster_row(cluster, row_index);
    if (!p || !row || !waits) return SL_E_INVALID;
    int64_t result = 0;
    /* Names the block, not a segment: the coordinator does not give a deleted topic's block to another while somebody is at work in it. */
    sl_store_sc(&row->hazard[1], sl_pin_make(block, SL_NUMBER_MASK));
    uint64_t active = sl_cur_number(sl_load_sc(&p->cur)); /* SYNC cur_cas: "sealed" is not enough, `cur` must have moved past (step 13) */
    for (uint64_t r = active >= SL_DIR_SLOTS ? active - SL_DIR_SLOTS + 1 : 1; r < active && !result; r++) {
        uint64_t d = sl_load_sc(&p->dir[r % SL_DIR_SLOTS]);
        if (sl_dir_number(d) != (r & 0xffff) || sl_dir_buffer(d) == 0) continue;
        if (sl_load_acquire(&p->state) != SL_PARTITION_LIVE) break;
        sl_map *m;
        if (sl_map_get(cluster, sl_dir_buffer(d), 1, &m) < 0) continue;
        int won = claim(cluster, row_index, row, block, p, waits, r, d, m);
        if (won == 1) {
            take_out(cluster, block, p, r, m);
            if (scan(cluster, row_index, block, r, m)) {
                if (republish) *republished = publish(cluster, row_index, block, p, m) == SL_OK;
                else set_claim(m, claim_of(cluster, row_index, SL_SEGMENT_FREE, 0));
                sl_fetch_add_relaxed(&p->recycled_segments, 1);
            }
            result = m->buffer;
        }
        sl_map_put(cluster, m);
        if (won == 0) break; /* the later ones are needed too */
    }
    sl_store_release(&row->hazard[1], 0);
    if (*republished) sl_wake_bits(cluster, waits->commit); /* SYNC room */
    return result;
}

int sl_log_recycle(sl_cluster *cluster, uint32_t row, uint32_t block) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    if (!p) return SL_E_INVALID;
    /* What a memory-only topic drops is gone: a producer does not shorten its history, it only goes round in it. */
    if (!(sl_load_relaxed(&p->flags) & SL_PF_SPILL) && sl_load_relaxed(&p->ring_bytes) < sl_load_relaxed(&p->ring_keep_bytes) / 4 * 3) return 0;
    int republished;
    int64_t buffer = recycle(cluster, row, block, 1, &republished);
    return buffer < 0 ? (int)buffer : republished;
}

int64_t sl_log_takeout(sl_cluster *cluster, uint32_t row, uint32_t block) {
    int republished;
    return recycle(cluster, row, block, 0, &republished);
}

int sl_limbo_retry(sl_cluster *cluster, uint32_t row, sl_map *m) {
    uint64_t w = sl_load_acquire(&m->segment->claim), r = sl_claim_number(w);
    if (sl_claim_phase(w) != SL_SEGMENT_LIMBO || !sl_cas_sc(&m->segment->claim, &w, claim_of(cluster, row, SL_SEGMENT_HELD, r))) return 0;
    uint32_t block = m->segment->block;
    if (scan(cluster, row, block, r, m)) {
        set_claim(m, claim_of(cluster, row, SL_SEGMENT_FREE, 0));
        return 1;
    }
    if (sl_segment_phase(m->segment) == SL_SEGMENT_LIMBO) return 0;
    /* DEAD. Its dead owner's words named this life only; the row may be given out again once they are gone. */
    uint64_t pin = sl_pin_make(block, r);
    for (uint32_t i = 0, used = sl_cluster_rows_used(cluster); i < used; i++) {
        sl_row *dead = sl_cluster_row(cluster, i);
        if (!dead || sl_load_acquire(&dead->state) != SL_ROW_DEAD) continue;
        uint64_t *words[3 + SL_VIEW_PINS] = {&dead->hazard[0], &dead->hazard[1], &dead->poll_pin};
        for (int k = 0; k < SL_VIEW_PINS; k++) words[3 + k] = &dead->view_pins[k];
        for (int k = 0; k < 3 + SL_VIEW_PINS; k++) { uint64_t w2 = pin; sl_cas_sc(words[k], &w2, 0); }
    }
    return 2;
}

int sl_segment_audit(sl_cluster *cluster, uint32_t row_index, uint32_t block, sl_map *m) {
    (void)row_index;
    sl_partition *p = sl_cluster_partition(cluster, block);
    if (!p) return 0;
    uint64_t w = sl_load_acquire(&m->segment->claim), n = sl_claim_number(w);
    uint32_t phase = sl_claim_phase(w);
    if (phase != SL_SEGMENT_HELD && phase != SL_SEGMENT_TRY && phase != SL_SEGMENT_LIVE) return 0;
    if (phase == SL_SEGMENT_LIVE && sl_log_buffer(p, n) == m->buffer) return 0;
    sl_row *row = sl_cluster_row(cluster, sl_claim_row(w));
    if (row && sl_load_acquire(&row->state) == SL_ROW_LIVE && (sl_load_acquire(&row->generation) & 0x1ff) == sl_claim_generation(w)) return 0;
    if (phase == SL_SEGMENT_TRY) { sl_cas_sc(&m->segment->claim, &w, sl_claim_as(w, SL_SEGMENT_LIVE)); return 0; }
    if (phase == SL_SEGMENT_HELD) take_out(cluster, block, p, n, m);
    else if (sl_log_buffer(p, n) == m->buffer) return 0; /* LIVE: published after all, before he died */
    return sl_cas_sc(&m->segment->claim, &w, sl_claim_as(w, SL_SEGMENT_DEAD));
}

int sl_log_publish(sl_cluster *cluster, uint32_t row, uint32_t block, uint32_t leader_epoch, uint32_t buffer) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    sl_waits *waits = sl_cluster_waits(cluster, block);
    if (!p || !waits) return SL_E_INVALID;
    if (sl_load_acquire(&p->leader_epoch) != leader_epoch) return SL_E_FENCED;
    sl_map *m;
    int rc = sl_map_get(cluster, buffer, 1, &m);
    if (rc < 0) return rc;
    rc = publish(cluster, row, block, p, m);
    sl_map_put(cluster, m);
    if (rc == SL_OK) sl_wake_bits(cluster, waits->commit); /* SYNC room */
    return rc;
}

int sl_row_clean(sl_cluster *cluster, uint32_t row_index) {
    sl_row *row = sl_cluster_row(cluster, row_index);
    if (!row) return SL_E_INVALID;
    int64_t now = sl_monotonic_ns();
    if (sl_load_acquire(&row->state) != SL_ROW_DEAD) sl_store_relaxed(&row->dead_ns, now);
    int again = now - sl_load_relaxed(&row->dead_ns) > INT64_C(1000000000);
    sl_store_sc(&row->state, SL_ROW_DEAD); /* a scan that finds one of its words from now on treats the segment as dead */
    uint32_t used = sl_cluster_partitions_used(cluster);
    /* Segments it died in: tainted first, then its word is cleared (step 20). What is out of the directory already is in LIMBO, and the broker's
     * retry finds the word of a dead row; those words stay until then, or until the caller comes again more than a second later: its owner has been dead for
     * that long, the certificate was there before the first call, and what a device may still have written on its behalf is written. */
    uint64_t *words[3 + SL_VIEW_PINS] = {&row->hazard[0], &row->hazard[1], &row->poll_pin};
    for (int i = 0; i < SL_VIEW_PINS; i++) words[3 + i] = &row->view_pins[i];
    int left = 0;
    for (int i = 0; i < 3 + SL_VIEW_PINS; i++) {
        uint64_t pin = sl_load_acquire(words[i]);
        if (!pin) continue;
        if ((pin & SL_NUMBER_MASK) == SL_NUMBER_MASK) { sl_store_release(words[i], 0); continue; } /* it was recycling there: sl_segment_audit() */
        uint32_t block = (uint32_t)(pin >> 40);
        sl_partition *p = sl_cluster_partition(cluster, block);
        uint32_t buffer = p ? sl_log_buffer(p, pin & SL_NUMBER_MASK) : 0;
        sl_map *m;
        if (buffer && sl_map_get(cluster, buffer, 1, &m) == SL_OK) {
            sl_store_sc(&m->segment->tainted, 1);
            SL_FAILPOINT(clean_taint);
            /* Still there? Else it was taken out meanwhile and reset, perhaps: leave the word, it names a life that is over and harms nobody. */
            int there = sl_log_buffer(p, pin & SL_NUMBER_MASK) == buffer && m->segment->number == (pin & SL_NUMBER_MASK);
            sl_map_put(cluster, m);
            if (there) { sl_store_release(words[i], 0); continue; }
        }
        if (again) sl_store_release(words[i], 0);
        else left++;
    }
    for (uint32_t b = 0; b < used; b++) {
        sl_partition *p = sl_cluster_partition(cluster, b);
        sl_waits *waits = sl_cluster_waits(cluster, b);
        if (!p || !waits) continue;
        int woke = 0;
        for (int i = 0; i < SL_TETHERS; i++) {
            uint64_t t = sl_load_acquire(&waits->tethers[i]);
            if (t && (t >> 40) == row_index + 1) { sl_cas_sc(&waits->tethers[i], &t, 0); woke = 1; }
        }
        sl_bits_clear(waits->data, row_index);
        sl_bits_clear(waits->commit, row_index);
        if (woke) sl_wake_bits(cluster, waits->commit);
    }
    sl_store_release(&row->sleeping, SL_AWAKE);
    sl_meter_clean(cluster, row_index);
    return left;
}

/* ---- epochs ---- */

/* a is later than b, in serial arithmetic of `bits` bits: epochs are cut to fit their words, and two that are alive are never half a circle apart */
static int later(uint32_t a, uint32_t b, int bits) {
    uint32_t d = (a - b) & ((1u << bits) - 1);
    return d != 0 && d < (1u << (bits - 1));
}

static uint64_t *word_of(sl_partition *p, int which) {
    switch (which) {
    case SL_WORD_HIGH_WATERMARK: return &p->high_watermark;
    case SL_WORD_LAST_STABLE: return &p->last_stable;
    case SL_WORD_SPILLED: return &p->spilled;
    case SL_WORD_DURABLE: return &p->durable;
    case SL_WORD_LOG_START: return &p->log_start;
    default: return NULL;
    }
}

int sl_log_advance(sl_cluster *cluster, uint32_t block, int which, uint32_t leader_epoch, uint64_t offset) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    uint64_t *word = p ? word_of(p, which) : NULL;
    if (!word) return SL_E_INVALID;
    uint64_t w = sl_load_acquire(word);
    for (;;) {
        if (later(sl_word_tag(w), leader_epoch & 0xffff, 16)) return SL_E_FENCED; /* a later leader owns the word: a zombie can do nothing */
        uint64_t to = sl_word_offset(w) > offset ? sl_word_offset(w) : offset; /* never back */
        if (w == sl_word_make(leader_epoch, to)) return SL_OK;
        if (sl_cas_sc(word, &w, sl_word_make(leader_epoch, to))) return SL_OK; /* SYNC advance: releases what became true; pairs with loads of the word */
    }
}

/* Steps 30-31. SL_OK: `cur` is fenced for this epoch and its segment sealed; s holds it (or number 0). */
static int fence(sl_hold *s, uint32_t leader_epoch) {
    uint64_t c = sl_load_acquire(&s->p->cur);
    for (;;) {
        uint32_t epoch = leader_epoch & 0x7fffff;
        if (sl_cur_epoch(c) == epoch && !sl_cur_fenced(c) && sl_cur_number(c) != 0) return SL_E_FENCED; /* this epoch has been opened already */
        if (later(sl_cur_epoch(c), epoch, 23)) return SL_E_FENCED;
        if (sl_cur_epoch(c) == epoch && sl_cur_fenced(c)) break; /* our own beginning, resumed */
        SL_FAILPOINT(fence_cas);
        if (sl_cas_sc(&s->p->cur, &c, sl_cur_make(epoch, 1, sl_cur_number(c)))) break; /* SYNC fence_cas */
    }
    int rc = sl_hold_take(s, 1);
    if (rc == SL_E_NOENT) return SL_OK; /* never had a segment */
    if (rc < 0) return rc;
    return sl_hold_seal(s);
}

int sl_log_fence(sl_cluster *cluster, uint32_t row, uint32_t block, uint32_t leader_epoch) {
    sl_hold s;
    int rc = sl_hold_init(&s, cluster, row, block, NULL);
    if (rc < 0) return rc;
    rc = fence(&s, leader_epoch);
    sl_hold_drop(&s);
    sl_hold_forget(&s);
    sl_wake_all(cluster, block);
    return rc;
}

int sl_log_open_epoch(sl_cluster *cluster, uint32_t row, uint32_t block, uint32_t leader_epoch, uint32_t buffer, uint64_t base_offset) {
    sl_hold s;
    int rc = sl_hold_init(&s, cluster, row, block, NULL);
    if (rc < 0) return rc;
    sl_partition *p = s.p;
    uint64_t c, number;
    int had_memory;
    for (;;) {
        c = sl_load_acquire(&p->cur);
        number = sl_cur_number(c);
        SL_FAILPOINT(open_look);
        had_memory = number != 0 && sl_log_buffer(p, number) != 0;
        if (had_memory) { /* the name of the active segment may be gone (a stray unlink): then the files are all there is, as after a reboot */
            sl_map *m;
            rc = sl_map_get(cluster, sl_log_buffer(p, number), 0, &m);
            if (rc == SL_E_NOENT) had_memory = 0;
            else if (rc == SL_OK) sl_map_put(cluster, m);
        }
        if (had_memory) {
            rc = fence(&s, leader_epoch);
            if (rc < 0) goto out;
            number = s.number; /* producers may have rotated since the look at `cur`; from the fence on nobody does */
            uint64_t end = s.base + (s.index == 0 ? 0 : sl_cell_end(s.prev));
            if (end > base_offset) base_offset = end;
            break;
        }
        /* A fresh block, or one whose old life left nothing: only the numbers go on, beyond any that stood ready (they never repeat). That there is nothing
         * holds if `cur` has not moved: else the segment may have been left and recycled since, and there is another. */
        if (number != 0 && later(sl_cur_epoch(c), leader_epoch & 0x7fffff, 23)) { rc = SL_E_FENCED; goto out; }
        if (number && !(sl_cur_fenced(c) && sl_cur_epoch(c) == (leader_epoch & 0x7fffff))) number += 2 * SL_DIR_SLOTS;
        if (sl_cas_sc(&p->cur, &c, sl_cur_make(leader_epoch, 1, number))) break; /* SYNC fence_cas */
    }
    /* A leader that was stopped here while a later one opened may not take anything back. */
    uint32_t known = sl_load_acquire(&p->leader_epoch);
    do {
        if ((int32_t)(known - leader_epoch) > 0) { rc = SL_E_FENCED; goto out; }
    } while (!sl_cas_sc(&p->leader_epoch, &known, leader_epoch));
    /* Step 32: move every word to the new epoch, then they may be read. From here the old leader's CAS fails. */
    for (int which = SL_WORD_HIGH_WATERMARK; which <= SL_WORD_LOG_START; which++) {
        uint64_t *word = word_of(p, which), w = sl_load_acquire(word);
        do {
            if (w && later(sl_word_tag(w), leader_epoch & 0xffff, 16)) { rc = SL_E_FENCED; goto out; } /* 0: of no epoch yet */
        } while (!sl_cas_sc(word, &w, sl_word_make(leader_epoch, sl_word_offset(w))));
    }
    for (uint64_t n = number + 1; n <= number + SL_DIR_SLOTS; n++) {
        uint64_t d = sl_load_acquire(&p->dir[n % SL_DIR_SLOTS]);
        uint64_t to;
        do {
            if (sl_dir_buffer(d) && later(sl_dir_epoch(d), leader_epoch & 0xff, 8)) { rc = SL_E_FENCED; goto out; }
            uint64_t keep = d & ~(UINT64_C(0xff) << 56);
            if (!had_memory) { /* "last held n - 32"; what a recycler of a deleted topic's last days put there has no name and no reader any more */
                if (sl_dir_buffer(d)) sl_segment_unlink(cluster, sl_dir_buffer(d));
                keep = sl_dir_make(0, n - SL_DIR_SLOTS, 0);
            }
            to = keep | ((uint64_t)(leader_epoch & 0xff) << 56);
        } while (!sl_cas_sc(&p->dir[n % SL_DIR_SLOTS], &d, to));
    }
    /* The successor: one that stood ready already, or the caller's buffer. Nobody can rotate into it while `cur` is fenced. */
    uint64_t next = number + 1;
    int used_buffer = 0;
    if (!sl_log_buffer(p, next)) {
        sl_map *m;
        rc = buffer ? sl_map_get(cluster, buffer, 1, &m) : SL_E_AGAIN;
        if (rc < 0) goto out;
        rc = publish(cluster, row, block, p, m);
        sl_map_put(cluster, m);
        if (rc < 0) goto out;
        used_buffer = 1;
    }
    /* Segments made ready under the old epoch belong to this one from the start. Each is named while it is written to, and its epoch only grows: by now a later
     * leader may have opened, and we may have been stopped for several lives of the buffer. */
    uint64_t *named_by = &s.row->hazard[1 - s.h];
    for (uint64_t n = next; rc >= 0 && (buffer = sl_log_buffer(p, n)) != 0; n++) {
        sl_map *m;
        if ((rc = sl_map_get(cluster, buffer, 1, &m)) < 0) break;
        sl_store_sc(named_by, sl_pin_make(block, n)); /* SYNC pin_store: then the directory again; pairs with recycle_takeout, then scan */
        SL_FAILPOINT(open_ready);
        if (sl_log_buffer(p, n) == buffer && m->segment->number == n) {
            uint32_t was = sl_load_relaxed(&m->segment->leader_epoch);
            while ((int32_t)(leader_epoch - was) > 0 && !sl_cas_sc(&m->segment->leader_epoch, &was, leader_epoch)) {}
            if (n == next) {
                uint64_t base = sl_word_make((uint32_t)next, SL_BASE_UNSET), mine = sl_word_make((uint32_t)next, base_offset);
                if (!sl_cas_sc(&m->segment->base, &base, mine) && base != mine) rc = SL_E_DAMAGED; /* SYNC base_cas */
            }
        } else rc = SL_E_FENCED; /* recycled: `cur` has moved past it, under a later leader */
        sl_map_put(cluster, m);
    }
    sl_store_release(named_by, 0); /* SYNC hazard_clear */
    if (rc < 0) goto out;
    if (!had_memory) /* nothing below base_offset is in memory, all of it is in the files */
        for (int which = SL_WORD_HIGH_WATERMARK; which <= SL_WORD_DURABLE; which++) sl_log_advance(cluster, block, which, leader_epoch, base_offset);
    c = sl_cur_make(leader_epoch, 1, number);
    SL_FAILPOINT(open_cur_cas);
    rc = sl_cas_sc(&p->cur, &c, sl_cur_make(leader_epoch, 0, next)) ? used_buffer : SL_E_FENCED; /* SYNC cur_cas: leader is only who won this */
out:
    if (s.row) sl_hold_drop(&s);
    sl_hold_forget(&s);
    sl_wake_all(cluster, block);
    return rc;
}

/* ---- offsets ---- */

int sl_log_offsets(sl_cluster *cluster, uint32_t row_index, uint32_t block, sl_offsets *out) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    if (!p) return SL_E_INVALID;
    sl_row *row = row_index == UINT32_MAX ? NULL : sl_cluster_row(cluster, row_index);
    memset(out, 0, sizeof *out);
    out->leader_epoch = sl_load_acquire(&p->leader_epoch);
    out->state = sl_load_acquire(&p->state);
    /* In this order, so that invariant 4 holds in what is returned: each was below the next when it was read. */
    out->log_start = sl_word_offset(sl_load_acquire(&p->log_start));
    out->durable = sl_word_offset(sl_load_acquire(&p->durable));
    out->spilled = sl_word_offset(sl_load_acquire(&p->spilled));
    out->last_stable = sl_word_offset(sl_load_acquire(&p->last_stable));
    out->high_watermark = sl_word_offset(sl_load_acquire(&p->high_watermark));
    for (int turn = 0;; turn++) {
        if (turn == 1000) return SL_E_DAMAGED; /* the directory does not hold the active segment, and that does not pass */
        uint64_t c = sl_load_acquire(&p->cur), n = sl_cur_number(c);
        if (n == 0) { out->end = out->spilled; break; }
        uint32_t buffer = sl_log_buffer(p, n);
        sl_map *m;
        if (!buffer && sl_cur_fenced(c) && sl_load_sc(&p->cur) == c) { out->end = out->spilled; break; } /* not opened yet, and no memory of an earlier life */
        int rc = buffer ? sl_map_get(cluster, buffer, 0, &m) : SL_E_NOENT;
        if (rc == SL_E_NOENT || rc == SL_E_HALFMADE) { sl_pause(); continue; } /* as in sl_hold_take() */
        if (rc < 0) return rc;
        if (row) sl_store_sc(&row->hazard[0], sl_pin_make(block, n)); /* SYNC attach_hazard; without a row (tools) only the second look below protects us */
        uint32_t end_rel = 0;
        int sealed, ok = 0;
        uint64_t base = 0;
        if (sl_load_sc(&p->cur) == c && m->segment->number == n) {
            base = sl_load_acquire(&m->segment->base);
            ok = sl_segment_end(m, n, &end_rel, &sealed) >= 0 && sl_word_tag(base) == (n & 0xffff) && sl_word_offset(base) != SL_BASE_UNSET;
        }
        if (row) sl_store_release(&row->hazard[0], 0);
        sl_map_put(cluster, m);
        if (!row && sl_load_sc(&p->cur) != c) continue;
        if (!ok) { if (sl_load_sc(&p->cur) == c) return SL_E_DAMAGED; continue; }
        out->end = sl_word_offset(base) + end_rel;
        break;
    }
    if (!(sl_load_relaxed(&p->flags) & SL_PF_REPLICATED)) { /* with one replica the end of the log is committed at once */
        out->high_watermark = out->last_stable = out->end;
    }
    return SL_OK;
}

/* Sleeps until *word's offset reaches `offset`; the broker wakes waits.commit. Waiters sleep, they do not spin: on few cores they would starve the broker. */
static int wait_word(sl_cluster *cluster, uint32_t row_index, uint32_t block, const uint8_t topic_id[16], int which, uint64_t offset, int64_t deadline_ns) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    sl_waits *waits = sl_cluster_waits(cluster, block);
    sl_row *row = sl_cluster_row(cluster, row_index);
    if (!p || !waits || !row) return SL_E_INVALID;
    uint64_t *word = word_of(p, which);
    uint32_t *cluster_state = &sl_cluster_control(cluster)->cluster_state;
    for (;;) {
        uint64_t reached = sl_word_offset(sl_load_acquire(word));
        /* Behind the word: what a block's next topic has made durable is no acknowledgement for this one. */
        uint32_t state = sl_load_acquire(&p->state);
        if (state == SL_PARTITION_FREE || memcmp(p->topic_id, topic_id, 16)) return SL_E_DELETED;
        if (reached >= offset) return SL_OK; /* true, though the topic may be deleted since */
        if (state != SL_PARTITION_LIVE) return SL_E_DELETED;
        if (sl_load_acquire(cluster_state) == SL_CLUSTER_DOWN) return SL_E_GONE;
        if (which == SL_WORD_HIGH_WATERMARK && (sl_load_acquire(&p->flags) & SL_PF_BELOW_MIN_ISR)) return SL_E_NOT_ENOUGH_REPLICAS;
        if (deadline_ns <= sl_monotonic_ns()) {
            uint32_t storage = sl_load_acquire(&p->storage_state);
            return storage == SL_STORAGE_DISK_FULL ? SL_E_DISK_FULL : storage == SL_STORAGE_DISK_ERROR ? SL_E_IO : SL_E_TIMEOUT;
        }
        /* SYNC sync_wanted: sc, behind the cell_cas of what we wait for; pairs with spill_batch(): cleared, then the cells */
        if (which == SL_WORD_DURABLE && !sl_load_sc(&p->sync_wanted)) sl_store_sc(&p->sync_wanted, 1);
        sl_bell_ring(cluster, sl_load_relaxed(&p->bell_process));
        uint32_t seen = sl_sleep_begin(row, SL_SLEEPS_FUTEX);
        sl_bits_set(waits->commit, row_index);
        int rc = SL_OK;
        /* Everything that somebody may have said in the meantime, to whom we were not asleep yet. */
        int below = which == SL_WORD_HIGH_WATERMARK && (sl_load_sc(&p->flags) & SL_PF_BELOW_MIN_ISR); /* SYNC below_min_isr: pairs with the coordinator, which sets the flag and then wakes all */
        if (!below && sl_word_offset(sl_load_sc(word)) < offset && sl_load_sc(&p->state) == SL_PARTITION_LIVE && sl_load_sc(cluster_state) != SL_CLUSTER_DOWN)
            rc = sl_futex_wait(&row->wake, seen, deadline_ns);
        sl_bits_clear(waits->commit, row_index);
        sl_sleep_end(row);
        if (rc < 0 && rc != SL_E_TIMEOUT) return rc;
    }
}

int sl_wait_durable(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], uint64_t offset, int64_t deadline_ns) {
    return wait_word(cluster, row, block, topic_id, SL_WORD_DURABLE, offset, deadline_ns);
}

int sl_wait_committed(sl_cluster *cluster, uint32_t row, uint32_t block, const uint8_t topic_id[16], uint64_t offset, int64_t deadline_ns) {
    sl_partition *p = sl_cluster_partition(cluster, block);
    if (!p) return SL_E_INVALID;
    if (!(sl_load_relaxed(&p->flags) & SL_PF_REPLICATED)) return SL_OK; /* appended is committed */
    return wait_word(cluster, row, block, topic_id, SL_WORD_HIGH_WATERMARK, offset, deadline_ns);
}
