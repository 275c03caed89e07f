//! The figures of a comparison, and how they are printed.

use std::io::Write;

use ::eddy::tables::{align_right, table};
use serde::Serialize;

use super::candidate::{Candidate, PAYLOAD};
use crate::args::OutputArgs;
use crate::hop::OneRow;
use crate::hop::result::Sample;
use crate::machine::Machine;
use crate::stats::{median, range, round};

/// Has the versions of the libraries.
const LOCK: &str = include_str!("../../../Cargo.lock");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Scope {
    CryptoOnly,
    WithIo,
}

impl Scope {
    const fn name(self) -> &'static str {
        match self {
            Scope::CryptoOnly => "crypto only",
            Scope::WithIo => "with I/O",
        }
    }
}

/// Processor time on one core.
#[derive(Debug, Serialize)]
struct Row {
    scope: Scope,
    name: &'static str,
    variant: String,
    version: String,
    work: &'static str,
    /// Median of the rounds.
    packet_ns: f64,
    /// Least and greatest of the rounds.
    packet_ns_range: [f64; 2],
    /// Relative to eddy's first row of the same scope.
    ratio: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct PeersResult {
    rows: Vec<Row>,
    rounds: usize,
    /// Bytes of payload, except in eddy's second row.
    payload: usize,
    /// AEAD engine of eddy.
    engine: String,
    machine: Machine,
}

impl PeersResult {
    /// From the rounds of the candidates and of a mix.
    pub(super) fn of(candidates: Vec<Candidate>, one: OneRow) -> PeersResult {
        let OneRow { samples, engine, machine } = one;
        let crypto = candidates.into_iter().map(|candidate| {
            let Candidate { name, variant, work, ns, .. } = candidate;
            let own = name == "eddy";
            let version = if own { env!("CARGO_PKG_VERSION").to_owned() } else { version(name) };
            let variant = if own { format!("{variant}, {engine}") } else { variant.to_owned() };
            row(Scope::CryptoOnly, (name, variant, version, work), ns)
        });
        let mut rows: Vec<Row> = crypto.collect();
        let of = |ns: fn(&Sample) -> f64| samples.iter().map(ns).collect::<Vec<f64>>();
        let mix = ("eddy", format!("a mix, class L, {engine}"), env!("CARGO_PKG_VERSION").to_owned());
        let none = |variant: &str| ("no cryptography", variant.to_owned(), String::new());
        let io = [
            (mix, "receive, open, pool, shuffle, seal, send", of(|sample| sample.mix.cell_ns())),
            (none("GRO, GSO"), "receive with GRO, shuffle, send with GSO", of(|sample| sample.gso.packet_ns())),
            (none("mmsg"), "recvmmsg, sendmmsg of 64 packets", of(|sample| sample.mmsg.packet_ns())),
            (none("single"), "recvfrom, sendto", of(|sample| sample.single.packet_ns())),
        ];
        rows.extend(
            io.into_iter().map(|((name, variant, ver), work, ns)| row(Scope::WithIo, (name, variant, ver, work), ns)),
        );
        for scope in [Scope::CryptoOnly, Scope::WithIo] {
            let mut own = rows.iter_mut().filter(|row| row.scope == scope).peekable();
            let eddy = own.peek().map_or(f64::NAN, |row| row.packet_ns);
            own.for_each(|row| row.ratio = round(row.packet_ns / eddy, 2));
        }
        PeersResult { rows, rounds: samples.len(), payload: PAYLOAD, engine, machine }
    }

    /// Prints one JSON object on one line, or a table.
    ///
    /// # Errors
    /// Standard output is closed.
    pub(super) fn print(&self, output: OutputArgs) -> anyhow::Result<()> {
        let text = if output.json { serde_json::to_string(self)? } else { self.text(output.verbose) };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }

    fn text(&self, verbose: bool) -> String {
        let heads = ["scope", "name", "variant", "ns/packet", "ratio"];
        let mut all = table(&if verbose { [&heads[..], &["min", "max"]].concat() } else { heads.to_vec() });
        for row in &self.rows {
            let mut cells = vec![
                row.scope.name().to_owned(),
                format!("{} {}", row.name, row.version).trim_end().to_owned(),
                row.variant.clone(),
                format!("{:.0}", row.packet_ns),
                format!("{:.2}", row.ratio),
            ];
            if verbose {
                cells.extend(row.packet_ns_range.map(|ns| format!("{ns:.0}")));
            }
            all.add_row(cells);
        }
        align_right(&mut all, 3..if verbose { 7 } else { 5 });

        let PeersResult { rounds, payload, machine, .. } = self;
        let mut text = format!(
            "{all}\nProcessor time on one core, medians of {rounds} rounds. Payload: {payload} bytes.\n\
             Ratio: to the first row of the same scope.\nMachine: {machine}"
        );
        if verbose {
            for row in &self.rows {
                text += &format!("\n{} {}: {}", row.name, row.variant, row.work);
            }
        }
        text
    }
}

fn row(
    scope: Scope,
    (name, variant, version, work): (&'static str, String, String, &'static str),
    ns: Vec<f64>,
) -> Row {
    Row {
        scope,
        name,
        variant,
        version,
        work,
        packet_ns: round(median(ns.iter().copied()), 1),
        packet_ns_range: range(&ns).map(|ns| round(ns, 1)),
        ratio: f64::NAN,
    }
}

/// Version of a package in the lock file.
fn version(package: &str) -> String {
    let name = format!("name = \"{package}\"");
    let mut lines = LOCK.lines().skip_while(|line| *line != name);
    let version = lines.nth(1).and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    version.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_are_those_of_the_lock_file() {
        for package in ["boringtun", "snow", "sphinx-packet"] {
            let version = super::version(package);
            assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{package} {version}");
        }
        assert_eq!(super::version("no such package"), "unknown");
    }
}
