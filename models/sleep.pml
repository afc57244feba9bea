/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sleep.pml - workers that spin, sleep and wake each other, with deaths at every step.
 *
 * The model follows src/pool/sleep.c (S1 S2, W1..W4, spinners, the wake-up) and the worker's loop
 * in src/pool/worker.c (chained wake-ups), and what the warden and repair do at a death.  The queue
 * is only a number: claim.pml looks inside.
 * NW workers, NT tasks, at most ND deaths; a death's news waits until the owner looks.
 *
 * A task here ends only once all tasks have started, as tasks that talk to each other may.  So the
 * model ends only if NT <= NW tasks bring NT workers to run: not just "never all asleep with work
 * queued", but "no worker sleeps while it is needed", even after deaths.  A lost wake-up, or a
 * worker that nobody can wake any more, is an invalid end state.
 *
 * futex: the kernel compares the bell and sleeps in one step; a store without the system call
 * after it wakes nobody, and a worker may die between the two.
 *
 * Every #ifdef is a mistake that run.sh makes on purpose and that must be found.
 */
#ifndef NT
#define NT 2
#endif
#ifndef NW
#define NW 3
#endif
#ifndef ND
#define ND 1
#endif

#define NOTHING 0
#define CLAIMED 1
#define STARTED 2

/* shared memory */
byte queue;
byte sleepers; /* M */
byte spinners; /* P */
byte ready;    /* R */
bool bell[NW];
bool closing;

bool asleep[NW];           /* the kernel's: in futex_wait */
chan news = [ND] of { byte, byte }; /* the socket: a dead worker and what it held */

/* ghosts */
byte deaths = ND;
byte nstarted, nended;

/* An alternative to the next store: to die instead. */
#ifndef MORTAL
#define MORTAL true
#endif
#define DIES :: atomic { deaths > 0 && me < NW && MORTAL -> deaths--; goto dead }
#define BIT(w) (1 << (w))
#define COUNT(m) (((m) & 1) + ((m) >> 1 & 1) + ((m) >> 2 & 1))
#define LOWEST(m) ((m) & 1 -> 0 : ((m) & 2 -> 1 : 2))

/* tri_wake_worker */
inline wake_one()
{
    if
    :: spinners != 0
    :: else ->
       do
       :: m = sleepers;
          if
          :: m == 0 -> break
          :: else
          fi;
          w = LOWEST(m);
          if
          :: d_step { m = sleepers & BIT(w); sleepers = sleepers & ~BIT(w) }
          DIES
          fi;
          if
          :: m != 0 ->
             if
             :: bell[w] = true
             DIES
             fi;
             if
             :: asleep[w] = false /* FUTEX_WAKE */
             DIES
             fi;
             break
          :: else
          fi
       od
    fi;
    m = 0;
    w = 0
}

proctype worker(byte me)
{
    byte m, w, holds;
    bool rested, found;

    ready = ready | BIT(me);
    do
    :: /* claim */
       if
       :: d_step { queue > 0 -> queue--; holds = CLAIMED }
       :: queue == 0 && !closing
       :: queue == 0 && closing -> goto out
       DIES /* or retires, which is no different */
       fi;
       if
       :: holds == CLAIMED ->
#ifndef NO_CHAIN
          if
          :: rested && queue > 0 -> wake_one()
          :: else
          fi;
#endif
          if
          :: d_step { holds = STARTED; nstarted++; rested = false }
          DIES
          fi;
          if
          :: d_step { nstarted == NT -> holds = NOTHING; nended++ }
          DIES
          fi;
          goto next
       :: else
       fi;

       /* tri_worker_rest */
       rested = true;
       if
       :: spinners == 0 ->
          spinners = spinners | BIT(me);
          if
          :: queue > 0 || closing -> found = true
          :: true /* time is up */
          DIES
          fi;
#ifndef SPINNER_LATE
          spinners = spinners & ~BIT(me)
#endif
       :: true /* another spins, or it would not pay */
       fi;
       if
       :: found ->
#ifdef SPINNER_LATE
          spinners = spinners & ~BIT(me);
#endif
          found = false;
          goto next
       :: else
       fi;
#ifdef LOOK_BEFORE_BIT
       if
       :: queue > 0 || closing -> goto next
       :: else
       fi;
#endif
       if
       :: sleepers = sleepers | BIT(me)                                 /* W1 */
       DIES
       fi;
       do
       :: /* W2 */
#if !defined(NO_SECOND_LOOK) && !defined(LOOK_BEFORE_BIT)
          if
          :: queue > 0 || closing || bell[me] -> break
          :: else
          fi;
#else
          if
          :: closing || bell[me] -> break
          :: else
          fi;
#endif
#ifdef SPINNER_LATE
          spinners = spinners & ~BIT(me);
#endif
#ifdef WAIT_NOT_COMPARED
          asleep[me] = true;
#else
          asleep[me] = !bell[me];                                       /* W3 */
#endif
          if
          :: !asleep[me]
          DIES
          fi
       od;
       if
       :: d_step { sleepers = sleepers & ~BIT(me); bell[me] = false }   /* W4 */
       DIES
       fi;
#ifdef SPINNER_LATE
       spinners = spinners & ~BIT(me);
#endif
       goto next;
dead:
       /* The warden has reaped us, clears our bits, tells the owner and starts a successor. */
       skip;
#if !defined(WARDEN_KEEPS_SLEEPER) && !defined(OWNER_CLEARS)
       sleepers = sleepers & ~BIT(me);
#endif
#if !defined(WARDEN_KEEPS_SPINNER) && !defined(OWNER_CLEARS)
       spinners = spinners & ~BIT(me);
#endif
#ifndef NOT_STRANDED
       m = 0;
       do /* tri_wake_stranded: whose bit was taken, perhaps by the dead, and who was not rung */
       :: m < NW ->
          if
          :: sleepers & BIT(m) -> skip
          :: else ->
             bell[m] = true;
             asleep[m] = false
          fi;
          m++
       :: else -> break
       od;
#endif
       ready = ready & ~BIT(me);
       skip;
       d_step {
           news!me,holds;
           asleep[me] = false;
           holds = NOTHING;
           rested = false;
           found = false;
           m = 0;
           w = 0
       };
       bell[me] = false;
       ready = ready | BIT(me);
next:
       skip
    od;
out:
    skip
}

inline wake_all()
{
    w = 0;
    do
    :: w < NW ->
       bell[w] = true;
       asleep[w] = false;
       w++
    :: else -> break
    od;
    w = 0
}

active proctype owner()
{
    byte me = NW, sent, w, m, dead_one, held;

    atomic {
        do
        :: w < NW -> run worker(w); w++
        :: else -> break
        od;
        w = 0
    }
    do
    :: sent < NT ->
#ifdef LOOK_THEN_APPEND
       wake_one();
       atomic { queue++; sent++ }
#else
       atomic { queue++; sent++ }                                       /* S1 */
       m = ready;
       m = COUNT(m & ~sleepers);
       if
#ifdef FREE_COUNTS_BUSY
       :: m > 0 -> skip
#else
       :: m >= sent - nended -> skip /* tri_worker_free: one that is awake has nothing else to do */
#endif
       :: else -> wake_one()                                            /* S2 */
       fi;
       m = 0
#endif
    :: news?dead_one,held -> /* tri_repair_death */
       if
       :: held == CLAIMED -> queue++
       :: held == STARTED -> nended++
       :: else
       fi;
#ifndef REPAIR_WAKES_NONE
       wake_one();
#endif
#ifdef OWNER_CLEARS
       sleepers = sleepers & ~BIT(dead_one); /* by now perhaps the successor's */
       spinners = spinners & ~BIT(dead_one);
#endif
       atomic { dead_one = 0; held = 0 }
    :: nended == NT -> break
    od;
    closing = true;
    wake_all();
    goto out;
dead:
    assert(false);
out:
    skip
}
