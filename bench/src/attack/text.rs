//! Results as tables.

use eddy::tables::{align_right, table};

use super::judge::{Finding, Summary};
use super::result::RunInfo;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The numbers of users of all records: `30 or 100 users`.
pub(super) fn users(all: &[Finding]) -> String {
    let users: std::collections::BTreeSet<usize> = all.iter().map(|one| one.users).collect();
    format!("{} users", users.iter().map(usize::to_string).collect::<Vec<_>>().join(" or "))
}

/// The best attacker of each case.
pub(super) fn summaries(all: &[Summary]) -> String {
    let mut rows = table(&["case", "best attacker", "50 % after", "length", "found", "seeds", "chance", "p"]);
    for one in all {
        let mut names = one.attackers.clone();
        names.dedup();
        let [least, most] = one.top1_range.map(|top1| format!("{:.0}", 100.0 * top1));
        let half = one.seconds_to_half.map_or("-".to_owned(), |seconds| format!("{seconds:.1} s"));
        let p = one.verdicts.iter().map(|verdict| verdict.p);
        let p = format!("{:.3} to {:.3}", p.clone().fold(1.0, f64::min), p.fold(0.0, f64::max));
        let seeds = format!("{least} to {most} %");
        let length = one.top1_after.last().map_or("-".to_owned(), |(seconds, _)| format!("{seconds} s"));
        let (found, chance) = (percent(one.top1), percent(one.chance));
        rows.add_row([one.case.clone(), names.join(", "), half, length, found, seeds, chance, p]);
    }
    align_right(&mut rows, 2..8);
    format!(
        "{rows}\nShare of users whose flow was found, by the attacker that was best on the other seeds.\np: \
         whether flows depend on users at all, by a permutation test over all attackers\n(least and greatest of the \
         seeds)"
    )
}

/// What each case costs its users: means of the seeds.
pub(super) fn costs(all: &[RunInfo]) -> String {
    let mut rows = table(&["case", "wait", "delay p50", "access / flow"]);
    for of_case in all.chunk_by(|one, other| one.case == other.case) {
        let mean = |of: fn(&RunInfo) -> f64| of_case.iter().map(of).sum::<f64>() / of_case.len() as f64;
        let wait = of_case[0].wait_ms.map(|_| format!("{:.1} ms", mean(|run| run.wait_ms.unwrap_or_default())));
        let access = mean(|run| run.costs.access_bytes_per_hour.iter().sum::<u64>() as f64);
        let flow = mean(|run| run.costs.flow_bytes_per_hour.iter().sum::<u64>() as f64);
        let delay = format!("{:.1} ms", mean(|run| run.costs.delay.p50) / 1e3);
        let times = if flow > 0.0 { format!("{:.1}", access / flow) } else { "-".into() };
        rows.add_row([of_case[0].case.clone(), wait.unwrap_or("-".into()), delay, times]);
    }
    align_right(&mut rows, 1..4);
    format!(
        "{rows}\nwait: of a datagram before it is on the access link; delay: from there to the\ndestination; access / \
         flow: bytes on the access link for each byte of the flow"
    )
}

/// Every attacker of every case, after each length of record: means of the seeds.
pub(super) fn findings(all: &[Finding]) -> String {
    let mut rows = table(&["case", "attacker", "s", "top-1", "MRR", "AUC", "TPR 1e-2", "TPR 1e-3", "bits left"]);
    let mut order: Vec<(&str, &str, f64)> = Vec::new();
    for one in all {
        let key = (one.case.as_str(), one.attacker.as_str(), one.seconds);
        if !order.contains(&key) {
            order.push(key);
        }
    }
    for (case, attacker, seconds) in order {
        let own = all.iter().filter(|one| one.case == case && one.attacker == attacker && one.seconds == seconds);
        let own: Vec<&Finding> = own.collect();
        let figures: Vec<_> = own.iter().map(|one| &one.figures).collect();
        let bits = own.iter().map(|one| one.entropy_bits).sum::<f64>() / own.len() as f64;
        let mean = |of: fn(&attack::figures::Figures) -> f64| {
            figures.iter().map(|figures| of(figures)).sum::<f64>() / figures.len() as f64
        };
        rows.add_row([
            case.to_owned(),
            attacker.to_owned(),
            seconds.to_string(),
            percent(mean(|figures| figures.top1)),
            format!("{:.3}", mean(|figures| figures.mrr)),
            format!("{:.3}", mean(|figures| figures.auc)),
            format!("{:.3}", mean(|figures| figures.tpr_1e2)),
            format!("{:.3}", mean(|figures| figures.tpr_1e3)),
            format!("{bits:.2}"),
        ]);
    }
    align_right(&mut rows, 2..9);
    rows.to_string()
}
