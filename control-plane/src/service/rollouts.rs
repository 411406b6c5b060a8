//! `RolloutService`: roll-outs, orders to them, and their history. Thin: what is done is in [`crate::rollout`], what is shown in
//! [`wire`].

mod wire;

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, stream};
use rookery_proto::{
    server::Gate,
    status::{self, Reason, refuse, refuse_with},
    v1::{self, rollout_service_server::RolloutServiceServer},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Request, Response, Status};
use tracing::error;

use super::stored;
use crate::{
    rollout::{
        Insight, Reconciler, RolloutError,
        plan::{Order, Refusal},
        spec,
    },
    store::StoreError,
    trust::{Role, require},
};

/// Largest request: a specification with its selector and windows.
const MOST_BYTES: usize = 64 << 10;

/// Least time between two messages of one watch.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How often a watch looks for what nobody announces, such as the end of a soak or another replica's plan.
const WATCH_LOOK: Duration = Duration::from_secs(2);

/// Roll-outs of one list unless it says otherwise.
const USUAL_LIST: u32 = 100;

/// Most roll-outs of one list.
const MOST_LIST: u32 = 1000;

/// Longest reason that a person may give, characters.
const MOST_REASON: usize = 512;

/// The roll-out service. Clones share everything.
#[derive(Clone)]
pub struct Rollouts {
    reconciler: Reconciler,
    gate: Gate,
}

impl Rollouts {
    /// A service over what `reconciler` plans.
    pub fn new(reconciler: Reconciler, gate: Gate) -> Self {
        Self { reconciler, gate }
    }

    /// For a server of gRPC, with the limits that the service keeps to.
    pub fn server(self) -> RolloutServiceServer<Self> {
        RolloutServiceServer::new(self).max_decoding_message_size(MOST_BYTES)
    }
}

type RolloutStream = Pin<Box<dyn Stream<Item = Result<v1::Rollout, Status>> + Send>>;

#[tonic::async_trait]
impl v1::rollout_service_server::RolloutService for Rollouts {
    type WatchRolloutStream = RolloutStream;

    async fn create_rollout(
        &self,
        request: Request<v1::CreateRolloutRequest>,
    ) -> Result<Response<v1::Rollout>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let _admission = self.gate.admit()?;
        let request = request.into_inner();
        let raw = request.spec.ok_or_else(|| status::invalid_field("spec", "must be set"))?;
        let wish = spec::from_wire(raw).map_err(status::invalid_fields)?;
        if request.dry_run {
            let preview = self.reconciler.preview(wish, &caller.name).await.map_err(refused)?;
            return Ok(Response::new(wire::preview(&preview)));
        }
        let insight = self.reconciler.create(wish, &caller.name).await.map_err(refused)?;
        Ok(Response::new(wire::rollout(&insight, wire::Gateways::All)))
    }

    async fn list_rollouts(
        &self,
        request: Request<v1::ListRolloutsRequest>,
    ) -> Result<Response<v1::ListRolloutsResponse>, Status> {
        require(&request, Role::Deployer)?;
        let v1::ListRolloutsRequest { unfinished, limit } = request.into_inner();
        let limit = match limit {
            0 => USUAL_LIST,
            1..=MOST_LIST => limit,
            _ => return Err(status::invalid_field("limit", &format!("must be at most {MOST_LIST}"))),
        };
        let insights = self.reconciler.list(unfinished, limit).await.map_err(refused)?;
        let rollouts = insights.iter().map(|insight| wire::rollout(insight, wire::Gateways::None)).collect();
        Ok(Response::new(v1::ListRolloutsResponse { rollouts }))
    }

    async fn get_rollout(
        &self,
        request: Request<v1::GetRolloutRequest>,
    ) -> Result<Response<v1::Rollout>, Status> {
        require(&request, Role::Deployer)?;
        let id = prefix(request.into_inner().id)?;
        let insight = self.reconciler.insight(&id).await.map_err(refused)?;
        Ok(Response::new(wire::rollout(&insight, wire::Gateways::All)))
    }

    async fn watch_rollout(
        &self,
        request: Request<v1::GetRolloutRequest>,
    ) -> Result<Response<RolloutStream>, Status> {
        require(&request, Role::Deployer)?;
        let id = prefix(request.into_inner().id)?;
        // What is not there is refused at once, and a beginning of an id stays what it was.
        let first = self.reconciler.insight(&id).await.map_err(refused)?;
        let watch = Watch {
            id: first.entry.record.id.0.clone(),
            steps: self.reconciler.steps(),
            changes: self.reconciler.inventory().changed(),
            service: self.clone(),
            told: None,
            next: Instant::now(),
        };
        let rollouts = stream::unfold(Some(watch), |watch| async {
            let mut watch = watch?;
            match watch.next().await {
                Ok((rollout, true)) => Some((Ok(rollout), None)),
                Ok((rollout, false)) => Some((Ok(rollout), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(rollouts)))
    }

    async fn steer_rollout(
        &self,
        request: Request<v1::SteerRolloutRequest>,
    ) -> Result<Response<v1::Rollout>, Status> {
        let caller = require(&request, Role::Deployer)?;
        let _admission = self.gate.admit()?;
        let request = request.into_inner();
        let order = order(request.steering)?;
        let id = prefix(request.id)?;
        let reason = reason(&request.reason)?;
        let insight = self.reconciler.steer(&id, order, &caller.name, &reason).await.map_err(refused)?;
        Ok(Response::new(wire::rollout(&insight, wire::Gateways::All)))
    }

    async fn list_plans(
        &self,
        request: Request<v1::ListPlansRequest>,
    ) -> Result<Response<v1::ListPlansResponse>, Status> {
        require(&request, Role::Deployer)?;
        let id = prefix(request.into_inner().id)?;
        let plans = self.reconciler.plans(&id).await.map_err(|error| stored::status(&error))?;
        Ok(Response::new(v1::ListPlansResponse { plans: wire::plans(&plans) }))
    }
}

fn prefix(id: String) -> Result<String, Status> {
    let plain = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if (1..=32).contains(&id.len()) && plain {
        return Ok(id);
    }
    Err(status::invalid_field(
        "id",
        "must be a roll-out's id or the beginning of one: up to 32 of 0-9 and a-f",
    ))
}

fn order(steering: i32) -> Result<Order, Status> {
    match v1::Steering::try_from(steering) {
        Ok(v1::Steering::Pause) => Ok(Order::Pause),
        Ok(v1::Steering::Resume) => Ok(Order::Resume),
        Ok(v1::Steering::Abort) => Ok(Order::Abort),
        Ok(v1::Steering::RollBack) => Ok(Order::RollBack),
        Ok(v1::Steering::Approve) => Ok(Order::Approve),
        Ok(v1::Steering::Unspecified) | Err(_) => {
            Err(status::invalid_field("steering", "must be pause, resume, abort, roll back or approve"))
        }
    }
}

/// What a person says for the history, fit for logs and terminals.
fn reason(text: &str) -> Result<String, Status> {
    if text.chars().count() > MOST_REASON {
        return Err(status::invalid_field("reason", &format!("must have at most {MOST_REASON} characters")));
    }
    Ok(text.trim().chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect())
}

/// The status of a call that was refused.
fn refused(error: RolloutError) -> Status {
    match &error {
        RolloutError::Store(error @ StoreError::NotFound { .. }) => {
            refuse(Reason::ObjectNotFound, error.to_string())
        }
        RolloutError::Store(error) => stored::status(error),
        RolloutError::Refused(refusal) => {
            let reason = match refusal {
                Refusal::Superseded { .. } => Reason::RolloutOverlaps,
                Refusal::Over(_)
                | Refusal::Paused
                | Refusal::NotPaused(_)
                | Refusal::NothingToApprove(_)
                | Refusal::GoingBack => Reason::RolloutOver,
            };
            refuse(reason, refusal.to_string())
        }
        RolloutError::Overlaps { other, gateways, .. } => {
            let metadata = [("rollout", other.to_string()), ("gateways", gateways.clone())];
            refuse_with(Reason::RolloutOverlaps, error.to_string(), &metadata, None)
        }
        RolloutError::NoGateways { .. } => status::invalid_field("spec.selector", &error.to_string()),
        RolloutError::Overtaken => {
            refuse_with(Reason::Conflict, error.to_string(), &[], Some(Duration::from_secs(1)))
        }
        RolloutError::Spec(_) | RolloutError::Violations(_) => {
            error!(%error, "an order to a roll-out was not carried out");
            refuse(Reason::Internal, error.to_string())
        }
    }
}

/// One client's watch.
struct Watch {
    id: String,
    service: Rollouts,
    steps: watch::Receiver<u64>,
    changes: watch::Receiver<u64>,
    /// What was sent last.
    told: Option<v1::Rollout>,
    /// Not before.
    next: Instant,
}

impl Watch {
    /// The roll-out at once, later when it differs, and whether it is over.
    async fn next(&mut self) -> Result<(v1::Rollout, bool), Status> {
        let gate = self.service.gate.clone();
        tokio::select! {
            biased;
            // Both arms end the call or are started anew with nothing lost.
            () = gate.draining() => Err(Gate::draining_status()),
            rollout = self.differing() => rollout,
        }
    }

    async fn differing(&mut self) -> Result<(v1::Rollout, bool), Status> {
        loop {
            if self.told.is_some() {
                let changed = async {
                    // An error would mean that reconciler or inventory are gone, and both are held here.
                    tokio::select! {
                        _ = self.steps.changed() => {}
                        _ = self.changes.changed() => {}
                    }
                };
                let _ = timeout(WATCH_LOOK, changed).await;
                sleep_until(self.next).await;
            }
            self.steps.mark_unchanged();
            self.changes.mark_unchanged();
            let insight: Insight = self.service.reconciler.insight(&self.id).await.map_err(refused)?;
            let over = insight.entry.record.plan.state.is_over();
            let rollout = wire::rollout(&insight, wire::Gateways::All);
            self.next = Instant::now() + WATCH_INTERVAL;
            if over || self.told.as_ref() != Some(&rollout) {
                self.told = Some(rollout.clone());
                return Ok((rollout, over));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_reasons_are_checked() {
        for wrong in ["", "x", "ABC", "%", &"a".repeat(33)] {
            assert!(prefix(wrong.to_owned()).is_err(), "{wrong:?}");
        }
        assert_eq!(prefix("0a".to_owned()).unwrap(), "0a");
        assert_eq!(reason(" a\nb ").unwrap(), "a b");
        assert!(reason(&"x".repeat(513)).is_err());
        assert!(order(0).is_err() && order(99).is_err());
        assert_eq!(order(5).unwrap(), Order::Approve);
    }

    #[test]
    fn refusals_have_reasons() {
        let overlaps = RolloutError::Overlaps {
            other: crate::domain::rollout::RolloutId("abc".to_owned()),
            version: "m@2".to_owned(),
            gateways: "gw-1".to_owned(),
        };
        let status = refused(overlaps);
        assert_eq!(status::reason_of(&status), Some(Reason::RolloutOverlaps));
        assert!(status.message().contains("abc of m@2 is not over and has gw-1"), "{}", status.message());
        let over = refused(RolloutError::Refused(Refusal::Over("done")));
        assert_eq!(status::reason_of(&over), Some(Reason::RolloutOver));
    }
}
