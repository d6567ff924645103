/* (e) A loan that is displaced by a seal: the first producer's records exist only in their chunk.
 *
 * Shows: the bytes are copied from the old chunk while it is still the loan's own, through any number of rotations.
 *   Two hazard words are not enough: with one on the old chunk and one on a new segment that is full already, there is none left to rotate with. So the
 *   loan has a pin of its own, stored while the hazard word still names the segment, scanned after the hazard words, cleared after the copy.
 *   A loan keeps one buffer from use: with a pool of two everybody is stuck (loan/pool-of-two), so a loan counts in the size of the pool.
 * Not covered: several loans of one producer, deaths with a loan out.
 */
#define LOAN
#ifndef NP
#define NP 2
#endif
#define SCANWORDS (3 * cnt)
#ifdef W_LOANSCAN                               /* loan pins before hazard words: a hand-over passes the scan */
#define SCANOWN
#define SCANWORD(k) ((k) < NP -> lp[k] : hz[(k) - NP])
#else
#define SCANWORD(k) ((k) < 2 * NP -> hz[k] : lp[(k) - 2 * NP])
#endif
#if NP == 2
#define PINNED(x) (lp[0] == (x) || lp[1] == (x))
#else
#define PINNED(x) (lp[0] == (x) || lp[1] == (x) || lp[2] == (x))
#endif
#include "partition.pml"
