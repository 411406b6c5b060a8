//! How a version's requests go: how many, how many failed, how long the first token takes.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_util::Stream;
use rookery_proto::{
    status::{self, Reason},
    v1,
};
use tonic::Status;

use crate::versions::Numbers;

/// The median is that of this many requests, the last ones.
const WINDOW: usize = 256;

/// Counts requests. Shared by all of a version's.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    requests: AtomicU64,
    failures: AtomicU64,
    /// Times to the first token of the last requests, in microseconds.
    first_tokens: Mutex<VecDeque<u64>>,
}

impl Tally {
    pub(super) fn begun(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    fn first_token(&self, us: u64) {
        let mut times = self.first_tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == WINDOW {
            times.pop_front();
        }
        times.push_back(us);
    }

    /// As they are now.
    pub(crate) fn numbers(&self) -> Numbers {
        let mut times: Vec<u64> =
            self.first_tokens.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let middle = times.len() / 2;
        let ttft_us = if times.is_empty() { 0 } else { *times.select_nth_unstable(middle).1 };
        Numbers {
            requests: self.requests.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            ttft_us,
        }
    }
}

/// A stream of answers that is counted, and that holds `held` until it is dropped.
pub(crate) struct Counted<S, H> {
    answer: S,
    held: H,
    arrival: Instant,
    first: bool,
}

impl<S, H> Counted<S, H> {
    pub(super) fn new(answer: S, held: H, arrival: Instant) -> Self {
        Self { answer, held, arrival, first: true }
    }
}

impl<S, H> Stream for Counted<S, H>
where
    S: Stream<Item = Result<v1::GenerateResponse, Status>> + Unpin,
    H: AsRef<Tally> + Unpin,
{
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let this = self.get_mut();
        let item = ready!(Pin::new(&mut this.answer).poll_next(context));
        match &item {
            Some(Ok(response)) if this.first && is_token(response) => {
                this.first = false;
                let us = u64::try_from(this.arrival.elapsed().as_micros()).unwrap_or(u64::MAX);
                this.held.as_ref().first_token(us);
            }
            Some(Err(status)) if is_ours(status) => this.held.as_ref().failed(),
            Some(_) | None => {}
        }
        Poll::Ready(item)
    }
}

fn is_token(response: &v1::GenerateResponse) -> bool {
    matches!(response.event, Some(v1::generate_response::Event::Delta(_)))
}

/// Whether the version or its machine may be to blame. A client that does not read or a worker that stops say nothing of
/// the version.
fn is_ours(status: &Status) -> bool {
    let others = [Reason::NotRead, Reason::Draining, Reason::InvalidField, Reason::QueueFull];
    !status::reason_of(status).is_some_and(|reason| others.contains(&reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_that_of_the_last_requests() {
        let tally = Tally::default();
        assert_eq!(tally.numbers(), Numbers::default());
        (0..WINDOW as u64).for_each(|_| tally.first_token(1_000_000));
        (0..WINDOW as u64).for_each(|us| tally.first_token(us));
        tally.begun();
        tally.failed();
        assert_eq!(tally.numbers(), Numbers { requests: 1, failures: 1, ttft_us: WINDOW as u64 / 2 });
    }
}
