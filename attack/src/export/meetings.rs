//! What a corrupt exit sees of meetings, as one CSV file.

use std::{
    io::{BufRead, Write},
    str::FromStr,
};

use super::ExportError;
use crate::paced::{Body, ExitRound, Meeting};

/// The most meetings of a file: a damaged one must not make the reader allocate without bound.
const MOST: usize = 100_000;

const LINE: &str = "FLOW,forward|backward,ROUND,WAITED and three times FINGERPRINT,CHI,ONES,CHANGED, flows below \
                    100000, rounds in order";

/// Writes one line for each place of a joined channel, below a line with the names of the columns. `flow` and
/// `direction` say where: [`crate::Record::meetings`]. The others are the fields of [`ExitRound`] and, for each of the
/// three bodies, of [`Body`]; what there is not is empty.
pub fn write_meetings(meetings: &[Meeting], out: &mut impl Write) -> Result<(), ExportError> {
    write!(out, "flow,direction,round,waited")?;
    for body in ["before", "between", "after"] {
        write!(out, ",{body},{body}_chi_square,{body}_ones,{body}_changed")?;
    }
    writeln!(out)?;
    for (flow, meeting) in meetings.iter().enumerate() {
        for (direction, forward) in [("forward", true), ("backward", false)] {
            for one in meeting.of(forward) {
                write!(out, "{flow},{direction},{},", one.round)?;
                if let Some(waited) = one.waited {
                    write!(out, "{waited}")?;
                }
                for body in [Some(one.before), one.between, Some(one.after)] {
                    match body {
                        Some(Body { fingerprint, chi_square, ones, changed }) => {
                            write!(out, ",{fingerprint},{chi_square},{ones},{changed}")?;
                        }
                        None => write!(out, ",,,,")?,
                    }
                }
                writeln!(out)?;
            }
        }
    }
    Ok(())
}

/// Reads what [`write_meetings`] writes, for `flows` flows.
///
/// # Errors
/// The input cannot be read, or a line is not valid: it has another number of fields, a flow that there is not, or a
/// round before the one of the last line of this flow and direction.
pub fn read_meetings(input: impl BufRead, flows: usize) -> Result<Vec<Meeting>, ExportError> {
    let mut meetings = vec![Meeting::default(); flows.min(MOST)];
    for (line, text) in input.lines().enumerate().skip(1) {
        let text = text?;
        if read_line(&text, &mut meetings).is_none() {
            return Err(ExportError::Line { line: line + 1, text, expected: LINE });
        }
    }
    Ok(meetings)
}

/// `None` if the line is not valid.
fn read_line(line: &str, meetings: &mut [Meeting]) -> Option<()> {
    let fields: Vec<&str> = line.split(',').collect();
    let [flow, direction, round, waited, bodies @ ..] = &fields[..] else { return None };
    let meeting = meetings.get_mut(flow.parse::<usize>().ok()?)?;
    let rounds = match *direction {
        "forward" => &mut meeting.forward,
        "backward" => &mut meeting.backward,
        _ => return None,
    };
    let [before, between, after] = [0, 4, 8].map(|from| bodies.get(from..from + 4));
    let between = match between? {
        ["", "", "", ""] => None,
        fields => Some(body(fields)?),
    };
    let one = ExitRound {
        round: round.parse().ok()?,
        waited: if waited.is_empty() { None } else { Some(waited.parse().ok()?) },
        before: body(before?)?,
        between,
        after: body(after?)?,
    };
    if bodies.len() != 12 || rounds.last().is_some_and(|last| last.round > one.round) {
        return None;
    }
    rounds.push(one);
    Some(())
}

fn body(fields: &[&str]) -> Option<Body> {
    fn number<T: FromStr>(field: &str) -> Option<T> {
        field.parse().ok()
    }
    let [fingerprint, chi_square, ones, changed] = fields else { return None };
    let chi_square = number::<f32>(chi_square).filter(|chi_square| chi_square.is_finite())?;
    Some(Body { fingerprint: number(fingerprint)?, chi_square, ones: number(ones)?, changed: number(changed)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paced::Bodies;

    #[test]
    fn meetings_read_back_and_damaged_lines_are_named() {
        let mut bodies = Bodies::default();
        let mut one = |round: u64, waited, inner: Option<u8>| ExitRound {
            round,
            waited,
            before: bodies.next(&[round as u8; 224]),
            between: inner.map(|byte| bodies.next(&[byte; 224])),
            after: bodies.next(&[round as u8 + 1; 224]),
        };
        let meetings = vec![
            Meeting { forward: vec![one(7, Some(1_500_000), Some(3)), one(7, None, None)], backward: vec![] },
            Meeting { forward: vec![], backward: vec![one(8, None, Some(9))] },
        ];
        let mut text = Vec::new();
        write_meetings(&meetings, &mut text).unwrap();
        assert_eq!(read_meetings(text.as_slice(), 2).unwrap(), meetings);

        let text = String::from_utf8(text).unwrap();
        let head = text.lines().next().unwrap();
        let body = "1,2.5,3,4";
        for line in [
            format!("2,forward,1,,{body},{body},{body}"),
            format!("0,sideways,1,,{body},{body},{body}"),
            format!("0,forward,1,x,{body},{body},{body}"),
            format!("0,forward,1,,{body},,2,,,{body}"),
            format!("0,forward,1,,{body},{body},1,inf,3,4"),
            format!("0,forward,1,,{body},{body}"),
            format!("0,forward,1,,{body},{body},{body},5"),
            format!("0,forward,9,,{body},{body},{body}\n0,forward,8,,{body},{body},{body}"),
        ] {
            let error = read_meetings(format!("{head}\n{line}\n").as_bytes(), 2).unwrap_err().to_string();
            assert!(error.starts_with("invalid line ") && error.contains("expected FLOW"), "{error}");
        }
    }
}
