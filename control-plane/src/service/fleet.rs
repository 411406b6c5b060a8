//! `FleetService`: gateways, who may join, who may call, and what was done. Thin: what is checked is in [`check`], what is
//! shown in [`wire`].

mod check;
mod wire;

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use rookery_proto::{
    server::Gate,
    status::{Reason, refuse},
    v1::{self, fleet_service_server::FleetServiceServer},
};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Request, Response, Status};

use super::stored::{status, timestamp};
use crate::{
    domain::{GatewayId, Millis, Selector},
    fleet::Fleet,
    inventory::Inventory,
    store::{NewJoinToken, Store, StoreError, TokenRecord},
    trust::{Authority, BearerToken, Role, require},
};

/// Least time between two lists of one watch.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How often a watch looks for what nobody announces, such as requests in flight.
const WATCH_LOOK: Duration = Duration::from_secs(5);

/// The fleet service. Clones share everything.
#[derive(Clone)]
pub struct FleetAdmin {
    store: Store,
    inventory: Inventory,
    fleet: Fleet,
    gate: Gate,
    /// Makes join tokens.
    authority: Authority,
}

impl FleetAdmin {
    /// A service over `store`.
    pub(crate) fn new(
        store: Store,
        inventory: Inventory,
        fleet: Fleet,
        gate: Gate,
        authority: Authority,
    ) -> Self {
        Self { store, inventory, fleet, gate, authority }
    }

    /// The service as a port carries it.
    pub(crate) fn server(self) -> FleetServiceServer<Self> {
        FleetServiceServer::new(self)
    }

    async fn list(&self, selector: &Selector) -> Result<Vec<v1::Gateway>, StoreError> {
        let views = self.inventory.views().await?;
        let names = wire::VersionNames::read(&self.store).await?;
        let in_flight = self.in_flight();
        let chosen = views.into_iter().filter(|view| selector.matches(&view.labels));
        Ok(chosen.map(|view| wire::gateway(view, &names, &in_flight)).collect())
    }

    async fn one(&self, id: &GatewayId) -> Result<v1::Gateway, StoreError> {
        let view = self.inventory.view_of(id).await?;
        let names = wire::VersionNames::of(&self.store, id).await?;
        Ok(wire::gateway(view, &names, &self.in_flight()))
    }

    fn in_flight(&self) -> wire::InFlight {
        self.fleet.gateways().into_iter().map(|(id, in_flight, _)| (id, in_flight)).collect()
    }
}

type GatewayLists = Pin<Box<dyn Stream<Item = Result<v1::ListGatewaysResponse, Status>> + Send>>;

#[tonic::async_trait]
impl v1::fleet_service_server::FleetService for FleetAdmin {
    type WatchGatewaysStream = GatewayLists;

    async fn list_gateways(
        &self,
        request: Request<v1::ListGatewaysRequest>,
    ) -> Result<Response<v1::ListGatewaysResponse>, Status> {
        require(&request, Role::Deployer)?;
        let selector = check::selector(&request.into_inner().selector)?;
        let gateways = self.list(&selector).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::ListGatewaysResponse { gateways }))
    }

    async fn watch_gateways(
        &self,
        request: Request<v1::ListGatewaysRequest>,
    ) -> Result<Response<GatewayLists>, Status> {
        require(&request, Role::Deployer)?;
        let selector = check::selector(&request.into_inner().selector)?;
        let changes = self.inventory.changed();
        let watch = Watch { service: self.clone(), selector, changes, told: None, next: Instant::now() };
        let lists = stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok(gateways) => Some((Ok(v1::ListGatewaysResponse { gateways }), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn set_labels(
        &self,
        request: Request<v1::SetLabelsRequest>,
    ) -> Result<Response<v1::Gateway>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let v1::SetLabelsRequest { gateway, set, remove } = request.into_inner();
        let (id, set) = (check::gateway_id(&gateway)?, check::labels("set", set)?);
        check::label_names("remove", &remove)?;
        let done = self.store.set_labels(&id, &set, &remove, &caller.name).await;
        done.map_err(|error| status(&error))?;
        self.one(&id).await.map(Response::new).map_err(|error| status(&error))
    }

    async fn set_admission(
        &self,
        request: Request<v1::SetAdmissionRequest>,
    ) -> Result<Response<v1::Gateway>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let request = request.into_inner();
        let (id, admission) = (check::gateway_id(&request.gateway)?, check::admission(request.admission)?);
        let done = self.store.set_admission(&id, admission, &caller.name).await;
        done.map_err(|error| status(&error))?;
        self.one(&id).await.map(Response::new).map_err(|error| status(&error))
    }

    async fn remove_gateway(
        &self,
        request: Request<v1::RemoveGatewayRequest>,
    ) -> Result<Response<v1::RemoveGatewayResponse>, Status> {
        let caller = require(&request, Role::Admin)?;
        let id = check::gateway_id(&request.into_inner().gateway)?;
        self.store.remove_gateway(&id, &caller.name).await.map_err(|error| status(&error))?;
        self.inventory.poke();
        Ok(Response::new(v1::RemoveGatewayResponse {}))
    }

    async fn list_transitions(
        &self,
        request: Request<v1::ListTransitionsRequest>,
    ) -> Result<Response<v1::ListTransitionsResponse>, Status> {
        require(&request, Role::Deployer)?;
        let request = request.into_inner();
        let (filter, limit) = (check::transition_filter(&request)?, check::limit(request.limit)?);
        let kept = self.store.transitions(&filter, limit).await.map_err(|error| status(&error))?;
        let transitions = kept.into_iter().map(wire::transition).collect();
        Ok(Response::new(v1::ListTransitionsResponse { transitions }))
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let caller = require(&request, Role::Admin)?;
        let asked = check::join_token(request.into_inner())?;
        let (token, hash) = self.authority.join_token().map_err(no_randomness)?;
        let ends = Millis::now().after(asked.valid);
        let kept = NewJoinToken { hash, ends, uses: asked.uses, labels: asked.labels };
        self.store.put_join_token(&kept, &caller.name).await.map_err(|error| status(&error))?;
        let response = v1::CreateJoinTokenResponse { token: token.expose(), ends: Some(timestamp(ends)) };
        Ok(Response::new(response))
    }

    async fn create_access_token(
        &self,
        request: Request<v1::CreateAccessTokenRequest>,
    ) -> Result<Response<v1::CreateAccessTokenResponse>, Status> {
        let caller = require(&request, Role::Admin)?;
        let asked = check::access_token(request.into_inner())?;
        let token = BearerToken::random().map_err(no_randomness)?;
        let created = Millis::now();
        let kept = TokenRecord {
            name: asked.name,
            role: asked.role.as_str().to_owned(),
            hash: token.hash(),
            created,
            ends: asked.valid.map(|valid| created.after(valid)),
        };
        self.store.put_token(&kept, &caller.name).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::CreateAccessTokenResponse { token: token.expose().to_owned() }))
    }

    async fn list_access_tokens(
        &self,
        request: Request<v1::ListAccessTokensRequest>,
    ) -> Result<Response<v1::ListAccessTokensResponse>, Status> {
        require(&request, Role::Admin)?;
        let tokens = self.store.tokens().await.map_err(|error| status(&error))?;
        let tokens = tokens.into_iter().map(wire::access_token).collect();
        Ok(Response::new(v1::ListAccessTokensResponse { tokens }))
    }

    async fn revoke_access_token(
        &self,
        request: Request<v1::RevokeAccessTokenRequest>,
    ) -> Result<Response<v1::RevokeAccessTokenResponse>, Status> {
        let caller = require(&request, Role::Admin)?;
        let name = check::token_name(request.into_inner().name)?;
        self.store.revoke_token(&name, &caller.name).await.map_err(|error| status(&error))?;
        Ok(Response::new(v1::RevokeAccessTokenResponse {}))
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        require(&request, Role::Admin)?;
        let limit = check::limit(request.into_inner().limit)?;
        let entries = self.store.audit_entries(limit).await.map_err(|error| status(&error))?;
        let entries = entries.into_iter().map(wire::audit_entry).collect();
        Ok(Response::new(v1::ListAuditResponse { entries }))
    }
}

fn no_randomness(error: impl std::error::Error) -> Status {
    refuse(Reason::Internal, error.to_string())
}

/// One client's watch.
struct Watch {
    service: FleetAdmin,
    selector: Selector,
    changes: tokio::sync::watch::Receiver<u64>,
    /// What was sent last.
    told: Option<Vec<v1::Gateway>>,
    /// Not before.
    next: Instant,
}

impl Watch {
    /// The first list at once, later ones when they differ.
    async fn next(&mut self) -> Result<Vec<v1::Gateway>, Status> {
        let gate = self.service.gate.clone();
        tokio::select! {
            biased;
            // Both arms end the call or are started anew with nothing lost.
            () = gate.draining() => Err(Gate::draining_status()),
            list = self.differing() => list,
        }
    }

    async fn differing(&mut self) -> Result<Vec<v1::Gateway>, Status> {
        loop {
            if self.told.is_some() {
                // An error would mean that the inventory is gone, and it is held here.
                let _ = timeout(WATCH_LOOK, self.changes.changed()).await;
                sleep_until(self.next).await;
            }
            self.changes.mark_unchanged();
            let list = self.service.list(&self.selector).await.map_err(|error| status(&error))?;
            self.next = Instant::now() + WATCH_INTERVAL;
            if self.told.as_ref() != Some(&list) {
                self.told = Some(list.clone());
                return Ok(list);
            }
        }
    }
}
