/* (f) Records above half an arena: two producers that seal each other's segments for ever, and what ends it.
 *
 * Shows (non-progress cycles, pan -l -f): with a seal as soon as there is no room, a fair schedule without any append (W_NOWAIT); with a wait of
 *   fixed length shorter than a copy, the same (W_CONSTWAIT); with a wait until the copier is done, a stopped copier stops the other (W_FOREVER).
 *   With a wait of 1 << displaced before such a seal, `displaced` being one shared count that goes up with each copier displaced and back to 0 at a
 *   success, there is no such cycle, also when one producer is stopped for ever (-DSTOPS), and displaced stays <= log2(COPY) + 2 (asserted):
 *   the number of segments burnt per record is bounded.
 * Abstractions: a segment has room for one record; time is a tick that comes when everybody is either copying or waiting (so a running copier ends
 *   within COPY ticks; COPY stands for the longest preemption too). Segments, cells and recycling are in the other models.
 * Not covered: that each of them gets through (one may win always), a big record among many small ones: count and bound the displacements of one record.
 */
#ifndef COPY
#define COPY 6
#endif
#ifndef BOUND
#define BOUND 5
#endif
#define NP 2
mtype = { chunk_take, copying, cell_cas, appended, room_wait, seal_cas };
byte owner = NP;                                /* who has the room of the current segment; NP = nobody */
bool published;                                      /* his record is published */
byte displaced;
bool sealed[NP];                                /* the segment he copies into was sealed */
byte timer[NP];
bool timed[NP], stopped[NP], waits[NP];
#ifdef STOPS
bool stops = 1;
#else
bool stops;
#endif

#ifdef TRAIL
#define SAY printf("%d %e\n", me, pc);
#else
#define SAY
#endif
#define STEP(x)      :: atomic { pc == x && !stopped[me] -> SAY
#define STEPIF(x, c) :: atomic { pc == x && !stopped[me] && (c) -> SAY
#define END }

proctype Producer(byte me) {
    mtype pc = chunk_take;
    do
    STEP(chunk_take)
        if :: owner == NP -> owner = me; published = 0; sealed[me] = 0; timer[me] = COPY; timed[me] = 1; pc = copying
#ifdef W_NOWAIT
           :: else -> pc = seal_cas
#elif defined(W_CONSTWAIT)
           :: else -> timer[me] = 2; timed[me] = 1; pc = room_wait
#elif defined(W_FOREVER)
           :: else -> waits[me] = 1; pc = room_wait
#else
           :: else -> timer[me] = 1 << displaced; timed[me] = 1; pc = room_wait
#endif
        fi END
    STEPIF(copying, timer[me] == 0)     timed[me] = 0; pc = cell_cas END
    STEP(cell_cas)
        if :: sealed[me] -> 
#if defined(W_NOWAIT) || defined(W_CONSTWAIT)
                displaced = (displaced < BOUND -> displaced + 1 : BOUND)
#else
                displaced = displaced + 1; assert(displaced <= BOUND)
#endif

           :: else -> published = 1; displaced = 0; pc = appended
        fi; if :: pc != appended -> pc = chunk_take :: else -> skip fi END
    :: pc == appended ->
progress:   atomic { pc = chunk_take }
    /* the wait ends with its time, or as soon as the other has published: then there is nothing to spare */
#ifdef W_FOREVER
    STEPIF(room_wait, published || owner == NP)  waits[me] = 0; pc = seal_cas END
#else
    STEPIF(room_wait, timer[me] == 0 || published || owner == NP) timer[me] = 0; timed[me] = 0; pc = seal_cas END
#endif
    STEP(seal_cas)
        if :: owner != NP && owner != me -> if :: !published -> sealed[owner] = 1 :: else -> skip fi :: else -> skip fi;
        owner = NP; published = 0; pc = chunk_take END
    :: atomic { me == 0 && stops -> stops = 0; stopped[0] = 1; timed[0] = 0; timer[0] = 0; pc = 0 }
    od
}

#define IDLE(p) (stopped[p] || waits[p] || (timed[p] && timer[p] > 0))
proctype Clock() {
    byte p;
    do
    :: d_step { IDLE(0) && IDLE(1) ->
            for (p : 0 .. NP - 1) { if :: timed[p] && timer[p] > 0 -> timer[p]-- :: else -> skip fi } p = 0 }
    od
}
init { atomic { run Producer(0); run Producer(1); run Clock() } }
