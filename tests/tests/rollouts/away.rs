//! A gateway that was away.

use rookery_model::pack::Recipe;
use rookery_proto::v1::RolloutState;
use rookery_tests::rollouts::{Version, VersionedFleet, name, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_was_away_during_two_roll_outs_goes_straight_to_the_newest_version() {
    let versions = [("qwen2", Recipe::W8), ("qwen2", Recipe::W4), ("qwen3", Recipe::W8)]
        .map(|(architecture, recipe)| Version::pack(architecture, recipe, |_| {}).unwrap());
    let mut fleet = VersionedFleet::start(3).await.unwrap();
    let access = fleet.access().clone();
    for (version, called) in versions.iter().zip(["1", "2", "3"]) {
        access.push(version, called).await.unwrap();
    }
    let first = access.roll_out("1").await.unwrap();
    assert_eq!(access.until_over(&first).await.state(), RolloutState::Done);
    access.until_all_serve(3, versions[0].digest()).await;
    fleet.kill_worker(2).await.unwrap();
    until("it is known to be gone", async || {
        let gateways = access.gateways().await.map_err(|status| status.to_string())?;
        let gone = gateways.iter().any(|gateway| gateway.id == name(2) && !gateway.online);
        if gone { Ok(()) } else { Err(format!("{gateways:#?}")) }
    })
    .await;
    for called in ["2", "3"] {
        let id = access.roll_out(called).await.unwrap();
        let over = access.until_over(&id).await;
        let counts = over.counts.unwrap();
        // Who is away holds nobody up.
        assert_eq!((over.state(), counts.serving, counts.offline), (RolloutState::Done, 2, 1), "{over:#?}");
    }
    fleet.start_worker(2).await.unwrap();
    access.until_all_serve(3, versions[2].digest()).await;
    let named = async |version: &Version| {
        let transitions = access.transitions(&name(2), "").await.unwrap();
        let all = transitions.iter().filter_map(|kept| kept.transition.as_ref());
        all.filter(|transition| transition.digest == version.digest()).count()
    };
    // What is seen to serve may not have been written down yet.
    until("its history tells of both versions", async || {
        let counts = [named(&versions[0]).await, named(&versions[2]).await];
        if counts.contains(&0) { Err(format!("{counts:?} transitions")) } else { Ok(()) }
    })
    .await;
    assert_eq!(named(&versions[1]).await, 0, "the version in between was tried");
}
