/* (c) A memory-only topic: producers recycle what every tethered consumer has passed; a consumer registers late.
 *
 * Shows: from the moment the consumer has been told that it is registered it loses nothing, and with everybody alive nobody is stuck.
 *   Tether words do not only grow (a new one appears), so the claim has two stages: {r, me, TRY} by CAS, all tethers again, then {r, me, HELD}
 *   by CAS, or back. A trial claim may be undone by anybody (recycle_pick, UNDO), because undoing is always safe; so a claimer stopped there blocks nobody.
 *   The consumer stores its tether, then looks at the directory, then at the header: only LIVE protects it; TRY and HELD send it to the next number.
 *   A tether needs no pin beside it.
 * Not covered: several tethered consumers, the death of one, eviction of an occupied directory slot (D > B here), drop_oldest with untethered readers
 *   (those pin as in reader.pml).
 */
#define TETHER
#define CONSUMER
#define BROKERIDLE
#ifndef D
#define D 3
#endif
byte tether;                                    /* 0: none registered; else the first segment the consumer still needs */
bool holding;                                   /* ghost: the consumer has been told that it loses nothing from here on */
byte cseen[2], got;                             /* ghost: last record of each producer that the consumer saw, next offset expected */
byte sealcount;
#define nrows NP
#define SPILLED(n) (tether == 0 || tether > (n))
#define INFILE skip
#define AT_END assert(holding && (got == SUM(acked) + 1 || (got == 0 && cells[dbuf[cur % D] * NC] == 0))); \
    for (q : 0 .. NP - 1) { assert(cseen[q] == 0 || cseen[q] == acked[q]) }
#include "partition.pml"

/* by number: the oldest that is there, or the current one */
proctype Consumer(byte me) {
    mtype pc = tether_start; byte r, b, i, u; byte q;
end: do
    STEP(tether_start)              r = cur; pc = tether_store END
    STEP(tether_start)              r = FIRST; pc = tether_store END
    STEP(tether_store)              tether = r;
#ifdef W_TETHER
        if :: PRESENT(r) -> b = dbuf[r % D] :: else -> b = dbuf[cur % D]; r = cur; tether = r fi; holding = 1; pc = read_wait END
#else
        pc = tether_recheck_dir END
#endif
    STEP(tether_recheck_dir)        if :: PRESENT(r) -> b = dbuf[r % D]; pc = tether_recheck_header :: else -> r++; pc = tether_store fi END
    STEP(tether_recheck_header)     if :: onum[b] == r && oph[b] == LIVE -> holding = 1; pc = read_wait :: else -> b = 0; r++; pc = tether_store fi END
    STEPIF(read_wait, PRESENT(r))
        b = dbuf[r % D]; pc = read_cell END
    STEPIF(read_cell, cells[b * NC + i] != 0 && base[b] != UNSET)
        TOUCH(b, r); assert(PRESENT(r));
        if :: i == 0 -> assert(got == 0 || base[b] + 1 == got); got = base[b] + 1 :: else -> skip fi;
        u = cells[b * NC + i];
        if :: u == SEAL -> u = 0; i = 0; pc = tether_advance :: else -> pc = read_payload fi END
    STEP(read_payload)              TOUCH(b, r);
        q = pay[b * U + u - 1]; assert(cseen[q / 8] == 0 || q % 8 == cseen[q / 8] + 1);
        cseen[q / 8] = q % 8; got++; q = 0; u = 0; i++; pc = read_cell END
    STEP(tether_advance)            r++; b = 0; tether = r; pc = read_wait END
    od
}
