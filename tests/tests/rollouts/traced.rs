//! A roll-out as a collector of traces sees it.

use std::collections::BTreeSet;

use rookery_model::pack::Recipe;
use rookery_proto::{
    semconv::{attribute, span},
    v1::RolloutState,
};
use rookery_tests::{
    otlp::{Collector, Received},
    rollouts::{GRACE, Version, VersionedFleet, name},
};

/// The spans of one name.
fn named<'a>(spans: &'a [Received], name: &'a str) -> impl Iterator<Item = &'a Received> {
    spans.iter().filter(move |received| received.span.name == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_one_trace_with_every_gateways_way_and_its_phases() {
    let collector = Collector::start().await.unwrap();
    let flags = ["--otlp-endpoint", &collector.endpoint()];
    let fleet = VersionedFleet::start_with(2, GRACE, &flags).await.unwrap();
    let access = fleet.access();
    access.push(&Version::pack("qwen2", Recipe::W8, |_| {}).unwrap(), "1").await.unwrap();
    let id = access.roll_out("1").await.unwrap();
    assert_eq!(access.until_over(&id).await.state(), RolloutState::Done);
    let both = |spans: &[Received]| named(spans, span::ROLLOUT_GATEWAY).count() == 2;
    let spans = collector.until("both gateways' ways are told", both).await;

    let [root] = named(&spans, span::ROLLOUT).collect::<Vec<_>>()[..] else { panic!("{spans:#?}") };
    assert_eq!(root.text(attribute::ROLLOUT_ID), id);
    assert!(root.span.parent_span_id.is_empty(), "{root:?}");
    let plans: Vec<_> = named(&spans, span::ROLLOUT_PLAN).collect();
    assert!(plans.len() >= 3, "two waves and the end: {plans:#?}");
    let ways: Vec<_> = named(&spans, span::ROLLOUT_GATEWAY).collect();
    for one in plans.iter().chain(&ways) {
        assert_eq!(one.span.trace_id, root.span.trace_id, "{one:?}");
        assert_eq!(one.span.parent_span_id, root.span.span_id, "{one:?}");
    }
    let gateways: BTreeSet<_> = ways.iter().map(|way| way.text(attribute::GATEWAY_ID)).collect();
    assert_eq!(gateways, [name(0), name(1)].into());
    let phases = [
        span::ROLLOUT_DOWNLOAD,
        span::ROLLOUT_VERIFY,
        span::ROLLOUT_STAGE,
        span::ROLLOUT_PROBE,
        span::ROLLOUT_SWITCH,
        span::ROLLOUT_COMMIT,
    ];
    for way in ways {
        let mut at = way.span.start_time_unix_nano;
        for phase in phases {
            let inside = |one: &&Received| one.span.parent_span_id == way.span.span_id;
            let [one] = named(&spans, phase).filter(inside).collect::<Vec<_>>()[..] else {
                panic!("{phase} of {}: {spans:#?}", way.text(attribute::GATEWAY_ID))
            };
            assert!(at <= one.span.start_time_unix_nano, "{phase} begins before the one before it");
            assert!(
                one.span.end_time_unix_nano <= way.span.end_time_unix_nano,
                "{phase} outlasts its gateway's way"
            );
            at = one.span.start_time_unix_nano;
        }
    }
}
