//! Streams that break their credit or their order, as the watcher sees them.

use super::*;
use crate::{sim::judge::Judge, sweep::plan};
use bytes::Bytes;
use hutong_planted_broker::log::{Append, Log, faults::Faults, memory::MemoryLog};
use hutong_proto::{KindSet, LogId, Micros, Partition, Shard};

const CREDIT: u64 = 1000;

fn platform() -> Issuer {
    Issuer::new(510_000).expect("a code")
}

/// A record of a plan that is of this lane, and bytes of about so many deltas.
fn record(lane: Lane, deltas: u64) -> (Partition, Bytes) {
    let planned = plan::people(lane as u64, deltas);
    let partition = Partition {
        issuer: planned.partition.issuer,
        lane,
        shard: Shard(0),
    };
    // Its own words say which lane it is of.
    let view = RecordView::parse(&planned.record).expect("sound");
    let all: Vec<_> = (0..view.deltas.len())
        .map(|i| {
            let delta = view.delta(i).expect("sound");
            let provenance = view.provenance(0).expect("sound").to_owned();
            delta.to_owned(Arc::new(provenance))
        })
        .collect();
    let numbers = (1, lane as u64, 1);
    (
        partition,
        plan::record(partition, "p", numbers, &all).record,
    )
}

/// A world in whose log are a bulk record and then an urgent one, applied at once, and a stream of it.
fn stream(call: Call) -> (World, Watch, [(u64, Bytes); 2]) {
    let clock = Arc::new(|| Micros(1_650_000_000_000_000));
    let disk = Arc::new(MemoryLog::new(LogId(7), clock, Faults::default()));
    let records = [Lane::Bulk, Lane::Urgent].map(|lane| record(lane, 3));
    for (partition, bytes) in &records {
        disk.append(Append {
            partition: *partition,
            kinds: KindSet::ALL,
            deltas: 3,
            record: bytes.clone(),
            done: Box::new(|told| assert!(told.is_ok(), "{told:?}")),
        });
    }
    let issuer = records[0].0.issuer;
    let mut judge = Judge::new(disk, &[issuer, platform()]);
    judge.visible(Offset(3)).expect("sound");
    let world = World::new(judge, false);
    let watch = Watch::new(world.clone(), platform(), call);
    let [(_, bulk), (_, urgent)] = records;
    (world, watch, [(1, bulk), (2, urgent)])
}

fn received(watch: &Watch, message: subscribe_request::Message) {
    let request = api::SubscribeRequest {
        message: Some(message),
    };
    watch.received(&Frame::new(request.encode_to_vec().into()));
}

fn open(watch: &Watch, credit_bytes: u64, kinds: Vec<i32>) {
    let filter = Some(api::Filter {
        kinds,
        ..Default::default()
    });
    let open = api::SubscribeOpen {
        subscription: "main".to_owned(),
        filter,
        credit_bytes,
        ..Default::default()
    };
    received(watch, subscribe_request::Message::Open(open));
}

fn sent(watch: &Watch, message: subscribe_response::Message) {
    let response = api::SubscribeResponse {
        message: Some(message),
    };
    watch.sent(&Frame::new(response.encode_to_vec().into()));
}

fn begins(watch: &Watch, urgent: u64) {
    let cursor = api::Cursor {
        log_id: 7,
        urgent,
        bulk: 1,
    };
    let opened = api::SubscribeOpened {
        cursor: Some(cursor),
        ..Default::default()
    };
    sent(watch, subscribe_response::Message::Opened(opened));
}

/// One delivery of these records. How many bytes it has.
fn deliver(watch: &Watch, records: &[(u64, Bytes)]) -> u64 {
    let records = records.iter().map(|(offset, bytes)| api::LoggedRecord {
        offset: *offset,
        durable_at_us: 1,
        record: Some(api::Record::decode(bytes.clone()).expect("a record")),
        ..Default::default()
    });
    let message = subscribe_response::Message::Records(api::RecordBatch {
        records: records.collect(),
    });
    let response = api::SubscribeResponse {
        message: Some(message),
    };
    let bytes = response.encode_to_vec();
    let len = bytes.len() as u64;
    watch.sent(&Frame::new(bytes.into()));
    len
}

fn found(world: &World) -> Option<&'static str> {
    world.found().map(|violation| violation.invariant)
}

#[tokio::test]
async fn more_than_the_credit_and_one_message_is_too_much() {
    for given in [0, 400] {
        let (world, watch, [_, urgent]) = stream(Call::Subscribe);
        open(&watch, CREDIT, Vec::new());
        begins(&watch, 1);
        if given > 0 {
            let credit = api::SubscribeCredit { bytes: given };
            received(&watch, subscribe_request::Message::Credit(credit));
        }
        let each = deliver(&watch, std::slice::from_ref(&urgent));
        let mut bytes = each;
        while bytes < CREDIT + given + each {
            assert_eq!(found(&world), None, "{bytes} of {CREDIT} and {given}");
            bytes += deliver(&watch, std::slice::from_ref(&urgent));
        }
        assert_eq!(found(&world), None, "the last one may go beyond it");
        deliver(&watch, &[urgent]);
        assert_eq!(found(&world), Some("INV-9"));
    }
}

#[tokio::test]
async fn who_says_no_credit_has_what_is_usual() {
    let (world, watch, [_, urgent]) = stream(Call::Subscribe);
    open(&watch, 0, Vec::new());
    begins(&watch, 1);
    let mut bytes = 0;
    while bytes < CREDIT * 10 {
        bytes += deliver(&watch, std::slice::from_ref(&urgent));
    }
    assert_eq!(found(&world), None);
}

#[tokio::test]
async fn bulk_goes_after_the_urgent_that_is_wanted() {
    let (world, watch, [bulk, urgent]) = stream(Call::Subscribe);
    open(&watch, CREDIT, Vec::new());
    begins(&watch, 1);
    deliver(&watch, &[urgent.clone(), bulk.clone()]);
    assert_eq!(found(&world), None);

    let (world, watch, _) = stream(Call::Subscribe);
    open(&watch, CREDIT, Vec::new());
    begins(&watch, 1);
    deliver(&watch, &[bulk.clone(), urgent.clone()]);
    assert_eq!(found(&world), Some("INV-10"));

    // Who has it already, or wants no such kind, is owed nothing.
    let (world, watch, _) = stream(Call::Subscribe);
    open(&watch, CREDIT, Vec::new());
    begins(&watch, 3);
    deliver(&watch, std::slice::from_ref(&bulk));
    assert_eq!(found(&world), None);
    let (world, watch, _) = stream(Call::Subscribe);
    open(&watch, CREDIT, vec![api::Kind::Vaccination.into()]);
    begins(&watch, 1);
    deliver(&watch, std::slice::from_ref(&bulk));
    assert_eq!(found(&world), None);
}

#[tokio::test]
async fn after_a_snapshot_it_counts_from_its_end() {
    let (world, watch, [bulk, _]) = stream(Call::Subscribe);
    open(&watch, CREDIT, Vec::new());
    let cursor = |urgent| {
        Some(api::Cursor {
            log_id: 7,
            urgent,
            bulk: 1,
        })
    };
    let opened = api::SubscribeOpened {
        cursor: cursor(9),
        snapshot: true,
        ..Default::default()
    };
    sent(&watch, subscribe_response::Message::Opened(opened));
    let end = api::SnapshotEnd {
        cursor: cursor(1),
        rows: 0,
    };
    sent(&watch, subscribe_response::Message::SnapshotEnd(end));
    deliver(&watch, &[bulk]);
    assert_eq!(found(&world), Some("INV-10"));
}

#[tokio::test]
async fn before_a_stream_has_begun_nothing_is_owed() {
    let (world, watch, [bulk, _]) = stream(Call::Subscribe);
    open(&watch, CREDIT, Vec::new());
    deliver(&watch, std::slice::from_ref(&bulk));
    let opened = api::SubscribeOpened {
        cursor: Some(api::Cursor {
            log_id: 7,
            urgent: 1,
            bulk: 1,
        }),
        snapshot: true,
        ..Default::default()
    };
    // Where it goes on after the rows, of which this stream has none yet.
    sent(&watch, subscribe_response::Message::Opened(opened));
    deliver(&watch, &[bulk]);
    assert_eq!(found(&world), None);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_a_publisher_is_not_looked_at() {
    let nonsense = Frame::new(Bytes::from_static(b"\x2a\x05\xff\xff"));
    let (world, watch, _) = stream(Call::Subscribe);
    watch.sent(&nonsense);
    assert_eq!(found(&world), Some("INV-2"));
    let (world, watch, [bulk, _]) = stream(Call::Publish);
    watch.received(&nonsense);
    watch.sent(&nonsense);
    deliver(&watch, &[bulk]);
    assert_eq!(found(&world), None);

    // A delivery of a record that is none.
    let (world, watch, _) = stream(Call::Subscribe);
    open(&watch, CREDIT, Vec::new());
    begins(&watch, 1);
    deliver(&watch, &[(1, Bytes::new())]);
    assert_eq!(found(&world), Some("INV-2"));
}
