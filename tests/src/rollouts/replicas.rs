//! Two control planes over one database, and a gateway behind what stands for their load balancer.

use tempfile::TempDir;

use anyhow::Context;
use rookery_proto::v1::CreateJoinTokenRequest;

use super::{ANY, Access, GRACE, launch, name, start_plane, text, write_memory};
use crate::{postgres::Postgres, processes::Serving, relay::Relay};

/// Two replicas, and one gateway that is linked to the first.
pub struct Replicas {
    _folder: TempDir,
    balancer: Relay,
    planes: [Option<Serving>; 2],
    accesses: [Access; 2],
    _gateway: Serving,
}

impl Replicas {
    /// Starts them over a new PostgreSQL database, and lets a gateway join with the first.
    ///
    /// # Errors
    /// When a process does not get that far.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("rookery-tests-")?;
        let database = tokio::task::spawn_blocking(|| Postgres::shared().database()).await?;
        let artifacts = folder.path().join("artifacts");
        let shared = ["--database", &database, "--artifacts", text(&artifacts)?];
        let homes = [folder.path().join("a"), folder.path().join("b")];
        let first = start_plane(&homes[0], [ANY, ANY], GRACE, &shared).await?;
        let second = start_plane(&homes[1], [ANY, ANY], GRACE, &shared).await?;
        // Authority and token are in the database; the first that ran wrote them out.
        let accesses = [Access::of(&homes[0], first.listen)?, Access::of(&homes[0], second.listen)?];
        let balancer = Relay::start(first.link.context("a control plane has a link port")?).await?;
        let request = CreateJoinTokenRequest { uses: 1, ..CreateJoinTokenRequest::default() };
        let token = accesses[0].fleet().create_join_token(request).await?.into_inner().token;
        let system = folder.path().join("system");
        write_memory(&system, 64 << 30)?;
        let state = folder.path().join("gateway");
        let gateway = launch(&name(0), balancer.address(), [&state, &system], Some(&token)).await?;
        Ok(Self {
            _folder: folder,
            balancer,
            planes: [Some(first), Some(second)],
            accesses,
            _gateway: gateway,
        })
    }

    /// How to call each.
    pub fn accesses(&self) -> &[Access; 2] {
        &self.accesses
    }

    /// Kills the first; the gateway finds the second.
    ///
    /// # Errors
    /// When the first does not run.
    pub async fn lose_first(&mut self) -> anyhow::Result<()> {
        let link = self.planes[1].as_ref().and_then(|plane| plane.link).context("the second runs")?;
        self.balancer.redirect(link);
        self.planes[0].take().context("the first does not run")?.kill().await
    }
}
