//! Every hot path in time: `cargo bench -p millrace-benches -- link` measures those whose name holds `link`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn paths(c: &mut Criterion) {
    for path in millrace_benches::paths() {
        let (part, what) = path.name.split_once('/').expect("a part and a thing");
        let mut group = c.benchmark_group(part);
        group.throughput(Throughput::Elements(path.elements));
        // Only what the filter lets through is made ready, and once: criterion calls this for every sample.
        let mut run = None;
        group.bench_function(what, |b| b.iter(run.get_or_insert_with(path.prepare)));
    }
}

criterion_group!(benches, paths);
criterion_main!(benches);
