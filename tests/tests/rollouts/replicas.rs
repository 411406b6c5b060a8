//! Several control planes over one PostgreSQL database.

use rookery_model::pack::Recipe;
use rookery_proto::v1::{GenerateRequest, RolloutState};
use rookery_tests::{
    client,
    rollouts::{Access, MODEL, Replicas, Version, until},
};

async fn answer(access: &Access) -> Result<String, String> {
    let request = GenerateRequest { model: MODEL.to_owned(), ..client::text("one two three", 24) };
    access.generate(request).await.map(|answer| answer.text).map_err(|status| status.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn either_replica_serves_a_gateway_that_is_linked_to_one_and_the_other_goes_on_alone() {
    let versions = [Recipe::W8, Recipe::W4].map(|recipe| Version::pack("qwen2", recipe, |_| {}).unwrap());
    let mut replicas = Replicas::start().await.unwrap();
    let [first, second] = replicas.accesses().clone();

    // Pushed and rolled out by the replica that the gateway is not linked to.
    second.push(&versions[0], "1").await.unwrap();
    let id = second.roll_out("1").await.unwrap();
    assert_eq!(second.until_over(&id).await.state(), RolloutState::Done);
    first.until_all_serve(1, versions[0].digest()).await;
    second.until_all_serve(1, versions[0].digest()).await;
    let said = until("the replica with the link serves", async || answer(&first).await).await;
    let forwarded = until("the other forwards", async || answer(&second).await).await;
    assert_eq!(forwarded, said);

    // The one with the link dies in the middle of a roll-out: the gateway dials the other, which goes on.
    first.push(&versions[1], "2").await.unwrap();
    let id = first.roll_out("2").await.unwrap();
    replicas.lose_first().await.unwrap();
    assert_eq!(second.until_over(&id).await.state(), RolloutState::Done);
    second.until_all_serve(1, versions[1].digest()).await;
    let other = until("the one that is left serves", async || answer(&second).await).await;
    assert_ne!(other, said);
}
