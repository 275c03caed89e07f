//! What each stage of a cell's path takes, in memory: `cargo bench -p eddy-bench --bench stages [-- STAGE]`.
//!
//! The time of a round; cells a second beside it.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eddy_bench::stages;

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("stages");
    for (name, mut stage) in stages::all() {
        stage.prepare();
        let cells = stage.run();
        assert!(stage.is_correct(), "{name}");
        group.throughput(Throughput::Elements(cells as u64)).bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    stage.prepare();
                    let start = Instant::now();
                    stage.run();
                    took += start.elapsed();
                }
                took
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
