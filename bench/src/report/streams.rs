//! Streams of all runs, and the look of each one's line.

use super::plot::{self, Paint};
use super::sources::Run;
use crate::results::{Calibration, Stream};

pub(crate) fn name(stream: &Stream) -> String {
    format!("{} {}", stream.profile, stream.direction)
}

/// A stream within the runs of a page.
#[derive(Clone, Copy)]
pub(crate) struct RunStream<'a> {
    pub(crate) paint: Paint,
    pub(crate) run: &'a Run,
    /// Index of the stream in its run.
    pub(crate) at: usize,
    pub(crate) stream: &'a Stream,
}

/// All streams, run by run.
///
/// If the palette allows it, streams of one name share a colour and runs differ in their dashes. Otherwise each line
/// has a look of its own.
pub(crate) fn all(runs: &[Run]) -> impl Iterator<Item = RunStream<'_>> {
    let mut names: Vec<String> = Vec::new();
    for name in runs.iter().flat_map(|run| &run.results.streams).map(name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let by_name = names.len() > 1 && names.len() <= plot::COLORS && runs.len() <= plot::DASH_STYLES;

    let streams = runs.iter().enumerate().flat_map(|(number, run)| {
        run.results.streams.iter().enumerate().map(move |(at, stream)| (number, run, at, stream))
    });
    streams.enumerate().map(move |(line, (number, run, at, stream))| {
        let color = names.iter().position(|known| *known == name(stream)).unwrap_or_default();
        let paint = Paint::Line(if by_name { number * plot::COLORS + color } else { line });
        RunStream { paint, run, at, stream }
    })
}

/// Each calibration once, with the labels of its runs: runs of one command share theirs.
pub(crate) fn calibrations(runs: &[Run]) -> Vec<(&Calibration, Vec<&str>)> {
    let mut found: Vec<(&Calibration, Vec<&str>)> = Vec::new();
    for run in runs {
        let Some(calibration) = &run.results.calibration else { continue };
        match found.iter_mut().find(|(known, _)| *known == calibration) {
            Some((_, labels)) => labels.push(&run.label),
            None => found.push((calibration, vec![&run.label])),
        }
    }
    found
}
