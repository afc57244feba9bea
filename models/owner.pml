/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * owner.pml - threads of the owner that wait for results, and the workers that wake them.
 *
 * The model follows tri_wait and tri_wake_owner in src/pool/sleep.c (O1..O5, D2), publish in
 * src/pool/worker.c (D1, D2), tri_future_wait and tri_pump in src/pool/future.c, and the warden's
 * news.  NO threads each wait for one task; each task runs in a worker of its own, which may die
 * at every step (at most ND do).  The last thread waits for "any task" until its own has ended.
 *
 * In the code every sleep also ends by the clock, so that a mistake here would cost a delay, not
 * a hang.  Here no clock ticks: an owner that nobody wakes is an invalid end state.  Left out:
 * spinning (a spinner looks all the time) and laziness (it waits by the clock on purpose).
 *
 * Every #ifdef is a mistake that run.sh makes on purpose and that must be found.
 */
#ifndef NO
#define NO 2
#endif
#ifndef ND
#define ND 1
#endif
#define NT NO

#define STARTED 0
#define DONE 1
#define FREE 2

#define WANT_NONE 0
#define WANT_ANY 255

/* shared memory */
byte state[NT];
bool ring[NT]; /* the worker's entry is in its ring */
byte want;
byte bell; /* E: only what changes it matters, so it never wraps here */
byte told; /* ctl->deaths */

bool asleep[NO];          /* the kernel's: in futex_wait on E */
chan news = [ND] of { byte }; /* the socket */

/* the owner's own */
bool locked;
bool lost[NT]; /* the list of ended tasks that tri_take reads first */
bool done[NT]; /* the future is filled */
byte waiters;
byte told_seen;

byte deaths = ND; /* ghost */

#define DIES :: atomic { deaths > 0 -> deaths--; goto dead }

inline futex_wake_all()
{
    d_step {
        t = 0;
        do
        :: t < NO -> asleep[t] = false; t++
        :: else -> break
        od;
        t = 0
    }
}

inline wake_owner()
{
    bell++;
    futex_wake_all()
}

proctype worker(byte me)
{
    byte seen, t;

    if
    :: state[me] = DONE                                                 /* D1 */
    DIES
    fi;
    if
    :: ring[me] = true
    DIES
    fi;
    do
    :: seen = want;                                                     /* D2 */
       if
       :: seen != WANT_ANY && seen != me + 1 -> goto out
       :: else
       fi;
#ifdef WANT_TAKEN_ONCE
       if
       :: d_step { want == seen -> want = WANT_NONE }
       :: want != seen -> goto out
       DIES
       fi;
       break
#else
       if
       :: d_step { want == seen -> want = WANT_NONE }; break
       :: want != seen /* an owner changed its mind: does it want us still? */
       DIES
       fi
#endif
    od;
    if
    :: skip
    DIES
    fi;
    wake_owner();
    goto out;
dead:
    /* Now in the warden. */
    news!me;
    told++;
#ifndef NO_DEATH_NEWS
    wake_owner();
#endif
out:
    skip
}

/* tri_take under the lock: the socket, then the list, then the rings. */
inline take()
{
    if
    :: told != told_seen ->
       seen = told;
       do
       :: news?t; /* repair: what is DONE has its value, what is STARTED is lost */
          d_step {
              if
              :: state[t] != FREE -> state[t] = FREE; lost[t] = true
              :: else
              fi;
              t = 0
          }
       :: empty(news) -> break
       od;
       told_seen = seen;
       seen = 0
    :: else
    fi;
    t = 0;
    do
    :: t < NT ->
       d_step {
           if
           :: lost[t] -> lost[t] = false; got[t] = true; n++
           :: !lost[t] && ring[t] ->
              ring[t] = false;
              if
              :: state[t] == DONE -> state[t] = FREE; got[t] = true; n++
              :: else
              fi
           :: else
           fi;
           t++
       }
    :: else -> break
    od;
    t = 0
}

/* Is there news?  Three loads, in the code's order. */
inline look(answer)
{
    answer = false;
#ifdef NO_ANY
    if
    :: state[me] != STARTED -> answer = true
    :: else
    fi;
#else
    if
    :: me < NO - 1 && state[me] != STARTED -> answer = true
    :: me == NO - 1 && (ring[0] || ring[1] || lost[0] || lost[1]) -> answer = true
    :: else
    fi;
#endif
    if
    :: bell != key -> answer = true
    :: else
    fi;
    if
    :: told != told_seen -> answer = true
    :: else
    fi
}

#ifdef NO_ANY
#define MY_WANT (waiters == 1 -> me + 1 : WANT_ANY)
#else
#define MY_WANT (waiters == 1 && me < NO - 1 -> me + 1 : WANT_ANY)
#endif

proctype thread(byte me)
{
    byte key, seen, t, n, mine;
    bool got[NT], yes;

    do
    :: done[me] -> break
    :: !done[me] ->
#ifndef KEY_LATE
       key = bell;                                                      /* O1 */
#endif
       d_step { /* tri_take_one                                            O2 */
           !locked ->
           if
           :: state[me] == DONE -> state[me] = FREE; done[me] = true
           :: else
           fi;
           skip
       }
       if
       :: done[me] -> break
       :: else
       fi;
       atomic { !locked -> locked = true }
       take();
       locked = false;
       if
       :: n > 0 ->
          t = 0;
          do
          :: t < NT ->
             if
             :: got[t] -> done[t] = true; got[t] = false
             :: else
             fi;
             t++
          :: else -> break
          od;
          t = 0;
          n = 0;
#ifdef NUDGE_WAITERS_ONLY
          if
          :: waiters > 0 -> wake_owner()
          :: else
          fi;
#elif !defined(NO_NUDGE)
          bell++; /* even if nobody waits: one may have looked, and be about to */
          if
          :: waiters > 0 -> futex_wake_all()
          :: else
          fi;
#endif
          goto next
       :: else
       fi;
       if
       :: done[me] -> break
       :: else
       fi;
#ifdef KEY_LATE
       key = bell;
#endif

       /* tri_wait */
       look(yes);
       if
       :: yes -> goto next
       :: else
       fi;
#ifdef WANT_UNLOCKED
       atomic { !locked -> waiters++; mine = MY_WANT }
       if
       :: waiters > 1 -> mine = WANT_ANY
       :: else
       fi;
       want = mine;
#else
       d_step { !locked -> waiters++; mine = MY_WANT; want = mine }     /* O3 */
#endif
       mine = 0;
#ifndef NO_SECOND_LOOK
       look(yes);                                                       /* O4 */
#endif
       if
       :: !yes ->
          asleep[me] = (bell == key);                                   /* O5 */
          !asleep[me]
       :: else
       fi;
#ifdef WANT_UNLOCKED
       d_step { waiters--; mine = (waiters == 0 -> WANT_NONE : WANT_ANY) }
       want = mine;
#elif defined(LEAVE_NONE)
       d_step { !locked -> waiters--; want = WANT_NONE }
#else
       d_step { !locked -> waiters--; want = (waiters == 0 -> WANT_NONE : WANT_ANY) }
#endif
next:
       skip;
       d_step { key = 0; yes = false; mine = 0 }
    od
}

init {
    byte i;

    atomic {
        do
        :: i < NO -> run thread(i); run worker(i); i++
        :: else -> break
        od
    }
}
