//! A record as one CSV file.

use std::io::{BufRead, Write};

use super::ExportError;
use crate::record::{Passage, Place, Record, Seen, Trace};

/// No record has more users, flows or links: a damaged file must not make the reader allocate at will.
const MOST: usize = 100_000;

/// Writes a record as lines of `place,direction,ns,bytes`, below a line with these words.
///
/// | place | direction | ns | bytes |
/// | --- | --- | --- | --- |
/// | `access-N`, `inner-N`, `flow-N`, from 0 | `forward`, `backward` | when, since the record began | UDP payload |
/// | `probe` | `entered`, `left` | when | number of the adversary's datagram |
/// | `unopened-N`: flow N | `forward` | time of a round that a corrupt exit could not open | 0 |
/// | `record` | `length` | duration of the record | 0 |
/// | `record` | `cell` | 0 | length of the shortest cells |
/// | `record` | `users`, `inner`, `flows`, `unopened` | 0 | how many there are |
///
/// Packets are in the order of the wire in each place and direction.
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
    for (number, passage) in record.probe.iter().enumerate() {
        writeln!(out, "probe,entered,{},{number}", passage.entered)?;
        writeln!(out, "probe,left,{},{number}", passage.left)?;
    }
    for (flow, times) in record.unopened.iter().enumerate() {
        for at in times {
            writeln!(out, "unopened-{flow},forward,{at},0")?;
        }
    }
    Ok(())
}

/// Reads what [`write_csv`] writes.
pub fn read_csv(input: impl BufRead) -> Result<Record, ExportError> {
    let mut record = Record::default();
    for (line, text) in input.lines().enumerate().skip(1) {
        let text = text?;
        if read_line(&text, &mut record).is_none() {
            let expected = "PLACE,DIRECTION,NS,BYTES, e.g. access-3,forward,12000000,1184";
            return Err(ExportError::Line { line: line + 1, text, expected });
        }
    }
    Ok(record)
}

fn read_line(line: &str, record: &mut Record) -> Option<()> {
    let mut fields = line.split(',');
    let (place, direction) = (fields.next()?, fields.next()?);
    let (at, bytes) = (fields.next()?.parse().ok()?, fields.next()?.parse::<u32>().ok()?);
    if fields.next().is_some() {
        return None;
    }
    let count = bytes as usize;
    match (place, direction) {
        ("record", "length") => record.length = at,
        ("record", "cell") => record.cell_bytes = bytes,
        ("record", _) if count > MOST => return None,
        ("record", "users") => record.access.resize(count, Place::default()),
        ("record", "inner") => record.inner.resize(count, Place::default()),
        ("record", "flows") => record.flows.resize(count, Place::default()),
        ("record", "unopened") => record.unopened.resize(count, Vec::new()),
        ("probe", "entered") => record.probe.push(Passage { entered: at, left: 0 }),
        ("probe", "left") => record.probe.get_mut(count)?.left = at,
        _ => {
            let (kind, number) = place.split_once('-')?;
            let number: usize = number.parse().ok()?;
            match kind {
                "access" => trace(record.access.get_mut(number)?, direction)?.push(Seen { at, bytes }),
                "inner" => trace(record.inner.get_mut(number)?, direction)?.push(Seen { at, bytes }),
                "flow" => trace(record.flows.get_mut(number)?, direction)?.push(Seen { at, bytes }),
                "unopened" => record.unopened.get_mut(number)?.push(at),
                _ => return None,
            }
        }
    }
    Some(())
}

fn trace<'a>(place: &'a mut Place, direction: &str) -> Option<&'a mut Trace> {
    match direction {
        "forward" => Some(&mut place.forward),
        "backward" => Some(&mut place.backward),
        _ => None,
    }
}
