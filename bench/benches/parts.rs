//! How long each part takes: `./dev criterion`. Times vary with the machine; to compare commits, count
//! instructions with `./dev instructions`.

#[path = "parts/mod.rs"]
mod parts;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// Records in a group that apply gets at once.
const GROUP: u64 = 64;

fn each(c: &mut Criterion) {
    let mut group = c.benchmark_group("deltas");
    group.throughput(Throughput::Elements(u64::from(parts::DELTAS)));
    let (deltas, batch, entries) = (parts::deltas(), parts::batch(), parts::entries(GROUP));
    group.bench_function("encode", |b| b.iter(|| parts::encode(&deltas)));
    group.bench_function("decode", |b| b.iter(|| parts::decode(&batch)));
    group.bench_function("route", |b| {
        let decode = || parts::decode(&batch);
        b.iter_batched(decode, parts::route, BatchSize::SmallInput);
    });
    group.bench_function("frame", |b| b.iter(|| parts::frame(&entries[0])));
    group.throughput(Throughput::Elements(GROUP * u64::from(parts::DELTAS)));
    group.bench_function("dedupe", |b| {
        let dedupe = |applier: &mut parts::Applier| parts::dedupe(applier, &entries);
        b.iter_batched_ref(parts::applier, dedupe, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, each);
criterion_main!(benches);
