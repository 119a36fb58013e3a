//! Closed loop: producers that have a bounded number of batches under way all the time, so that the
//! broker takes as much as it can.

use crate::{
    Failure, allowed,
    broker::BrokerProcess,
    load::{self, Generator},
    measure::{Counters, Latencies},
    waited::Busy,
};
use clap::Args;
use hutong_connectors::client::{Endpoint, Identity, Pending, Publisher, PublisherOptions};
use hutong_proto::{Issuer, Lane};
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tokio::task::JoinSet;

#[derive(Debug, Clone, Args, Serialize)]
pub struct Fill {
    /// Producers, each of its own platform.
    #[arg(long, default_value_t = 8, value_parser = allowed::platforms)]
    pub producers: usize,
    /// Deltas in a batch.
    #[arg(long, default_value_t = 256, value_parser = allowed::batch())]
    pub batch: u32,
    /// Batches under way at each producer.
    #[arg(long, default_value_t = 16, value_parser = allowed::in_flight)]
    pub in_flight: usize,
}

/// When a producer ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Time(Instant),
    /// So many registers of each producer were written once.
    Registers(u64),
}

/// What the producers did after `begin`.
#[derive(Debug, Default)]
pub struct Filled {
    pub published: u64,
    pub acknowledged: u64,
    pub ack: Latencies,
    /// Share of their time in which the producers waited for the broker.
    pub waited_share: f64,
}

impl Fill {
    /// Deltas at random over `people` of each platform, or each once.
    pub async fn run(
        &self,
        broker: &BrokerProcess,
        people: u64,
        until: Until,
        begin: Instant,
        counters: &Arc<Counters>,
    ) -> Result<Filled, Failure> {
        let (busy, mut tasks) = (Busy::default(), JoinSet::new());
        for (i, issuer) in load::issuers(self.producers).into_iter().enumerate() {
            let endpoint = Endpoint::new(broker.grpc.clone(), Identity::Platform(issuer));
            let mut options = PublisherOptions::new(endpoint, "fill");
            options.batches_in_flight_max = self.in_flight + 1;
            let producer = Producer {
                publisher: Publisher::connect(options).await?,
                generator: match until {
                    Until::Time(_) => Generator::new(issuer, people, i as u64 + 1),
                    Until::Registers(count) => Generator::in_turn(issuer, count),
                },
                options: self.clone(),
                until,
                begin,
                counters: Arc::clone(counters),
            };
            tasks.spawn(busy.watch(producer.run()));
        }
        let begun = async {
            tokio::time::sleep_until(begin.into()).await;
            busy.mark()
        };
        let filled = async {
            let mut all = Filled::default();
            while let Some(one) = tasks.join_next().await {
                let one = one??;
                all.published += one.published;
                all.acknowledged += one.acknowledged;
                all.ack.add(&one.ack);
            }
            Ok::<Filled, Failure>(all)
        };
        let (begun, filled) = tokio::join!(begun, filled);
        let mut filled = filled?;
        filled.waited_share = busy.waited_share(begun, self.producers);
        Ok(filled)
    }

    /// Writes `registers` registers, spread over the producers' platforms.
    pub async fn registers(&self, broker: &BrokerProcess, registers: u64) -> Result<(), Failure> {
        let each = registers.div_ceil(self.producers as u64);
        let counters = Arc::default();
        let filled = self
            .run(
                broker,
                each,
                Until::Registers(each),
                Instant::now(),
                &counters,
            )
            .await?;
        match filled.published == filled.acknowledged {
            true => Ok(()),
            false => Err("the broker did not take all registers".into()),
        }
    }

    pub fn issuers(&self) -> Vec<Issuer> {
        load::issuers(self.producers)
    }
}

struct Producer {
    publisher: Publisher,
    generator: Generator,
    options: Fill,
    until: Until,
    begin: Instant,
    counters: Arc<Counters>,
}

impl Producer {
    async fn run(mut self) -> Result<Filled, Failure> {
        let mut filled = Filled::default();
        let mut pending: VecDeque<(Instant, bool, Pending)> = VecDeque::new();
        let mut made = 0;
        loop {
            let now = Instant::now();
            let left = match self.until {
                Until::Time(end) if now < end => self.options.batch,
                Until::Time(_) => 0,
                Until::Registers(count) => u64::from(self.options.batch).min(count - made) as u32,
            };
            if left == 0 || pending.len() >= self.options.in_flight {
                let Some((sent_at, measured, receipt)) = pending.pop_front() else {
                    break;
                };
                let accepted = u64::from(receipt.await?.accepted);
                self.counters
                    .acknowledged
                    .fetch_add(accepted, Ordering::AcqRel);
                if measured {
                    let second = sent_at.duration_since(self.begin).as_secs() as usize;
                    filled
                        .ack
                        .record(second, sent_at.elapsed().as_micros() as u64, 1);
                    filled.acknowledged += accepted;
                }
                continue;
            }
            let committed_at = load::now();
            let batch = self.generator.batch(left, Lane::Bulk, |_| committed_at);
            made += u64::from(left);
            let measured = now >= self.begin;
            if measured {
                filled.published += u64::from(left);
            }
            let receipt = self.publisher.publish_encoded(batch).await?;
            pending.push_back((now, measured, receipt));
        }
        self.publisher.close().await?;
        Ok(filled)
    }
}
