/* (h) Publishing into the directory alone: which number, which slot. Segments, cells, hazard words are in the other models; here a ring of D slots is
 * gone round several times, which those are too large for, and the topic may be deleted meanwhile.
 *
 * Shows: a publisher that stops between its look at `cur` and its look at the slot, for however many turns of the ring, never puts a number into a
 *   slot that has had a later one, so no slot is ever blocked and `cur` comes to LAST (publish() in log.c);
 *   with -DDISCARD (non-progress cycles): the directory is emptied at any moment (sl_ring_discard), and every publisher ends.
 * Wrong: W_STALESLOT takes any empty slot that does not carry t itself; W_NOSTATE does not look at the partition's state while it chooses.
 * Steps: recycle_claim (with the look before it), recycle_takeout, recycle_choose_cur, recycle_choose_slot, recycle_publish; cur_cas, ring_discard.
 * Not covered: wrap of the 16 bits of a number in the directory word; the epoch in it.
 */
#ifndef D
#define D 2
#endif
#ifndef B
#define B 3
#endif
#ifndef LAST
#define LAST 8
#endif
#define NONE 15
#define LIVE 0
#define HELD 1
#define POOL 2                                  /* FREE, out of the directory */
mtype = { recycle_claim, recycle_takeout, recycle_choose_cur, recycle_choose_slot, recycle_publish, cur_cas, ring_discard };
byte cur = D, dnum[D], dbuf[D], onum[B], oph[B];
bool deleted;
#define PRESENT(n) (dnum[(n) % D] == (n) && dbuf[(n) % D] != NONE)
#ifdef TRAIL
#define SAY printf("%d %e\n", me, pc);
#else
#define SAY
#endif
#define STEP(x)      :: d_step { pc == x -> SAY
#define STEPIF(x, c) :: d_step { pc == x && (c) -> SAY
#define END }
#define CLAIM(q) STEPIF(recycle_claim, !deleted && oph[q] == LIVE && PASSED(onum[q]) && PRESENT(onum[q])) r = onum[q]; b = q; oph[q] = HELD; pc = recycle_takeout END \
    STEPIF(recycle_claim, !deleted && oph[q] == POOL && ROOM) b = q; oph[q] = HELD; pc = recycle_choose_cur END
#define PASSED(r) ((r) < cur && (r) + D > cur)  /* the numbers a recycler looks at: the ring behind cur, once round */
#define ROOM (dbuf[(cur + 1) % D] == NONE)      /* only keeps the model from turning in circles */
#define DONE t = 0; b = 0; r = 0; expected = 0; pc = recycle_claim

proctype Publisher(byte me) {
    mtype pc = recycle_claim; byte r, b, t, expected;
end: do
    CLAIM(0) CLAIM(1)
#if B > 2
    CLAIM(2)
#endif
    STEP(recycle_takeout)       if :: dnum[r % D] == r && dbuf[r % D] == b -> dbuf[r % D] = NONE :: else -> skip fi; pc = recycle_choose_cur END
    STEP(recycle_choose_cur)    t = cur + 1; pc = recycle_choose_slot END
    STEP(recycle_choose_slot)
        if
#ifndef W_NOSTATE
        :: deleted -> oph[b] = POOL; DONE
        :: !deleted && PRESENT(t) -> t++
#else
        :: PRESENT(t) -> t++
#endif
#ifdef W_STALESLOT
        :: dbuf[t % D] == NONE && dnum[t % D] != t -> expected = dnum[t % D]; pc = recycle_publish
#else
        :: dbuf[t % D] == NONE && dnum[t % D] == t - D -> expected = t - D; pc = recycle_publish
#endif
        :: dbuf[t % D] != NONE && dnum[t % D] != t -> oph[b] = POOL; DONE      /* in use: to the pool (helping is in the other models) */
        :: else -> pc = recycle_choose_cur
        fi END
    STEP(recycle_publish)
        if :: dnum[t % D] == expected && dbuf[t % D] == NONE ->
                onum[b] = t; oph[b] = LIVE; dnum[t % D] = t; dbuf[t % D] = b; DONE
           :: else -> pc = recycle_choose_cur fi END
    od
}
proctype World(byte me) {
    mtype pc = cur_cas; byte q;
end: do
    STEPIF(cur_cas, cur < LAST && PRESENT(cur + 1) && !deleted) cur++ END
#ifdef DISCARD
    STEPIF(cur_cas, !deleted) deleted = 1; for (q : 0 .. D - 1) { dbuf[q] = NONE } q = 0 END
#endif
    od
}
init {
    byte q;
    d_step {
        for (q : 0 .. D - 1) { dnum[q] = q; dbuf[q] = NONE }
        for (q : 0 .. B - 1) {
            if :: q < D -> onum[q] = D + q; dnum[q] = D + q; dbuf[q] = q :: else -> oph[q] = POOL fi
        }
        q = 0;
    }
    atomic { run Publisher(0); run Publisher(1); run World(2) }
    timeout;
    assert(cur == LAST || deleted);
}
