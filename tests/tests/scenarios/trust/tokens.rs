//! Bearer tokens on the clients' port.

use rookery_control_plane::{domain::Millis, trust::Role};
use rookery_proto::{
    status::{Reason, reason_of},
    v1::{
        CreateAccessTokenRequest, ListGatewaysRequest, ListModelsRequest, RevokeAccessTokenRequest,
        fleet_service_client::FleetServiceClient, inference_service_client::InferenceServiceClient,
    },
};
use rookery_tests::within;
use tonic::{Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::world::World;

fn with<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

async fn gateways(world: &World, token: &str) -> Result<usize, Status> {
    let mut client = FleetServiceClient::new(world.clients());
    let request = with(ListGatewaysRequest { selector: String::new() }, token);
    client.list_gateways(request).await.map(|answer| answer.into_inner().gateways.len())
}

#[tokio::test]
async fn calls_need_a_token_that_is_known_and_has_not_ended() {
    let world = World::start().await;
    let status = world.try_generate("a", None).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::Unauthenticated));
    let short = Millis(Millis::now().0 - 1);
    let expired = world.bearer("old", Role::Admin, Some(short)).await;
    let unknown = format!("rkt_{}", "A".repeat(43));
    let messages: Vec<_> = {
        let mut messages = Vec::new();
        for token in [expired.as_str(), &unknown, "nonsense", "", &"x".repeat(5000)] {
            let status = world.try_generate("a", Some(token)).await.unwrap_err();
            assert_eq!(reason_of(&status), Some(Reason::Unauthenticated), "{token}: {status:?}");
            messages.push(status.message().to_owned());
        }
        messages
    };
    // Whether it ended or never was is nobody's business.
    assert_eq!(messages[0], messages[1]);
    assert_eq!(world.told("bearer token").await, 1, "six refusals of one address are one line");
    // Health needs none; reflection and services that do not exist do.
    let mut health = HealthClient::new(world.clients());
    health.check(HealthCheckRequest { service: String::new() }).await.unwrap();
    let models = InferenceServiceClient::new(world.clients()).list_models(ListModelsRequest {}).await;
    assert_eq!(reason_of(&models.unwrap_err()), Some(Reason::Unauthenticated));
    world.stop().await;
}

#[tokio::test]
async fn a_role_is_as_much_as_it_says() {
    let world = World::start().await;
    let inference = world.bearer("app", Role::Inference, None).await;
    let deployer = world.bearer("ci", Role::Deployer, None).await;
    assert_eq!(world.try_generate("a", Some(&inference)).await.unwrap().gateway(), "healthy");
    let status = gateways(&world, &inference).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::RoleTooLow), "{status:?}");
    assert_eq!(gateways(&world, &deployer).await.unwrap(), 1);
    let mut client = FleetServiceClient::new(world.clients());
    let make = CreateAccessTokenRequest { name: "more".into(), role: 3, valid_s: 0 };
    let status = client.create_access_token(with(make.clone(), &deployer)).await.unwrap_err();
    assert_eq!(reason_of(&status), Some(Reason::RoleTooLow), "{status:?}");
    let made = client.create_access_token(with(make, world.admin())).await.unwrap().into_inner().token;
    assert_eq!(gateways(&world, &made).await.unwrap(), 1);
    // Revoked, it works for the two seconds at most that it is remembered.
    let revoke = RevokeAccessTokenRequest { name: "more".into() };
    client.revoke_access_token(with(revoke, world.admin())).await.unwrap();
    within("the revoked token stops working", async {
        while gateways(&world, &made).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    world.stop().await;
}
