//! A record as one CSV file.

use std::io::{BufRead, Write};

use super::ExportError;
use crate::{
    paced::Contents,
    record::{Passage, Place, Record, Seen, Trace},
};

// A damaged file must not make the reader, or the attackers after it, allocate without bound.
/// The most users, flows or links of a record.
const MOST: usize = 100_000;
/// The longest record, in nanoseconds.
const LONGEST: u64 = 24 * 3_600 * 1_000_000_000;

// What a line should have been.
const LINE: &str =
    "PLACE,DIRECTION,NS,BYTES, e.g. access-3,forward,12000000,1184, with a place that the lines before have";
const LENGTH: &str = "one length of at most a day, 86400000000000 ns";
const COUNT: &str = "at most 100000 places";
const TIME: &str = "a time before the end of the record, whose length is in a line before";
const ORDER: &str = "a time that is not before the one of the last line of this place and direction";
const TERMS: &str = "terms of a paced class as in docs/SPEC.md 9.16: a period of 5 to 100 ms, batches of 128 to 8192 \
     rounds, up to 32 cells of a channel, 4 copies, a gap of 4, and 2 to 8 hops";
const PASSAGE: &str = "a datagram that entered, and left after it entered";

/// Writes a record as lines of `place,direction,ns,bytes`, below a line with these words.
///
/// | place | direction | ns | bytes |
/// | --- | --- | --- | --- |
/// | `access-N`, `inner-N`, `flow-N`, from 0 | `forward`, `backward` | when, since the record began | UDP payload |
/// | `probe` | `entered`, `left` | when | number of the adversary's datagram |
/// | `unopened-N`: flow N | `forward` | time of a round that a corrupt exit could not open | 0 |
/// | `content-N`: access link N | `forward`, `backward` | as its datagrams | number that equal ones share |
/// | `record` | `length` | duration of the record | 0 |
/// | `record` | `cell` | 0 | length of the shortest cells |
/// | `record` | `users`, `inner`, `flows`, `unopened`, `contents` | 0 | how many there are |
/// | `paced` | `period`, `first_at` | [`PacedShape`](crate::PacedShape), if the record has one | 0 |
/// | `paced` | `rounds`, `first` | rounds of a batch, number of the first round | 0 |
/// | `paced` | `cells`, `copies`, `gap`, `repeat`, `hops` | 0 | number |
///
/// Packets are in the order of the wire in each place and direction. Times are before the end of the record. What a
/// corrupt exit sees of meetings is a file of its own ([`super::write_meetings`]).
pub fn write_csv(record: &Record, out: &mut impl Write) -> Result<(), ExportError> {
    write_about(record, out)?;
    for (kind, places) in [("access", &record.access), ("inner", &record.inner), ("flow", &record.flows)] {
        for (number, place) in places.iter().enumerate() {
            for (direction, trace) in [("forward", &place.forward), ("backward", &place.backward)] {
                for seen in trace {
                    writeln!(out, "{kind}-{number},{direction},{},{}", seen.at, seen.bytes)?;
                }
            }
        }
    }
    Ok(())
}

/// All but the packets.
pub(super) fn write_about(record: &Record, out: &mut impl Write) -> Result<(), ExportError> {
    writeln!(out, "place,direction,ns,bytes")?;
    writeln!(out, "record,length,{},0", record.length)?;
    writeln!(out, "record,cell,0,{}", record.cell_bytes)?;
    writeln!(out, "record,users,0,{}", record.access.len())?;
    writeln!(out, "record,inner,0,{}", record.inner.len())?;
    writeln!(out, "record,flows,0,{}", record.flows.len())?;
    writeln!(out, "record,unopened,0,{}", record.unopened.len())?;
    writeln!(out, "record,contents,0,{}", record.contents.len())?;
    if let Some(shape) = &record.paced {
        let times =
            [("period", shape.period), ("first_at", shape.first_at), ("rounds", shape.rounds), ("first", shape.first)];
        for (name, value) in times {
            writeln!(out, "paced,{name},{value},0")?;
        }
        let numbers = [
            ("cells", shape.cells),
            ("copies", shape.copies),
            ("gap", shape.gap),
            ("repeat", shape.repeat.into()),
            ("hops", shape.hops),
        ];
        for (name, value) in numbers {
            writeln!(out, "paced,{name},0,{value}")?;
        }
    }
    for (number, passage) in record.probe.iter().enumerate() {
        writeln!(out, "probe,entered,{},{number}", passage.entered)?;
        writeln!(out, "probe,left,{},{number}", passage.left)?;
    }
    for (flow, times) in record.unopened.iter().enumerate() {
        for at in times {
            writeln!(out, "unopened-{flow},forward,{at},0")?;
        }
    }
    for (user, (contents, place)) in record.contents.iter().zip(&record.access).enumerate() {
        for (direction, forward) in [("forward", true), ("backward", false)] {
            for (seen, number) in place.trace(forward).iter().zip(contents.of(forward)) {
                writeln!(out, "content-{user},{direction},{},{number}", seen.at)?;
            }
        }
    }
    Ok(())
}

/// Reads what [`write_csv`] writes.
///
/// # Errors
/// The input cannot be read, or a line is not valid: the record is longer than a day, has more than 100,000 places of a
/// kind, or a time is not before the end of the record or not in order.
pub fn read_csv(input: impl BufRead) -> Result<Record, ExportError> {
    let mut record = Record::default();
    for (line, text) in input.lines().enumerate().skip(1) {
        let text = text?;
        if let Err(expected) = read_line(&text, &mut record) {
            return Err(ExportError::Line { line: line + 1, text, expected });
        }
    }
    Ok(record)
}

fn read_line(line: &str, record: &mut Record) -> Result<(), &'static str> {
    let fields: Vec<&str> = line.split(',').collect();
    let [place, direction, at, bytes] = fields[..] else { return Err(LINE) };
    let (Ok(at), Ok(bytes)) = (at.parse(), bytes.parse()) else { return Err(LINE) };
    match place {
        "record" => read_about(direction, at, bytes, record),
        "paced" => read_terms(direction, at, bytes, record),
        _ if at >= record.length => Err(TIME),
        "probe" => read_probe(direction, at, bytes, record),
        _ => {
            let (kind, number) = place.split_once('-').ok_or(LINE)?;
            let number: usize = number.parse().map_err(|_| LINE)?;
            let places = match kind {
                "access" => &mut record.access,
                "inner" => &mut record.inner,
                "flow" => &mut record.flows,
                "unopened" => return push(record.unopened.get_mut(number).ok_or(LINE)?, at, |at| *at),
                "content" => {
                    let contents = record.contents.get_mut(number).ok_or(LINE)?;
                    match direction {
                        "forward" => contents.forward.push(bytes),
                        "backward" => contents.backward.push(bytes),
                        _ => return Err(LINE),
                    }
                    return Ok(());
                }
                _ => return Err(LINE),
            };
            let trace = trace(places.get_mut(number).ok_or(LINE)?, direction).ok_or(LINE)?;
            push(trace, Seen { at, bytes }, |seen| seen.at)
        }
    }
}

fn read_about(name: &str, at: u64, bytes: u32, record: &mut Record) -> Result<(), &'static str> {
    let count = bytes as usize;
    match name {
        "length" if at > LONGEST || record.length > 0 => return Err(LENGTH),
        "length" => record.length = at,
        "cell" => record.cell_bytes = bytes,
        _ if count > MOST => return Err(COUNT),
        "users" => record.access.resize(count, Place::default()),
        "inner" => record.inner.resize(count, Place::default()),
        "flows" => record.flows.resize(count, Place::default()),
        "unopened" => record.unopened.resize(count, Vec::new()),
        "contents" => record.contents.resize(count, Contents::default()),
        _ => return Err(LINE),
    }
    Ok(())
}

fn read_terms(name: &str, value: u64, number: u32, record: &mut Record) -> Result<(), &'static str> {
    let shape = record.paced.get_or_insert_default();
    match name {
        "period" if (5_000_000..=100_000_000).contains(&value) => shape.period = value,
        "first_at" if value < 100_000_000 => shape.first_at = value,
        "rounds" if (128..=8192).contains(&value) => shape.rounds = value,
        "first" if value < 1 << 40 => shape.first = value,
        "cells" if (1..=32).contains(&number) => shape.cells = number,
        "copies" if (1..=4).contains(&number) => shape.copies = number,
        "gap" if (1..=4).contains(&number) => shape.gap = number,
        "repeat" if number <= 1 => shape.repeat = number == 1,
        "hops" if (2..=8).contains(&number) => shape.hops = number,
        _ => return Err(TERMS),
    }
    Ok(())
}

fn read_probe(direction: &str, at: u64, number: u32, record: &mut Record) -> Result<(), &'static str> {
    match direction {
        "entered" => record.probe.push(Passage { entered: at, left: at }),
        "left" => {
            let passage = record.probe.get_mut(number as usize).ok_or(PASSAGE)?;
            if at < passage.entered {
                return Err(PASSAGE);
            }
            passage.left = at;
        }
        _ => return Err(LINE),
    }
    Ok(())
}

fn push<T>(trace: &mut Vec<T>, item: T, time: impl Fn(&T) -> u64) -> Result<(), &'static str> {
    if trace.last().is_some_and(|last| time(last) > time(&item)) {
        return Err(ORDER);
    }
    trace.push(item);
    Ok(())
}

fn trace<'a>(place: &'a mut Place, direction: &str) -> Option<&'a mut Trace> {
    match direction {
        "forward" => Some(&mut place.forward),
        "backward" => Some(&mut place.backward),
        _ => None,
    }
}
