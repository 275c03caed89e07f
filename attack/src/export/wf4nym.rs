//! A record in the text format of github.com/spring-epfl/WF4NYM-artifacts.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use super::{ExportError, csv::write_about};
use crate::record::{Place, Record, Seen, Truth};
#[cfg(test)]
pub(super) use read::read_wf4nym;

/// Where that repository's scripts expect the users' side and the destinations' side.
const ACCESS: &str = "proxy";
const FLOWS: &str = "network_requester";

/// Writes one folder per vantage point: `proxy` holds a file for each access link, `network_requester` one for each
/// flow, `inner-N` the inner link N, from 0. A file has one line:
///
/// ```text
/// <name> <number of the capture> <bytes in all> <t>:<size> <t>:<size> ...
/// ```
///
/// Times are milliseconds since the record began, with six decimals, in order. Sizes are bytes of UDP payload: negative
/// from the user (forward), positive to the user (backward). The number of the capture is 0.
///
/// The scripts of that repository pair files of one name. With `truth`, a flow has the name of its user, `user-00007`;
/// that is for training. Without, flows are `flow-00012` in the order of the record; that is what an attacker gets.
///
/// `about.csv` next to the folders holds what this format has no place for, in the lines of [`super::write_csv`].
/// What a corrupt exit sees of meetings is left out.
pub fn write_wf4nym(record: &Record, truth: Option<&Truth>, folder: &Path) -> Result<(), ExportError> {
    let mut record = record.clone();
    let mut flow_name = "flow";
    if let Some(truth) = truth {
        flow_name = "user";
        record.flows = truth.0.iter().map(|&flow| record.flows[flow].clone()).collect();
        if !record.unopened.is_empty() {
            record.unopened = truth.0.iter().map(|&flow| record.unopened[flow].clone()).collect();
        }
    }
    write_places(&folder.join(ACCESS), "user", &record.access)?;
    write_places(&folder.join(FLOWS), flow_name, &record.flows)?;
    for (number, place) in record.inner.iter().enumerate() {
        write_places(&folder.join(format!("inner-{number}")), "link", std::slice::from_ref(place))?;
    }
    let about = folder.join("about.csv");
    let mut out = BufWriter::new(File::create(&about).map_err(at(&about))?);
    write_about(&record, &mut out)?;
    out.flush().map_err(at(&about))
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ExportError {
    |source| ExportError::File { path: path.to_owned(), source }
}

fn write_places(folder: &Path, kind: &str, places: &[Place]) -> Result<(), ExportError> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    for (number, place) in places.iter().enumerate() {
        let name = format!("{kind}-{number:05}");
        let path = folder.join(&name);
        fs::write(&path, line(&name, place)).map_err(at(&path))?;
    }
    Ok(())
}

fn line(name: &str, place: &Place) -> String {
    let mut packets: Vec<(Seen, &str)> = Vec::with_capacity(place.forward.len() + place.backward.len());
    packets.extend(place.forward.iter().map(|seen| (*seen, "-")));
    packets.extend(place.backward.iter().map(|seen| (*seen, "")));
    packets.sort_by_key(|packet| packet.0.at);
    let bytes: u64 = packets.iter().map(|packet| u64::from(packet.0.bytes)).sum();
    let mut line = format!("{name} 0 {bytes}");
    for (Seen { at, bytes }, sign) in packets {
        line += &format!(" {}.{:06}:{sign}{bytes}", at / 1_000_000, at % 1_000_000);
    }
    line + "\n"
}

/// The way back, for tests.
#[cfg(test)]
mod read {
    use std::{io::BufReader, path::PathBuf};

    use super::super::csv::read_csv;
    use super::*;

    /// Reads what [`write_wf4nym`] writes. Users and flows come in the order of their files' names.
    pub fn read_wf4nym(folder: &Path) -> Result<Record, ExportError> {
        let about = folder.join("about.csv");
        let mut record = read_csv(BufReader::new(File::open(&about).map_err(at(&about))?))?;
        record.access = read_places(&folder.join(ACCESS))?;
        record.flows = read_places(&folder.join(FLOWS))?;
        for (number, place) in record.inner.iter_mut().enumerate() {
            *place = read_places(&folder.join(format!("inner-{number}")))?.pop().unwrap_or_default();
        }
        Ok(record)
    }

    fn read_places(folder: &Path) -> Result<Vec<Place>, ExportError> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            paths.push(entry.map_err(at(folder))?.path());
        }
        paths.sort();
        paths.iter().map(|path| read_place(&fs::read_to_string(path).map_err(at(path))?)).collect()
    }

    fn read_place(text: &str) -> Result<Place, ExportError> {
        let mut place = Place::default();
        for packet in text.split_whitespace().skip(3) {
            let parsed =
                packet.split_once(':').and_then(|(at, size)| Some((nanoseconds(at)?, size.parse::<i64>().ok()?)));
            let Some((at, size)) = parsed.filter(|(_, size)| u32::try_from(size.unsigned_abs()).is_ok()) else {
                let expected = "<milliseconds>:<bytes>, e.g. 20.417000:-1184";
                return Err(ExportError::Line { line: 1, text: packet.to_owned(), expected });
            };
            let seen = Seen { at, bytes: size.unsigned_abs() as u32 };
            if size < 0 { place.forward.push(seen) } else { place.backward.push(seen) }
        }
        Ok(place)
    }

    /// Decimal milliseconds, exactly.
    fn nanoseconds(ms: &str) -> Option<u64> {
        let (whole, fraction) = ms.split_once('.').unwrap_or((ms, ""));
        let fraction = fraction.get(..6).unwrap_or(fraction);
        let whole: u64 = whole.parse().ok()?;
        let fraction: u64 = format!("{fraction:0<6}").parse().ok()?;
        whole.checked_mul(1_000_000)?.checked_add(fraction)
    }
}
