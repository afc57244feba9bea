/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mailbox.pml - messages through a chain of chunks, with deaths at every step.
 *
 * The model follows src/shm/mailbox.c: P0..P2, G1..G3, stamps, free chunks and what is swept,
 * trim, the bell of descriptors, done and join; mailbox_bell.pml has the sleeping.  2 writers put
 * NM and NM1 messages, NR readers take them, NJ processes wait until all are done with.  At most
 * ND of them die, before any store; a successor goes on in the dead one's place, and puts its
 * message anew unless it was put.  A message is a header and 0 or LEN more cells; a chunk has
 * CELLS cells; counts go round at CM.
 *
 * The two locks are taken over when the holder is dead: lock.pml shows that.  Which free chunk a
 * writer takes is left open.  The ghost `sent` is what a mailbox should be: messages in the order
 * of P2.
 *
 * AWAKE, for checks of the chain: nobody sleeps.  FLAT, for checks of sleeping: what is done under
 * a lock is one step, without cells.  BELL: the first reader does not sleep but waits for the
 * descriptor.  TRIM: readers give pages back.
 *
 * Proved, for these bounds: every message put is taken exactly once, whole, in the order of the
 * puts, at most by somebody who dies with it; nothing is seen of a message whose writer died
 * before P2; there are never more than MOST; whoever died where, the others go on, with all the
 * room there is; nobody sleeps for ever beside a message, beside room for one, or when all is done
 * with; the descriptor is readable while there is a message, and with one reader and no deaths
 * only then.
 *
 * Every other #ifdef is a mistake that run.sh makes on purpose and that must be found.
 */
#ifndef NM
#define NM 2
#endif
#ifndef NR
#define NR 2
#endif
#ifndef NJ
#define NJ 0
#endif
#ifndef ND
#define ND 1
#endif
#ifndef NC
#define NC 3
#endif
#ifndef LEN
#define LEN 2
#endif
#define CELLS 2
#define CM 4
#ifndef MOST
#define MOST (CM - 1)
#endif
#ifndef NM1
#define NM1 NM
#endif
#define ALL (NM + NM1)
#define MINE (me == 0 -> NM : NM1)

/* A place, one word: chunk | offset | count. */
#define PLACE(c, o, n) ((c) | (o) << 3 | ((n) & (CM - 1)) << 5)
#define CHUNK(p) ((p) & 7)
#define OFF(p) ((p) >> 3 & 3)
#define COUNT(p) ((p) >> 5)
#define IN_IT ((COUNT(tail) - COUNT(head)) & (CM - 1))
#define MAIL (head != tail)
#define ROOM (IN_IT < MOST)
#define ALL_DONE (ndone == nsent[0] + nsent[1])

/* A cell: its message, and how many more follow.  0: a page that was given back. */
#define CELL(id, more) (128 | (more) << 4 | (id))
#define ID(x) ((x) & 15)
#define MORE(x) ((x) >> 4 & 7)

#define HELD 1
#define BY_DEAD 2
#define WRITERS 1
#define READERS 2

/* shared memory */
byte head, tail;
byte cell[NC * CELLS];
byte stamp[NC];
byte next[NC];
byte begun;
byte writers, readers; /* the locks */
byte ndone;
bool watched;

byte called; /* the kernel's: bytes in the bell of descriptors */

/* ghosts */
chan sent = [CM] of { byte };
byte nsent[2], ntaken;
byte deaths = ND;
#define OVER (ntaken == ALL)

/* An alternative to the next store: to die instead.  Writers are alike, and readers: while only one
 * may die, let it be the first of them. */
#define DIES :: atomic { deaths > 0 && (ND > 1 || (me & 1) == 0) -> deaths--; goto dead }

inline take(lock, name)
{
    if
    :: d_step { lock != HELD -> lock = HELD; holds = name }
    DIES
    fi
}

inline give(lock)
{
    if
    :: d_step { lock = 0; holds = 0 }
    DIES
    fi
}

/* The end of who held a lock. */
inline leave_locks()
{
    if
    :: holds == WRITERS -> writers = BY_DEAD
    :: holds == READERS -> readers = BY_DEAD
    :: else
    fi;
    holds = 0;
    same[me] = false;
    asleep[me] = false
}

#include "mailbox_bell.pml"

/* ---- the chain */

#ifdef ENDS_KEPT
#define FREE(x) (stamp[x] != first && stamp[x] != s)
#elif defined(OLD_NOT_FREE)
#define FREE(x) (stamp[x] == 0 || stamp[x] > s)
#else
#define FREE(x) (stamp[x] < first || stamp[x] > s)
#endif
#define FIT(x) ((x) != CHUNK(h) && (x) != c && FREE(x))

inline pen_next()
{
    d_step { h = head; first = stamp[CHUNK(h)] }                        /* P0 */
    if
    :: FIT(0) -> x = 0
    :: FIT(1) -> x = 1
    :: FIT(2) -> x = 2
#if NC > 3
    :: FIT(3) -> x = 3
#endif
    :: else -> refused = true
    fi;
    if
    :: refused
    :: else ->
       s++;
#ifndef BEGUN_LATE
       if
       :: begun = s
       DIES
       fi;
#endif
       if
       :: stamp[x] = s
       DIES
       fi;
#ifdef BEGUN_LATE
       if
       :: begun = s
       DIES
       fi;
#endif
       if
       :: next[c] = x
       DIES
       fi;
       d_step { c = x; o = 0; h = 0 }
    fi;
    first = 0;
    x = 0
}

/* What a dead or refused writer had begun. */
inline sweep()
{
    if
    :: begun == s
    :: else ->
       do
       :: x == NC -> break
       :: else ->
          if
          :: d_step {
                 if
                 :: stamp[x] > s -> stamp[x] = 0
                 :: else
                 fi;
                 x++ }
          DIES
          fi
       od;
       x = 0;
       if
       :: begun = s
       DIES
       fi
    fi
}

inline store_tail()
{
#ifdef TAIL_TWICE
    if
    :: tail = PLACE(c, o, n)
    DIES
    fi;
#endif
    if
    :: d_step {
           tail = PLACE(c, o, n + 1);                                   /* P2 */
           assert(nfull(sent) && IN_IT <= MOST);
           sent!id;
           nsent[me]++;
           assert(!watched || called > 0) }
    DIES
    fi
}

/* The bell of descriptors calls when the mailbox is empty. */
inline call()
{
#ifdef BELL
    if
    :: watched && head == tail ->
       if
       :: called++
       DIES
       fi
    :: else
    fi
#else
    skip
#endif
}

/* The writers' lock is held. */
inline write_message()
{
    d_step {
        c = CHUNK(tail);
        o = OFF(tail);
        n = COUNT(tail);
        s = stamp[c];
        id = me | tries << 1;
        left = 1 + (tries & 1 -> 0 : LEN)
    };
#ifndef NO_SWEEP
    sweep();
#endif
    do
    :: refused || left == 0 -> break
    :: !refused && left > 0 && o == CELLS -> pen_next()
    :: !refused && left > 0 && o < CELLS ->                             /* P1 */
       if
       :: d_step {
              do
              :: left > 0 && o < CELLS ->
                 left--;
#ifdef TAIL_EARLY
                 if
                 :: left == 0 -> late = c * CELLS + o
                 :: else -> cell[c * CELLS + o] = CELL(id, left)
                 fi;
#else
                 cell[c * CELLS + o] = CELL(id, left);
#endif
                 o++
              :: else -> break
              od;
              skip }
       DIES
       fi
    od;
    if
    :: refused
    :: else ->
#ifndef CALL_LATE
       call();
#endif
       store_tail();
#ifdef TAIL_EARLY
       if
       :: cell[late] = CELL(id, 0)
       DIES
       fi;
#endif
#ifdef CALL_LATE
       call();
#endif
       skip
    fi;
    c = 0;
    o = 0;
    n = 0;
    s = 0;
    id = 0;
    left = 0
}

proctype writer(byte me)
{
    byte id, c, o, n, s, x, h, first, left, holds, tries;
#ifdef TAIL_EARLY
    byte late;
#endif
    bool no_room, refused, got, found, everybody;

again:
    do
    :: nsent[me] == MINE -> break
    :: else ->
#ifdef RING_EARLY
       ring(FILLED);
#endif
#ifdef FULL_UNLOCKED
       no_room = !ROOM;
#endif
#ifdef FLAT
       if
       :: d_step {
              no_room = !ROOM;
              if
              :: no_room
              :: else -> tail = PLACE(0, 0, COUNT(tail) + 1); nsent[me]++
              fi }
       DIES
       fi;
#else
#ifndef WRITERS_UNLOCKED
       take(writers, WRITERS);
#endif
#ifndef FULL_UNLOCKED
       no_room = !ROOM;
#endif
       if
       :: no_room
       :: else -> write_message()
       fi;
#ifndef WRITERS_UNLOCKED
       give(writers);
#endif
#endif
       if
       :: no_room ->
          no_room = false;
          doze(EMPTIED, ROOM, false)
       :: refused -> /* no chunk was free: again, when something was read */
          refused = false;
          head != h;
          h = 0
       :: else ->
#ifndef FLAT
          tries++;
#endif
#if !defined(NO_RING) && !defined(RING_EARLY)
          ring(FILLED)
#else
          skip
#endif
       fi
    od;
    goto out;
dead:
    skip;
    d_step {
        leave_locks();
#ifndef FLAT
        tries++;
#endif
        id = 0; c = 0; o = 0; n = 0; s = 0; x = 0; h = 0; first = 0; left = 0;
        no_room = false; refused = false; got = false; found = false
    };
    goto again;
out:
    skip
}

/* ---- reading */

inline store_head()
{
#ifdef HEAD_TWICE
    if
    :: head = PLACE(c, o, COUNT(h))
    DIES
    fi;
#endif
    if
    :: d_step {
           head = PLACE(c, o, COUNT(h) + 1);                            /* G3 */
           assert(nempty(sent));
           sent?x;
           assert(x == id);
           ntaken++;
           x = 0 }
    DIES
    fi
}

/* The readers' lock is held.  Whether there was one: found. */
inline read_message()
{
    d_step { h = head; t = tail; c = CHUNK(h); o = OFF(h); left = 255 } /* G1 */
    if
    :: h == t
    :: else ->
       do                                                               /* G2 */
       :: left == 0 -> break
       :: left > 0 && o == CELLS ->
          d_step {
              assert(c != CHUNK(t));
              x = next[c];
              assert(stamp[x] == stamp[c] + 1);
              c = x;
              o = 0;
              x = 0 }
       :: left > 0 && o < CELLS ->
          d_step {
              do
              :: left > 0 && o < CELLS ->
                 assert(c != CHUNK(t) || o < OFF(t));
                 x = cell[c * CELLS + o];
                 if
                 :: left == 255 ->
                    id = ID(x);
                    left = MORE(x) + 1
#ifdef HEAD_EARLY
                    ;
                    late = c * CELLS + o;
                    value = x
#endif
                 :: else
                 fi;
                 left--;
                 assert(x == CELL(id, left));
                 x = 0;
                 o++
              :: else -> break
              od;
              skip }
       od;
       store_head();
#ifdef HEAD_EARLY
       assert(cell[late] == value); /* the header is copied only now */
#endif
       found = true
    fi;
    h = 0;
    t = 0;
    c = 0;
    o = 0;
    left = 0;
    id = 0
}

inline silence()
{
    if
    :: watched ->
#ifndef SILENCE_UNLOCKED
       take(writers, WRITERS);
#endif
       if
       :: !MAIL ->
          if
          :: d_step { called = 0; assert(!MAIL) }
          DIES
          fi
       :: else
       fi;
#ifndef SILENCE_UNLOCKED
       give(writers)
#else
       skip
#endif
    :: else
    fi
}

inline watch()
{
#ifndef WATCH_UNLOCKED
    take(writers, WRITERS);
#endif
    if
    :: MAIL ->
       if
       :: called++
       DIES
       fi
    :: else
    fi;
    if
    :: d_step { watched = true; assert(!MAIL || called > 0) }
    DIES
    fi;
#ifndef WATCH_UNLOCKED
    give(writers)
#endif
}

inline trim()
{
    if
    :: true
    :: true ->
       if
#ifdef TRIM_UNLOCKED
       :: true ->
#else
       :: d_step { writers != HELD -> writers = HELD; holds = WRITERS } ->
#endif
          d_step { first = stamp[CHUNK(head)]; s = stamp[CHUNK(tail)] };
          if
          :: FREE(0) -> x = 0
          :: FREE(1) -> x = 1
          :: FREE(2) -> x = 2
#if NC > 3
          :: FREE(3) -> x = 3
#endif
          :: else -> x = NC
          fi;
          if
          :: d_step {
                 if
                 :: x < NC -> cell[x * CELLS] = 0; cell[x * CELLS + 1] = 0
                 :: else
                 fi }
          DIES
          fi;
          d_step { x = 0; first = 0; s = 0 };
#ifndef TRIM_UNLOCKED
          give(writers)
#else
          skip
#endif
       :: else
       fi
    fi
}

proctype reader(byte me)
{
    byte id, c, o, s, x, h, t, first, left, holds;
#ifdef HEAD_EARLY
    byte late, value;
#endif
    bool got, found, everybody;

again:
#ifdef BELL
    if
    :: me == 2 && !watched -> watch()
    :: else
    fi;
#endif
    do
    :: OVER -> break
    :: !MAIL && !OVER -> /* tri_mailbox_await */
#ifdef BELL
       if
       :: me == 2 ->
          (called > 0 || OVER);
          if
          :: MAIL || OVER
          :: else ->
             silence();
#if NR == 1 && ND == 0
             assert(MAIL)
#endif
          fi
       :: else -> doze(FILLED, MAIL, OVER)
       fi
#else
       doze(FILLED, MAIL, OVER)
#endif
    :: MAIL ->
#ifdef FLAT
       if
       :: d_step {
              found = MAIL;
              if
              :: found -> head = PLACE(0, 0, COUNT(head) + 1); ntaken++
              :: else
              fi }
       DIES
       fi;
#else
#ifndef READERS_UNLOCKED
       take(readers, READERS);
#endif
       read_message();
#ifndef READERS_UNLOCKED
       give(readers);
#endif
#endif
       if
       :: found ->
          found = false;
#ifndef TAKEN_NO_RING
          ring(EMPTIED);
#endif
          if
          :: MAIL -> ring(FILLED)
          :: else -> silence()
          fi;
#ifdef TRIM
          trim();
#endif
#if NJ
          d_step { ndone++ };
          if
          :: ALL_DONE ->
#ifndef RING_ONE
             everybody = true;
#endif
             ring(JOINED);
             everybody = false
          :: else
          fi;
#endif
          skip
       :: else
       fi
    od;
    goto out;
dead:
    skip;
    d_step {
        leave_locks();
        id = 0; c = 0; o = 0; s = 0; x = 0; h = 0; t = 0; first = 0; left = 0;
        got = false; found = false; everybody = false
    };
    goto again;
out:
    skip
}

#if NJ
proctype joiner(byte me)
{
    bool got, found;

    do
    :: ndone == ALL -> break
    :: ndone < ALL && !ALL_DONE -> doze(JOINED, ALL_DONE, false)
    od;
    goto out;
dead:
    assert(false);
out:
    skip
}
#endif

init {
    atomic {
        stamp[0] = 1;
        begun = 1;
        run writer(0);
        run writer(1);
        run reader(2);
#if NR > 1
        run reader(3);
#endif
#if NJ
        run joiner(4);
#endif
#if NJ > 1
        run joiner(5);
#endif
    }
}
