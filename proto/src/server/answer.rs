//! The stream of one answer, fed by a task of its own.
//!
//! HTTP/2 asks a response for more only while its client has room. A stream that watched its own deadline would sleep
//! with a client that does not read, and keep its place and its generation for as long as that client likes.
//!
//! ```text
//!  Answer::next ─► task: deadline, cut, stall limit ─► channel of one ─► stream ─► HTTP/2
//!                    ▲                                                    │
//!                    └──────────────── dropped: the task ends ◄───────────┘
//! ```

use std::{
    future::{Future, pending},
    time::{Duration, Instant},
};

use futures_util::{Stream, stream};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep_until, timeout},
};
use tonic::Status;

use super::{Gate, OnPanic, Tasks};
use crate::status::{Reason, refuse};

/// How long an answer waits for a client that does not read, before it is given up.
pub const STALL_LIMIT: Duration = Duration::from_secs(30);

/// What comes one by one in answer to a call. Dropping it frees whatever makes it.
pub trait Answer: Send + 'static {
    /// One message of the answer.
    type Event: Send + 'static;

    /// The next event, or the error that ends the answer. Not called any more once the answer is over. Must be
    /// cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<Self::Event, Status>> + Send;

    /// Whether the last event has been given.
    fn is_over(&self) -> bool;

    /// Takes note that the server ends the answer with `status`.
    fn broken_off(&mut self, status: &Status);
}

/// The events of `answer` as a stream, which ends with an error when the deadline passes, the gate cuts streams, or
/// the client does not read for [`STALL_LIMIT`]. With the last event, with such an error, and when the stream is
/// dropped, the answer is dropped, whether or not the client reads on.
pub fn answer<A: Answer>(
    answer: A,
    deadline: Option<Instant>,
    gate: &Gate,
    tasks: &Tasks,
) -> impl Stream<Item = Result<A::Event, Status>> + Send + use<A> {
    // A single place: while it is taken, a slow reader's events are merged where they are made.
    let (events, queue) = mpsc::channel(1);
    let (last, end) = oneshot::channel();
    let gate = gate.clone();
    tasks.spawn("answer", OnPanic::Log, async move {
        let status = run(answer, &events, deadline, &gate).await;
        // Fails only if the stream is gone, and with it the one who would read this.
        let _ = last.send(status);
    });
    stream::unfold(Some((queue, end)), |open| async {
        let (mut queue, end) = open?;
        match queue.recv().await {
            Some(item) => Some((item, Some((queue, end)))),
            None => {
                let panicked = |_| Some(refuse(Reason::Internal, "the answer broke off"));
                end.await.unwrap_or_else(panicked).map(|status| (Err(status), None))
            }
        }
    })
}

type Events<A> = mpsc::Sender<Result<<A as Answer>::Event, Status>>;

/// Passes the events on; gives the status that is to end the stream if the answer itself did not.
async fn run<A: Answer>(
    answer: A,
    events: &Events<A>,
    deadline: Option<Instant>,
    gate: &Gate,
) -> Option<Status> {
    let mut answer = Some(answer);
    let passed = async {
        match deadline {
            Some(at) => sleep_until(at.into()).await,
            None => pending().await,
        }
    };
    // Each arm but the second ends the answer, so only that one needs to be left half-way, never to be resumed.
    let status = tokio::select! {
        biased;
        () = events.closed() => return None,
        status = feed(&mut answer, events) => status?,
        () = gate.cut() => Gate::draining_status(),
        () = passed => refuse(Reason::DeadlineExceeded, "the deadline passed before the answer was complete"),
    };
    if let Some(answer) = &mut answer {
        answer.broken_off(&status);
    }
    Some(status)
}

/// `None` when the answer is complete or nobody is left to read it.
async fn feed<A: Answer>(answer: &mut Option<A>, events: &Events<A>) -> Option<Status> {
    loop {
        let Ok(place) = timeout(STALL_LIMIT, events.reserve()).await else {
            let message = format!("the client did not read its answer for {} s", STALL_LIMIT.as_secs());
            return Some(refuse(Reason::NotRead, message));
        };
        let (place, open) = (place.ok()?, answer.as_mut()?);
        let event = open.next().await;
        let over = event.is_err() || open.is_over();
        if over {
            // First, so that who sees the last event finds everything free.
            *answer = None;
        }
        place.send(event);
        if over {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{Arc, Mutex},
    };

    use futures_util::StreamExt;
    use tokio::time;

    use super::*;
    use crate::status::reason_of;

    /// Counts up to `end`, or panics there if it is 13.
    struct Count {
        next: u32,
        end: u32,
        /// What it was broken off with; the other owner sees by the count of owners whether this one lives.
        broken: Arc<Mutex<Option<Status>>>,
    }

    impl Answer for Count {
        type Event = u32;

        async fn next(&mut self) -> Result<u32, Status> {
            assert!(self.next < 13, "expected by the test");
            self.next += 1;
            Ok(self.next)
        }

        fn is_over(&self) -> bool {
            self.next == self.end
        }

        fn broken_off(&mut self, status: &Status) {
            *self.broken.lock().unwrap() = Some(status.clone());
        }
    }

    type Broken = Arc<Mutex<Option<Status>>>;

    fn count(end: u32) -> (Count, Broken) {
        let broken = Broken::default();
        (Count { next: 0, end, broken: Arc::clone(&broken) }, broken)
    }

    async fn until_dropped(broken: &Broken) {
        while Arc::strong_count(broken) > 1 {
            time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_events_come_and_the_answer_is_gone_before_the_last() {
        let (source, broken) = count(5);
        let mut events = pin!(answer(source, None, &Gate::new(1), &Tasks::new()));
        for number in 1..=5 {
            assert_eq!(events.next().await.unwrap().unwrap(), number);
        }
        assert_eq!(Arc::strong_count(&broken), 1);
        assert!(events.next().await.is_none() && broken.lock().unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_given_up() {
        let (gate, tasks) = (Gate::new(1), Tasks::new());
        let start = time::Instant::now();
        let deadline = Instant::now() + Duration::from_secs(3600);
        let (source, broken) = count(u32::MAX);
        let mut events = pin!(answer(source, Some(deadline), &gate, &tasks));
        assert_eq!(events.next().await.unwrap().unwrap(), 1);
        until_dropped(&broken).await;
        assert!((STALL_LIMIT..STALL_LIMIT * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert_eq!(events.next().await.unwrap().unwrap(), 2);
        let status = events.next().await.unwrap().unwrap_err();
        assert_eq!(reason_of(&status), Some(Reason::NotRead));
        assert_eq!(reason_of(broken.lock().unwrap().as_ref().unwrap()), Some(Reason::NotRead));
        assert!(events.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_and_cut_do_not_wait_for_the_reader() {
        let (gate, tasks) = (Gate::new(1), Tasks::new());
        let (source, broken) = count(u32::MAX);
        let deadline = time::Instant::now() + Duration::from_secs(2);
        let late = answer(source, Some(deadline.into_std()), &gate, &tasks);
        until_dropped(&broken).await;
        assert_eq!(reason_of(broken.lock().unwrap().as_ref().unwrap()), Some(Reason::DeadlineExceeded));
        let (source, broken) = count(u32::MAX);
        let cut = answer(source, None, &gate, &tasks);
        gate.drain(Duration::from_secs(1), &Tasks::new()).await;
        until_dropped(&broken).await;
        for (events, reason) in [(late.boxed(), Reason::DeadlineExceeded), (cut.boxed(), Reason::Draining)] {
            let last = events.collect::<Vec<_>>().await.pop().unwrap();
            assert_eq!(reason_of(&last.unwrap_err()), Some(reason));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_stream_drops_the_answer_and_a_panic_is_an_error() {
        let (gate, tasks) = (Gate::new(1), Tasks::new());
        let (source, broken) = count(u32::MAX);
        drop(answer(source, None, &gate, &tasks));
        until_dropped(&broken).await;
        assert!(broken.lock().unwrap().is_none());
        let (source, _) = count(u32::MAX);
        let mut all = answer(source, None, &gate, &tasks).collect::<Vec<_>>().await;
        assert_eq!(reason_of(&all.pop().unwrap().unwrap_err()), Some(Reason::Internal));
        assert_eq!(all.len(), 13);
        assert!(tasks.finish(Duration::from_secs(5)).await);
    }
}
