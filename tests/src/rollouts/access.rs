//! Clients of the control plane's TLS port, typed and as commands.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use rookery_proto::{
    tls::{self, ALPN_H2, Connector, Trust},
    v1::{
        self, Gateway, GatewayTransition, GenerateRequest, ListGatewaysRequest, ListTransitionsRequest,
        fleet_service_client::FleetServiceClient, inference_service_client::InferenceServiceClient,
        model_service_client::ModelServiceClient, rollout_service_client::RolloutServiceClient,
    },
};
use serde_json::Value;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
};

use super::Version;
use crate::{
    client::{self, Answer},
    processes::rookery,
};

/// A channel that carries a bearer token.
pub type Channel = InterceptedService<tonic::transport::Channel, Bearer>;

/// Adds a bearer token to each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Who an administrator is.
#[derive(Clone)]
pub struct Access {
    address: SocketAddr,
    authority: PathBuf,
    token: String,
    channel: Channel,
}

impl Access {
    /// Reads what the first start has left in the state folder.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of(folder: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let authority = folder.join("ca.pem");
        let trust = Trust::Authorities(tls::certificates(&fs::read_to_string(&authority)?)?);
        let token = fs::read_to_string(folder.join("admin-token"))?.trim().to_owned();
        let configure = move || Ok(tls::client_config(trust.clone(), None, ALPN_H2, None)?);
        let channel = Connector::new(address.to_string(), "localhost", Duration::from_secs(5), configure);
        let bearer = Bearer(format!("Bearer {token}").parse()?);
        let channel = InterceptedService::new(channel.channel(), bearer);
        Ok(Self { address, authority, token, channel })
    }

    /// Models and answers.
    pub fn inference(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::new(self.channel.clone())
    }

    /// Versions.
    pub fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone())
    }

    /// Gateways.
    pub fn fleet(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel.clone())
    }

    /// Roll-outs.
    pub fn rollouts(&self) -> RolloutServiceClient<Channel> {
        RolloutServiceClient::new(self.channel.clone())
    }

    /// Runs `rookery ARGUMENTS` as an administrator.
    ///
    /// # Errors
    /// When it cannot be run or fails.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = rookery()?;
        command
            .args(arguments)
            .env("ROOKERY_ENDPOINT", format!("https://{}", self.address))
            .env("ROOKERY_CA", &self.authority)
            .env("ROOKERY_TOKEN", &self.token);
        super::output(arguments, &command.output().await?)
    }

    /// The same, for what writes JSON.
    ///
    /// # Errors
    /// As [`Access::run`], and when it is no JSON.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.run(&[arguments, &["--json"]].concat()).await?)?)
    }

    /// Pushes a version.
    ///
    /// # Errors
    /// As [`Access::json`].
    pub async fn push(&self, version: &Version, called: &str) -> anyhow::Result<Value> {
        let path = super::text(version.path())?;
        self.json(&["models", "push", path, "--name", super::MODEL, "--version", called]).await
    }

    /// Begins a roll-out of a version: one gateway, then all, with no soak. Its id.
    ///
    /// # Errors
    /// As [`Access::json`].
    pub async fn roll_out(&self, called: &str) -> anyhow::Result<String> {
        let model = format!("{}@{called}", super::MODEL);
        let what = ["rollouts", "create", "--model", &model, "--wave", "1", "--wave", "100%", "--soak", "0s"];
        // What is measured here shares two cores with everything else.
        let how = ["--max-unavailable", "100%", "--max-extra-ttft", "1000000%", "--max-failed", "2%"];
        let made = self.json(&[&what[..], &how].concat()).await?;
        Ok(made["id"].as_str().unwrap_or_default().to_owned())
    }

    /// The same as a call, whose status tells why it is refused.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn create(&self, called: &str) -> Result<v1::Rollout, Status> {
        let spec = v1::RolloutSpec {
            model: super::MODEL.to_owned(),
            version: called.to_owned(),
            waves: vec!["1".to_owned(), "100%".to_owned()],
            max_failed_percent: 2.0,
            max_unavailable_percent: 100.0,
            gates: Some(v1::Gates { max_extra_ttft_percent: Some(1e6), ..v1::Gates::default() }),
            ..v1::RolloutSpec::default()
        };
        let request = v1::CreateRolloutRequest { spec: Some(spec), dry_run: false };
        Ok(self.rollouts().create_rollout(request).await?.into_inner())
    }

    /// All roll-outs, newest first, without their gateways.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn all_rollouts(&self) -> Result<Vec<v1::Rollout>, Status> {
        let request = v1::ListRolloutsRequest::default();
        Ok(self.rollouts().list_rollouts(request).await?.into_inner().rollouts)
    }

    /// What was done, newest first.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn audit(&self) -> Result<Vec<v1::AuditEntry>, Status> {
        let request = v1::ListAuditRequest { limit: 10_000 };
        Ok(self.fleet().list_audit(request).await?.into_inner().entries)
    }

    /// A roll-out with its gateways.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn rollout(&self, id: &str) -> Result<v1::Rollout, Status> {
        let request = v1::GetRolloutRequest { id: id.to_owned() };
        Ok(self.rollouts().get_rollout(request).await?.into_inner())
    }

    /// Every plan of a roll-out.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn plans(&self, id: &str) -> Result<Vec<v1::Plan>, Status> {
        let request = v1::ListPlansRequest { id: id.to_owned() };
        Ok(self.rollouts().list_plans(request).await?.into_inner().plans)
    }

    /// All gateways.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn gateways(&self) -> Result<Vec<Gateway>, Status> {
        Ok(self.fleet().list_gateways(ListGatewaysRequest::default()).await?.into_inner().gateways)
    }

    /// Transitions of a gateway or a roll-out; empty: of all. Oldest first.
    ///
    /// # Errors
    /// As the call ends.
    pub async fn transitions(&self, gateway: &str, rollout: &str) -> Result<Vec<GatewayTransition>, Status> {
        let (gateway, rollout) = (gateway.to_owned(), rollout.to_owned());
        let request = ListTransitionsRequest { gateway, rollout, limit: 10_000 };
        let mut kept = self.fleet().list_transitions(request).await?.into_inner().transitions;
        kept.reverse();
        Ok(kept)
    }

    /// A generation to its end.
    ///
    /// # Errors
    /// As it ends.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Answer, Status> {
        let stream = self.inference().generate(request).await?.into_inner();
        client::collect(stream).await.1
    }

    /// Waits until the roll-out is over, and gives it.
    ///
    /// # Panics
    /// When it is not in time.
    pub async fn until_over(&self, id: &str) -> v1::Rollout {
        use v1::RolloutState::{Aborted, Done, RolledBack};
        super::until(&format!("roll-out {id} is over"), async || {
            let rollout = self.rollout(id).await.map_err(|status| status.to_string())?;
            let over = matches!(rollout.state(), Done | RolledBack | Aborted);
            if over { Ok(rollout) } else { Err(format!("{rollout:#?}")) }
        })
        .await
    }

    /// Waits until every gateway that is listed serves the version, and no other.
    ///
    /// # Panics
    /// When they do not in time.
    pub async fn until_all_serve(&self, gateways: usize, digest: &str) {
        super::until(&format!("all serve {digest}"), async || {
            let found = self.gateways().await.map_err(|status| status.to_string())?;
            let there = |gateway: &Gateway| gateway.online && serving(gateway) == [digest];
            if found.len() == gateways && found.iter().all(there) {
                Ok(())
            } else {
                Err(format!("{found:#?}"))
            }
        })
        .await;
    }
}

/// Digests of the versions that a gateway says it serves.
pub fn serving(gateway: &Gateway) -> Vec<&str> {
    let serves = |version: &&v1::VersionStatus| version.phase() == v1::Phase::Serving;
    gateway.versions.iter().filter(serves).map(|version| version.digest.as_str()).collect()
}
