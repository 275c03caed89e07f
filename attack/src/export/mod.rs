//! Records as text, for attackers that others wrote, and back.
//!
//! Two formats carry the same: one CSV file ([`write_csv`]), and one folder per vantage point in the format of the
//! WF4NYM artifacts ([`write_wf4nym`]). What a corrupt exit sees
//! of meetings is one CSV file more ([`write_meetings`]). The truth is a file of its own ([`write_truth`]) and goes to
//! whoever judges.

mod csv;
mod meetings;
mod wf4nym;

use std::{
    io::{BufRead, Write},
    path::PathBuf,
};

use crate::record::Truth;

pub use csv::{read_csv, write_csv};
pub use meetings::{read_meetings, write_meetings};
#[cfg(test)]
use wf4nym::read_wf4nym;
pub use wf4nym::write_wf4nym;

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot read or write the record")]
    Io(#[from] std::io::Error),
    #[error("cannot read or write {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("invalid line {line} {text:?}: expected {expected}")]
    Line { line: usize, text: String, expected: &'static str },
}

/// Writes `user,flow`, one line for each user, below a line with these two words. Both count from 0.
pub fn write_truth(truth: &Truth, out: &mut impl Write) -> Result<(), ExportError> {
    writeln!(out, "user,flow")?;
    for (user, flow) in truth.0.iter().enumerate() {
        writeln!(out, "{user},{flow}")?;
    }
    Ok(())
}

/// Reads what [`write_truth`] writes.
pub fn read_truth(input: impl BufRead) -> Result<Truth, ExportError> {
    let mut flow_of = Vec::new();
    for (line, text) in input.lines().enumerate().skip(1) {
        let text = text?;
        let flow = text.split_once(',').filter(|(user, _)| user.parse() == Ok(flow_of.len())).map(|(_, flow)| flow);
        let expected = "USER,FLOW with users in order, e.g. 0,17";
        let flow = flow.and_then(|flow| flow.parse().ok());
        flow_of.push(flow.ok_or_else(|| ExportError::Line { line: line + 1, text, expected })?);
    }
    Ok(Truth(flow_of))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::Record,
        simulate::{Chain, Ideal, Leak, Loss, Simulation},
    };

    fn record() -> (Record, Truth) {
        let chain = Chain::Ideal(Ideal { corrupt_exit: true, timetable: true, ..Ideal::with(Leak::Losses) });
        let (mut record, truth) =
            Simulation { chain, loss: Loss::Independent(0.1), ..Simulation::new(12, 1.0, 9) }.run();
        // A user that was never seen keeps its place.
        record.access[3] = Default::default();
        record.contents[3] = Default::default();
        (record, truth)
    }

    #[test]
    fn csv_reads_back() {
        let (record, _) = record();
        let mut text = Vec::new();
        write_csv(&record, &mut text).unwrap();
        assert_eq!(read_csv(text.as_slice()).unwrap(), record);
    }

    #[test]
    fn wf4nym_reads_back() {
        let (record, truth) = record();
        let folder = tempfile::tempdir().unwrap();
        write_wf4nym(&record, None, folder.path()).unwrap();
        assert_eq!(read_wf4nym(folder.path()).unwrap(), record);
        // With the truth, a flow has its user's name and place.
        let named = tempfile::tempdir().unwrap();
        write_wf4nym(&record, Some(&truth), named.path()).unwrap();
        let read = read_wf4nym(named.path()).unwrap();
        assert_eq!(read.access, record.access);
        assert!(truth.0.iter().enumerate().all(|(user, &flow)| read.flows[user] == record.flows[flow]));
        assert!(truth.0.iter().enumerate().all(|(user, &flow)| read.unopened[user] == record.unopened[flow]));
    }

    #[test]
    fn wf4nym_lines_have_name_number_bytes_and_packets() {
        let (record, _) = record();
        let folder = tempfile::tempdir().unwrap();
        write_wf4nym(&record, None, folder.path()).unwrap();
        let line = std::fs::read_to_string(folder.path().join("proxy/user-00000")).unwrap();
        let fields: Vec<&str> = line.split_whitespace().collect();
        let bytes: i64 = fields[3..].iter().map(|f| f.split_once(':').unwrap().1.parse::<i64>().unwrap().abs()).sum();
        assert_eq!((fields[0], fields[1], fields[2]), ("user-00000", "0", bytes.to_string().as_str()));
        let first = record.access[0].forward[0];
        let ms = format!("{}.{:06}:-{}", first.at / 1_000_000, first.at % 1_000_000, first.bytes);
        assert!(fields.contains(&ms.as_str()), "{ms} in {line:.200}");
    }

    #[test]
    fn truth_reads_back() {
        let mut text = Vec::new();
        write_truth(&Truth(vec![2, 0, 1]), &mut text).unwrap();
        assert_eq!(read_truth(text.as_slice()).unwrap(), Truth(vec![2, 0, 1]));
    }

    #[test]
    fn damaged_lines_are_named() {
        let about = "place,direction,ns,bytes\nrecord,length,1000,0\nrecord,users,0,1\nrecord,unopened,0,1\n";
        for (lines, expected) in [
            ("access-x,forward,1,2", "PLACE,DIRECTION"),
            ("access-999999999999,forward,1,2", "PLACE,DIRECTION"),
            ("access-1,forward,1,2", "PLACE,DIRECTION"),
            ("access-0,sideways,1,2", "PLACE,DIRECTION"),
            ("access-0,forward,1", "PLACE,DIRECTION"),
            ("access-0,forward,1,2,3", "PLACE,DIRECTION"),
            ("record,flows,0,100001", "at most 100000 places"),
            ("record,length,2000,0", "one length"),
            ("access-0,forward,1000,2", "before the end of the record"),
            (
                "access-0,forward,7,2\naccess-0,backward,6,2\naccess-0,forward,6,2",
                "not before the one of the last line",
            ),
            ("content-0,forward,7,0", "PLACE,DIRECTION"),
            ("paced,period,0,0", "terms of a paced class"),
            ("paced,copies,0,17", "terms of a paced class"),
            ("paced,colour,0,1", "terms of a paced class"),
            ("unopened-0,forward,7,0\nunopened-0,forward,6,0", "not before the one of the last line"),
            ("probe,left,5,0", "left after it entered"),
            ("probe,entered,5,0\nprobe,left,4,0", "left after it entered"),
        ] {
            let text = format!("{about}{lines}\n");
            let error = read_csv(text.as_bytes()).unwrap_err().to_string();
            let last = lines.lines().last().unwrap();
            let start = format!("invalid line {} {last:?}: expected ", text.lines().count());
            assert!(error.starts_with(&start) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn records_longer_than_a_day_are_refused() {
        let of = |ns: &str| read_csv(format!("place,direction,ns,bytes\nrecord,length,{ns},0\n").as_bytes());
        assert!(of("86400000000000").is_ok());
        let error = of("86400000000001").unwrap_err().to_string();
        assert!(
            error.starts_with("invalid line 2 \"record,length,86400000000001,0\": expected one length of"),
            "{error}"
        );
    }
}
