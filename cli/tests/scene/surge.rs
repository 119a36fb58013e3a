//! A mass test: several platforms flood the bulk lane, one platform applies it more slowly than it comes, and urgent
//! changes go on beside it.

use super::subscribe;
use hutong_cli::demo::embedded::Embedded;
use hutong_connectors::client::{
    Endpoint, Event, Identity, Publisher, PublisherOptions, Subscriber,
};
use hutong_proto::{
    Cursor, EntityId, Issuer, Micros, Offset, Provenance, Revision, Value,
    delta::{Colour, Delta, TestOutcome},
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// How often each platform publishes a batch, and what is in it.
const EVERY: Duration = Duration::from_millis(200);
const BULK_A_BATCH: u64 = 150;
const URGENT_A_BATCH: u64 = 2;
/// How often the slow platform applies another message of bulk: far fewer than come.
const SLOW: Duration = Duration::from_millis(700);

/// Goes on until it is dropped.
#[derive(Debug)]
pub struct Surge {
    _tasks: JoinSet<()>,
}

impl Surge {
    pub async fn start(broker: &Embedded, issuers: &[u32]) -> Surge {
        let mut tasks = JoinSet::new();
        for code in issuers {
            let issuer = Issuer::new(*code).expect("six digits");
            let endpoint = Endpoint::new(broker.address().to_owned(), Identity::Platform(issuer));
            let options = PublisherOptions::new(endpoint, "surge");
            let publisher = Publisher::connect(options).await.expect("connected");
            tasks.spawn(flood(publisher));
        }
        Surge { _tasks: tasks }
    }
}

async fn flood(publisher: Publisher) {
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 0.. {
        pace.tick().await;
        let first = round * (BULK_A_BATCH + URGENT_A_BATCH);
        let deltas = (0..BULK_A_BATCH + URGENT_A_BATCH).map(|n| {
            let value = match n < BULK_A_BATCH {
                true => Value::TestResult {
                    outcome: TestOutcome::Negative,
                    sampled_at: now(),
                },
                false => Value::HealthCode(Colour::Green),
            };
            delta(first + n, value)
        });
        let Ok(sent) = publisher.publish(deltas.collect()).await else {
            return;
        };
        let receipt = sent.await.expect("acknowledged");
        assert!(receipt.refused.is_empty(), "{receipt:?}");
    }
}

fn now() -> Micros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Micros(since.expect("after 1970").as_micros() as u64)
}

/// Each of another entity.
fn delta(n: u64, value: Value) -> Delta {
    let mut entity = [9; 16];
    entity[8..].copy_from_slice(&n.to_be_bytes());
    Delta {
        entity: EntityId(entity),
        revision: Revision(n + 1),
        committed_at: now(),
        expires_at: Micros::ZERO,
        evidence: String::new(),
        provenance: Arc::new(Provenance {
            authority: "卫生健康委员会".to_owned(),
            rule_id: "R2".to_owned(),
            rule_version: 1,
            reason: "全员核酸检测".to_owned(),
        }),
        value,
    }
}

/// Applies what is urgent at once, and bulk more slowly than it comes.
#[derive(Debug)]
pub struct SlowInBulk {
    _tasks: JoinSet<()>,
}

impl SlowInBulk {
    pub async fn start(broker: &Embedded, code: u32) -> SlowInBulk {
        let subscriber = subscribe(broker, code).await;
        let mut tasks = JoinSet::new();
        tasks.spawn(apply_slowly(subscriber));
        SlowInBulk { _tasks: tasks }
    }
}

async fn apply_slowly(mut subscriber: Subscriber) {
    let mut pace = interval(SLOW);
    let mut newest: Option<Cursor> = None;
    let mut bulk = subscriber.cursor().bulk;
    let mut waiting: VecDeque<Offset> = VecDeque::new();
    loop {
        // Cancel-safe, as the client says.
        tokio::select! {
            event = subscriber.next() => match event {
                Ok(Event::Records { cursor, .. }) => {
                    // What is urgent moves the cursor, too.
                    if waiting.back() != Some(&cursor.bulk) {
                        waiting.push_back(cursor.bulk);
                    }
                    newest = Some(cursor);
                }
                Ok(Event::Bookmark { cursor, .. }) => newest = Some(cursor),
                Ok(_) => {}
                Err(_) => return,
            },
            _ = pace.tick() => bulk = waiting.pop_front().unwrap_or(bulk),
        }
        if let Some(newest) = newest {
            // Before the first record of bulk there is nothing to be slow with.
            let bulk = if waiting.is_empty() {
                newest.bulk
            } else {
                bulk
            };
            subscriber
                .applied(Cursor { bulk, ..newest })
                .await
                .expect("said");
        }
    }
}
