/* (i) Leader change and fencing (PROTOCOL.md 29-33): sl_log_fence() and sl_log_open_epoch() in log.c, as built, while producers append, seal and rotate.
 *
 * Leaders have epochs 1 .. NL. The first is open at the start; each spills, syncs, moves the words, publishes ahead and recycles for as long as it lives and has
 * not heard that it is fenced. Everybody may be stopped and resumed at any step (interleaving); -DKILLS=n leaders, and with -DPKILL the first producer, may be killed.
 * Shows, in every state:
 *   bases are dense over every change, whoever opens; a segment is never opened twice; what two openers compute is the same;
 *   after sl_log_fence() has returned nobody appends until a leader opens; nobody appends under one epoch into a segment that says another;
 *   a word that a later epoch owns is not moved by an earlier one, and no word goes back;
 *   the last leader opens whatever state the others died or were stopped in, and the producers get through.
 *   And with the certificate of the predecessor before the files are looked at (sl_broker_add() asks for it): nothing leaves memory before it is in a file
 *   that counts, and no file begins below what was acknowledged as durable. Words alone cannot give that: W_NOCERT, where the predecessor lives on.
 * -DZOMBIE   no certificates: every leader may begin at any time and goes on for ever. What files say is not asserted then.
 * -DTWICE    two processes begin with the last epoch (the coordinator excludes it): the last CAS on `cur` decides.
 * -DSTOPFENCE  a leader in office may fence, in order to stop (sl_broker_fence(): with the epoch after its own).
 * Wrong: W_STALELOOK no buffer for the number that `cur` had is taken for no memory (as log.c had it: the segment may have been recycled since);
 *   W_STALENUMBER the number is kept from the look at `cur` before the fence (as log.c had it: the active segment may have been rotated since);
 *   W_PLAINEPOCH the epoch in the header of ready segments is a plain store (as log.c had it); W_NOEPOCH a CAS on `cur` that failed is repeated without a look at
 *   its epoch; W_SEALFIRST sealed, then fenced; W_BASEFIRST the end is read before the SEAL; W_NOBUMP words are read and used without being moved to the epoch;
 *   W_PLAINWORD words are stored without CAS; W_SHOWS "cur shows my epoch" taken for leadership; W_NODIR the directory words keep the old epoch; W_UNFENCED `cur` is not fenced.
 * Abstractions: a buffer for each number, so that recycling is "gone" (its safety is append.pml's, holds included: a load of `cur` is the whole attach); the cell
 *   CAS and its walk are one step; a load, a comparison of epochs and the CAS that fails if anything changed are one step, but where a wrong variant needs the two.
 * Not covered: the path without memory (a fresh block, a stray unlink); serial arithmetic of epochs; high_watermark and last_stable (moved as the two words here are;
 *   with one replica nobody reads them).
 */
#ifndef NL
#define NL 2
#endif
#ifndef NP
#define NP 1
#endif
#ifndef Q
#define Q 3
#endif
#ifndef NC
#define NC 1
#endif
#ifndef NS
#define NS 7
#endif
#ifndef KILLS
#define KILLS 0
#endif
#define AHEAD 2                                 /* directory slots beyond the active one that are moved */
#define UNSET 99
#define SPILLED 0
#define DURABLE 1

mtype = { attach_load_cur, cell_cas, seal_cas, rotate_load_dir, rotate_recheck, base_cas, cur_cas, finished,
          broker_idle, open_recover, open_load_cur, open_look, fence_load_cur, fence_cas, fence_hold, fence_seal, open_leader_epoch, open_words, open_dir, open_publish, open_ready, open_base, open_cur_cas, fence_done,
          recycle_choose_slot, recycle_publish, spill_write, advance, advance_durable, refused };

byte cure = 1, curn = 1; bool curf;             /* cur: epoch, number, fenced */
bool dirb[NS + 3]; byte dire[NS + 3];           /* directory word of each number: is a buffer there; epoch */
byte base[NS + 3], cnt[NS + 3], segepoch[NS + 3]; bool sealed[NS + 3];
byte leadepoch = 1;                             /* sl_partition.leader_epoch */
byte wepoch[2], wpos[2];                        /* words: spilled, durable */
byte fbase[NL + 1], fend[NL + 1];            /* the file of each epoch; base UNSET: none */
byte total;                                     /* ghost: records appended */
byte segof[NP * Q + 1];                         /* ghost: where each record is */
byte acting[NS + 3];                            /* ghost: the epoch under which a number became the active one */
bool shut;                                      /* ghost: sl_log_fence() has returned and nobody has opened since */
bool opened[NL + 1], gone[NL + 1];              /* gone: dead, with certificate, or resigned */
bool pdead[NP], over[NP];
byte kills = KILLS;

#ifdef TRAIL
#define SAY printf("%d %e\n", me, pc);
#else
#define SAY
#endif
#define STEP(x)      :: d_step { pc == x -> SAY
#define STEPIF(x, c) :: d_step { pc == x && (c) -> SAY
#define END }
#define MOVEON(n, e) assert(dirb[n] && segepoch[n] == (e) && base[n] == base[(n) - 1] + cnt[(n) - 1] && sealed[(n) - 1]); acting[n] = (e)

#ifdef W_STALELOOK
#define LOOKAGAIN false
#else
#define LOOKAGAIN (curn != number)
#endif
#define RECYCLABLE(r) ((r) < curn && dirb[r] && base[r] + cnt[r] <= wpos[SPILLED])
#define RECYCLE(at, r) STEPIF(at, RECYCLABLE(r)) dirb[r] = 0 END

proctype Producer(byte me) {
    mtype pc = attach_load_cur; byte s, e, n, bs;
end: do
    STEPIF(attach_load_cur, !curf && (sealed[curn] == 0 || dirb[curn + 1]))  s = curn; e = cure; pc = cell_cas END    /* the rest only keeps the model from turning in circles */
    RECYCLE(attach_load_cur, 1) RECYCLE(attach_load_cur, 2) RECYCLE(attach_load_cur, 3)
    STEP(cell_cas)
        if :: sealed[s] -> pc = rotate_load_dir
           :: !sealed[s] && cnt[s] == NC -> pc = seal_cas
           :: else -> assert(!shut && acting[s] == segepoch[s] && base[s] + cnt[s] == total);
                cnt[s]++; segof[total] = s; total++; n++; s = 0; e = 0; pc = (n == Q -> finished : attach_load_cur) fi END
    STEP(seal_cas)          sealed[s] = 1; pc = rotate_load_dir END
    STEP(rotate_load_dir)   if :: dirb[s + 1] -> pc = rotate_recheck :: else -> s = 0; e = 0; pc = attach_load_cur fi END
    STEP(rotate_recheck)    if :: cure == e && curn == s && !curf -> pc = base_cas :: else -> s = 0; e = 0; pc = attach_load_cur fi END
    STEP(base_cas)          bs = base[s] + cnt[s]; if :: base[s + 1] == UNSET -> base[s + 1] = bs :: else -> assert(base[s + 1] == bs) fi; bs = 0; pc = cur_cas END
    STEP(cur_cas)
        if :: cure == e && curn == s && !curf -> MOVEON(s + 1, e); curn = s + 1 :: else -> skip fi; s = 0; e = 0; pc = attach_load_cur END
    STEP(finished)          over[me] = 1; n = 0; pc = 0 END
#ifdef PKILL
    :: d_step { me == 0 && kills > 0 && pc != 0 -> kills--; pdead[me] = 1; s = 0; e = 0; n = 0; bs = 0; pc = 0 }
#endif
    od
}

#if defined(ZOMBIE) || defined(W_NOCERT)
#define CERTIFICATE(e) true
#else
#define CERTIFICATE(e) (gone[1] && (e == 2 || gone[2]))
#endif
#ifdef ZOMBIE
#define WEAK true
#else
#define WEAK false
#endif
/* where the files end: of two that overlap the later epoch counts from its base on */
#if NL == 2
#define FILESEND (fbase[2] != UNSET -> fend[2] : fend[1])
#else
#define FILESEND (fbase[3] != UNSET -> fend[3] : (fbase[2] != UNSET -> fend[2] : fend[1]))
#endif
#if NL == 2
#define LATEROPEN (e < 2 && opened[2])
#else
#define LATEROPEN ((e < 3 && opened[3]) || (e < 2 && opened[2]))
#endif
#ifdef W_PLAINWORD
#define ADVANCE(w, to, next) assert(!LATEROPEN && wpos[w] <= (to)); wepoch[w] = e; wpos[w] = (to); pc = next
#else
#define ADVANCE(w, to, next) if :: wepoch[w] > e -> pc = refused \
    :: else -> assert(!LATEROPEN); wepoch[w] = e; wpos[w] = (wpos[w] > (to) -> wpos[w] : (to)); pc = next fi
#endif
#define ABSENT(n) (dirb[(n) + 1] -> (n) + 2 : (n) + 1)                /* the first number that is not there */
#define PUBLISHAHEAD (curn + 2 < NS && !dirb[ABSENT(curn)] && !curf)

proctype Leader(byte me; byte e) {
    mtype pc; mtype ret; byte c, ce, s, number, given, at, d, le, k; bool cf, stops;
    if :: e == 1 -> pc = broker_idle :: else -> pc = open_recover fi;
end: do
    /* -- take office: the caller has recovered the files (and synced them) -- */
    STEPIF(open_recover, CERTIFICATE(e))
        given = FILESEND; at = given; pc = open_load_cur END
    STEP(open_load_cur)     number = curn; ret = open_leader_epoch; le = e;
#ifdef W_SEALFIRST
        sealed[curn] = 1;
#endif
#ifdef W_BASEFIRST
        s = base[curn] + cnt[curn];
#endif
        pc = open_look END
    /* no buffer in the directory: rotated and recycled since, or there is no memory (a fresh block), and then `cur` has not moved */
    STEP(open_look)         if :: dirb[number] -> pc = fence_load_cur :: else -> assert(LOOKAGAIN); ret = 0; le = 0; s = 0; pc = open_load_cur fi END
    /* -- fence(): le is the epoch it is done for -- */
    STEP(fence_load_cur)    ce = cure; cf = curf; c = curn;
        if :: (ce == le && !cf) || ce > le -> pc = refused
           :: ce == le && cf -> pc = fence_hold
           :: else -> pc = fence_cas fi END
    STEP(fence_cas)
#ifdef W_UNFENCED
        pc = fence_hold END
#elif defined(W_NOEPOCH)
        cure = le; curf = 1; pc = fence_hold END                       /* tried again with whatever was found */
#else
        if :: cure == ce && curf == cf && curn == c -> cure = le; curf = 1; pc = fence_hold :: else -> pc = fence_load_cur fi END
#endif
    STEP(fence_hold)        c = curn; ce = 0; cf = 0;
#ifdef W_SEALFIRST
        pc = ret END
#else
        pc = fence_seal END
#endif
    STEP(fence_seal)        sealed[c] = 1; pc = ret; ret = 0 END
    STEP(fence_done)        if :: curf -> shut = 1 :: else -> skip fi; c = 0; le = 0; pc = broker_idle END
    /* -- the words -- */
    STEP(open_leader_epoch)
#ifndef W_STALENUMBER
        number = c;
#endif
#ifdef W_BASEFIRST
        s = (s > given -> s : given);
#else
        s = (base[c] + cnt[c] > given -> base[c] + cnt[c] : given);       /* base of the next */
#endif
        c = 0; le = 0;
        if :: leadepoch > e -> pc = refused :: else -> leadepoch = e; k = 0; pc = open_words fi END
    STEP(open_words)
#ifndef W_NOBUMP
        if :: wepoch[k] > e -> pc = refused :: else -> wepoch[k] = e; k++ fi;
#else
        k++;
#endif
        if :: k == 2 && pc == open_words -> k = 1; pc = open_dir :: else -> skip fi END
    STEP(open_dir)
#ifndef W_NODIR
        if :: dirb[number + k] && dire[number + k] > e -> pc = refused :: else -> dire[number + k] = e; k++ fi;
#else
        k++;
#endif
        if :: k > AHEAD && pc == open_dir -> k = 0; pc = open_publish :: else -> skip fi END
    STEP(open_publish)
        if :: dirb[number + 1] -> k = 1; pc = open_ready :: else -> ret = open_publish; pc = recycle_choose_slot fi END
    STEP(open_ready)
        if :: dirb[number + k] ->
#ifdef W_PLAINEPOCH
                segepoch[number + k] = e;
#else
                segepoch[number + k] = (segepoch[number + k] > e -> segepoch[number + k] : e);
#endif
                if :: k == 1 -> pc = open_base :: else -> k++ fi
           :: else -> k = AHEAD + 1 fi;
        if :: k > AHEAD -> k = 0; pc = open_cur_cas :: else -> skip fi END
    STEP(open_base)
        if :: base[number + 1] == UNSET -> base[number + 1] = s
           :: else -> assert(base[number + 1] == s) fi; k = 2; pc = open_ready END
    STEP(open_cur_cas)
#ifdef W_SHOWS
        if :: cure == e -> 
#elif defined(W_UNFENCED)
        if :: curn == number && cure < e ->
#else
        if :: cure == e && curf && curn == number ->
#endif
                assert(!opened[e]); MOVEON(number + 1, e); curn = number + 1; curf = 0; cure = e; shut = 0; opened[e] = 1; pc = advance       /* sl_broker_add(): to where the files end */
           :: else -> pc = refused fi;
        number = 0; s = 0 END
    /* -- publish(), by the broker ahead of use or by the opener -- */
    STEP(recycle_choose_slot) c = ABSENT((ret == open_publish -> number : curn)); d = dire[c]; le = leadepoch; pc = recycle_publish END
    STEP(recycle_publish)
        if :: !dirb[c] && dire[c] == d && base[c] == UNSET -> segepoch[c] = le; dirb[c] = 1; pc = ret
           :: else -> pc = ret fi;
        c = 0; d = 0; le = 0; ret = 0 END
    /* -- in office: at is the offset to be spilled next -- */
    STEPIF(broker_idle, at < total)
        if :: dirb[segof[at]] -> pc = spill_write :: else -> assert(WEAK); at++; pc = advance fi END       /* lost, and said so (a LOST frame) */
    STEP(spill_write)
        if :: fbase[e] == UNSET -> assert(WEAK || at >= wpos[DURABLE]); fbase[e] = at :: else -> skip fi;
        at++; fend[e] = at; pc = advance END
    STEP(advance)           ADVANCE(SPILLED, at, advance_durable) END
    STEP(advance_durable)   ADVANCE(DURABLE, at, broker_idle) END
    STEPIF(broker_idle, PUBLISHAHEAD)                       /* sl_log_publish() */
        if :: leadepoch != e -> pc = refused :: else -> ret = broker_idle; pc = recycle_choose_slot fi END
    RECYCLE(broker_idle, 1) RECYCLE(broker_idle, 2) RECYCLE(broker_idle, 3)
#ifdef STOPFENCE
    STEPIF(broker_idle, !stops && e < NL && !curf) stops = 1; le = e + 1; ret = fence_done; pc = fence_load_cur END
    STEPIF(broker_idle, stops && at == total) pc = refused END      /* drained: the process ends, the next one begins behind its certificate */
#endif
    STEP(refused)           gone[e] = 1; pc = 0; ret = 0; c = 0; ce = 0; cf = 0; s = 0; number = 0; given = 0; at = 0; d = 0; le = 0; k = 0; stops = 0 END
    :: d_step { kills > 0 && pc != 0 && e < NL -> kills--; gone[e] = 1; pc = 0; ret = 0; c = 0; ce = 0; cf = 0; s = 0; number = 0; given = 0; at = 0; d = 0; le = 0; k = 0; stops = 0 }
    od
}

init {
    byte q;
    d_step {
        for (q : 0 .. NS + 2) { base[q] = UNSET } base[1] = 0; dirb[1] = 1; dirb[2] = 1;
        for (q : 1 .. 2) { dire[q] = 1; segepoch[q] = 1 } acting[1] = 1; wepoch[0] = 1; wepoch[1] = 1;
        for (q : 0 .. NL) { fbase[q] = UNSET } opened[1] = 1; q = 0;
    }
    atomic {
        for (q : 0 .. NP - 1) { run Producer(q) }
        for (q : 1 .. NL) { run Leader(NP + q - 1, q) }
#ifdef TWICE
        run Leader(NP + NL, NL);
#endif
        q = 0;
    }
    timeout;
    d_step {
        assert(curn < NS);                      /* the model has enough numbers */
        if :: kills == 0 || opened[NL] -> assert(opened[NL] || !gone[NL]) :: else -> skip fi;
        for (q : 0 .. NP - 1) { assert(over[q] || pdead[q]) }
        assert(!curf && wpos[SPILLED] == total && wpos[DURABLE] == total);
    }
}
