/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * lock.pml - a lock that is taken over when its holder dies, with deaths at every step.
 *
 * The model follows src/shm/lock.c: T1, W1 W2 W3, G1 G2 G3, R1.  NW processes take the lock NR
 * times each; at most ND of them die, before any store.  A dead one's number is used again at once,
 * by a process that begins anew: so only the start time (here: the generation) tells the two apart.
 *
 * Sleeps are slices: one ends by itself, but that is only shown where the look after it finds
 * something.  So "sleeps for ever with nothing to find" is an invalid end state, as it should be.
 * -DNO_CLOCK takes the slices away: without deaths, nobody may need them.
 *
 * Proved, for these bounds: never two living holders; whoever wants the lock gets it, whatever
 * died where, whether the dead one is a holder, a waiter that was just woken, or one that released
 * and woke nobody.
 *
 * Every other #ifdef is a mistake that run.sh makes on purpose and that must be found.
 */
#ifndef NW
#define NW 3
#endif
#ifndef NR
#define NR 1
#endif
#ifndef ND
#define ND 1
#endif

/* The word: process + 1 | generation << 3 | CONTENDED. */
#define NAME(w, g) (((w) + 1) | (g) << 3)
#define CONTENDED 128
#define NAMED (CONTENDED - 1)
#define FREE(x) (((x) & NAMED) == 0)
#define WHO(x) (((x) & 7) - 1)
#define GEN(x) (((x) & NAMED) >> 3)
#ifdef RECOVER_BY_NUMBER
#define GONE(x) false /* the number lives: it is somebody's again */
#else
#define GONE(x) (gen[WHO(x)] != GEN(x))
#endif
#ifdef NAME_AFTER
#define ANONYMOUS NAMED /* taken, by nobody knows whom: cannot be judged */
#define JUDGED(x) (((x) & NAMED) != ANONYMOUS && GONE(x))
#else
#define JUDGED(x) (GONE(x))
#endif

/* shared memory */
byte word;

byte gen[NW];     /* the kernel's: start times */
bool asleep[NW];  /* the kernel's: in futex_wait */

/* ghosts */
byte deaths = ND;
byte inside;

#define DIES :: atomic { deaths > 0 -> deaths--; goto dead }

proctype worker(byte me)
{
    byte w, behind, rounds;
    bool holds, won;

again:
    do
    :: rounds == NR -> break
    :: else ->
       /* T1 */
       if
       :: d_step { won = FREE(word);
              if
#ifdef NAME_AFTER
              :: won -> word = ANONYMOUS | (word & CONTENDED)
#else
              :: won -> word = NAME(me, gen[me]) | (word & CONTENDED); holds = true; inside++
#endif
              :: else
              fi }
       DIES
       fi;
       do
       :: won -> break
       :: else ->
          w = word;
          if
          :: FREE(w) ->
             if
             :: d_step { won = (word == w);
                    if
#ifdef NAME_AFTER
                    :: won -> word = ANONYMOUS | behind | (w & CONTENDED)
#else
                    :: won -> word = NAME(me, gen[me]) | behind | (w & CONTENDED); holds = true;
                       inside++
#endif
                    :: else
                    fi }
             DIES
             fi
          :: else ->
             /* W1 */
             if
             :: (w & CONTENDED) == 0 ->
                if
                :: d_step {
                       if
                       :: word == w -> word = w | CONTENDED; w = w | CONTENDED
                       :: else -> w = 0
                       fi }
                DIES
                fi
             :: else
             fi;
             if
             :: w != 0 ->
                /* W2: the kernel compares and sleeps in one step */
#ifdef WAIT_NOT_COMPARED
                asleep[me] = true;
#else
                asleep[me] = (word == w);
#endif
                if
                :: !asleep[me]
#ifndef NO_CLOCK
                :: asleep[me] && (word != w || JUDGED(w)) -> asleep[me] = false;
                   /* R1: judged first, taken after */
                   if
                   :: JUDGED(w) ->
                      if
                      :: d_step {
#ifdef RECOVER_NO_CAS
                             won = true;
#elif defined(RECOVER_WHOEVER)
                             won = (word != 0);
#else
                             won = (word == w);
#endif
                             if
                             :: won -> word = NAME(me, gen[me]) | CONTENDED; holds = true; inside++
                             :: else
                             fi }
                      DIES
                      fi
                   :: else
                   fi
#endif
                DIES
                fi;
#ifndef BEHIND_FORGOTTEN
                behind = CONTENDED
#endif
             :: else
             fi
          fi
       od;
#ifdef NAME_AFTER
       if
       :: holds
       :: else ->
          if
          :: d_step { word = NAME(me, gen[me]) | (word & CONTENDED); holds = true; inside++ }
          DIES
          fi
       fi;
#endif
       assert(inside == 1);
       /* G1 */
#ifdef GIVE_BLIND
       w = word;
       if
       :: d_step { word = w & CONTENDED; holds = false; inside-- }
       DIES
       fi;
#else
       if
       :: d_step { w = word; word = w & CONTENDED; holds = false; inside-- }
       DIES
       fi;
#endif
       /* G2 */
#ifndef WAKES_NOBODY
       if
       :: w & CONTENDED ->
          if
          :: asleep[0] -> asleep[0] = false
          :: asleep[1] -> asleep[1] = false
#if NW > 2
          :: asleep[2] -> asleep[2] = false
#endif
#if NW > 3
          :: asleep[3] -> asleep[3] = false
#endif
          :: !(asleep[0] || asleep[1]
#if NW > 2
               || asleep[2]
#endif
#if NW > 3
               || asleep[3]
#endif
             );
             /* G3 */
#ifdef UNMARK_WHATEVER
             if
             :: d_step { word = word & NAMED }
#else
             if
             :: d_step {
                    if
                    :: word == CONTENDED -> word = 0
                    :: else
                    fi }
#endif
             DIES
             fi
          DIES
          fi
       :: else
       fi;
#endif
       d_step { rounds++; w = 0; behind = 0; won = false }
    od;
    goto out;
dead:
    /* Another process gets the number. */
    skip;
    d_step {
        gen[me]++;
        asleep[me] = false;
        if
        :: holds -> inside--
        :: else
        fi;
        holds = false;
        won = false;
        w = 0;
        behind = 0
    };
    goto again;
out:
    skip
}

init {
    byte i;

    atomic {
        do
        :: i < NW -> run worker(i); i++
        :: else -> break
        od
    }
}
