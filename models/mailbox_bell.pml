/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox_bell.pml - bells to sleep on; a part of mailbox.pml, which includes it.
 *
 * The model follows src/shm/mailbox_bell.h: S1..S4, R1..R3.  Of `rung` only this is kept: whether
 * it is still what a sleeper read in S1, which is all that S3 and S4 ask.
 *
 * A sleep is a slice that ends by itself, but that is only shown where the look after it finds
 * something, and NT times more at any time.  So "sleeps for ever with nothing to find" is an
 * invalid end state, as it should be.  -DNO_CLOCK takes the first kind away: without deaths,
 * nobody may need them.
 *
 * AWAKE: no bells; who has nothing to do waits in the model's own way.
 *
 * Whoever uses this has the variables me, got, found and everybody (false: a ring wakes one).
 */
#ifndef NT
#define NT 1
#endif

/* Processes 2b and 2b + 1 sleep on bell b: writers, readers, who joins. */
#define EMPTIED 0
#define FILLED 1
#define JOINED 2

/* shared memory */
byte credits[3];
bool same[6]; /* rung == e, for each process */

bool asleep[6]; /* the kernel's: in futex_wait */

/* ghost: slices that end in vain */
byte naps = NT;

/* R2: a credit is spent and rung moves, in one step. */
inline spend(b)
{
    got = credits[b] > 0;
    if
    :: got ->
       credits[b] = (everybody -> 0 : credits[b] - 1);
       same[2 * b] = false;
       same[2 * b + 1] = false
    :: else
    fi
}

inline wake(b)
{
    if
    :: d_step { everybody -> asleep[2 * b] = false; asleep[2 * b + 1] = false }
    :: d_step { !everybody && asleep[2 * b] -> asleep[2 * b] = false }
    :: d_step { !everybody && asleep[2 * b + 1] -> asleep[2 * b + 1] = false }
    :: !everybody && !asleep[2 * b] && !asleep[2 * b + 1]
    DIES
    fi
}

inline ring(b)
{
#ifdef AWAKE
    skip
#else
#ifdef MOVES_LATE
    if
    :: d_step {
           got = credits[b] > 0;
           if
           :: got -> credits[b]--
           :: else
           fi }
    DIES
    fi;
#else
    if
    :: d_step { spend(b) }                                              /* R2 */
    DIES
    fi;
#endif
    if
    :: got ->
       got = false;
       wake(b);                                                         /* R3 */
#ifdef MOVES_LATE
       d_step { same[2 * b] = false; same[2 * b + 1] = false }
#endif
    :: else
    fi
#endif
}

/* S4 */
#ifdef BLINDLY
#define OURS(b) true
#else
#define OURS(b) same[me]
#endif
inline leave(b)
{
    if
    :: d_step {
           if
           :: OURS(b) && credits[b] > 0 -> credits[b]--
           :: else
           fi;
           same[me] = false }
    DIES
    fi
}

inline doze(b, there, over)
{
#ifdef AWAKE
    ((there) || (over))
#else
#ifdef LOOK_FIRST
    found = (there);
#endif
    if
    :: d_step { credits[b]++; same[me] = true }                         /* S1 */
    DIES
    fi;
#ifndef LOOK_FIRST
    found = (there);                                                    /* S2 */
#endif
#ifdef RUNG_LATE
    same[me] = true;
#endif
    if
    :: found -> leave(b)
    :: else ->
#ifdef WAIT_NOT_COMPARED
       asleep[me] = true;
#else
       asleep[me] = same[me];                                           /* S3 */
#endif
       if
#ifdef WOKEN_LEAVES
       :: !asleep[me] -> same[me] = true; leave(b)
#else
       :: d_step { !asleep[me] -> same[me] = false }
#endif
#ifndef NO_CLOCK
       :: d_step { asleep[me] && (there) -> asleep[me] = false };
          leave(b)
#endif
       :: d_step { asleep[me] && naps > 0 -> naps--; asleep[me] = false };
          leave(b)
       :: d_step { asleep[me] && (over) -> asleep[me] = false } /* nothing will come any more */
       DIES
       fi
    fi;
    found = false
#endif
}
