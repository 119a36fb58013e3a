//! Looks at one subscriber's stream where it leaves the broker: is there credit for it, and does urgent go
//! first?

use crate::sim::{judge::Wants, net::Call, world::World};
use hutong_proto::{
    Issuer, Kind, Lane, Offset, RecordView, api,
    api::{subscribe_request, subscribe_response},
    frame::Frame,
    limits, record,
};
use parking_lot::Mutex;
use prost::Message;
use std::sync::Arc;

#[cfg(test)]
mod tests;

#[derive(Debug, Default)]
struct Stream {
    wants: Option<Wants>,
    credit: u64,
    sent: u64,
    largest: u64,
    urgent_below: Offset,
    began: bool,
}

/// What is known of the stream.
#[derive(Clone, Debug)]
pub struct Watch {
    world: World,
    platform: Issuer,
    call: Call,
    stream: Arc<Mutex<Stream>>,
}

impl Watch {
    pub fn new(world: World, platform: Issuer, call: Call) -> Watch {
        Watch {
            world,
            platform,
            call,
            stream: Arc::default(),
        }
    }

    /// The broker gets this.
    pub fn received(&self, frame: &Frame) {
        if self.call == Call::Publish {
            return;
        }
        use subscribe_request::Message as Request;
        let Ok(request) = api::SubscribeRequest::decode(frame.0.clone()) else {
            return;
        };
        let mut stream = self.stream.lock();
        match request.message {
            Some(Request::Open(open)) => {
                let kinds = open.filter.unwrap_or_default().kinds;
                let kind = |k: i32| Kind::from_number(u64::try_from(k).ok()?);
                stream.wants = Some(Wants {
                    own: self.platform,
                    kinds: kinds.into_iter().filter_map(kind).collect(),
                });
                stream.credit = match open.credit_bytes {
                    0 => limits::SUBSCRIBE_CREDIT_BYTES_DEFAULT,
                    bytes => bytes,
                };
            }
            Some(Request::Credit(credit)) => stream.credit += credit.bytes,
            _ => {}
        }
    }

    /// The broker sends this.
    pub fn sent(&self, frame: &Frame) {
        if self.call == Call::Publish {
            return;
        }
        let bytes = frame.to_bytes();
        let mut stream = self.stream.lock();
        let Ok(delivery) = record::read_delivery(&bytes) else {
            return self.world.violated("INV-2", "a delivery cannot be read");
        };
        if let Some(records) = delivery {
            let len = bytes.len() as u64;
            // One message may go beyond the credit, as the protocol says.
            if stream.sent >= stream.credit.max(1) + stream.largest {
                let what = format!(
                    "{} was sent {} bytes, with credit for {}",
                    self.platform, stream.sent, stream.credit
                );
                self.world.violated("INV-9", what);
            }
            stream.sent += len;
            stream.largest = stream.largest.max(len);
            for logged in records {
                match logged.record() {
                    Ok(record) => self.record(&mut stream, logged.offset, &record),
                    Err(_) => self.unreadable(logged.offset),
                }
            }
            return;
        }
        let Ok(response) = api::SubscribeResponse::decode(bytes) else {
            return;
        };
        use subscribe_response::Message as Response;
        let cursor = match response.message {
            Some(Response::Opened(opened)) if !opened.snapshot => opened.cursor,
            Some(Response::SnapshotEnd(end)) => end.cursor,
            _ => None,
        };
        if let Some(cursor) = cursor {
            stream.urgent_below = Offset(cursor.urgent);
            stream.began = true;
        }
    }

    fn unreadable(&self, offset: Offset) {
        let what = format!("offset {offset} cannot be read");
        self.world.violated("INV-2", what);
    }

    fn record(&self, stream: &mut Stream, offset: Offset, bytes: &[u8]) {
        let Ok(view) = RecordView::parse(bytes) else {
            return self.unreadable(offset);
        };
        match (view.header.partition.lane, &stream.wants) {
            (Lane::Urgent, _) => stream.urgent_below = offset.next(),
            (Lane::Bulk, Some(wants)) if stream.began => {
                let below = stream.urgent_below;
                self.world
                    .judge(|judge| judge.bulk_sent(wants, offset, below));
            }
            _ => {}
        }
    }
}
