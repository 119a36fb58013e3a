//! This broker, through its own SDK.

use crate::{
    broker::{BrokerProcess, StateWork},
    measure::key_of,
    systems::{Ack, Came, Failure, Receiver, Seen, Sender, System},
};
use futures_util::future::BoxFuture;
use hutong_connectors::client::{
    EncodedBatch, Endpoint, Filter, Identity, Publisher, PublisherOptions, Start, Subscriber,
    SubscriberOptions,
};
use hutong_proto::{Issuer, Lane, RecordView, record};

/// More than any scenario has: the scenario bounds what is under way.
const BATCHES_IN_FLIGHT_MAX: usize = 4096;

pub struct Hutong {
    broker: BrokerProcess,
    /// Whether receivers take records packed, as the SDK does if it is not told otherwise.
    lz4: bool,
}

impl Hutong {
    pub async fn start(issuers: &[Issuer], lz4: bool) -> Result<Hutong, Failure> {
        Hutong::start_with(issuers, lz4, "").await
    }

    /// With more in its configuration.
    pub async fn start_with(issuers: &[Issuer], lz4: bool, extra: &str) -> Result<Hutong, Failure> {
        let broker = BrokerProcess::start(issuers, None, extra).await?;
        Ok(Hutong { broker, lz4 })
    }

    pub fn http(&self) -> &str {
        &self.broker.http
    }

    fn endpoint(&self, issuer: Issuer) -> Endpoint {
        Endpoint::new(self.broker.grpc.clone(), Identity::Platform(issuer))
    }
}

impl System for Hutong {
    fn sender(
        &self,
        issuer: Issuer,
        lane: Lane,
        _batch: u32,
    ) -> BoxFuture<'_, Result<Box<dyn Sender>, Failure>> {
        Box::pin(async move {
            let mut options = PublisherOptions::new(self.endpoint(issuer), lane.name());
            options.batches_in_flight_max = BATCHES_IN_FLIGHT_MAX;
            let publisher = Publisher::connect(options).await?;
            Ok(Box::new(HutongSender(publisher)) as Box<dyn Sender>)
        })
    }

    fn receiver(&self, issuer: Issuer) -> BoxFuture<'_, Result<Box<dyn Receiver>, Failure>> {
        Box::pin(async move {
            let mut options = SubscriberOptions::new(self.endpoint(issuer), "bench");
            // As the peers do: to everybody also what is its own.
            options.filter = Filter {
                include_own: true,
                ..Filter::default()
            };
            options.start = Start::Now;
            options.lz4 = self.lz4;
            let subscriber = Subscriber::open(options).await?;
            Ok(Box::new(HutongReceiver(subscriber)) as Box<dyn Receiver>)
        })
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.broker.id()]
    }

    fn state_work(&self) -> BoxFuture<'_, Result<Option<StateWork>, Failure>> {
        Box::pin(async { Ok(Some(self.broker.state_work().await?)) })
    }
}

struct HutongSender(Publisher);

impl Sender for HutongSender {
    fn send(&mut self, batch: EncodedBatch) -> BoxFuture<'_, Result<Ack, Failure>> {
        Box::pin(async move {
            let deltas = batch.deltas;
            let pending = self.0.publish_encoded(batch).await?;
            Ok(Box::pin(async move {
                let receipt = pending.await?;
                match receipt.accepted == deltas {
                    true => Ok(()),
                    false => {
                        Err(format!("{} of {deltas} deltas accepted", receipt.accepted).into())
                    }
                }
            }) as Ack)
        })
    }
}

struct HutongReceiver(Subscriber);

impl Receiver for HutongReceiver {
    fn receive<'a>(&'a mut self, came: &'a mut Came) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let frame = self.0.next_frame().await?;
            let Some(records) = record::read_delivery(&frame)? else {
                return Ok(());
            };
            let mut cursor = self.0.cursor();
            for logged in &records {
                came.batch(|| seen(&logged.record()?))?;
            }
            // A frame has records of one lane.
            if let Some(last) = records.last() {
                let last_record = last.record()?;
                let lane = RecordView::parse(&last_record)?.header.partition.lane;
                cursor.set_lane(lane, last.offset.next());
                self.0.applied(cursor).await?;
            }
            Ok(())
        })
    }
}

fn seen(record: &[u8]) -> Result<Seen, Failure> {
    let record = RecordView::parse(record)?;
    let first = record.delta_parts(0)?;
    Ok(Seen {
        lane: record.header.partition.lane,
        deltas: record.deltas.len() as u32,
        committed_at: first.committed_at,
        key: key_of(&first.entity, first.revision),
    })
}
