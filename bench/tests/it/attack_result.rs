//! An object as `attack --json` prints it.

use eddy_bench::results::Spread;
use serde_json::{Value, json};

/// Lengths of record after which attackers are judged.
const TIMES: [f64; 4] = [1.0, 3.0, 10.0, 30.0];

/// Two attackers, three cases and two seeds. `delay` is that of the adversary's own datagrams.
pub(crate) fn attack_result(delay: &Spread) -> Value {
    let rates: Vec<f64> = (0..=20).map(|step| 10f64.powf(f64::from(step) / 5.0 - 4.0)).collect();
    let cases = [("off", 0.9), ("default", 0.6), ("ideal", 0.0)];
    let (mut results, mut summaries, mut runs) = (vec![], vec![], vec![]);
    for (case, strength) in cases {
        let top1 = |at: f64, seed: u64| (0.01 + strength * (at / 10.0).min(1.0) + 0.001 * seed as f64).min(1.0);
        for (seed, attacker, at) in [1, 2].into_iter().flat_map(|seed| {
            ["batch-tracing", "volume"].into_iter().flat_map(move |name| TIMES.map(|at| (seed, name, at)))
        }) {
            let found = top1(at, seed) * if attacker == "volume" { 0.5 } else { 1.0 };
            let roc: Vec<f64> = rates.iter().map(|rate| rate.powf(1.0 - found)).collect();
            let interval = json!({ "top1": [0.0, 1.0] });
            results.push(json!({
                "case": case, "profile": "voice", "users": 100, "seconds": at, "seed": seed, "attacker": attacker,
                "source": "a paper", "top1": found, "mrr": found, "auc": 0.5 + found / 2.0, "tpr_1e2": roc[10],
                "tpr_1e3": roc[5], "interval": interval, "entropy_bits": 6.6 * (1.0 - found), "roc": roc,
            }));
        }
        let p = if strength > 0.0 { 0.001 } else { 0.62 };
        let verdict = json!({
            "p": p, "attacker": "batch-tracing", "deviations": 9.0, "best_top1": 0.9, "p_best_top1": 0.001,
            "best_top1_by_chance": 0.03,
        });
        summaries.push(json!({
            "case": case, "attackers": ["batch-tracing", "batch-tracing"], "top1": top1(30.0, 1),
            "top1_range": [top1(30.0, 1), top1(30.0, 2)], "top1_after": TIMES.map(|at| (at, top1(at, 1))),
            "seconds_to_half": (strength > 0.0).then_some(5.5), "chance": 0.01, "verdicts": [verdict, verdict],
        }));
        let sample = |second: u32| json!({ "seconds": f64::from(second) + 0.02, "forward_bits": [4.9, 5.1], "backward_bits": [4.0, 4.2] });
        let facts = json!({
            "sent": [9, 9], "arrived": [9, 9], "dropped": 0, "ledgers_closed": true, "captured": 9, "capture_lost": 0,
            "cores_here": 0.5, "cores_nodes": 0.5, "memory_here": 9, "memory_nodes": 9, "late_ms": 1.0, "start_s": 3.0,
            "meter": (1..=30).map(sample).collect::<Vec<Value>>(),
        });
        runs.extend([1, 2].map(|seed| {
            let costs = json!({
                "delay": delay, "access_bytes_per_hour": [150_000_000, 151_000_000],
                "flow_bytes_per_hour": [20_000_000, 21_000_000],
            });
            json!({
                "case": case, "seed": seed, "command": "attack --seconds 30 --seeds 2 --json", "costs": costs,
                "facts": if case == "ideal" { Value::Null } else { facts.clone() },
            })
        }));
    }
    let machine = json!({ "cpu": "a processor", "cores": 2, "kernel": "6.18", "load": 0.5, "eddy": "0.1.0" });
    json!({
        "results": results, "roc_rates": rates, "summaries": summaries, "active": [], "runs": runs, "machine": machine,
    })
}
