/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * claim.pml - append, claim, run, publish, take, cancel and repair, with deaths at every step.
 *
 * The model follows src/shm/queue.h (A1 A2, C1 C2 C3), src/pool/worker.c (STARTED, result, DONE,
 * ring entry, tail), src/pool/dispatch.c (append with its help, cancel, take) and
 * src/pool/repair.c.  One lane, NS slots, NW workers, NT tasks, at most ND deaths and NX cancels.
 * The lane's cells and positions wrap as in the code; tickets count up.
 *
 * A worker may die before each of its steps.  Its successor, of the next generation, starts at
 * once (the warden does not ask the owner); the news waits until the owner looks.
 *
 * Proved, for these bounds: no task starts twice; a cancelled task never starts; every task ends
 * exactly once, as a value that is whole, as lost (only if it had started) or as cancelled; the
 * owner is never left waiting (an invalid end state otherwise); nothing goes round for ever
 * (run.sh also asks for cycles, and there are none).
 *
 * RETRIES: a started task whose worker died runs again.  Every other #ifdef is a mistake that
 * run.sh makes on purpose and that must be found.
 */
#ifndef NT
#define NT 3
#endif
#ifndef NW
#define NW 2
#endif
#ifndef ND
#define ND 1
#endif
#ifndef NX
#define NX 1
#endif
#define NS 2
#ifndef NC
#define NC 5 /* cells of the lane: so that a turn always makes room for a slot, as in the code */
#endif

#define FREE 0
#define QUEUED 1
#define CLAIMED 2
#define STARTED 3
#define DONE 4

/* The state word: state:3 | worker:2 | generation:2 | ticket:4. */
#define WORD(s, w, g, t) ((s) | (w) << 3 | (g) << 5 | (t) << 7)
#define STATE(x) ((x) & 7)
#define WHO(x) (((x) >> 3) & 3)
#define GEN(x) (((x) >> 5) & 3)
#define TICKET(x) ((x) >> 7)

/* A cell: position + 1 and slot; 0 was never written. */
#define CELL(p, s) (((p) + 1) << 1 | (s))
#define CSLOT(c) ((c) & 1)

/* shared memory */
short state[NS];
byte task[NS]; /* what the owner wrote into the slot before A1 */
byte result[NS];
byte head;
byte cell[NC];
byte ring[NW * NT]; /* of each worker: ticket << 1 | slot */
byte tail[NW];
bool closing;

/* the socket: worker, generation */
chan news = [ND] of { byte, byte };

byte last; /* the owner's own: the lane's tail */

/* ghosts */
byte deaths = ND;
bool started[NT];
bool ended[NT];

/* An alternative to the worker's next store.  A death before a load leaves the same as one before
 * the store that follows.  Workers are alike: while only one may die, let it be the first. */
#define DIES :: atomic { deaths > 0 && (ND > 1 || me == 0) -> deaths--; goto dead }

#ifdef CELL_NO_POSITION
#define CELL_AT_HEAD (cell[head % NC] != 0)
#else
#define CELL_AT_HEAD (cell[head % NC] != 0 && (cell[head % NC] >> 1) - 1 >= head)
#endif

proctype worker(byte me)
{
    byte gen, s, h, c, mytail;
    short st, mine;
    bool won;

    do
    :: /* Idle.  sleep.pml shows that a worker comes here whenever there is something to find. */
       if
       :: d_step { CELL_AT_HEAD -> h = head }                           /* C1 */
       :: closing -> break
       fi;
       d_step {
           c = cell[h % NC];
#ifdef CELL_NO_POSITION
           won = c != 0;
#else
           won = c != 0 && (c >> 1) - 1 == h;
#endif
           s = CSLOT(c);
           c = 0
       }
       if
       :: !won -> goto claimed
       :: else -> won = false
       fi;
       st = state[s];
       if
       :: STATE(st) == QUEUED ->
          mine = WORD(CLAIMED, me, gen, TICKET(st));
          if
          :: d_step {                                                   /* C2 */
#ifdef CLAIM_NO_CAS
                 won = true;
#elif defined(CLAIM_IGNORES_TICKET)
                 won = STATE(state[s]) == QUEUED;
#else
                 won = state[s] == st;
#endif
                 if
#ifdef CLAIM_NO_NAME
                 :: won -> state[s] = WORD(CLAIMED, 3, 3, TICKET(st))
#else
                 :: won -> state[s] = mine
#endif
                 :: else
                 fi;
                 skip
             }
          DIES
          fi
#ifdef CLAIM_NO_NAME
          ;
          if
          :: won ->
             if
             :: state[s] = mine
             DIES
             fi
          :: else
          fi
#endif
       :: else
       fi;
       if
       :: d_step {                                                      /* C3 */
#ifdef NO_HELP
              if
              :: won && head == h -> head = h + 1
              :: else
              fi;
#elif defined(HEAD_ADD)
              head++;
#else
              if
              :: head == h -> head = h + 1
              :: else
              fi;
#endif
              assert(head <= last);
              h = 0;
              st = 0
          }
       DIES
       fi;
claimed:
       if
       :: won ->
#ifndef NOT_STARTED
          if
          :: state[s] = WORD(STARTED, me, gen, TICKET(mine))
          DIES
          fi;
#endif
#ifdef DONE_BEFORE_RESULT
          if
          :: state[s] = WORD(DONE, me, gen, TICKET(mine))
          DIES
          fi;
#endif
          if
          :: d_step { /* the task runs */
#ifndef RETRIES
                 assert(!started[task[s]]);
#endif
                 assert(!ended[task[s]]);
                 started[task[s]] = true;
                 result[s] = task[s] + 1
             }
          DIES
          fi;
#ifndef DONE_BEFORE_RESULT
          if
          :: state[s] = WORD(DONE, me, gen, TICKET(mine))               /* D1 */
          DIES
          fi;
#endif
          if
          :: ring[me * NT + mytail] = TICKET(mine) << 1 | s
          DIES
          fi;
          if
          :: d_step { mytail++; tail[me] = mytail }
          DIES
          fi
       :: else
       fi;
       d_step { won = false; mine = 0; st = 0; s = 0; h = 0 };
       goto next;
dead:
       /* The warden has reaped us, tells the owner and starts a successor in our place. */
       skip;
       d_step {
           news!me,gen;
           gen++;
           mytail = tail[me];
           won = false;
           mine = 0;
           st = 0;
           s = 0;
           h = 0
       };
next:
       skip
    od
}

/* The owner's steps.  What it does in one d_step touches at most one word that workers write. */

inline end_task(i)
{
    assert(!ended[task[i]]);
    ended[task[i]] = true;
    nended++;
    state[i] = FREE;
    used[i] = false
}

inline detach(i)
{
    assert(result[i] == task[i] + 1); /* the value is whole, and its own */
    end_task(i)
}

/* lane_turn: tasks that wait get a new cell, the newest of each slot counts, and head moves on. */
inline turn()
{
    upto = last;
    do
#ifdef TURN_LOOKS_TWICE
    :: head < upto && last - head < NC ->
       h = head;
#else
    :: d_step { head < upto && last - head < NC -> h = head };
#endif
       moved = CSLOT(cell[h % NC]);
       if
       :: priv_cell[moved] == h && STATE(state[moved]) == QUEUED ->
#ifndef TURN_DROPS
          d_step { cell[last % NC] = CELL(last, moved); priv_cell[moved] = last; last++ }
#else
          skip
#endif
       :: else
       fi;
       d_step {
           if
           :: head == h -> head = h + 1
           :: else
           fi
       }
    :: else -> break
    od;
    upto = 0;
    moved = 0
}

/* tri_slot_append: A1 and A2, after helping head on when every cell is taken, and a turn of a lane
 * when the task there waits.  Some cells are kept for tasks that come back from the dead. */
inline append(i, new_ticket)
{
    room = (new_ticket -> NC - NW - 1 : NC);
    h = head;
    no_room = false;
    turned = false;
    do
    :: last - h >= room && STATE(state[CSLOT(cell[h % NC])]) == QUEUED ->
       if
       :: turned -> no_room = true; break
       :: else -> turn(); turned = true; h = head
       fi
    :: last - h >= room && STATE(state[CSLOT(cell[h % NC])]) != QUEUED ->
       d_step {
           if
           :: head == h -> head = h + 1
           :: else
           fi;
           h = head
       }
    :: last - h < room -> break
    od;
    if
    :: no_room
    :: else ->
       d_step {
           if
           :: new_ticket -> ticket++; priv_ticket[i] = ticket
           :: else
           fi;
           state[i] = WORD(QUEUED, 0, 0, priv_ticket[i])                /* A1 */
       }
       d_step { cell[last % NC] = CELL(last, i); priv_cell[i] = last; last++ } /* A2 */
    fi;
    h = 0;
    room = 0
}

/* One entry of worker w's ring (tri_take): only a hint. */
#ifdef RING_TRUSTED
#define IS_DONE(i, t) (used[i])
#else
#define IS_DONE(i, t) \
    (used[i] && priv_ticket[i] == t && STATE(state[i]) == DONE && TICKET(state[i]) == t)
#endif

inline pop(w)
{
    i = ring[w * NT + ring_head[w]] & 1;
    st = ring[w * NT + ring_head[w]] >> 1;
    ring_head[w]++;
    if
    :: IS_DONE(i, st) -> detach(i)
    :: else
    fi;
    i = 0;
    st = 0
}

/* tri_take_one.  Only the first task is waited for by name: were all, no missing ring entry would
 * ever show. */
#define BY_NAME(i)                                                                              \
    (used[i] && task[i] == 0 && STATE(state[i]) == DONE && TICKET(state[i]) == priv_ticket[i])

#ifdef NO_GENERATION
#define NAMES_DEAD(x) (STATE(x) > QUEUED && WHO(x) == w)
#else
#define NAMES_DEAD(x) (STATE(x) > QUEUED && WHO(x) == w && GEN(x) == g)
#endif

/* After a refusal the caller comes again, but no sooner than it may help. */
#define MAY_HAVE_ROOM \
    (last - head < NC - NW - 1 || STATE(state[CSLOT(cell[head % NC])]) != QUEUED)

active proctype owner()
{
    byte priv_ticket[NS], priv_cell[NS], ring_head[NW];
    bool used[NS];
    byte ticket;
    byte next, nended, cancels = NX, i, w, g, h, room, upto, moved;
    short st;
    bool no_room, turned;

    atomic {
        do
        :: i < NW -> run worker(i); i++
        :: else -> break
        od;
        i = 0
    }
    do
    :: d_step { /* submit */
           next < NT && (!used[0] || !used[1]) && MAY_HAVE_ROOM ->
           i = (used[0] -> 1 : 0);
           used[i] = true;
           task[i] = next;
           result[i] = 0
       }
       append(i, true);
       d_step {
           if
           :: no_room -> used[i] = false
           :: else -> next++
           fi;
           i = 0;
           no_room = false
       }
    :: atomic { /* cancel */
           cancels > 0 && (used[0] || used[1]) ->
           cancels--;
           if
           :: used[0] -> i = 0
           :: used[1] -> i = 1
           fi
       }
#ifdef CANCEL_NO_CAS
       st = state[i];
       d_step {
           if
           :: st == WORD(QUEUED, 0, 0, priv_ticket[i]) -> end_task(i)
#else
       d_step {
           if
           :: state[i] == WORD(QUEUED, 0, 0, priv_ticket[i]) -> end_task(i)
#endif
           :: else
           fi;
           i = 0;
           st = 0
       }
    :: d_step { BY_NAME(0) -> detach(0) }
    :: d_step { BY_NAME(1) -> detach(1) }
    :: d_step { ring_head[0] != tail[0] -> pop(0) }
    :: d_step { ring_head[1] != tail[1] -> pop(1) }
    :: news?w,g; /* repair */
       do
       :: i == NS -> break
       :: i < NS ->
          if
          :: used[i] -> st = state[i]
          :: else
          fi;
          if
          :: NAMES_DEAD(st) && STATE(st) == CLAIMED ->
#ifndef NO_REQUEUE
             append(i, false);
             assert(!no_room) /* or it would have to be given up, though it had not started */
#endif
          :: NAMES_DEAD(st) && STATE(st) == STARTED ->
#if defined(STARTED_AGAIN) || defined(RETRIES)
             append(i, false)
#else
             d_step { end_task(i) }
#endif
#ifndef DONE_NOT_TAKEN
          :: NAMES_DEAD(st) && STATE(st) == DONE ->
             d_step { detach(i) }
#endif
          :: else
          fi;
          d_step { i++; st = 0 }
       od;
       atomic { i = 0; w = 0; g = 0 }
    :: nended == NT -> break
    od;
    closing = true
}
