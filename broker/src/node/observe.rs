//! What metrics read when they are scraped: lags from the log, gauges from everybody.

use crate::{
    clock::Clock,
    fanout::{Snapshots, registry::Subscriptions},
    ingress::{queue::Queues, registry::Producers},
    lag::{self, Lags},
    log::{Log, last_records},
    metrics::{Disk, Gauges, LagSample, Observe, StoreGauges},
    node::Parts,
    overload::Overload,
    reload::Live,
    state::State,
    tail::TailRings,
};
use hutong_proto::Micros;
use hutong_telemetry::certificates;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

pub struct Observer {
    log: Arc<dyn Log>,
    state: Arc<State>,
    rings: Arc<TailRings>,
    queues: Arc<Queues>,
    producers: Arc<Producers>,
    subscriptions: Arc<Subscriptions>,
    lags: Lags,
    snapshots: Arc<Snapshots>,
    overload: Arc<Overload>,
    certificates: watch::Receiver<Vec<PathBuf>>,
    data_dir: PathBuf,
    clock: Clock,
}

impl Observer {
    pub fn new(parts: &Parts, live: &Live) -> Observer {
        Observer {
            log: Arc::clone(&parts.log),
            state: Arc::clone(&parts.state),
            rings: Arc::clone(&parts.rings),
            queues: Arc::clone(&parts.queues),
            producers: Arc::clone(&parts.producers),
            subscriptions: Arc::clone(&parts.subscriptions),
            lags: parts.lags.clone(),
            snapshots: Arc::clone(&parts.snapshots),
            overload: Arc::clone(&parts.overload),
            certificates: live.certificates(),
            data_dir: parts.config.data_dir.clone(),
            clock: Arc::clone(&parts.clock),
        }
    }
}

impl Observe for Observer {
    fn lags(&self) -> Vec<LagSample> {
        lag::samples(&self.lags.all())
    }

    fn gauges(&self) -> Gauges {
        let (state, log) = (self.state.store(), self.log.store());
        let partitions = self.log.partitions();
        // Cloned: reading the files may take a while, and a reload must not wait for it.
        let certificates = self.certificates.borrow().clone();
        Gauges {
            now: (self.clock)(),
            next_offset: self.log.next_offset(),
            applied: self.state.applied().next,
            stored: self.state.stored().next,
            log_bytes: partitions.iter().map(|p| p.bytes_estimate).sum(),
            log_poisoned: self.log.poisoned().is_some(),
            commit_running: self.log.commit_running(),
            bulk_held: self.state.bulk_held(),
            last_records: last_records(&partitions).into_iter().collect(),
            disk: disk(&self.data_dir),
            certificates: certificates.iter().map(|file| certificate(file)).collect(),
            queue_bytes: self.queues.bytes(),
            tail_bytes: self.rings.bytes(),
            gather_bytes: self.state.memory_bytes(),
            state_merges: self.state.stats().merges,
            snapshots_running: self.snapshots.running(),
            scheduling_delay: self.overload.delay(),
            overload_limits: self.overload.limits().to_vec(),
            producers_connected: self.producers.connected().into_iter().collect(),
            subscribers_connected: self.subscriptions.connected().into_iter().collect(),
            stores: vec![
                StoreGauges { name: "log", ..log },
                StoreGauges {
                    name: "state",
                    ..state
                },
            ],
        }
    }
}

/// `None` where the system does not say.
fn disk(dir: &Path) -> Option<Disk> {
    let found = rustix::fs::statvfs(dir).ok()?;
    Some(Disk {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        size: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// Its name, and when it expires. One that cannot be read is as good as expired: whoever needs it cannot read it
/// either.
fn certificate(file: &Path) -> (String, Micros) {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let at = certificates::not_after(file).unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "a certificate that is to be watched cannot be read");
        0
    });
    (name.into_owned(), Micros(at.saturating_mul(1_000_000)))
}
