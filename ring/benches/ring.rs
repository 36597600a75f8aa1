//! Time per packet of the ring's own paths, in batches as sockets bring them.
#![allow(missing_docs)] // The macros' functions.

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};

mod driver;

const BATCHES: [usize; 3] = [1, 8, 64];

fn hop(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hop: publish and read");
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
            let mut hop = driver::Hop::new();
            bencher.iter(|| hop.batch(batch));
        });
    }
}

fn receive(criterion: &mut Criterion) {
    for (name, ordered, sources) in [
        ("receive: parse, order, count, publish, read", true, 1),
        ("receive: arrival order, 1,000 sources", false, 1_000),
    ] {
        let mut group = criterion.benchmark_group(name);
        for batch in BATCHES {
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::from_parameter(batch), |bencher| {
                let mut receive = driver::Receive::new(ordered, sources);
                bencher.iter(|| receive.batch(batch));
            });
        }
    }
}

criterion_group!(benches, hop, receive);
criterion_main!(benches);
