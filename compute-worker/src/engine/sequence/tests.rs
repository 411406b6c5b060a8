//! How often a prompt counts as read. Everything else of a sequence is tested through the engine.

use super::*;

#[test]
fn a_prompt_is_read_once_however_often_it_is_computed() {
    let mut reading = Reading { prompt: 50, end: 0 };
    // 16 tokens were cached; then two chunks, of which the last gives the first token.
    assert_eq!(reading.computed(16..40), 24);
    assert_eq!(reading.computed(40..50), 10);
    assert_eq!(reading.computed(50..51), 0, "a row of the answer");
    // Preempted: prompt and answer again.
    assert_eq!(reading.computed(0..20), 0);
    assert_eq!(reading.computed(20..52), 0);
    // Preempted half-way: only what is beyond is new.
    let mut reading = Reading { prompt: 50, end: 0 };
    assert_eq!(reading.computed(0..20) + reading.computed(0..30) + reading.computed(30..50), 50);
}
