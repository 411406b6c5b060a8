//! The way from the engine to one reader: a slot that never makes the engine wait.
//!
//! A slot holds at most one [`Event::Started`], pending [`Delta`]s and one last event. While the reader is slow, new
//! tokens are merged into the last pending delta up to [`DELTA_TOKENS`], so that none outgrows a message; the answer's
//! own limit bounds them all. So a slot is a channel of bounded capacity that cannot be full, and a slow reader costs
//! fewer, longer deltas.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::request::{Delta, Event};
use super::{GenerationError, request};

/// Most tokens of a delta. With log-probabilities of twenty alternatives each that is some 200 kB on the wire, of the
/// 4 MiB that a gRPC message may have by default.
const DELTA_TOKENS: usize = 256;

/// A running or waiting generation, as its reader holds it. Dropping it cancels: its cache blocks are free by
/// the engine's next step.
#[derive(Debug)]
pub struct Generation {
    slot: Arc<Slot>,
}

impl Generation {
    /// The next event, or `None` after the last one. Cancel safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            {
                let mut state = self.slot.lock();
                if let Some(event) = state.take() {
                    return Some(event);
                }
                if state.closed {
                    return None;
                }
            }
            self.slot.notify.notified().await;
        }
    }

    /// The next event if there is one now.
    pub fn try_next(&mut self) -> Option<Event> {
        self.slot.lock().take()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.slot.cancelled.store(true, Ordering::Release);
    }
}

/// A new pair of ends.
pub(crate) fn channel() -> (EventSender, Generation) {
    let slot = Arc::new(Slot {
        state: Mutex::new(State { started: None, deltas: VecDeque::new(), last: None, closed: false }),
        notify: Notify::new(),
        cancelled: AtomicBool::new(false),
    });
    (EventSender { slot: Arc::clone(&slot) }, Generation { slot })
}

/// The engine's end of a slot. Dropped without a last event, it reports that the engine stopped.
#[derive(Debug)]
pub(crate) struct EventSender {
    slot: Arc<Slot>,
}

impl EventSender {
    /// Whether the reader is gone.
    pub(crate) fn cancelled(&self) -> bool {
        self.slot.cancelled.load(Ordering::Acquire)
    }

    /// Puts the start of the stream into the slot, together with its first tokens.
    pub(crate) fn start(&self, prompt_tokens: u32, cached_tokens: u32) {
        self.slot.lock().started = Some(Event::Started { prompt_tokens, cached_tokens });
    }

    /// Adds new tokens, to what is pending if the reader has not come for it yet.
    pub(crate) fn delta(&self, delta: Delta) {
        {
            let mut state = self.slot.lock();
            match state.deltas.back_mut() {
                Some(last) if last.token_ids.len() + delta.token_ids.len() <= DELTA_TOKENS => {
                    last.merge(delta)
                }
                _ => state.deltas.push_back(delta),
            }
        }
        self.slot.notify.notify_one();
    }

    /// Ends the stream.
    pub(crate) fn finish(self, finished: request::Finished) {
        self.slot.close(Event::Finished(finished));
    }

    /// Ends the stream before it is complete.
    pub(crate) fn fail(self, error: GenerationError) {
        self.slot.close(Event::Failed(error));
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.slot.close(Event::Failed(GenerationError::Stopped));
    }
}

#[derive(Debug)]
struct Slot {
    state: Mutex<State>,
    notify: Notify,
    cancelled: AtomicBool,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way through a change, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the last event unless there is one.
    fn close(&self, event: Event) {
        {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.closed = true;
            state.last = Some(event);
        }
        self.notify.notify_one();
    }
}

#[derive(Debug)]
struct State {
    started: Option<Event>,
    /// Oldest first; all but the last are as long as they get.
    deltas: VecDeque<Delta>,
    last: Option<Event>,
    /// A last event was put in; it may have been taken already.
    closed: bool,
}

impl State {
    fn take(&mut self) -> Option<Event> {
        let started = self.started.take();
        started.or_else(|| self.deltas.pop_front().map(Event::Delta)).or_else(|| self.last.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(text: &str, id: u32) -> Delta {
        Delta { text: text.to_owned(), token_ids: vec![id], logprobs: Vec::new() }
    }

    #[test]
    fn a_slow_reader_gets_merged_deltas_in_order() {
        let (sender, mut generation) = channel();
        sender.start(3, 0);
        sender.delta(delta("a", 1));
        sender.delta(delta("b", 2));
        drop(sender);
        assert_eq!(generation.try_next(), Some(Event::Started { prompt_tokens: 3, cached_tokens: 0 }));
        let merged = Delta { text: "ab".to_owned(), token_ids: vec![1, 2], logprobs: Vec::new() };
        assert_eq!(generation.try_next(), Some(Event::Delta(merged)));
        assert_eq!(generation.try_next(), Some(Event::Failed(GenerationError::Stopped)));
        assert_eq!(generation.try_next(), None);
    }

    #[test]
    fn a_reader_that_stood_still_gets_deltas_of_bounded_size() {
        let (sender, mut generation) = channel();
        for id in 0..1000 {
            sender.delta(delta(&format!("{id} "), id));
        }
        sender.fail(GenerationError::Stopped);
        let (mut ids, mut sizes) = (Vec::new(), Vec::new());
        while let Some(Event::Delta(delta)) = generation.try_next() {
            let text: String = delta.token_ids.iter().map(|id| format!("{id} ")).collect();
            assert_eq!(delta.text, text, "text stays with the tokens that completed it");
            sizes.push(delta.token_ids.len());
            ids.extend(delta.token_ids);
        }
        assert_eq!(sizes, [256, 256, 256, 232]);
        assert_eq!(ids, (0..1000).collect::<Vec<u32>>());
    }

    #[tokio::test]
    async fn the_reader_wakes_up_and_sees_the_end_once() {
        let (sender, mut generation) = channel();
        let engine = std::thread::spawn(move || {
            sender.delta(delta("a", 1));
            sender.fail(GenerationError::Internal("x".to_owned()));
        });
        let mut tokens = 0;
        let mut last = None;
        while let Some(event) = generation.next().await {
            if let Event::Delta(delta) = &event {
                tokens += delta.token_ids.len();
            }
            last = Some(event);
        }
        engine.join().unwrap();
        assert_eq!(tokens, 1);
        assert_eq!(last, Some(Event::Failed(GenerationError::Internal("x".to_owned()))));
        assert_eq!(generation.next().await, None);
    }

    #[test]
    fn dropping_the_reader_is_seen_by_the_engine() {
        let (sender, generation) = channel();
        assert!(!sender.cancelled());
        drop(generation);
        assert!(sender.cancelled());
    }
}
