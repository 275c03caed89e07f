//! Prints the accuracy of every passive attacker on every simulated case, and the time that it takes.
//!
//! ```text
//! cargo run --release -p attack --example cases -- [USERS] [SECONDS] [CASE]
//! ```

use std::time::Instant;

use attack::{
    Example,
    attackers::passive,
    figures::{TIMES, figures},
    independence::{distance_correlation_p, verdict},
    simulate::{Answers, Chain, Ideal, Leak, Loss, Profile, Simulation},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: f64| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (users, seconds) = (number(0, 100.0) as usize, number(1, 60.0));
    for (name, case) in cases(users, seconds) {
        if arguments.get(2).is_none_or(|wanted| name.starts_with(wanted.as_str())) {
            judge(name, &case);
        }
    }
}

fn cases(users: usize, seconds: f64) -> Vec<(&'static str, Simulation)> {
    let voice = Simulation::new(users, seconds, 1);
    let constant = Simulation { profile: Profile::Constant, answers: Answers::Independent, ..voice.clone() };
    let video = Simulation { profile: Profile::Video, answers: Answers::Independent, ..voice.clone() };
    let ideal = |ideal: Ideal| Simulation { chain: Chain::Ideal(ideal), ..voice.clone() };
    let outages = |copies: u32, loss: Loss, corrupt_exit: bool| Simulation {
        chain: Chain::Ideal(Ideal { copies, corrupt_exit, ..Ideal::with(Leak::Losses) }),
        loss,
        ..constant.clone()
    };
    vec![
        ("off-voice", Simulation { chain: Chain::OFF, ..voice.clone() }),
        ("off-constant", Simulation { chain: Chain::OFF, ..constant.clone() }),
        ("off-video", Simulation { chain: Chain::OFF, ..video.clone() }),
        ("default-voice", voice.clone()),
        ("default-constant", constant.clone()),
        ("default-video", video.clone()),
        ("default-voice-loss", Simulation { loss: Loss::Independent(0.01), ..voice.clone() }),
        ("timed-voice", Simulation { chain: Chain::TIMED, ..voice.clone() }),
        (
            "unshuffled-constant",
            Simulation {
                chain: Chain::Pool { hops: 3, period_ms: 5.0, threshold: 64, shuffle: false },
                ..constant.clone()
            },
        ),
        ("ideal-voice", ideal(Ideal::default())),
        ("ideal-constant", Simulation { chain: Chain::Ideal(Ideal::default()), ..constant.clone() }),
        (
            "ideal-lossy",
            Simulation {
                loss: Loss::Bursts { share: 0.01, run: 3.0 },
                ..ideal(Ideal { copies: 2, ..Ideal::default() })
            },
        ),
        ("leak-late-data", ideal(Ideal::with(Leak::LateData { us: 20.0 }))),
        ("leak-left-out", ideal(Ideal::with(Leak::LeftOut { share: 0.02 }))),
        ("leak-starts", Simulation { starts: 10.0, ..ideal(Ideal::with(Leak::Starts)) }),
        ("leak-losses-1-copy", outages(1, Loss::Independent(0.01), false)),
        ("leak-losses-2-copies", outages(2, Loss::Independent(0.01), false)),
        ("leak-losses-2-copies-bursts", outages(2, Loss::Bursts { share: 0.01, run: 3.0 }, false)),
        ("leak-losses-2-copies-corrupt", outages(2, Loss::Independent(0.01), true)),
    ]
}

fn judge(name: &str, case: &Simulation) {
    let trained: Vec<_> =
        (1..=2).map(|seed| Simulation { seed: case.seed + 1000 * seed, ..case.clone() }.run()).collect();
    let examples: Vec<Example<'_>> = trained.iter().map(|(record, truth)| Example { record, truth }).collect();
    let start = Instant::now();
    let (record, truth) = case.run();
    println!("\n{name}: simulated in {:.2} s", start.elapsed().as_secs_f64());
    let times: Vec<f64> = TIMES.into_iter().filter(|t| *t <= case.seconds).collect();
    print!("{:<38}", "top-1 in %, after seconds");
    times.iter().for_each(|t| print!("{t:>8}"));
    println!("{:>8}{:>8}{:>9}", "tpr1e-2", "raw", "seconds");
    let mut attackers = passive(&examples, |_| true);
    attackers.retain(|attacker| attacker.applies(&record));
    let mut all = Vec::new();
    for attacker in &attackers {
        let start = Instant::now();
        let scores: Vec<_> = times.iter().map(|t| attacker.scores(&record.first((t * 1e9) as u64))).collect();
        let elapsed = start.elapsed().as_secs_f64();
        let results: Vec<_> = scores.iter().map(|scores| figures(scores, &truth, 1)).collect();
        all.extend(scores.last().cloned());
        print!("{:<38}", attacker.name());
        results.iter().for_each(|r| print!("{:>8.1}", r.top1 * 100.0));
        if let Some(last) = results.last() {
            println!("{:>8.1}{:>8.1}{elapsed:>9.2}", last.tpr_1e2 * 100.0, last.tpr_1e2_raw * 100.0);
        }
    }
    let verdict = verdict(&all, &truth, 1);
    let best = attackers[verdict.attacker].name();
    println!("p over all attackers {:.3} ({best}, {:.1} deviations)", verdict.p, verdict.deviations);
    println!(
        "best top-1 {:.3}, p {:.3}, 95 % of chance {:.3}",
        verdict.best_top1, verdict.p_best_top1, verdict.best_top1_by_chance
    );
    println!("p of distance correlation {:.3}", distance_correlation_p(&record, &truth, 1));
}
