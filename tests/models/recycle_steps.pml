/* Steps of whoever recycles a segment, a producer or the broker (PROTOCOL.md 13-19, but claimed by anybody).
 * The claim is a CAS on the header word {r, *, LIVE} -> {r, me, HELD}: exclusive, and free of ABA because a number never comes back.
 * -DASBUILT has publish() of log.c where that does less (append.pml says what). -DDIRCLAIM has it in the directory word instead, as first designed. The next buffer number is chosen after the buffer is in hand. */

#if defined(ASBUILT) && defined(KILLS)
#define BYDEAD bydead
#define ALIVE bydead = 0;
#else
#define BYDEAD false
#define ALIVE
#endif
#define RECYCLE_DONE r = 0; rb = 0; k = 0; cnt = 0; t = 0; pc = ret; ret = 0

/* The claim, with the looks before it (dir[r] names the buffer, cur > r, spilled): what was true then is still true if the CAS succeeds. */
#ifdef DIRCLAIM
#define CLAIM dclaim[r % D] = me + 1
#else
#define CLAIM HOLD(rb, me, CLAIMPHASE)
#endif
#ifdef W_CLAIM                                  /* a store after a look, no CAS */
#define PICK(q) STEPIF(recycle_pick, CANDIDATE(q)) r = dnum[q]; rb = dbuf[q]; pc = recycle_claim END
STEP(recycle_claim)     onum[rb] = r; HOLD(rb, me, HELD); pc = recycle_takeout END
#elif defined(TETHER)                           /* tethers come late: the look and the CAS are two steps */
#define PICK(q) STEPIF(recycle_pick, CANDIDATE(q)) r = dnum[q]; rb = dbuf[q]; pc = recycle_claim END
STEP(recycle_claim)
    if :: onum[rb] == r && oph[rb] == LIVE -> CLAIM; pc = CLAIMED :: else -> RECYCLE_DONE fi END
#elif defined(W_SCANEARLY)
#define PICK(q) STEPIF(recycle_pick, CANDIDATE(q)) r = dnum[q]; rb = dbuf[q]; CLAIM; ROWS END
#else
#define PICK(q) STEPIF(recycle_pick, CANDIDATE(q)) r = dnum[q]; rb = dbuf[q]; CLAIM; pc = CLAIMED END
#endif
#ifdef ASBUILT
#define MAYLIMBO(q) (me == BROKER && LIMBOFREE(q))      /* only the broker looks again (sl_limbo_retry) */
#define MAY (ANYDIR || (me == BROKER && ANYLIMBO))
#else
#define MAYLIMBO(q) LIMBOFREE(q)
#define MAY CANDIDATES
#endif
#define PICKLIMBO(q) STEPIF(recycle_pick, MAYLIMBO(q)) r = onum[q]; rb = q; HOLD(q, me, HELD); ROWS END
PICK(0)
PICK(1)
#if D > 2
PICK(2)
#endif
#if D > 3
PICK(3)
#endif
PICKLIMBO(0)
#if B > 1
PICKLIMBO(1)
#endif
#if B > 2
PICKLIMBO(2)
#endif
#if B > 3
PICKLIMBO(3)
#endif
STEPIF(recycle_pick, !(MAY)) RECYCLE_DONE END

#ifdef DIRCLAIM
STEP(recycle_takeout)
    if :: dnum[r % D] == r && dbuf[r % D] == rb && dclaim[r % D] == me + 1 -> dbuf[r % D] = NONE; dclaim[r % D] = 0 :: else -> assert(false) fi;
    ROWS END
#else
#ifdef TETHER
/* memory-only: a claim on trial, then the tethers again; anybody may undo a trial claim, nobody a held one */
STEP(recycle_tether_recheck)
    pc = (SPILLED(r) -> recycle_commit : recycle_unclaim) END
STEP(recycle_commit)
    if :: onum[rb] == r && orow[rb] == me && oph[rb] == TRY -> HOLD(rb, me, HELD); pc = recycle_takeout :: else -> RECYCLE_DONE fi END
STEP(recycle_unclaim)
    if :: onum[rb] == r && orow[rb] == me && oph[rb] == TRY -> HOLD(rb, 0, LIVE) :: else -> skip fi; RECYCLE_DONE END
#define UNDO(q) STEPIF(recycle_pick, oph[q] == TRY && cur > onum[q]) HOLD(q, 0, LIVE) END
UNDO(0)
#if B > 1
UNDO(1)
#endif
#if B > 2
UNDO(2)
#endif
#endif
/* helpers may have taken it out for us: the directory word then carries another number or none */
STEP(recycle_takeout)
    if :: dnum[r % D] == r && dbuf[r % D] == rb -> dbuf[r % D] = NONE :: else -> skip fi;
#ifdef W_SCANEARLY
    pc = recycle_choose_cur END
#else
    ROWS END
#endif
#endif

#ifdef W_LATECOUNT                              /* counted when the segment was sealed, not now */
STEP(recycle_rows)     cnt = sealcount; k = 0; pc = (cnt == 0 -> recycle_taint : recycle_scan) END
#else
STEP(recycle_rows)     cnt = nrows; k = 0; pc = (cnt == 0 -> recycle_taint : recycle_scan) END
#endif
STEP(recycle_scan)
#if defined(ASBUILT) && defined(KILLS)          /* a row that the certificate has reached: the segment is dead and need not wait for its word */
    if :: SCANWORD(k) == r && !(rowdead && k / 2 == VICTIM) -> pc = recycle_limbo
       :: else -> if :: SCANWORD(k) == r -> bydead = 1 :: else -> skip fi; k++;
#else
    if :: SCANWORD(k) == r -> pc = recycle_limbo
       :: else -> k++;
#endif
#ifndef SCANOWN
            if :: me != BROKER && k == 2 * me -> k = k + 2 :: else -> skip fi;
#endif
            if :: k >= SCANWORDS -> pc = recycle_taint :: else -> skip fi fi END
STEP(recycle_limbo)    HOLD(rb, 0, LIMBO); ALIVE RECYCLE_DONE END
STEP(recycle_taint)
    k = 0; cnt = 0;
#ifdef KILLS
#ifndef W_NOTAINT
    if :: otaint[rb] || BYDEAD -> HOLD(rb, 0, DEAD); ALIVE RECYCLE_DONE :: else ->
#endif
#endif
#ifdef W_SCANEARLY
    pc = recycle_takeout
#else
    pc = recycle_choose_cur
#endif
#ifdef KILLS
#ifndef W_NOTAINT
    fi
#endif
#endif
END

STEP(recycle_choose_cur)  t = cur + 1; pc = recycle_choose_slot END
/* never skip a number: whoever holds the buffer meant for the one left out may be stopped, and cur would wait for him */
#ifdef W_STALESLOT                              /* any empty slot that does not carry t: the look at cur may be one turn of the ring old */
#define SLOTFREE (dnum[t % D] != t)
#define EXPECTED cnt = dnum[t % D];
#else
#define SLOTFREE (dnum[t % D] == t - D)
#define EXPECTED cnt = t - D;
#endif
#define OCCUPIED (dnum[t % D] == t - D && dbuf[t % D] != NONE)
#ifdef ASBUILT                                  /* publish() in log.c: the first absent number; a slot in use is no reason to wait: the buffer goes to the broker's pool */
STEP(recycle_choose_slot)
    if :: PRESENT(t) -> t++
       :: !PRESENT(t) && dbuf[t % D] == NONE && SLOTFREE -> EXPECTED pc = recycle_reset
       :: OCCUPIED && oph[dbuf[t % D]] == HELD -> pc = recycle_help_takeout
       :: dbuf[t % D] != NONE && !PRESENT(t) && !(OCCUPIED && oph[dbuf[t % D]] == HELD) -> HOLD(rb, 0, POOL); RECYCLE_DONE
       :: else -> pc = recycle_choose_cur fi END
#else
STEP(recycle_choose_slot)
    if :: dnum[t % D] == t - D && dbuf[t % D] == NONE -> pc = recycle_reset
#ifndef DIRCLAIM
#ifndef W_NOHELP
       :: OCCUPIED && oph[dbuf[t % D]] == HELD -> pc = recycle_help_takeout
#endif
#ifndef W_SKIP
       :: OCCUPIED && oph[dbuf[t % D]] != HELD && cur > t - D && SPILLED(t - D) -> j = dbuf[t % D]; pc = recycle_evict_claim
#endif
#endif
       :: else -> t++; if :: t >= cur + D -> pc = recycle_choose_cur :: else -> skip fi fi END
#endif
/* a claimer stopped before his take-out must not hold the slot: anybody may do it for him */
STEP(recycle_help_takeout)
    if :: OCCUPIED -> dbuf[t % D] = NONE :: else -> skip fi;
    pc = recycle_choose_slot END
/* nobody has recycled the old segment in the slot yet: take it out without a scan, into limbo, where anybody looks again */
STEP(recycle_evict_claim)
    if :: onum[j] == t - D && oph[j] == LIVE -> HOLD(j, me, HELD); pc = recycle_evict_takeout :: else -> j = 0; pc = recycle_choose_slot fi END
STEP(recycle_evict_takeout)
    if :: OCCUPIED -> dbuf[t % D] = NONE :: else -> skip fi; pc = recycle_evict_limbo END
STEP(recycle_evict_limbo) HOLD(j, 0, LIMBO); j = 0; pc = recycle_choose_slot END

#ifdef W_PUBEARLY
STEP(recycle_reset)    onum[rb] = t; HOLD(rb, me, LIVE); pc = recycle_publish END
STEP(recycle_late_reset)
    for (j : 0 .. NC - 1) { cells[rb * NC + j] = 0 }
    for (j : 0 .. U - 1)  { pay[rb * U + j] = 0 }
    j = 0; hint[rb] = 0; alloc[rb] = 0; base[rb] = UNSET; RECYCLE_DONE END
#else
STEP(recycle_reset)
    for (j : 0 .. NC - 1) { cells[rb * NC + j] = 0 }
    for (j : 0 .. U - 1)  { pay[rb * U + j] = 0 }
    j = 0; alloc[rb] = 0; base[rb] = UNSET;
#ifndef W_HINT
    hint[rb] = 0;
#endif
#ifdef KILLS
    otaint[rb] = 0;
#endif
    onum[rb] = t; HOLD(rb, me, LIVE); pc = recycle_publish END
#endif
STEP(recycle_publish)
#ifdef ASBUILT
    if :: dnum[t % D] == cnt && dbuf[t % D] == NONE -> assert(dnum[t % D] < t);        /* a slot never goes back */
            cnt = 0; dnum[t % D] = t; dbuf[t % D] = rb;
#else
    if :: dnum[t % D] == t - D && dbuf[t % D] == NONE -> dnum[t % D] = t; dbuf[t % D] = rb;
#endif
#ifdef W_PUBEARLY
            pc = recycle_late_reset
#else
            RECYCLE_DONE
#endif
#ifdef ASBUILT
       :: else -> HOLD(rb, me, HELD); cnt = 0; pc = recycle_choose_cur fi END          /* {HELD, t}: another took t, ours was never there */
#else
       :: else -> pc = recycle_choose_cur fi END
#endif
