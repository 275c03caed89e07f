//! What was measured, and how it is told.

use std::io::Write;

use ::eddy::tables::{align_right, table};
use serde::Serialize;

use super::contest::{Contest, Contestant, PAYLOAD};
use crate::hop::One;
use crate::hop::rows::{Sample, median, round};
use crate::machine::Machine;

/// Versions of the others, as they were built.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// What a row compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    CryptoOnly,
    WithIo,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::CryptoOnly => "crypto only",
            Kind::WithIo => "with I/O",
        }
    }
}

/// One row: processor time on one core.
#[derive(Debug, Serialize)]
struct Row {
    kind: Kind,
    name: &'static str,
    variant: String,
    version: String,
    what: &'static str,
    /// For a packet: median of the rounds.
    packet_ns: f64,
    /// Least and greatest of the rounds.
    packet_ns_range: [f64; 2],
    /// To the first row of eddy's of the same kind.
    ratio: f64,
}

/// All of it.
#[derive(Debug, Serialize)]
pub struct Rows {
    rows: Vec<Row>,
    rounds: usize,
    /// Bytes that the others' packets carry, and eddy's in its first row.
    payload: usize,
    /// eddy's AEAD engine.
    engine: String,
    machine: Machine,
}

impl Rows {
    /// What a contest and the rounds of a mix came to.
    pub fn of(contest: Contest, one: One) -> Rows {
        let One { samples, engine, machine } = one;
        let crypto = contest.contestants.into_iter().map(|contestant| {
            let Contestant { name, variant, what, ns, .. } = contestant;
            let own = name == "eddy";
            let version = if own { env!("CARGO_PKG_VERSION").to_owned() } else { version(name) };
            let variant = if own { format!("{variant}, {engine}") } else { variant.to_owned() };
            row(Kind::CryptoOnly, (name, variant, version, what), ns)
        });
        let mut rows: Vec<Row> = crypto.collect();
        let of = |ns: fn(&Sample) -> f64| samples.iter().map(ns).collect::<Vec<f64>>();
        let mix = ("eddy", format!("a mix, class L, {engine}"), env!("CARGO_PKG_VERSION").to_owned());
        let none = |variant: &str| ("no cryptography", variant.to_owned(), String::new());
        let io = [
            (mix, "receive, open, pool, shuffle, seal, send", of(|sample| sample.mix.cell_ns())),
            (none("GRO, GSO"), "receive bursts, shuffle, send bursts", of(|sample| sample.offload.packet_ns())),
            (none("mmsg"), "recvmmsg, sendmmsg of 64 lone packets", of(|sample| sample.mmsg.packet_ns())),
            (none("single"), "recvfrom, sendto", of(|sample| sample.single.packet_ns())),
        ];
        rows.extend(
            io.into_iter().map(|((name, variant, ver), what, ns)| row(Kind::WithIo, (name, variant, ver, what), ns)),
        );
        for kind in [Kind::CryptoOnly, Kind::WithIo] {
            let mut own = rows.iter_mut().filter(|row| row.kind == kind).peekable();
            let eddy = own.peek().map_or(f64::NAN, |row| row.packet_ns);
            own.for_each(|row| row.ratio = round(row.packet_ns / eddy, 2));
        }
        Rows { rows, rounds: samples.len(), payload: PAYLOAD, engine, machine }
    }

    /// Prints it: one JSON object on one line, or a table.
    ///
    /// # Errors
    /// Standard output is gone.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = if json { serde_json::to_string(self)? } else { self.people() };
        writeln!(std::io::stdout(), "{text}")?;
        Ok(())
    }

    fn people(&self) -> String {
        let mut all = table(&["", "", "version", "what", "", "ns a packet", "least", "most", "ratio"]);
        for row in &self.rows {
            all.add_row([
                row.name.to_owned(),
                row.variant.clone(),
                row.version.clone(),
                row.what.to_owned(),
                row.kind.name().to_owned(),
                format!("{:.0}", row.packet_ns),
                format!("{:.0}", row.packet_ns_range[0]),
                format!("{:.0}", row.packet_ns_range[1]),
                format!("{:.2}", row.ratio),
            ]);
        }
        align_right(&mut all, 5..9);
        let Rows { rounds, payload, machine, .. } = self;
        format!(
            "{all}\nProcessor time on one core, medians of {rounds} alternating rounds. Ratio: to eddy's first row of the \
             same kind. Others carry {payload} bytes. {}, Linux {}; load average {}.",
            machine.cpu, machine.kernel, machine.load
        )
    }
}

fn row(kind: Kind, (name, variant, version, what): (&'static str, String, String, &'static str), ns: Vec<f64>) -> Row {
    let least = ns.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ns.iter().copied().fold(0.0, f64::max);
    Row {
        kind,
        name,
        variant,
        version,
        what,
        packet_ns: round(median(ns.into_iter()), 1),
        packet_ns_range: [round(least, 1), round(most, 1)],
        ratio: f64::NAN,
    }
}

/// The version of a package in the lock file.
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
