//! Which thread runs which op: the slots, the ops parked for want of one, and the reader that stands by.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    fmt, mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::{
    id::OpId,
    op::{Op, WaitingFor},
    process,
};

/// A GETATTR of the root waits so long for the one before it, and is then answered from memory.
pub(super) const ROOT_PATIENCE: Duration = Duration::from_millis(10);

/// Between two looks of the reader that stands by. Two and the report stay below 20 ms: 18.8 ms measured,
/// where 10 ms each gave 21.7.
const LOOK: Duration = Duration::from_millis(8);

// As many looks in a row that find no slot free are a second: ops end, but `.diag` would wait in line.
const FULL_LOOKS: u32 = 125;

// After as many looks that find nothing begun, the reader sleeps until an op begins.
const IDLE_LOOKS: u32 = 100;

/// Delivering forgets takes a slot like an op.
const FORGET: Running = Running {
    name: "forget",
    op: None,
    tid: 0,
    root: false,
};

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

thread_local! {
    // The dispatch that knows this thread.
    static KNOWN_TO: Cell<u64> = const { Cell::new(0) };
    static END: RefCell<Option<LoopEnd>> = const { RefCell::new(None) };
}

/// Gives out the slots of one mount. `C` is what the parked jobs run on.
pub(super) struct Dispatch<C> {
    id: u64,
    slots: usize,
    state: Mutex<State<C>>,
    // The reader that stands by sleeps here,
    standby: Condvar,
    // and here whoever looks after the parked.
    watch: Condvar,
}

/// A slot that was got. It must be given back with [`Dispatch::next`].
#[derive(Debug)]
#[must_use = "a slot that is not given back stays taken"]
pub(super) struct Slot(usize);

/// What a thread does with its slot when its op has returned.
pub(super) enum Next<C> {
    /// Deliver these forgets, then ask again.
    Forgets(Slot, HashMap<u64, u64>),
    /// Run this op, then ask again.
    Run(Slot, Parked<C>),
    /// The slot is free again, and so is the thread.
    Done,
    /// The same, and the thread is one reader too many: [`Dispatch::stand_by`].
    StandBy,
}

/// An op without a slot, with copies of its arguments.
pub(super) struct Parked<C> {
    pub(super) running: Running,
    pub(super) op: Op,
    /// Who called: asked whether it was killed. 0 asks nobody.
    pub(super) tid: u32,
    pub(super) bytes: usize,
    pub(super) job: Job<C>,
    wait: Option<WaitingFor>,
}

/// The rest of a parked op; dropped without a call, its reply is an error.
pub(super) type Job<C> = Box<dyn FnOnce(Fate<'_, C>) + Send>;

/// What becomes of a parked op.
pub(super) enum Fate<'a, C> {
    Run(&'a C),
    /// Its caller was killed.
    Interrupted,
    /// The connection is gone.
    Gone,
    /// The one before it, which it was not to run beside, takes too long.
    Aside,
}

/// What whoever looks after the parked ops has to do.
pub(super) enum Duty<C> {
    /// Nothing, until the time is over.
    None,
    /// To ask whether the callers of parked ops live, and whether the connection does.
    Check,
    /// To set these aside.
    Late(Vec<Parked<C>>),
    /// To go.
    Closed,
}

/// What is known of the op in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) name: &'static str,
    pub(super) op: Option<OpId>,
    /// The thread it runs on; 0 while parked.
    pub(super) tid: u32,
    /// Of these only one runs at a time.
    pub(super) root: bool,
}

/// The state at one moment, for reports.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) running: Vec<Running>,
    pub(super) parked: Vec<OpId>,
    pub(super) parked_count: usize,
    pub(super) parked_bytes: usize,
    /// How many were begun so far.
    pub(super) begun: u64,
}

struct State<C> {
    slots: Vec<Option<Running>>,
    busy: usize,
    parked: VecDeque<Parked<C>>,
    parked_bytes: usize,
    // While one that is the only one of its kind runs, the next ones, and until when.
    behind: VecDeque<(Instant, Parked<C>)>,
    forgets: HashMap<u64, u64>,
    begun: u64,
    finished: u64,
    // Event loops seen, standing by or not.
    loops: usize,
    loop_ended: bool,
    standing_by: bool,
    // The reader sleeps until an op begins.
    dozing: bool,
    // How many had finished when the standby last began to read.
    read_at: Option<u64>,
    watch_is_called: bool,
    closed: bool,
}

// Tells the dispatch that an event loop ended: the session is over.
struct LoopEnd(Weak<dyn Loops>);

trait Loops: Send + Sync {
    fn ended(&self);
}

impl Running {
    pub(super) fn new(name: &'static str, op: &Op) -> Self {
        Self {
            name,
            op: op.id(),
            tid: 0,
            root: false,
        }
    }
}

impl<C> Parked<C> {
    /// `wait` is the op's wait for a slot.
    pub(super) fn new(
        running: Running,
        op: Op,
        wait: WaitingFor,
        tid: u32,
        bytes: usize,
        job: Job<C>,
    ) -> Self {
        Self {
            running,
            op,
            tid,
            bytes,
            job,
            wait: Some(wait),
        }
    }

    /// Ends the wait, since the op is about to run.
    pub(super) fn admitted(&mut self) {
        self.wait = None;
    }
}

impl<C> Dispatch<C> {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            slots: slots.max(1),
            state: Mutex::new(State {
                slots: Vec::new(),
                busy: 0,
                parked: VecDeque::new(),
                parked_bytes: 0,
                behind: VecDeque::new(),
                forgets: HashMap::new(),
                begun: 0,
                finished: 0,
                loops: 0,
                loop_ended: false,
                standing_by: false,
                dozing: false,
                read_at: None,
                watch_is_called: false,
                closed: false,
            }),
            standby: Condvar::new(),
            watch: Condvar::new(),
        })
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// Takes a slot if one is free.
    pub(super) fn enter(&self, running: Running) -> Option<Slot> {
        let mut state = self.lock();
        let slot = state.take(self.slots, running)?;
        let wake = mem::take(&mut state.dozing);
        drop(state);
        if wake {
            self.standby.notify_all();
        }
        Some(slot)
    }

    /// Parks an op. Gives it back with a slot if one has come free since, or with none if the
    /// connection is gone.
    pub(super) fn park(&self, op: Parked<C>) -> Option<(Option<Slot>, Parked<C>)> {
        let mut state = self.lock();
        if let Some(slot) = state.take(self.slots, op.running) {
            return Some((Some(slot), op));
        }
        if state.closed {
            return Some((None, op));
        }
        if op.running.root {
            let until = Instant::now() + ROOT_PATIENCE;
            state.behind.push_back((until, op));
            drop(state);
            self.watch.notify_all();
            return None;
        }
        state.parked_bytes += op.bytes;
        state.parked.push_back(op);
        let first = state.parked.len() == 1;
        drop(state);
        if first {
            self.watch.notify_all();
        }
        None
    }

    /// Keeps a forget for the next thread that frees a slot; gives a slot to deliver it if one is free.
    pub(super) fn forget(&self, inode: u64, lookups: u64) -> Option<Slot> {
        let mut state = self.lock();
        let Some(slot) = state.take(self.slots, FORGET) else {
            let sum = state.forgets.entry(inode).or_insert(0);
            *sum = sum.saturating_add(lookups);
            return None;
        };
        let wake = mem::take(&mut state.dozing);
        drop(state);
        if wake {
            self.standby.notify_all();
        }
        Some(slot)
    }

    /// Says what comes next in this slot; nothing more, if this thread may not stand by now.
    pub(super) fn next(&self, slot: Slot, may_stand_by: bool) -> Next<C> {
        let mut state = self.lock();
        state.finished = state.finished.wrapping_add(1);
        if !state.forgets.is_empty() {
            let forgets = mem::take(&mut state.forgets);
            state.begin(&slot, FORGET);
            return Next::Forgets(slot, forgets);
        }
        state.clear(&slot);
        if !state.behind.is_empty()
            && !state.runs_root()
            && let Some((_, op)) = state.behind.pop_front()
        {
            state.begin(&slot, op.running);
            return Next::Run(slot, op);
        }
        if let Some(op) = state.parked.pop_front() {
            state.parked_bytes -= op.bytes;
            state.begin(&slot, op.running);
            return Next::Run(slot, op);
        }
        state.busy -= 1;
        if may_stand_by && state.one_too_many(self.slots) {
            state.standing_by = true;
            Next::StandBy
        } else {
            Next::Done
        }
    }

    /// Whether this thread, which has no slot, should stand by; if so it must.
    pub(super) fn is_one_too_many(&self) -> bool {
        let mut state = self.lock();
        let yes = state.busy < self.slots && state.one_too_many(self.slots);
        state.standing_by |= yes;
        yes
    }

    /// Sleeps until this thread is needed as a reader.
    pub(super) fn stand_by(&self) {
        let mut state = self.lock();
        let mut looks = Looks::default();
        let mut next_look = Instant::now() + LOOK;
        while !state.closed && !state.loop_ended {
            if state.dozing {
                state = wait(&self.standby, state, None);
                next_look = Instant::now() + LOOK;
                continue;
            }
            let now = Instant::now();
            if now < next_look {
                state = wait(&self.standby, state, Some(next_look - now));
                continue;
            }
            next_look = now + LOOK;
            match looks.look(state.busy >= self.slots, state.begun, state.finished) {
                Look::Read => {
                    state.read_at = Some(state.finished);
                    break;
                }
                Look::Doze => {
                    state.dozing = true;
                    looks = Looks::default();
                }
                Look::Again => {}
            }
        }
        state.dozing = false;
        state.standing_by = false;
    }

    /// Takes out the parked ops whose callers were killed.
    pub(super) fn take_killed(&self, is_killed: impl Fn(u32) -> bool) -> Vec<Parked<C>> {
        let callers: Vec<u32> = {
            let state = self.lock();
            let tids = state.parked.iter().map(|op| op.tid);
            tids.filter(|tid| *tid != 0).collect()
        };
        let killed: Vec<u32> = callers.into_iter().filter(|tid| is_killed(*tid)).collect();
        if killed.is_empty() {
            return Vec::new();
        }
        let mut state = self.lock();
        let (out, kept) = mem::take(&mut state.parked)
            .into_iter()
            .partition(|op| killed.contains(&op.tid));
        state.parked = kept;
        let out = Vec::from(out);
        state.parked_bytes -= out.iter().map(|op| op.bytes).sum::<usize>();
        out
    }

    /// Ends it: nothing is parked any more, and nobody stands by. Gives what was parked.
    pub(super) fn close(&self) -> Vec<Parked<C>> {
        let mut state = self.lock();
        state.closed = true;
        state.parked_bytes = 0;
        let behind = mem::take(&mut state.behind);
        let mut parked = Vec::from(mem::take(&mut state.parked));
        drop(state);
        parked.extend(behind.into_iter().map(|(_, op)| op));
        self.standby.notify_all();
        self.watch.notify_all();
        parked
    }

    /// Whether an event loop has ended: the session is over, or about to be.
    pub(super) fn has_loop_ended(&self) -> bool {
        self.lock().loop_ended
    }

    /// Sleeps until an event loop ends or it is closed, or so long. Says whether it is over.
    pub(super) fn wait_for_end(&self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let is_over = state.closed || state.loop_ended;
            if is_over || left.is_zero() {
                return is_over;
            }
            state = wait(&self.watch, state, Some(left));
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Has whoever looks after parked ops look at what else there is.
    pub(super) fn wake_watch(&self) {
        self.lock().watch_is_called = true;
        self.watch.notify_all();
    }

    /// Sleeps until there is something to do for parked ops, or it is called, or so long. A check is due at
    /// `check_at`.
    pub(super) fn watch(&self, check_at: Instant, at_most: Duration) -> Duty<C> {
        let until = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            if state.closed {
                return Duty::Closed;
            }
            let now = Instant::now();
            let late = state.take_late(now);
            if !late.is_empty() {
                return Duty::Late(late);
            }
            let mut wake = until;
            if !state.parked.is_empty() || state.loop_ended {
                if now >= check_at {
                    return Duty::Check;
                }
                wake = wake.min(check_at);
            }
            if now >= until || mem::take(&mut state.watch_is_called) {
                return Duty::None;
            }
            if let Some((late, _)) = state.behind.front() {
                wake = wake.min(*late);
            }
            state = wait(&self.watch, state, Some(wake - now));
        }
    }

    pub(super) fn view(&self) -> View {
        let state = self.lock();
        let behind = state.behind.iter().map(|(_, op)| op);
        let parked = state.parked.iter().chain(behind);
        View {
            running: state.slots.iter().flatten().copied().collect(),
            parked: parked.filter_map(|op| op.op.id()).collect(),
            parked_count: state.parked.len() + state.behind.len(),
            parked_bytes: state.parked_bytes,
            begun: state.begun,
        }
    }

    /// Whether all slots are busy, and none has come free since the standby began to read for that.
    pub(super) fn hangs(&self) -> bool {
        let state = self.lock();
        state.busy >= self.slots && state.read_at == Some(state.finished)
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: 'static> Dispatch<C> {
    /// Notes that this thread is an event loop. Each callback begins with it.
    pub(super) fn on_loop(self: &Arc<Self>) {
        if KNOWN_TO.try_with(Cell::get) != Ok(self.id) {
            self.meet();
        }
    }

    #[cold]
    fn meet(self: &Arc<Self>) {
        let me: Weak<Self> = Arc::downgrade(self);
        let set = END.try_with(|end| {
            let before = end.borrow_mut().replace(LoopEnd(me));
            // A thread that goes from one session to another ended no loop of this one.
            if let Some(before) = before {
                mem::forget(before);
            }
        });
        if set.is_ok() {
            let _ = KNOWN_TO.try_with(|known| known.set(self.id));
            self.lock().loops += 1;
        }
    }
}

impl<C> Loops for Dispatch<C> {
    fn ended(&self) {
        self.lock().loop_ended = true;
        self.standby.notify_all();
        self.watch.notify_all();
    }
}

impl<C> fmt::Debug for Dispatch<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatch")
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl<C> State<C> {
    fn take(&mut self, slots: usize, running: Running) -> Option<Slot> {
        if self.busy >= slots || (running.root && self.runs_root()) {
            return None;
        }
        let at = match self.slots.iter().position(Option::is_none) {
            Some(at) => at,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        self.busy += 1;
        let slot = Slot(at);
        self.begin(&slot, running);
        Some(slot)
    }

    fn begin(&mut self, slot: &Slot, running: Running) {
        self.begun = self.begun.wrapping_add(1);
        if let Some(entry) = self.slots.get_mut(slot.0) {
            *entry = Some(Running {
                tid: process::tid(),
                ..running
            });
        }
    }

    fn clear(&mut self, slot: &Slot) {
        if let Some(entry) = self.slots.get_mut(slot.0) {
            *entry = None;
        }
    }

    fn runs_root(&self) -> bool {
        self.slots.iter().flatten().any(|running| running.root)
    }

    fn take_late(&mut self, now: Instant) -> Vec<Parked<C>> {
        let late = self.behind.iter().take_while(|(until, _)| *until <= now);
        let late = late.count();
        self.behind.drain(..late).map(|(_, op)| op).collect()
    }

    // There is one only when more event loops than slots were seen.
    fn one_too_many(&self, slots: usize) -> bool {
        self.loops > slots && !self.standing_by && !self.closed && !self.loop_ended
    }
}

impl Drop for LoopEnd {
    // Runs when the thread ends, before anyone can have joined it.
    fn drop(&mut self) {
        if let Some(dispatch) = self.0.upgrade() {
            dispatch.ended();
        }
    }
}

/// What the reader that stands by has seen so far.
#[derive(Debug, Default)]
struct Looks {
    full: u32,
    idle: u32,
    begun: u64,
    finished: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Read,
    Doze,
    Again,
}

impl Looks {
    fn look(&mut self, full: bool, begun: u64, finished: u64) -> Look {
        let none_ended = self.finished == finished;
        let none_begun = self.begun == begun;
        (self.begun, self.finished) = (begun, finished);
        if full {
            self.idle = 0;
            self.full += 1;
            let stuck = self.full > 1 && none_ended;
            return if stuck || self.full >= FULL_LOOKS {
                Look::Read
            } else {
                Look::Again
            };
        }
        self.full = 0;
        self.idle = if none_begun { self.idle + 1 } else { 0 };
        if self.idle >= IDLE_LOOKS {
            Look::Doze
        } else {
            Look::Again
        }
    }
}

fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    at_most: Option<Duration>,
) -> MutexGuard<'a, T> {
    match at_most {
        Some(time) => {
            let waited = condvar.wait_timeout(guard, time);
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
        None => condvar.wait(guard).unwrap_or_else(PoisonError::into_inner),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            mpsc::{self, Sender},
        },
        thread,
        time::{Duration, Instant},
    };

    use super::{Dispatch, Duty, FULL_LOOKS, Fate, IDLE_LOOKS, Look, Looks, Next, Parked, Running};
    use crate::{op::WaitingFor, tracker::Tracker};

    const DEADLINE: Duration = Duration::from_secs(5);

    fn running(name: &'static str) -> Running {
        Running {
            name,
            op: None,
            tid: 0,
            root: false,
        }
    }

    fn parked(running: Running, tid: u32, fate: &Sender<&'static str>) -> Parked<()> {
        let op = Tracker::new("test").begin(running.name);
        let fate = fate.clone();
        let name = running.name;
        let job = move |what: Fate<'_, ()>| {
            let _ = fate.send(match what {
                Fate::Run(()) => name,
                Fate::Interrupted => "interrupted",
                Fate::Gone => "gone",
                Fate::Aside => "aside",
            });
        };
        Parked::new(running, op, WaitingFor::none(), tid, 10, Box::new(job))
    }

    // Gives the slot back until it is free, and says what was run in it.
    fn drain(dispatch: &Dispatch<()>, mut slot: super::Slot) -> Vec<String> {
        let mut done = Vec::new();
        loop {
            match dispatch.next(slot, true) {
                Next::Forgets(same, forgets) => {
                    slot = same;
                    let mut forgets: Vec<_> = forgets.into_iter().collect();
                    forgets.sort_unstable();
                    done.push(format!("forget {forgets:?}"));
                }
                Next::Run(same, op) => {
                    slot = same;
                    done.push(op.running.name.to_owned());
                    (op.job)(Fate::Run(&()));
                }
                Next::Done | Next::StandBy => return done,
            }
        }
    }

    #[test]
    fn what_finds_no_slot_runs_later_in_the_order_it_came() {
        let dispatch = Dispatch::new(1);
        let (fate, fates) = mpsc::channel();
        let slot = dispatch.enter(running("read")).unwrap();

        assert!(dispatch.enter(running("open")).is_none());
        assert!(dispatch.park(parked(running("open"), 0, &fate)).is_none());
        assert!(dispatch.park(parked(running("stat"), 0, &fate)).is_none());
        let view = dispatch.view();
        assert_eq!((view.parked_count, view.parked_bytes), (2, 20));

        assert_eq!(drain(&dispatch, slot), ["open", "stat"]);
        assert_eq!(fates.try_iter().collect::<Vec<_>>(), ["open", "stat"]);
        assert!(
            dispatch.enter(running("read")).is_some(),
            "the slot is free"
        );
        assert_eq!(dispatch.view().parked_bytes, 0);
    }

    #[test]
    fn an_op_is_not_parked_when_a_slot_came_free_meanwhile() {
        let dispatch = Dispatch::new(1);
        let (fate, _fates) = mpsc::channel();

        let back = dispatch.park(parked(running("open"), 0, &fate));

        assert!(matches!(back, Some((Some(_), _))));
    }

    #[test]
    fn forgets_are_summed_and_delivered_before_the_next_op() {
        let dispatch = Dispatch::new(1);
        let (fate, _fates) = mpsc::channel();
        let slot = dispatch.enter(running("read")).unwrap();

        assert!(dispatch.park(parked(running("open"), 0, &fate)).is_none());
        for (inode, lookups) in [(7, 1), (8, 1), (7, 3)] {
            assert!(dispatch.forget(inode, lookups).is_none());
        }

        assert_eq!(drain(&dispatch, slot), ["forget [(7, 4), (8, 1)]", "open"]);
        assert!(dispatch.forget(7, 1).is_some(), "with a free slot at once");
    }

    #[test]
    fn two_of_the_root_never_run_side_by_side() {
        let dispatch = Dispatch::new(4);
        let (fate, fates) = mpsc::channel();
        let root = Running {
            root: true,
            ..running("getattr")
        };
        let slot = dispatch.enter(root).unwrap();

        for _ in 0..2 {
            assert!(dispatch.enter(root).is_none());
            assert!(dispatch.park(parked(root, 0, &fate)).is_none());
        }
        let other = dispatch.enter(running("read"));
        assert!(other.is_some(), "others run beside it");

        assert_eq!(drain(&dispatch, slot), ["getattr", "getattr"]);
        assert_eq!(fates.try_iter().count(), 2);
    }

    #[test]
    fn behind_one_that_hangs_they_are_set_aside() {
        let dispatch = Dispatch::new(4);
        let (fate, fates) = mpsc::channel();
        let root = Running {
            root: true,
            ..running("getattr")
        };
        let _hangs = dispatch.enter(root).unwrap();
        assert!(dispatch.park(parked(root, 0, &fate)).is_none());

        let Duty::Late(late) = dispatch.watch(Instant::now(), DEADLINE) else {
            panic!("nothing was late");
        };
        for op in late {
            (op.job)(Fate::Aside);
        }

        assert_eq!(fates.try_iter().collect::<Vec<_>>(), ["aside"]);
        assert_eq!(dispatch.view().parked_count, 0);
    }

    #[test]
    fn only_those_whose_callers_were_killed_are_taken_out() {
        let dispatch = Dispatch::new(1);
        let (fate, _fates) = mpsc::channel();
        let slot = dispatch.enter(running("read")).unwrap();
        for (name, tid) in [("open", 5), ("release", 0), ("stat", 6)] {
            assert!(dispatch.park(parked(running(name), tid, &fate)).is_none());
        }

        let killed = dispatch.take_killed(|tid| tid != 6);

        let killed: Vec<_> = killed.iter().map(|op| op.running.name).collect();
        assert_eq!(killed, ["open"]);
        assert_eq!(dispatch.view().parked_bytes, 20);
        assert_eq!(drain(&dispatch, slot), ["release", "stat"]);
    }

    #[test]
    fn once_closed_nothing_is_parked() {
        let dispatch = Dispatch::new(1);
        let (fate, fates) = mpsc::channel();
        let _slot = dispatch.enter(running("read")).unwrap();
        assert!(dispatch.park(parked(running("open"), 0, &fate)).is_none());

        for op in dispatch.close() {
            (op.job)(Fate::Gone);
        }

        assert_eq!(fates.try_iter().collect::<Vec<_>>(), ["gone"]);
        let back = dispatch.park(parked(running("stat"), 0, &fate));
        assert!(matches!(back, Some((None, _))));
        assert!(matches!(
            dispatch.watch(Instant::now(), DEADLINE),
            Duty::Closed
        ));
    }

    #[test]
    fn a_reader_is_needed_when_nothing_ends_or_nothing_is_free_for_long() {
        let mut looks = Looks::default();
        assert_eq!(looks.look(true, 1, 0), Look::Again);
        assert_eq!(looks.look(true, 1, 0), Look::Read, "the same op");

        let mut looks = Looks::default();
        for n in 1..FULL_LOOKS {
            assert_eq!(looks.look(true, n.into(), n.into()), Look::Again, "{n}");
        }
        assert_eq!(looks.look(true, 1000, 1000), Look::Read, "full for long");

        let mut looks = Looks::default();
        for n in 1..1000 {
            assert_eq!(looks.look(n % 50 != 0, n, n), Look::Again, "{n}");
        }
    }

    #[test]
    fn without_ops_the_reader_sleeps() {
        let mut looks = Looks::default();
        for n in 1..IDLE_LOOKS {
            assert_eq!(looks.look(false, 0, 0), Look::Again, "{n}");
        }

        assert_eq!(looks.look(false, 0, 0), Look::Doze);
    }

    // A second event loop, which stands by if it is told to.
    fn second_loop(dispatch: &Arc<Dispatch<()>>) -> (Sender<()>, mpsc::Receiver<&'static str>) {
        let (go, may_go) = mpsc::channel::<()>();
        let (said, says) = mpsc::channel();
        let dispatch = Arc::clone(dispatch);
        thread::spawn(move || {
            dispatch.on_loop();
            let _ = said.send("known");
            let _ = may_go.recv_timeout(DEADLINE);
            let one_too_many = dispatch.is_one_too_many();
            let _ = said.send(if one_too_many { "stands by" } else { "stays" });
            if one_too_many {
                dispatch.stand_by();
                let _ = said.send("reads");
            }
            let _ = may_go.recv_timeout(DEADLINE);
        });
        (go, says)
    }

    #[test]
    fn the_reader_that_stands_by_reads_when_all_slots_are_stuck() {
        let dispatch = Dispatch::new(1);
        dispatch.on_loop();
        let (go, says) = second_loop(&dispatch);
        assert_eq!(says.recv_timeout(DEADLINE), Ok("known"));
        go.send(()).unwrap();
        assert_eq!(says.recv_timeout(DEADLINE), Ok("stands by"));
        assert!(!dispatch.is_one_too_many(), "one is enough");

        let _stuck = dispatch.enter(running("read")).unwrap();

        assert_eq!(says.recv_timeout(DEADLINE), Ok("reads"));
    }

    #[test]
    fn as_many_loops_as_slots_all_stay() {
        let dispatch = Dispatch::new(2);
        dispatch.on_loop();
        let (go, says) = second_loop(&dispatch);
        assert_eq!(says.recv_timeout(DEADLINE), Ok("known"));

        go.send(()).unwrap();

        assert_eq!(says.recv_timeout(DEADLINE), Ok("stays"));
    }

    #[test]
    fn the_end_of_an_event_loop_wakes_the_reader_that_stands_by() {
        let dispatch = Dispatch::new(1);
        let (go_first, first) = second_loop(&dispatch);
        assert_eq!(first.recv_timeout(DEADLINE), Ok("known"));
        let (go, says) = second_loop(&dispatch);
        assert_eq!(says.recv_timeout(DEADLINE), Ok("known"));
        go.send(()).unwrap();
        assert_eq!(says.recv_timeout(DEADLINE), Ok("stands by"));

        go_first.send(()).unwrap();
        assert_eq!(first.recv_timeout(DEADLINE), Ok("stays"));
        drop(go_first);

        assert_eq!(says.recv_timeout(DEADLINE), Ok("reads"));
        assert!(dispatch.has_loop_ended());
    }
}
