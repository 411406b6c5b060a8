//! A version arrives everywhere, and another one after it.

use std::{collections::BTreeMap, time::SystemTime};

use rookery_model::pack::Recipe;
use rookery_proto::v1::{GatewayTransition, GenerateRequest, Phase, RolloutState, generate_response::Event};
use rookery_tests::{
    bundles::MODEL,
    client::{self, Answer},
    rollouts::{Access, Version, VersionedFleet, name, until},
    within,
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Streaming;

/// Tokens of a long answer.
const LONG: u32 = 400;

/// Streams that run and wait on each gateway of four at a time while versions are switched.
const STREAMS: usize = 150;

fn ask(model: &str, tokens: u32) -> GenerateRequest {
    GenerateRequest { model: model.to_owned(), ..client::text("one two three", tokens) }
}

async fn served_by(access: &Access, model: &str, version: &Version) -> Answer {
    let answer = access.generate(ask(model, LONG)).await.unwrap();
    assert_eq!(answer.started.as_ref().unwrap().model_digest, version.digest(), "{model}");
    answer
}

/// A stream that has begun.
async fn begin(access: &Access) -> (Answer, Streaming<rookery_proto::v1::GenerateResponse>) {
    let mut stream = access.inference().generate(ask(MODEL, LONG)).await.unwrap().into_inner();
    let mut answer = Answer::default();
    let first = stream.message().await.unwrap().unwrap();
    assert!(matches!(first.event, Some(Event::Started(_))));
    answer.add(first);
    (answer, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_go_out_in_waves_and_streams_that_began_on_the_first_end_whole() {
    let first = Version::pack("qwen2", Recipe::W8, |_| {}).unwrap();
    let second = Version::pack("qwen2", Recipe::W4, |_| {}).unwrap();
    let fleet = VersionedFleet::start(3).await.unwrap();
    let access = fleet.access();
    let pushed = access.push(&first, "1").await.unwrap();
    assert_eq!(pushed["digest"], first.digest());
    access.run(&["models", "alias", "tiny@1", "stable"]).await.unwrap();
    let id = access.roll_out("1").await.unwrap();
    let over = access.until_over(&id).await;
    assert_eq!((over.state(), over.counts.unwrap().serving), (RolloutState::Done, 3), "{over:#?}");
    access.until_all_serve(3, first.digest()).await;
    let said = served_by(access, "tiny@stable", &first).await;
    assert_eq!(served_by(access, MODEL, &first).await.text, said.text);
    assert_eq!(served_by(access, first.digest(), &first).await.text, said.text);

    // Some run, most wait: each begins on what serves then.
    access.push(&second, "2").await.unwrap();
    let (begun, mut begins) = mpsc::channel(STREAMS);
    let mut readers = JoinSet::new();
    for _ in 0..STREAMS {
        let (access, begun) = (access.clone(), begun.clone());
        readers.spawn(async move {
            let (mut answer, mut stream) = begin(&access).await;
            begun.send(()).await.unwrap();
            while let Some(response) = stream.message().await.unwrap() {
                answer.add(response);
            }
            (answer, SystemTime::now())
        });
    }
    within("a stream begins", begins.recv()).await.unwrap();
    let id = access.roll_out("2").await.unwrap();
    let over = access.until_over(&id).await;
    assert_eq!((over.state(), over.counts.unwrap().serving), (RolloutState::Done, 3), "{over:#?}");
    access.until_all_serve(3, second.digest()).await;
    let other = served_by(access, MODEL, &second).await;
    assert_ne!(other.text, said.text);
    let switches = switches(access, &first).await;
    let mut outlived = 0;
    for (answer, ended) in within("the streams end", readers.join_all()).await {
        let digest = &answer.started.as_ref().unwrap().model_digest;
        let right = if digest == first.digest() { &said } else { &other };
        assert_eq!(digest, &right.started.as_ref().unwrap().model_digest);
        assert_eq!((&answer.text, &answer.token_ids), (&right.text, &right.token_ids));
        assert!(answer.finished.is_some());
        outlived += usize::from(digest == first.digest() && ended > switches[answer.gateway()]);
    }
    println!("{outlived} of {STREAMS} streams ended on the first version after their gateways had switched");
    assert!(outlived > 0, "no stream was under way when its gateway switched");
    access.run(&["models", "alias", "tiny@2", "stable"]).await.unwrap();
    until("the alias points at the second", async || {
        let answer = access.generate(ask("tiny@stable", 4)).await.map_err(|status| status.to_string())?;
        let digest = answer.started.unwrap().model_digest;
        if digest == second.digest() { Ok(()) } else { Err(digest) }
    })
    .await;
    history_is_whole(access, &id, &second).await;
}

/// When each gateway began to drain a version.
async fn switches(access: &Access, version: &Version) -> BTreeMap<String, SystemTime> {
    until("every gateway tells that it has switched", async || {
        let kept = access.transitions("", "").await.map_err(|status| status.to_string())?;
        let moment = |kept: &GatewayTransition| {
            let transition = kept.transition.as_ref()?;
            let mine = transition.digest == version.digest() && transition.to() == Phase::Draining;
            let at = transition.at.filter(|_| mine)?;
            Some((kept.gateway.clone(), SystemTime::try_from(at).ok()?))
        };
        let moments: BTreeMap<_, _> = kept.iter().filter_map(moment).collect();
        if moments.len() == 3 { Ok(moments) } else { Err(format!("{moments:?}")) }
    })
    .await
}

/// Every gateway has come to the version by every step, each gate's verdict with it.
async fn history_is_whole(access: &Access, id: &str, version: &Version) {
    use rookery_proto::v1::Phase::{Activating, Assigned, Downloading, Probing, Serving, Staged, Verifying};
    let gates = ["signature", "disk", "memory", "digests", "probes", "speed"];
    for gateway in (0..3).map(name) {
        let transitions = access.transitions(&gateway, id).await.unwrap();
        let mine = || {
            let all = transitions.iter().filter_map(|kept| kept.transition.as_ref());
            all.filter(|transition| transition.digest == version.digest())
        };
        let phases: Vec<_> = mine().map(|transition| transition.to()).collect();
        let way = [Assigned, Downloading, Verifying, Staged, Probing, Activating, Serving];
        assert_eq!(phases, way, "{gateway}");
        for gate in gates {
            let verdict = mine().flat_map(|transition| &transition.verdicts).find(|v| v.gate == gate);
            assert!(verdict.is_some_and(|verdict| verdict.passed), "{gateway}: {gate}: {verdict:?}");
        }
    }
    let plans = access.plans(id).await.unwrap();
    let waves: Vec<_> =
        plans.iter().filter(|plan| !plan.changed.is_empty()).map(|p| p.changed.len()).collect();
    assert_eq!(waves, [1, 2], "{plans:#?}");
    assert!(plans.iter().all(|plan| !plan.reason.is_empty() && !plan.actor.is_empty()), "{plans:#?}");
}
