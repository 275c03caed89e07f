//! Lengths of loss bursts.

use maud::html;

use super::Section;
use crate::format::{count, rounded};
use crate::report::sources::Run;
use crate::report::streams::{self, RunStream};
use crate::report::table::{Row, long, number, table, word};

/// Burst lengths that a row lists in full; of more, the first and the last.
const LISTED_MAX: usize = 14;

pub(super) fn section(runs: &[Run]) -> Option<Section> {
    let columns = [
        word("run"),
        word("stream"),
        number("lost"),
        number("bursts"),
        number("mean"),
        number("longest"),
        long("bursts by length"),
    ];
    let rows: Vec<Row> = streams::all(runs).filter_map(|stream| row(&stream)).collect();
    if rows.is_empty() {
        return None;
    }
    let body = html! {
        p.quiet { "Datagrams of a flow that were lost in a row. A codec conceals one lost datagram, but not ten." }
        (table("Losses in a row by run and stream", &columns, &rows))
    };
    Some(Section { id: "losses", title: "Losses in a row", body })
}

/// `None` if nothing was lost.
fn row(RunStream { run, stream, .. }: &RunStream<'_>) -> Option<Row> {
    let mut bursts = stream.loss_bursts.clone();
    bursts.retain(|(_, times)| *times > 0);
    bursts.sort_unstable();
    let (longest, _) = *bursts.last()?;
    let times = bursts.iter().map(|(_, times)| *times as f64).sum::<f64>();
    let lost = bursts.iter().map(|(len, times)| *len as f64 * *times as f64).sum::<f64>();

    let list: Vec<String> = bursts.iter().map(|(len, times)| format!("{} of {}", count(*times), count(*len))).collect();
    let list = match list.len() {
        0..=LISTED_MAX => list.join(", "),
        all => format!("{}, ... {}", list[..10].join(", "), list[all - 3..].join(", ")),
    };
    Some(Row::new(vec![
        run.label.clone(),
        streams::name(stream),
        rounded(lost),
        rounded(times),
        format!("{:.2}", lost / times),
        count(longest),
        list,
    ]))
}
