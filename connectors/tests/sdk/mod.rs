//! What the tests of the client SDK stand on: a broker that follows the test's script, a real
//! broker in this process, and a line between them and the client that the test can cut.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod fake;
pub mod line;

use hutong_broker::{Broker, config::Config};
use hutong_connectors::client::{Backoff, Endpoint, Identity, PublisherOptions, SubscriberOptions};
use hutong_proto::{
    Delta, EntityId, Epoch, Issuer, Micros, Provenance, Revision, Value,
    delta::{Colour, TestOutcome},
};
use std::{
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

pub const ANHUI: u32 = 340_000;
pub const SICHUAN: u32 = 510_000;

/// Nothing here takes this long; it ends a test that would hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How long a client that must not do something gets to do it. A slow machine makes the test blind,
/// never red.
pub const GRACE: Duration = Duration::from_millis(100);

/// Short, so that a test with many cuts is soon over.
pub const BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(4),
    max: Duration::from_millis(40),
    jitter_seed: None,
};

pub fn issuer(code: u32) -> Issuer {
    Issuer::new(code).expect("six digits")
}

pub fn endpoint(addr: SocketAddr, code: u32) -> Endpoint {
    Endpoint::new(format!("http://{addr}"), Identity::Platform(issuer(code)))
}

/// A producer of Anhui.
pub fn publisher(addr: SocketAddr, epoch: u64) -> PublisherOptions {
    PublisherOptions {
        epoch: Some(Epoch(epoch)),
        backoff: BACKOFF,
        ..PublisherOptions::new(endpoint(addr, ANHUI), "p")
    }
}

/// A subscription of Sichuan.
pub fn subscriber(addr: SocketAddr) -> SubscriberOptions {
    SubscriberOptions {
        backoff: BACKOFF,
        ..SubscriberOptions::new(endpoint(addr, SICHUAN), "s")
    }
}

/// A real broker in this process.
pub async fn node(dir: &Path) -> Broker {
    let config = Config::for_tests(dir, &[(ANHUI, "Anhui"), (SICHUAN, "Sichuan")]);
    Broker::start(config).await.expect("the broker starts")
}

pub fn now() -> Micros {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    Micros(since.as_micros() as u64)
}

pub fn entity(n: u64) -> EntityId {
    let mut id = [7; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    EntityId(id)
}

pub fn provenance() -> Provenance {
    Provenance {
        authority: "CDC-340100".to_owned(),
        rule_id: "AH-2022-07".to_owned(),
        rule_version: 3,
        reason: "close contact".to_owned(),
    }
}

pub fn delta(n: u64, revision: u64, value: Value) -> Delta {
    Delta {
        entity: entity(n),
        revision: Revision(revision),
        committed_at: now(),
        expires_at: Micros::ZERO,
        evidence: String::new(),
        provenance: Arc::new(provenance()),
        value,
    }
}

/// A colour, which is urgent.
pub fn red(n: u64) -> Delta {
    delta(n, 1, Value::HealthCode(Colour::Red))
}

/// A negative result, which is bulk.
pub fn negative(n: u64) -> Delta {
    let value = Value::TestResult {
        outcome: TestOutcome::Negative,
        sampled_at: Micros::ZERO,
    };
    delta(n, 1, value)
}

/// `count` deltas about entities from `first` on.
pub fn reds(first: u64, count: u64) -> Vec<Delta> {
    (first..first + count).map(red).collect()
}

/// Ends a test that would hang, and says where.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what} took longer than {} s", PATIENCE.as_secs()))
}

/// Waits until the condition holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Numbers that look random and are the same each time: splitmix64.
/// Source: <https://prng.di.unimi.it/splitmix64.c>.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
