//! For operators: who takes part, who lags, what is stored.

use crate::{
    access::{Access, Call},
    checkpoint::{CheckpointError, Checkpoints},
    config::PlatformConfig,
    control::ControlWriter,
    fanout::registry::Subscriptions,
    ingress::registry::Producers,
    lag::{Lags, SubscriptionLag},
    log::{Log, LogError, PartitionInfo, last_records},
    metrics::Metrics,
    reports::Reports,
    state::State,
};
use hutong_proto::{
    Issuer, Lane, Micros, Offset, Partition, Reason, Refusal, Shard, api,
    api::admin_service_server::AdminService,
};
use std::sync::{Arc, atomic::Ordering};
use tonic::{Request, Response, Status};
use tracing::Span;

#[derive(Clone)]
pub struct Admin {
    pub access: Access,
    pub platforms: Arc<Vec<PlatformConfig>>,
    pub log: Arc<dyn Log>,
    pub state: Arc<State>,
    pub producers: Arc<Producers>,
    pub subscriptions: Arc<Subscriptions>,
    pub lags: Lags,
    pub metrics: Arc<Metrics>,
    pub reports: Arc<Reports>,
    pub control: ControlWriter,
    pub started_at: Micros,
    /// Of a deployment that drills may break.
    pub trial_marker: Option<String>,
    pub checkpoints: Arc<Checkpoints>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    fn status(&self) -> api::GetStatusResponse {
        let applied = self.state.applied();
        api::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log_id: self.log.id().0,
            started_at_us: self.started_at.0,
            next_offset: self.log.next_offset().0,
            applied_offset: applied.next.0,
            stored_offset: self.state.stored().next.0,
            deltas_applied: applied.deltas,
            registers_estimate: self.state.registers_estimate(),
            now_us: (self.lags.clock)().0,
            trial_marker: self.trial_marker.clone().unwrap_or_default(),
        }
    }

    fn platforms(&self) -> Vec<api::Platform> {
        let producers = self.producers.connected();
        let subscriptions = self.subscriptions.connected();
        let last = last_records(&self.log.partitions());
        let count = |n: Option<&usize>| n.map_or(0, |n| *n as u32);
        self.platforms
            .iter()
            .map(|p| api::Platform {
                code: p.issuer.code(),
                name: p.name.clone(),
                name_zh: p.name_zh.clone(),
                shards: p.shards,
                producers_connected: count(producers.get(&p.issuer)),
                subscriptions_connected: count(subscriptions.get(&p.issuer)),
                last_record_at_us: last.get(&p.issuer).map_or(0, |at| at.0),
                deltas_accepted: self.metrics.accepted_total(p.issuer),
                deltas_refused: self.metrics.refused_total(p.issuer),
            })
            .collect()
    }

    fn subscription(&self, lag: &SubscriptionLag) -> api::Subscription {
        let s = &lag.subscription;
        let log_id = self.log.id();
        api::Subscription {
            platform: s.key.0.code(),
            subscription: s.key.1.clone(),
            filter: Some(s.filter().wire.clone()),
            connected: s.connected(),
            applied: Some(s.cursor(log_id, |l| s.applied(l)).to_api()),
            sent: Some(s.cursor(log_id, |l| s.position(l)).to_api()),
            urgent: Some(lag.total(Lane::Urgent).to_api()),
            bulk: Some(lag.total(Lane::Bulk).to_api()),
            compacted: s.compacted.load(Ordering::Acquire),
            last_applied_at_us: s.applied_at.load(Ordering::Acquire),
            in_snapshot: s.in_snapshot.load(Ordering::Acquire),
        }
    }

    /// A partition that the configuration has.
    fn partition(&self, issuer: u32, lane: i32, shard: u32) -> Result<Partition, Refusal> {
        let unknown =
            |field: &str, what: String| Refusal::new(Reason::PartitionUnknown, field).detail(what);
        let platform = self
            .platforms
            .iter()
            .find(|p| p.issuer.code() == issuer)
            .ok_or_else(|| unknown("issuer", format!("issuer {issuer}")))?;
        if lane == 0 {
            return Err(Refusal::new(Reason::EnumUnspecified, "lane"));
        }
        let lane = u64::try_from(lane)
            .ok()
            .and_then(Lane::from_number)
            .filter(|lane| *lane != Lane::Control)
            .ok_or_else(|| unknown("lane", format!("lane {lane}")))?;
        if shard >= platform.shards {
            return Err(unknown(
                "shard",
                format!("shard {shard} of {}", platform.shards),
            ));
        }
        Ok(Partition {
            issuer: platform.issuer,
            lane,
            shard: Shard(shard),
        })
    }

    fn trim(&self, request: &api::TrimPartitionRequest) -> Result<Offset, Refusal> {
        let partition = self.partition(request.issuer, request.lane, request.shard)?;
        let before = Offset(request.before_offset);
        let stored = self.state.stored().next;
        if before > stored {
            return Err(Refusal::new(Reason::TrimBeyondStored, "before_offset")
                .detail(format!("everything below {stored} may be dropped")));
        }
        self.log
            .trim(partition, before)
            .map_err(|error| match error {
                LogError::Poisoned(why) => Refusal::from(Reason::LogPoisoned).detail(why),
                error => {
                    tracing::error!(%error, "trim failed");
                    Reason::Internal.into()
                }
            })?;
        tracing::info!(%partition, %before, "partition trimmed on request");
        Ok(self
            .log
            .partition(partition)
            .map_or(before, |info| info.trimmed_below))
    }
}

/// On a thread that may wait for the disk. What is logged there has the trace of the call.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
        .await
        .map_err(|_| Reason::Internal.into())
}

fn partition_to_api(info: &PartitionInfo) -> api::Partition {
    api::Partition {
        issuer: info.partition.issuer.code(),
        lane: info.partition.lane.to_api().into(),
        shard: info.partition.shard.0,
        first_offset: info.first.0,
        last_offset: info.last.0,
        trimmed_below: info.trimmed_below.0,
        records: info.records,
        bytes_estimate: info.bytes_estimate,
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn get_status(
        &self,
        request: Request<api::GetStatusRequest>,
    ) -> Result<Response<api::GetStatusResponse>, Status> {
        self.access.check(request.metadata(), Call::GetStatus)?;
        Ok(Response::new(self.status()))
    }

    async fn list_platforms(
        &self,
        request: Request<api::ListPlatformsRequest>,
    ) -> Result<Response<api::ListPlatformsResponse>, Status> {
        self.access.check(request.metadata(), Call::ListPlatforms)?;
        let platforms = self.platforms();
        Ok(Response::new(api::ListPlatformsResponse { platforms }))
    }

    async fn list_subscriptions(
        &self,
        request: Request<api::ListSubscriptionsRequest>,
    ) -> Result<Response<api::ListSubscriptionsResponse>, Status> {
        self.access
            .check(request.metadata(), Call::ListSubscriptions)?;
        let platform = request.get_ref().platform;
        let lags = self.read_lags().await?;
        let subscriptions = lags
            .iter()
            .filter(|l| platform == 0 || l.subscription.key.0.code() == platform)
            .map(|l| self.subscription(l))
            .collect();
        Ok(Response::new(api::ListSubscriptionsResponse {
            subscriptions,
        }))
    }

    async fn get_lag_matrix(
        &self,
        request: Request<api::GetLagMatrixRequest>,
    ) -> Result<Response<api::GetLagMatrixResponse>, Status> {
        self.access.check(request.metadata(), Call::GetLagMatrix)?;
        let mut pairs = Vec::new();
        for lag in self.read_lags().await? {
            for (issuer, lags) in &lag.pairs {
                pairs.push(api::LagPair {
                    issuer: issuer.code(),
                    receiver: lag.subscription.key.0.code(),
                    subscription: lag.subscription.key.1.clone(),
                    urgent: Some(lags[Lane::Urgent.index()].to_api()),
                    bulk: Some(lags[Lane::Bulk.index()].to_api()),
                });
            }
        }
        let now_us = (self.lags.clock)().0;
        Ok(Response::new(api::GetLagMatrixResponse { pairs, now_us }))
    }

    async fn list_connectors(
        &self,
        request: Request<api::ListConnectorsRequest>,
    ) -> Result<Response<api::ListConnectorsResponse>, Status> {
        self.access
            .check(request.metadata(), Call::ListConnectors)?;
        let all = self.reports.all().into_iter();
        let connectors = all.map(|(platform, kept)| api::Connector {
            platform: platform.code(),
            silent: kept.is_silent(),
            said_at_us: kept.said_at.0,
            report: Some(kept.report),
        });
        Ok(Response::new(api::ListConnectorsResponse {
            connectors: connectors.collect(),
        }))
    }

    async fn list_partitions(
        &self,
        request: Request<api::ListPartitionsRequest>,
    ) -> Result<Response<api::ListPartitionsResponse>, Status> {
        self.access
            .check(request.metadata(), Call::ListPartitions)?;
        let log = Arc::clone(&self.log);
        let infos = blocking(move || log.partitions()).await?;
        let partitions = infos.iter().map(partition_to_api).collect();
        Ok(Response::new(api::ListPartitionsResponse { partitions }))
    }

    async fn trim_partition(
        &self,
        request: Request<api::TrimPartitionRequest>,
    ) -> Result<Response<api::TrimPartitionResponse>, Status> {
        self.access.check(request.metadata(), Call::TrimPartition)?;
        let this = self.clone();
        let trimmed = blocking(move || this.trim(request.get_ref())).await??;
        Ok(Response::new(api::TrimPartitionResponse {
            trimmed_below: trimmed.0,
        }))
    }

    async fn create_checkpoint(
        &self,
        request: Request<api::CreateCheckpointRequest>,
    ) -> Result<Response<api::CreateCheckpointResponse>, Status> {
        self.access
            .check(request.metadata(), Call::CreateCheckpoint)?;
        let this = self.clone();
        let made = move || this.checkpoints.create(&*this.log, &this.state);
        let made = blocking(made).await?.map_err(|error| match error {
            CheckpointError::InUse { .. } => {
                Refusal::from(Reason::CheckpointInUse).detail(error.to_string())
            }
            error => {
                tracing::error!(%error, "no copy for a backup could be made");
                Refusal::from(Reason::Internal).detail(error.to_string())
            }
        })?;
        tracing::info!(folder = %made.folder.display(), stored = %made.stored, "copied for a backup");
        Ok(Response::new(api::CreateCheckpointResponse {
            folder: made.folder.display().to_string(),
            log_id: self.log.id().0,
            stored_offset: made.stored.0,
            next_offset: made.next.0,
            at_us: (self.lags.clock)().0,
        }))
    }

    async fn delete_subscription(
        &self,
        request: Request<api::DeleteSubscriptionRequest>,
    ) -> Result<Response<api::DeleteSubscriptionResponse>, Status> {
        self.access
            .check(request.metadata(), Call::DeleteSubscription)?;
        let request = request.into_inner();
        let key = Issuer::new(request.platform)
            .map(|platform| (platform, request.subscription))
            .ok_or_else(|| Refusal::new(Reason::SubscriptionUnknown, "subscription"))?;
        self.subscriptions.forget(&key)?;
        self.control
            .write(api::control_record::Act::SubscriptionDeleted(
                api::SubscriptionDeleted {
                    platform: key.0.code(),
                    subscription: key.1,
                },
            ))
            .await?;
        Ok(Response::new(api::DeleteSubscriptionResponse {}))
    }
}

impl Admin {
    /// Lags are read from the log, which may block.
    async fn read_lags(&self) -> Result<Vec<SubscriptionLag>, Refusal> {
        let lags = self.lags.clone();
        blocking(move || lags.all()).await
    }
}
