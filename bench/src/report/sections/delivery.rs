//! Delivery, loss, latency and jitter of every stream, in one table.

use maud::html;

use super::Section;
use crate::format::{count, rounded};
use crate::report::format::{ms, or_dashes, percent};
use crate::report::sources::Run;
use crate::report::streams::{self, RunStream, calibrations};
use crate::report::table::{Column, Row, group, number, table, word};
use crate::results::{Calibration, Spread, Stream};

/// Columns that only some runs need.
struct Optional {
    refused: bool,
    round_trip: bool,
    mos: bool,
}

impl Optional {
    fn of(runs: &[Run]) -> Optional {
        let any = |has: fn(&Stream) -> bool| runs.iter().flat_map(|run| &run.results.streams).any(has);
        Optional {
            refused: any(|stream| stream.refused > 0),
            round_trip: any(|stream| stream.round_trip.is_some()),
            mos: any(|stream| stream.mos.is_some()),
        }
    }
}

/// The columns, with the indices of the number of lost datagrams and of the median latency.
struct Layout {
    columns: Vec<Column>,
    lost_at: usize,
    latency_at: usize,
}

impl Layout {
    fn new(optional: &Optional) -> Layout {
        let mut columns = vec![word("run"), word("stream"), number("flows"), number("sent/s")];
        if optional.refused {
            columns.push(number("refused"));
        }
        columns.push(number("delivered"));
        let lost_at = columns.len();
        columns.extend(group("lost", ["count", "%"]));
        columns.extend(["reordered", "duplicated"].map(number));

        let latency_at = columns.len();
        columns.extend(group("latency, ms", ["p50", "p99", "p99.9", "max"]));
        columns.extend(group("jitter, ms", ["p50", "p99"]));
        if optional.round_trip {
            columns.extend(group("round trip, ms", ["p50", "p99"]));
        }
        if optional.mos {
            columns.extend(group("MOS", ["mean", "worst"]));
        }
        Layout { columns, lost_at, latency_at }
    }
}

pub(super) fn section(runs: &[Run]) -> Option<Section> {
    if runs.is_empty() {
        return None;
    }
    let optional = Optional::of(runs);
    let layout = Layout::new(&optional);
    let mut rows: Vec<Row> = streams::all(runs).map(|stream| stream_row(&stream, &optional, layout.lost_at)).collect();
    let calibrations = calibrations(runs);
    for (at, (calibration, labels)) in calibrations.iter().enumerate() {
        let of = if calibrations.len() == 1 { String::new() } else { format!(" of {}", labels.join(", ")) };
        let row = calibration_row(calibration, &of, &layout);
        rows.push(Row { is_first: at == 0, ..row });
    }

    let interrupted = runs.iter().filter(|run| run.results.interrupted);
    let body = html! {
        p.quiet {
            "Latency is one way, from the time at which a datagram was due to its arrival. Jitter follows RFC 3550. "
            @if calibrations.is_empty() {
                "These runs have no figures of the generator alone."
            } @else {
                "“Generator alone” is the same load sent straight to its sink: the part of the figures that is not due to "
                "the chain."
            }
        }
        (table("Delivery and latency by run and stream", &layout.columns, &rows))
        @for run in interrupted {
            p { (run.label) ": interrupted after " (format!("{:.1}", run.results.seconds)) " s." }
        }
    };
    Some(Section { id: "delivery", title: "Delivery and latency", body })
}

fn stream_row(RunStream { run, at, stream, .. }: &RunStream<'_>, optional: &Optional, lost_at: usize) -> Row {
    let Stream { flows, sent, delivered, lost, reordered, duplicated, latency, jitter, round_trip, mos, .. } = stream;
    let Spread { p50, p99, p999, max, .. } = latency;
    let is_first = *at == 0;

    let label = if is_first { run.label.clone() } else { String::new() };
    let per_s = *sent as f64 / run.results.seconds.max(1e-9);
    let mut cells = vec![label, streams::name(stream), count(*flows as u64), rounded(per_s)];
    if optional.refused {
        cells.push(count(stream.refused));
    }
    cells.extend([count(*delivered), count(*lost), percent(*lost, *sent), count(*reordered), count(*duplicated)]);
    let times = [*p50, *p99, *p999, *max, jitter.p50, jitter.p99].map(ms);
    cells.extend(or_dashes((*delivered > 0).then_some(times)));
    if optional.round_trip {
        cells.extend(or_dashes(round_trip.as_ref().map(|trip| [ms(trip.p50), ms(trip.p99)])));
    }
    if optional.mos {
        cells.extend(or_dashes(mos.map(|mos| [mos.mean, mos.worst].map(|mos| format!("{mos:.2}")))));
    }
    Row { cells, is_first, bad: (*lost > 0).then_some(lost_at), ..Row::default() }
}

fn calibration_row(calibration: &Calibration, of: &str, layout: &Layout) -> Row {
    let Calibration { ceiling_per_s, p50_us, p99_us, p999_us, max_us } = calibration;
    let rate = format!("up to {}", rounded(*ceiling_per_s));
    let mut cells = vec![format!("generator alone{of}"), String::new(), String::new(), rate];
    cells.resize(layout.latency_at, String::new());
    cells.extend([*p50_us, *p99_us, *p999_us, *max_us].map(ms));
    cells.resize(layout.columns.len(), String::new());
    Row { cells, is_quiet: true, ..Row::default() }
}
