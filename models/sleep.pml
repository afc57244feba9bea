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
 * Parking: callers begin to help NH times in all, each when it likes and beside the others, and
 * every helper parks one worker (as many CPUs as workers).  Helpers and submitters hold one lock,
 * so they are one process here.  A helper ends when it likes, or it is patient and goes on until
 * nothing is queued or every worker that is not parked runs a task.  So a wake-up that is lost
 * while a worker is parked is an invalid end state too: the look of who ends does not hide it.
 *
 * Naps: NS tasks are short and end by themselves, then NT <= NW + NS.  After one a worker may nap.
 * There is no clock: a nap lasts as long as it likes, like any other step, but it ends.
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
#ifndef NH
#define NH 0
#endif
#ifndef NS
#define NS 0
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
byte parked; /* the last this many workers */

bool asleep[NW];           /* the kernel's: in futex_wait */
chan news = [ND] of { byte, byte }; /* the socket: a dead worker and what it held */

/* ghosts */
byte deaths = ND;
byte nstarted, nended;
byte running; /* a mask: who holds a task that has started */
byte shorts = NS;

/* An alternative to the next store: to die instead. */
#ifndef MORTAL
#define MORTAL true
#endif
#define DIES :: atomic { deaths > 0 && me < NW && MORTAL -> deaths--; goto dead }
#define BIT(w) (1 << (w))
#define COUNT(m) (((m) & 1) + ((m) >> 1 & 1) + ((m) >> 2 & 1))
#define LOWEST(m) ((m) & 1 -> 0 : ((m) & 2 -> 1 : 2))
/* The last `parked` workers leave the queue alone; whatever the word says, one works. */
#define UNPARKED (parked < NW -> NW - parked : 1)
#define PARKED(w) ((w) >= UNPARKED)
/* W2 reads the queue, then `parked`.  To read both at once leaves out a spare round, no more. */
#if NH && !defined(PARKED_GOES_ROUND)
#define HERE(work) ((work) && !PARKED(me))
#else
#define HERE(work) (work)
#endif
#define ALL_RUN ((running & (BIT(UNPARKED) - 1)) == BIT(UNPARKED) - 1)

/* tri_wake_worker */
inline wake_one()
{
#if NH
    awake = UNPARKED;
#endif
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
#if NH && !defined(WAKES_PARKED)
          if
          :: w >= awake -> break
          :: else
          fi;
#endif
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
#if NH
    awake = 0;
#endif
    m = 0;
    w = 0
}

proctype worker(byte me)
{
    byte m, w, holds;
#if NH
    byte awake;
#endif
    bool rested, found;

    ready = ready | BIT(me);
    do
    :: /* claim */
#if NH
       if
       :: PARKED(me) && closing -> goto out
       :: PARKED(me) && !closing -> goto rest
       :: else
       fi;
#endif
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
          :: d_step { holds = STARTED; nstarted++; running = running | BIT(me); rested = false }
          DIES
          fi;
          if
          :: d_step {
                 nstarted == NT -> holds = NOTHING; nended++; running = running & ~BIT(me)
             }
#if NS
          :: d_step {
                 shorts > 0 ->
                 shorts--; holds = NOTHING; nended++; running = running & ~BIT(me)
             };
             if
             :: asleep[me] = !bell[me]; /* tri_worker_make_room */
#ifdef NAP_NO_LIMIT
                !asleep[me];
#endif
                asleep[me] = false
             :: true
             fi
#endif
          DIES
          fi;
          goto next
       :: else
       fi;

rest:  /* tri_worker_rest */
       rested = true;
       if
       :: spinners == 0 && (NH == 0 || !PARKED(me)) ->
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
#ifdef PARKED_LOOKS_FIRST
       if
       :: PARKED(me) && queue > 0 -> wake_one()
       :: else
       fi;
#endif
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
#if NH && !defined(PARKED_LOOKS_NOT) && !defined(PARKED_LOOKS_FIRST)
       if
       :: PARKED(me) ->
          if
          :: queue > 0 -> wake_one()
          :: else
          fi
       :: else
       fi;
#endif
       do
       :: /* W2 */
#if !defined(NO_SECOND_LOOK) && !defined(LOOK_BEFORE_BIT)
          if
          :: HERE(queue > 0) || closing || bell[me] -> break
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
           running = running & ~BIT(me);
           rested = false;
           found = false;
#if NH
           awake = 0;
#endif
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
#if NH
    byte awake, begins = NH;
    bool patient;
#endif

    atomic {
        do
        :: w < NW -> run worker(w); w++
        :: else -> break
        od;
        w = 0
    }
again:
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
#if NH
    :: begins > 0 -> /* tri_helper_begin */
       d_step { begins--; parked++ };
       if
       :: patient = true
       :: true
       fi;
#ifdef BEGIN_LOOKS_NOT
       goto again
#else
       goto look
#endif
    :: parked > 0 && (!patient || queue == 0 || ALL_RUN) -> /* tri_helper_end */
#ifdef END_WAKES_FIRST
       if
       :: queue > 0 -> wake_one()
       :: else
       fi;
#endif
       d_step { parked--; patient = patient && parked > 0 };
#if defined(END_LOOKS_NOT) || defined(END_WAKES_FIRST)
       goto again;
#endif
look:
       if
       :: queue > 0 -> wake_one()
       :: else
       fi
#endif
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
