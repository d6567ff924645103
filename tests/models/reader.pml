/* (b) The same partition with a consumer: poll pin, one view pin, memory or file.
 *
 * Shows: the consumer gets each record once, in each producer's order, at dense bases; it never reads a reset life; the payload under a view does not
 *   change while its pin stands; all of it while anybody recycles. pin_recheck compares {number, buffer} only: a segment that is claimed but still in
 *   the directory counts as present, which is right because every scan comes after the take-out.
 * Abstractions: a segment that has left memory is read from the file in one step (the spiller's order is asserted in the broker); a look at the
 *   cells without a pin decides when a poll begins, so that the model does not turn in circles; releasing a view reads it in the same step.
 * Not covered: several views, several consumers, a consumer's death (pins are cleaned as hazard words are), log_start, waiting (wakeup.pml).
 */
#ifndef NP
#define NP 1
#endif
#define CONSUMER
byte ncons, sealcount;
byte pin[2];                                    /* poll pin, view pin */
byte cseen[NP];                                 /* ghost: records of each producer that the consumer got */
typedef Upto { byte who[NP] };
Upto file[12];                                  /* ghost: records in the file up to the end of each segment */
#define nrows (NP + ncons)
#ifdef W_PINSCAN                                /* view pin first, poll pin after: a hand-over passes the scan */
#define PIN(k) pin[2 * NP + 1 - (k)]
#else
#define PIN(k) pin[(k) - 2 * NP]
#endif
#define SCANWORD(k) ((k) < 2 * NP -> hz[k] : PIN(k))
#define SCANWORDS (2 * cnt)
#define PINNED(x) (pin[0] == (x) || pin[1] == (x))
#if NP == 1
#define INFILE file[splseg - 1 - FIRST].who[0] = seen[0]
#else
#define INFILE file[splseg - 1 - FIRST].who[0] = seen[0]; file[splseg - 1 - FIRST].who[1] = seen[1]
#endif
#define AT_END for (q : 0 .. NP - 1) { assert(dead[q] || cseen[q] == seen[q]) }     /* the consumer has got everything */
#include "partition.pml"

#define MORE (PRESENT(r) && cells[dbuf[r % D] * NC + i] != 0)       /* a look without pin, only so that the model does not turn in circles */
proctype Consumer(byte me) {
    mtype pc = row_register; byte r = FIRST, b, i, u, vb, vs, vu, vv; byte q;
end: do
    STEP(row_register)      ncons = 1; pc = read_wait END
    STEPIF(read_wait, MORE)                             b = dbuf[r % D]; pc = pin_store END
    STEPIF(read_wait, !PRESENT(r) && splseg > r)        pc = read_file END
#ifdef W_CNOREVAL
    STEP(pin_store)         pin[0] = r; pc = read_cell END
#else
    STEP(pin_store)         pin[0] = r; pc = pin_recheck END
    STEP(pin_recheck)       if :: PRESENT(r) && dbuf[r % D] == b -> pc = read_cell :: else -> pc = pin_clear fi END
#endif
    STEP(read_cell)         TOUCH(b, r);
        if :: i == 0 -> assert(cells[b * NC] == 0 || base[b] == SUM(cseen)) :: else -> skip fi;
        u = cells[b * NC + i];
        if :: u == 0 -> pc = pin_clear :: u == SEAL -> u = 0; r++; i = 0; pc = pin_clear :: else -> pc = read_payload fi END
    STEP(read_payload)      TOUCH(b, r);
        q = pay[b * U + u - 1]; assert(q / 8 < NP && q % 8 == cseen[q / 8] + 1);        /* each record once, in order */
        cseen[q / 8] = q % 8;
        if :: vs == 0 -> vb = b; vu = u - 1; vv = q;
#ifdef W_XFER
                pc = pin_clear
#else
                pc = view_pin_store
#endif
           :: else -> pc = read_cell fi;
        i++; u = 0; q = 0 END
#ifdef W_XFER
    STEP(pin_clear)         pin[0] = 0; b = 0; if :: vv != 0 && vs == 0 -> pc = view_pin_store :: else -> pc = read_wait fi END
    STEP(view_pin_store)    vs = r; pin[1] = r; pc = read_wait END
#else
    STEP(view_pin_store)    vs = r; pin[1] = r; pc = read_cell END
    STEP(pin_clear)         pin[0] = 0; b = 0; pc = read_wait END
#endif
    STEP(read_file)         for (q : 0 .. NP - 1) { assert(cseen[q] <= file[r - FIRST].who[q]); cseen[q] = file[r - FIRST].who[q] }
        q = 0; r++; i = 0; pc = read_wait END
    /* a view is looked at again at any time, then released */
    :: d_step { pc != row_register && vs != 0 && pin[1] == vs -> TOUCH(vb, vs); assert(pay[vb * U + vu] == vv); pin[1] = 0; vb = 0; vs = 0; vu = 0; vv = 0 }
    od
}
