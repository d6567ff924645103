/* The words of one partition and the steps of everybody who appends or recycles: included by the models.
 *
 * A process is a state machine: one d_step per shared access, `pc` names the next one. The names of the steps are meant to be
 * the failpoint names in C. What is merged into one step, and why nothing is lost by it:
 *   recycle_pick    load of dir[i], cur and spilled: the last two only grow, and the claim is tagged with the number of the first;
 *   recycle_reset   plain stores into a buffer that only this process may touch: TOUCH() catches anybody else at any moment;
 *   spill           a cell with its payload: nothing in an unspilled segment can be reset, and a payload is written once (asserted).
 * Numbers of segments start at D, so that the word "none" in slot i of the directory is tagged i at the start.
 * Memory is sequentially consistent here: all accesses that the protocol pairs are seq_cst or release/acquire in C.
 *
 * Sizes (each model sets them): NP producers of Q appends, B buffers, D directory slots, NC cells and U arena units a segment.
 */
#define NONE   15
#define UNSET  99
#define SEAL   14
#define NOROOM 9
#define FILED  98               /* ghost: a cell or payload that has been spilled; its value is not looked at again */

/* phase of a buffer, in one header word with the number of its life and the row of its holder */
#define LIVE  0                 /* named by the directory, or about to be by `orow` */
#define HELD  1                 /* claimed: `orow` alone decides what becomes of it */
#define LIMBO 2                 /* out of the directory, but somebody still named it: the broker looks again later */
#define DEAD  3                 /* to be unlinked, never used again */
#define POOL  4                 /* fresh memory that the broker may publish */
#define TRY   5                 /* claimed on trial, memory-only: tethers are looked at again before HELD */

#ifndef NROWS
#define NROWS NP
#endif
#define BROKER NP               /* its row in header words */
#define FIRST D

mtype = { attach_load_cur, attach_load_dir, attach_hazard, attach_recheck, chunk_take, payload_write, payload_copy, loan_pin_store, loan_pin_clear,
          hint_load, cell_cas, seal_cas, hint_store, base_read, hazard_clear, append_return,
          rotate_load_dir, rotate_wait, rotate_hazard_next, rotate_recheck, rotate_back_off, rotate_load_base, base_cas, cur_cas, rotate_clear_old,
          recycle_pick, recycle_claim, recycle_tether_recheck, recycle_commit, recycle_unclaim, recycle_takeout, recycle_rows, recycle_scan, recycle_limbo, recycle_taint,
          recycle_choose_cur, recycle_choose_slot, recycle_help_takeout, recycle_evict_claim, recycle_evict_takeout, recycle_evict_limbo, recycle_reset, recycle_publish, recycle_late_reset,
          tether_start, tether_store, tether_recheck_dir, tether_recheck_header, tether_advance, row_register, read_wait, read_load_dir, pin_store, pin_recheck, pin_clear, read_cell, read_payload, view_pin_store, read_file, early_clear, broker_idle, clean_taint, clean_there, clean_clear, clean_again, clean_hold, clean_takeout, clean_mark, finished };

byte cur = FIRST;
byte dnum[D], dbuf[D];                          /* directory word: number, buffer */
#ifdef DIRCLAIM
byte dclaim[D];                                 /* the claim as it was first designed: row + 1 in the directory word */
#endif
byte onum[B], orow[B], oph[B];                  /* header word: number, row of the holder, phase */
byte cells[B * NC], hint[B], alloc[B], base[B];
byte pay[B * U];                                /* an arena unit holds one word: who wrote it, which of his records */
byte hz[2 * NP];                                /* hazard words */
byte splseg = FIRST;                            /* published: first segment that is not wholly spilled */
byte seen[NP];                                  /* ghost: records of each producer that are in the file */
byte acked[NP];                                 /* ghost: appends that have returned */
bool over[NP];                                  /* finished all appends */
bool dead[NP + 2];                                  /* takes no further step */
#ifdef LATEREG
byte nrows;
byte sealcount;
#elif !defined(CONSUMER)
#define nrows NROWS
#endif
#ifdef KILLS
bool otaint[B];                                 /* somebody died in this life */
bool cleaned[NP];
#ifdef ASBUILT
bool rowdead;                                   /* the victim's row says DEAD: the certificate was seen */
#endif
byte kills = KILLS;                             /* deaths (with certificate) or, with STOPS, stops for ever (without), still to come */
#endif
#ifdef LATESTORE
byte lateb, lateu, lateid;                      /* a dead process' store that is still on its way (kernel, device): 0 = none */
#endif
#ifdef LOAN
byte lp[NP];                                    /* loan pin: scanned after the hazard words */
#endif

#if defined(KILLS) || defined(TETHER)
#define HOLD(b, row, phase) orow[b] = row; oph[b] = phase
#else
#define HOLD(b, row, phase) oph[b] = phase      /* the row matters only to those who clean up after a death */
#endif
#ifdef LATEREG
#define START row_register
#else
#define START attach_load_cur
#endif
#define ID(who, n)  ((who) * 8 + (n))
#define TOUCH(b, s) assert(onum[b] == s)        /* nobody reads or writes a life that is not the one he means */
#define PRESENT(n)  (dnum[(n) % D] == (n) && dbuf[(n) % D] != NONE)

#ifdef SCANOWN
#define FIRSTWORD 0
#else
#define FIRSTWORD 2                             /* own words: looked at by CANDIDATE */
#endif
#if defined(LATEREG) || defined(CONSUMER)
#define ROWS k = 0; pc = recycle_rows
#else
#define ROWS cnt = nrows; k = (me == 0 -> FIRSTWORD : 0); pc = recycle_scan         /* the number of rows is a constant here */
#endif
/* who may be recycled: a look without obligation, every part of it is checked again or never becomes false */
#ifdef DIRCLAIM
#define FREE(q, r, b) (dclaim[q] == 0)
#else
#define FREE(q, r, b) (onum[b] == (r) && oph[b] == LIVE)
#endif
#ifdef W_SCANSEALED
#define PASSED(r) true
#else
#define PASSED(r) (cur > (r))
#endif
#define CANDIDATE(q) (dbuf[q] != NONE && PASSED(dnum[q]) && SPILLED(dnum[q]) && FREE(q, dnum[q], dbuf[q]) \
                      && (me == BROKER || (hz[2 * me] != dnum[q] && hz[2 * me + 1] != dnum[q])))
#define LIMBOFREE(q) (oph[q] == LIMBO && !NAMEDALIVE(onum[q]))      /* the scan comes after; this look only keeps the model from turning in circles */
#if D == 2
#define ANYDIR (CANDIDATE(0) || CANDIDATE(1))
#elif D == 3
#define ANYDIR (CANDIDATE(0) || CANDIDATE(1) || CANDIDATE(2))
#elif D == 4
#define ANYDIR (CANDIDATE(0) || CANDIDATE(1) || CANDIDATE(2) || CANDIDATE(3))
#endif
#if B == 1
#define ANYLIMBO LIMBOFREE(0)
#elif B == 2
#define ANYLIMBO (LIMBOFREE(0) || LIMBOFREE(1))
#elif B == 3
#define ANYLIMBO (LIMBOFREE(0) || LIMBOFREE(1) || LIMBOFREE(2))
#elif B == 4
#define ANYLIMBO (LIMBOFREE(0) || LIMBOFREE(1) || LIMBOFREE(2) || LIMBOFREE(3))
#endif
#define CANDIDATES (ANYDIR || ANYLIMBO)
#ifdef ASBUILT
#define MAYRECYCLE ANYDIR
#else
#define MAYRECYCLE CANDIDATES
#endif
#ifdef TETHER
#ifdef W_NORESCAN
#define CLAIMED recycle_commit
#else
#define CLAIMED recycle_tether_recheck
#endif
#define CLAIMPHASE TRY
#else
#define CLAIMED recycle_takeout
#define CLAIMPHASE HELD
#endif

#ifdef TRAIL
#define SAY printf("%d %e\n", me, pc);
#else
#define SAY
#endif
#define STEP(x) :: d_step { pc == x && !dead[me] -> SAY
#define STEPIF(x, c) :: d_step { pc == x && !dead[me] && (c) -> SAY
#define END }

#if defined(ASBUILT) && defined(KILLS)
#define LOANLOCALS ; bool bydead
#elif defined(LOAN)
#define LOANLOCALS ; byte lb, lu, ls
#else
#define LOANLOCALS
#endif
#define LOCALS \
    mtype pc; byte s, b, h, u, i, n; byte b2, bs; bool won; \
    byte r, rb, k, cnt, t; mtype ret; byte j LOANLOCALS

inline begin_segments(q) {
    d_step {
        for (q : 0 .. D - 1) { dnum[q] = q; dbuf[q] = NONE }
        for (q : 0 .. B - 1) {
            base[q] = UNSET;
#ifdef SPARE
            if
            :: q >= B - SPARE -> oph[q] = POOL
            :: else -> onum[q] = FIRST + q; dnum[(FIRST + q) % D] = FIRST + q; dbuf[(FIRST + q) % D] = q
            fi
#else
            onum[q] = FIRST + q; dnum[(FIRST + q) % D] = FIRST + q; dbuf[(FIRST + q) % D] = q
#endif
        }
        base[0] = 0;
    }
}
