//! Health and reflection, on every server.

use futures_util::stream;
use rookery_tests::{client::channel, fleet::Fleet};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb;

const SERVICES: [&str; 3] =
    ["grpc.health.v1.Health", "rookery.v1.GatewayService", "rookery.v1.InferenceService"];

#[tokio::test]
async fn health_is_served_everywhere() {
    let fleet = Fleet::start(1).await.unwrap();
    for address in [fleet.control_plane.address(), fleet.workers[0].worker.address()] {
        let mut client = HealthClient::new(channel(address));
        for service in ["", "rookery.v1.InferenceService"] {
            let response = client.check(HealthCheckRequest { service: service.into() }).await.unwrap();
            assert_eq!(response.into_inner().status(), ServingStatus::Serving);
        }
        let unknown = client.check(HealthCheckRequest { service: "nonesuch".into() }).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
    fleet.stop().await;
}

#[tokio::test]
async fn reflection_of_both_versions_knows_services_and_comments() {
    let fleet = Fleet::start(1).await.unwrap();
    for address in [fleet.control_plane.address(), fleet.workers[0].worker.address()] {
        let names = {
            use pb::v1::{
                server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
                *,
            };
            let mut client = ServerReflectionClient::new(channel(address));
            let message_request = Some(MessageRequest::ListServices(String::new()));
            let request = ServerReflectionRequest { host: String::new(), message_request };
            let mut answers =
                client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap().message_response;
            let Some(server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else {
                panic!("{answer:?}");
            };
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        };
        for service in SERVICES {
            assert!(names.iter().any(|name| name == service), "{service} is not among {names:?}");
        }
        let file = {
            use pb::v1alpha::{
                server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
                *,
            };
            let mut client = ServerReflectionClient::new(channel(address));
            let symbol = "rookery.v1.InferenceService.Generate".to_owned();
            let message_request = Some(MessageRequest::FileContainingSymbol(symbol));
            let request = ServerReflectionRequest { host: String::new(), message_request };
            let mut answers =
                client.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap().message_response;
            let Some(server_reflection_response::MessageResponse::FileDescriptorResponse(file)) = answer
            else {
                panic!("{answer:?}");
            };
            file.file_descriptor_proto.concat()
        };
        let comment = b"Streams one generation";
        assert!(
            file.windows(comment.len()).any(|window| window == comment),
            "comments are not in the descriptors"
        );
    }
    fleet.stop().await;
}
