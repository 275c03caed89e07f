//! Prints which share of users is found by what their calls to the Internet lack, because access links lose cells.
//!
//! Calls of 50 datagrams a second in rounds of 10 ms, for each loss and redundancy that paced classes offer: constant
//! ones, or with `voice` as the last argument those of people who speak in turn.
//! A share is the mean of three seeds, of the attacker made for losses that is best in this cell of the table.
//!
//! ```text
//! cargo run --release -p attack --example losses -- [USERS] [SECONDS] [voice]
//! ```

use attack::{
    Example,
    attackers::passive,
    figures::top1,
    simulate::{Answers, Chain, Ideal, Leak, Loss, Profile, Simulation},
};

const SEEDS: u64 = 3;
/// Seeds of the records that attackers are trained with.
const TRAINING: [u64; 2] = [1001, 1002];

const LOSSES: [(&str, Loss); 6] = [
    ("0.1 % independent", Loss::Independent(0.001)),
    ("1 % independent", Loss::Independent(0.01)),
    ("3 % independent", Loss::Independent(0.03)),
    ("0.2 % in bursts of 3", Loss::Bursts { share: 0.002, run: 3.0 }),
    ("1 % in bursts of 3", Loss::Bursts { share: 0.01, run: 3.0 }),
    ("1 % in bursts of 8", Loss::Bursts { share: 0.01, run: 8.0 }),
];

/// Copies, repeat, corrupt exit.
const COLUMNS: [(&str, u32, bool, bool); 5] = [
    ("1 copy", 1, false, false),
    ("2 copies", 2, false, false),
    ("3 copies", 3, false, false),
    ("2 copies, repeat", 2, true, false),
    ("2 copies, repeat, corrupt exit", 2, true, true),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: f64| arguments.get(i).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (users, seconds) = (number(0, 100.0) as usize, number(1, 60.0));
    let is_voice = arguments.last().is_some_and(|last| last == "voice");
    let (profile, answers) =
        if is_voice { (Profile::Voice, Answers::Turns) } else { (Profile::Constant, Answers::Independent) };

    let names: Vec<&str> = COLUMNS.iter().map(|column| column.0).collect();
    println!("| loss on access links | {} |", names.join(" | "));
    println!("|{}", " --- |".repeat(1 + COLUMNS.len()));
    for (name, loss) in LOSSES {
        print!("| {name} |");
        for (_, copies, repeat, corrupt_exit) in COLUMNS {
            let ideal = Ideal { copies, repeat, corrupt_exit, ..Ideal::with(Leak::Losses) };
            let case =
                Simulation { profile, answers, chain: Chain::Ideal(ideal), loss, ..Simulation::new(users, seconds, 1) };
            print!(" {:.0} % |", found(&case) * 100.0);
        }
        println!();
    }
}

/// Mean top-1 of the best attacker.
fn found(case: &Simulation) -> f64 {
    let run = |seed| Simulation { seed, ..case.clone() }.run();
    let trained = TRAINING.map(run);
    let examples: Vec<Example<'_>> = trained.iter().map(|(record, truth)| Example { record, truth }).collect();
    let attackers = passive(&examples, |name| name.starts_with("outage") || name.starts_with("missing-slots"));
    let records: Vec<_> = (1..=SEEDS).map(run).collect();
    let means = attackers.iter().map(|attacker| {
        let applying = records.iter().filter(|(record, _)| attacker.applies(record));
        applying.map(|(record, truth)| top1(&attacker.scores(record), truth)).sum::<f64>() / SEEDS as f64
    });
    means.fold(0.0, f64::max)
}
