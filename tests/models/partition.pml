/* One partition: NP producers, a broker that spills, looks after limbo and cleans up after the dead, and recycling by whoever claims a segment.
 * Included by append.pml, reader.pml and loan.pml, which say what is shown with which sizes. */
#ifndef NP
#define NP 2
#endif
#ifndef Q
#define Q 3
#endif
#ifndef B
#define B 2
#endif
#ifndef D
#define D 3
#endif
#ifndef NC
#define NC 3
#endif
#ifndef U
#define U 2
#endif
#ifndef Q1
#define Q1 Q                                    /* appends of all but the first producer */
#endif
#define QUOTA (me == 0 -> Q : Q1)
#ifndef VICTIM
#define VICTIM 0
#endif
#include "segment.pml"
#ifndef SPILLED
#define SPILLED(n) (splseg > (n))
#endif
#ifndef SCANWORD
#define SCANWORD(k) hz[k]
#define SCANWORDS (2 * cnt)
#endif

#ifndef PINNED
#define PINNED(x) false
#endif
#if NP == 1
#define SUM(a) a[0]
#define NAMED(x) (hz[0] == (x) || hz[1] == (x) || PINNED(x))
#elif NP == 2
#define SUM(a) (a[0] + a[1])
#define NAMED(x) (hz[0] == (x) || hz[1] == (x) || hz[2] == (x) || hz[3] == (x) || PINNED(x))
#elif NP == 3
#define SUM(a) (a[0] + a[1] + a[2])
#define NAMED(x) (hz[0] == (x) || hz[1] == (x) || hz[2] == (x) || hz[3] == (x) || hz[4] == (x) || hz[5] == (x) || PINNED(x))
#endif

#if defined(ASBUILT) && defined(KILLS)          /* by somebody whose certificate has not been seen */
#define BYROW(p, x) (!(rowdead && p == VICTIM) && (hz[2 * p] == (x) || hz[2 * p + 1] == (x)))
#define NAMEDALIVE(x) (BYROW(0, x) || BYROW(1, x) || PINNED(x))        /* two producers */
#else
#define NAMEDALIVE(x) NAMED(x)
#endif

#ifndef INFILE
#define INFILE skip
#define AT_END skip
#endif
#ifdef STOPS
#define STOPPED true
#else
#define STOPPED false
#endif

proctype Producer(byte me) {
    LOCALS; pc = START;
end: do
#include "append_steps.pml"
#include "recycle_steps.pml"
#ifdef KILLS
    /* dies (or is stopped for ever) anywhere */
    :: d_step { me == VICTIM && kills > 0 && pc != 0 ->
#ifdef LATESTORE
            if :: pc == payload_write -> lateb = b; lateu = u; lateid = ID(me, n + 1) :: else -> skip fi;
#endif
            kills--; dead[me] = 1; pc = 0; s = 0; b = 0; h = 0; u = 0; i = 0; n = 0; b2 = 0; bs = 0; won = 0; r = 0; rb = 0; k = 0; cnt = 0; t = 0; j = 0; ret = 0 }
#endif
    od
}

#define SB dbuf[splseg % D]
#ifdef ASBUILT
#define DEADROW rowdead = 1;
#ifdef W_AGAIN
#define OVER(x) true
#else
#define LIVES(q, x) (onum[q] == (x) && oph[q] != DEAD && oph[q] != POOL)
#if B == 2
#define OVER(x) !(LIVES(0, x) || LIVES(1, x))
#elif B == 3
#define OVER(x) !(LIVES(0, x) || LIVES(1, x) || LIVES(2, x))
#elif B == 4
#define OVER(x) !(LIVES(0, x) || LIVES(1, x) || LIVES(2, x) || LIVES(3, x))
#endif
#endif
/* what publish() left FREE: tried again when there is room in the directory (this look only keeps the model from turning in circles) */
#define ABSENT (!PRESENT(cur + 1) -> cur + 1 : (!PRESENT(cur + 2) -> cur + 2 : (!PRESENT(cur + 3) -> cur + 3 : cur + 4)))
#define ROOM (dbuf[(ABSENT) % D] == NONE || oph[dbuf[(ABSENT) % D]] == HELD)
#define POOLED(q) STEPIF(broker_idle, oph[q] == POOL && ROOM) HOLD(q, BROKER, HELD); rb = q; ret = broker_idle; pc = recycle_choose_cur END
#else
#define DEADROW
#endif
proctype Broker(byte me) {
    LOCALS; byte si; pc = broker_idle;
end: do
#ifndef TETHER
    STEPIF(broker_idle, PRESENT(splseg) && cells[SB * NC + si] != 0)
        if :: si == 0 -> assert(base[SB] == SUM(seen)) :: else -> skip fi;     /* base(s+1) = base(s) + end(s), offsets dense */
        u = cells[SB * NC + si];
        if :: u == SEAL -> splseg++; si = 0;
#ifdef W_LATECOUNT
                sealcount = nrows;
#endif
                INFILE
           :: else ->
                s = pay[SB * U + u - 1];                        /* exactly once, in order, with its own payload */
                assert(s / 8 < NP && s % 8 == seen[s / 8] + 1);
                seen[s / 8] = s % 8; s = 0;
#ifndef CONSUMER
                cells[SB * NC + si] = FILED; pay[SB * U + u - 1] = FILED;
#endif
                si++ fi;
        u = 0 END
#endif
#ifdef BROKERIDLE
    STEPIF(broker_idle, ANYLIMBO)       ret = broker_idle; pc = recycle_pick END
#else
    STEPIF(broker_idle, CANDIDATES)     ret = broker_idle; pc = recycle_pick END
#endif
#ifdef ASBUILT
    POOLED(0)
#if B > 1
    POOLED(1)
#endif
#if B > 2
    POOLED(2)
#endif
#if B > 3
    POOLED(3)
#endif
#endif
#if defined(SPARE) && !defined(ASBUILT)
    STEPIF(broker_idle, oph[B - 1] == POOL && !PRESENT(cur + 1)) HOLD(B - 1, BROKER, HELD); rb = B - 1; ret = broker_idle; pc = recycle_choose_cur END
#endif
#ifdef KILLS
#ifndef STOPS
    /* the death certificate: any time after the death */
    STEPIF(broker_idle, dead[VICTIM] && !cleaned[VICTIM]) cleaned[VICTIM] = 1; DEADROW k = 2 * VICTIM; pc = clean_taint END
#ifdef ASBUILT                                  /* sl_row_clean(): what is in the directory is tainted, then looked at again, then its word cleared */
    STEP(clean_taint)
        if :: hz[k] != 0 && PRESENT(hz[k]) -> rb = dbuf[hz[k] % D]; otaint[rb] = 1; pc = clean_there :: else -> pc = clean_clear fi END
    STEP(clean_there)
        if :: PRESENT(hz[k]) && dbuf[hz[k] % D] == rb && onum[rb] == hz[k] -> hz[k] = 0 :: else -> skip fi; rb = 0; pc = clean_clear END
    STEP(clean_clear)
        k++; if :: k == 2 * VICTIM + 2 -> k = 0; pc = clean_hold :: else -> pc = clean_taint fi END
    /* the second call: whatever it still names (W_AGAIN: unconditionally; the model asks that no life of that number is left to be reset) */
    STEPIF(broker_idle, cleaned[VICTIM] && hz[2 * VICTIM] != 0 && OVER(hz[2 * VICTIM])) hz[2 * VICTIM] = 0 END
    STEPIF(broker_idle, cleaned[VICTIM] && hz[2 * VICTIM + 1] != 0 && OVER(hz[2 * VICTIM + 1])) hz[2 * VICTIM + 1] = 0 END
#else
    STEP(clean_taint)       /* 1: mark what his words name, whatever its phase: each header, by number */
        if :: hz[k] != 0 && onum[rb] == hz[k] -> otaint[rb] = 1 :: else -> skip fi;
        if :: rb == B - 1 || hz[k] == 0 -> rb = 0; pc = clean_clear :: else -> rb++ fi END
    STEP(clean_clear)       /* 2: only then clear the word */
        hz[k] = 0; k++; if :: k == 2 * VICTIM + 2 -> k = 0; pc = clean_hold :: else -> pc = clean_taint fi END
#endif
    STEP(clean_hold)        /* 3: what he held, by the row in the header; {n, row, LIVE} that the directory does not name was never
                               published (another may have been, as n): a published one is HELD before it is taken out, and then the CAS below fails */
        r = onum[rb];
        if :: oph[rb] == HELD && orow[rb] == VICTIM && (dnum[r % D] == r && dbuf[r % D] == rb) -> pc = clean_takeout
#ifndef W_ORPHAN
           :: oph[rb] == HELD && orow[rb] == VICTIM && !(dnum[r % D] == r && dbuf[r % D] == rb) -> pc = clean_mark
           :: oph[rb] == LIVE && orow[rb] == VICTIM && !(dnum[r % D] == r && dbuf[r % D] == rb) -> pc = clean_mark
#endif
           :: else -> rb++; r = 0; if :: rb == B -> rb = 0; pc = broker_idle :: else -> skip fi fi END
    STEP(clean_takeout)     if :: dnum[r % D] == r && dbuf[r % D] == rb -> dbuf[r % D] = NONE :: else -> skip fi; pc = clean_mark END
    STEP(clean_mark)        if :: onum[rb] == r && orow[rb] == VICTIM && (oph[rb] == HELD || oph[rb] == LIVE) -> HOLD(rb, 0, DEAD) :: else -> skip fi; r = 0; rb++; if :: rb == B -> rb = 0; pc = broker_idle :: else -> pc = clean_hold fi END
#endif
    /* unlink a dead buffer and make a fresh one: the same index again, once no word names its life (other memory, so a late store is gone with the old) */
#ifdef LATESTORE
#define DROPLATE(q) if :: lateb == q -> lateb = 0; lateu = 0; lateid = 0 :: else -> skip fi;
#else
#define DROPLATE(q)
#endif
#define UNLINK(q) STEPIF(broker_idle, oph[q] == DEAD && !NAMED(onum[q])) HOLD(q, BROKER, HELD); DROPLATE(q) rb = q; ret = broker_idle; pc = recycle_choose_cur END
    UNLINK(0)
#if B > 1
    UNLINK(1)
#endif
#if B > 2
    UNLINK(2)
#endif
#if B > 3
    UNLINK(3)
#endif
#endif
#ifdef W_TIMEOUT
    STEPIF(broker_idle, hz[0] != 0) hz[0] = 0 END               /* "it has been silent for long": no proof of death */
#endif
#include "recycle_steps.pml"
    od
}

init {
    byte q;
    atomic {
        begin_segments(q);
        for (q : 0 .. NP - 1) { run Producer(q) }
        run Broker(NP); q = 0;
#ifdef CONSUMER
        run Consumer(NP + 1)
#endif
    }
#ifdef KILLS
    if :: timeout -> skip                       /* the death has happened */
       :: d_step { kills > 0 -> kills = 0 }; timeout
#ifdef LATESTORE
       :: d_step { lateid != 0 -> pay[lateb * U + lateu] = lateid; lateb = 0; lateu = 0; lateid = 0 }; timeout
#endif
    fi;
#else
    timeout;
#endif
    d_step {
        for (q : 0 .. NP - 1) {                 /* nobody is stuck, nothing acknowledged is missing, nothing is there twice */
            assert(dead[q] || over[q]);
#ifndef TETHER
            assert(seen[q] == acked[q] || (dead[q] && seen[q] == acked[q] + 1))
#endif
        }
        AT_END;
#ifdef KILLS
        for (q : 0 .. B - 1) {                  /* no buffer is lost for good */
            assert(!(oph[q] == HELD && dead[orow[q]]) || (STOPPED));
            assert(oph[q] != LIVE || (dnum[onum[q] % D] == onum[q] && dbuf[onum[q] % D] == q) || (STOPPED))
        }
#endif
    }
}
