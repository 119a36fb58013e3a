//! How many instructions each part takes, counted by callgrind: the same on a busy machine, so that two
//! commits can be compared. `./dev instructions` counts, and says what changed since it was last run.

#[path = "parts/mod.rs"]
mod parts;

use gungraun::{library_benchmark, library_benchmark_group, main};
use hutong_broker::log::Entry;
use hutong_proto::Delta;
use std::hint::black_box;

fn record() -> Entry {
    parts::entries(1).remove(0)
}

#[library_benchmark]
#[bench::deltas_256(setup = parts::deltas)]
fn encode(deltas: Vec<Delta>) -> Vec<Delta> {
    black_box(parts::encode(&deltas));
    deltas
}

#[library_benchmark]
#[bench::deltas_256(setup = parts::batch)]
fn decode(batch: bytes::Bytes) -> bytes::Bytes {
    black_box(parts::decode(&batch));
    batch
}

#[library_benchmark]
#[bench::deltas_256(setup = parts::batch)]
fn decode_and_route(batch: bytes::Bytes) -> bytes::Bytes {
    black_box(parts::route(parts::decode(&batch)));
    batch
}

fn to_apply() -> (parts::Applier, Vec<Entry>) {
    (parts::applier(), parts::entries(8))
}

#[library_benchmark]
#[bench::deltas_2048(setup = to_apply)]
fn dedupe(input: (parts::Applier, Vec<Entry>)) -> (parts::Applier, Vec<Entry>) {
    let (mut applier, entries) = input;
    parts::dedupe(&mut applier, &entries);
    (applier, entries)
}

#[library_benchmark]
#[bench::deltas_256(setup = record)]
fn frame(entry: Entry) -> Entry {
    black_box(parts::frame(&entry));
    entry
}

library_benchmark_group!(
    name = deltas,
    benchmarks = [encode, decode, decode_and_route, dedupe, frame]
);

main!(library_benchmark_groups = deltas);
