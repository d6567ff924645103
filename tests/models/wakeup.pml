/* (g) Waiting and waking (PROTOCOL.md 34-36).
 *
 * Shows: a consumer that sleeps is woken for every record, whatever the interleaving; a producer killed between its append and its wake loses
 *   nothing once the death notice has made the broker wake all (-DKILLS); a producer stopped there hides at most its own last record, and any
 *   later append of anybody else brings that one too (-DSTOPS).
 * Sizes: NP producers of Q records, NW consumers, one partition; one producer dies or stops.
 * The rule to save system calls is in: a thread skips a consumer whose word still has the value that this thread's own completed wake left.
 *   It rests on the sleeper *adding* to its word at each sleep (W_SKIPLOAD: only loading it loses a wake).
 * -DPOLLER   the sleeper is in select() on its FIFO (sl_readers_arm(), sl_readers_disarm()): a wake writes a byte if the row says *poller*; whoever disarms clears his bit,
 *   then reads the FIFO empty, then looks. W_DRAINLATE reads it empty behind the last look, and the byte of a record that came since is lost. A waker stopped before
 *   his byte writes it at any later time: readable for nothing, never the reverse.
 * A producer that waits for room takes the same steps (append_cas is then recycle_publish, or a tether that moves).
 * Not covered: several partitions behind one word (the re-check then loops over them), deadlines, wrap of the 32-bit word, weak memory: the
 *   announce and the append are RMW followed by an sc load.
 * Steps: append_cas, wake_load_bitmap, wake_look, wake_add, wake_futex; wait_look, wait_word, wait_announce, wait_recheck, wait_futex, wait_withdraw.
 */
#ifndef NP
#define NP 2
#endif
#ifndef Q
#define Q 2
#endif
#ifndef NW
#define NW 2
#endif

mtype = { append_cas, wake_load_bitmap, wake_look, wake_add, wake_futex, wait_look, wait_word, wait_announce, wait_recheck, wait_futex, wait_asleep, wait_withdraw, wait_sleeping, wait_drain, finished };

byte tail;                                       /* records in the log; an append is one CAS */
byte bitmap;
byte word[NW];                                  /* futex words */
bool asleep[NW];                                /* the kernel's queue */
#ifdef POLLER
bool fifo[NW], polls[NW];                       /* a byte is there; sl_row.sleeping says poller */
#define WAKE(c) asleep[c] = 0; fifo[c] = (how -> 1 : fifo[c]); how = 0
#define AWAKE(c) (!polls[c])
#else
#define WAKE(c) asleep[c] = 0
#define AWAKE(c) false
#endif
byte pos[NW];
bool dead[NP];
byte told = NP;                                 /* the certificate: which producer is known to be dead */
byte settled;                                   /* ghost: end of the last append whose wakes are complete */
#ifdef KILLS
bool kills = 1;
#else
bool kills;
#endif

#ifdef TRAIL
#define SAY printf("%d %e\n", me, pc);
#else
#define SAY
#endif
#define STEP(x)      :: d_step { pc == x && !dead[me] -> SAY
#define STEPIF(x, c) :: d_step { pc == x && !dead[me] && (c) -> SAY
#define WSTEP(x)      :: d_step { pc == x -> SAY
#define WSTEPIF(x, c) :: d_step { pc == x && (c) -> SAY
#define END }

#ifdef POLLER
#define HOW how = polls[c];                     /* read once, before the word moves */
#else
#define HOW
#endif

proctype Producer(byte me) {
    mtype pc = append_cas; byte n, bm, c, mine[NW], at, edge; bool how;
    d_step { for (c : 0 .. NW - 1) { mine[c] = 255 } c = 0 }
end: do
    STEP(append_cas)
#ifdef W_EDGE                                   /* wake only those for whom the log was empty */
        for (c : 0 .. NW - 1) { if :: pos[c] == tail -> edge = edge | (1 << c) :: else -> skip fi } c = 0;
#endif
        tail++; at = tail; n++; pc = wake_load_bitmap END
    STEP(wake_load_bitmap)
        bm = bitmap;
#ifdef W_EDGE
        bm = bm & edge; edge = 0;
#endif
#ifdef W_TAKEBIT                                /* the waker clears the bits it is going to serve */
        bitmap = 0;
#endif
        c = 0; pc = wake_look END
    STEPIF(wake_look, c == NW)          settled = (at > settled -> at : settled); c = 0; bm = 0; at = 0; pc = (n == Q -> finished : append_cas) END
    STEPIF(wake_look, c < NW)           if :: (bm & (1 << c)) == 0 || mine[c] == word[c] || AWAKE(c) -> c++ :: else -> HOW pc = wake_add fi END
    STEP(wake_add)                      word[c]++; mine[c] = word[c]; pc = wake_futex END
    STEP(wake_futex)                    WAKE(c); c++; pc = wake_look END
    STEP(finished)                      for (c : 0 .. NW - 1) { mine[c] = 0 } c = 0; pc = 0 END
    :: d_step { me == 0 && kills && pc != 0 -> kills = 0; dead[me] = 1; how = 0; n = 0; bm = 0; at = 0; edge = 0; for (c : 0 .. NW - 1) { mine[c] = 0 } c = 0; pc = 0 }
    od
}

#ifdef W_DRAINLATE
#define QUIET wait_drain
#else
#define QUIET wait_asleep
#endif
#ifdef POLLER
proctype Consumer(byte me) {
    mtype pc = wait_look;
end: do
#ifdef W_DRAINLATE
    WSTEP(wait_drain)                   fifo[me] = 0; pc = wait_asleep END
#else
    WSTEP(wait_drain)                   fifo[me] = 0; pc = wait_look END
#endif
    WSTEPIF(wait_look, pos[me] < tail)  pos[me] = tail; pc = wait_word END     /* poll() */
    WSTEPIF(wait_look, pos[me] == tail) pc = wait_word END
    WSTEP(wait_word)                    word[me]++; pc = wait_sleeping END
    WSTEP(wait_sleeping)                polls[me] = 1; pc = wait_announce END
    WSTEP(wait_announce)                bitmap = bitmap | (1 << me);
#ifdef W_NORECHECK
        pc = wait_asleep END
#else
        pc = wait_recheck END
#endif
    WSTEP(wait_recheck)                 if :: pos[me] < tail -> pc = wait_withdraw :: else -> pc = QUIET fi END
    WSTEPIF(wait_asleep, fifo[me])      pc = wait_withdraw END
#ifdef W_DRAINLATE
    WSTEP(wait_withdraw)                bitmap = bitmap & (255 - (1 << me)); polls[me] = 0; pc = wait_look END
#else
    WSTEP(wait_withdraw)                bitmap = bitmap & (255 - (1 << me)); polls[me] = 0; pc = wait_drain END
#endif
    od
}
#else
proctype Consumer(byte me) {
    mtype pc = wait_look; byte s;
end: do
    WSTEPIF(wait_look, pos[me] < tail)   pos[me]++ END
    WSTEPIF(wait_look, pos[me] == tail)
#ifdef W_LATEWORD
        pc = wait_announce END
#else
        pc = wait_word END
#endif
#if defined(W_SKIPLOAD) || defined(W_LATEWORD)
    WSTEP(wait_word)                    s = word[me];
#else
    WSTEP(wait_word)                    word[me]++; s = word[me];
#endif
#ifdef W_LATEWORD                               /* the word is read after the re-check */
        pc = wait_futex END
#else
        pc = wait_announce END
#endif
    WSTEP(wait_announce)                bitmap = bitmap | (1 << me);
#ifdef W_NORECHECK
        pc = wait_futex END
#else
        pc = wait_recheck END
#endif
#ifdef W_LATEWORD
    WSTEP(wait_recheck)                 pc = (pos[me] < tail -> wait_withdraw : wait_word) END
#else
    WSTEP(wait_recheck)                 pc = (pos[me] < tail -> wait_withdraw : wait_futex) END
#endif
    WSTEP(wait_futex)                   if :: word[me] == s -> asleep[me] = 1; pc = wait_asleep :: else -> pc = wait_withdraw fi; s = 0 END
    WSTEPIF(wait_asleep, !asleep[me])   pc = wait_withdraw END
    WSTEP(wait_withdraw)                bitmap = bitmap & (255 - (1 << me)); pc = wait_look END
    od
}
#endif

#ifdef POLLER
#define NOTICE fifo[q] = (polls[q] -> 1 : fifo[q]);
#else
#define NOTICE
#endif
init {
    byte q;
    atomic {
        for (q : 0 .. NP - 1) { run Producer(q) }
        for (q : 0 .. NW - 1) { run Consumer(q) }
        q = 0
    }
#ifdef KILLS
    if :: d_step { kills -> kills = 0 } :: dead[0] :: timeout fi;
#ifndef STOPS
#ifndef W_NONOTICE
    if :: dead[0] -> do :: d_step { q < NW -> word[q]++ }; d_step { NOTICE asleep[q] = 0; q++ } :: q == NW -> q = 0; break od     /* the broker wakes all */
       :: else -> skip fi;
#endif
#endif
#endif
    timeout;
    d_step {
        for (q : 0 .. NW - 1) {
#ifdef STOPS
            assert(pos[q] >= settled)           /* nothing older than the last completed append is missed by a sleeper */
#else
            assert(pos[q] == tail)
#endif
        }
    }
}
