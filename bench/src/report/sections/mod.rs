//! The sections of the page, one module each: its text, tables and plots.

mod attack;
mod capacity;
mod delivery;
mod hop;
mod losses;
mod node_latency;
mod nodes;
mod over_time;
mod path;
mod percentiles;
mod releases;
mod setup;

use maud::{Markup, html};

use super::sources::{Labelled, Sources};

pub(crate) struct Section {
    /// Anchor of the section.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) body: Markup,
}

/// The sections for which there is data, in the order of the page.
pub(crate) fn all(sources: &Sources) -> anyhow::Result<Vec<Section>> {
    let runs = &sources.runs;
    let sections = [
        delivery::section(runs),
        percentiles::latency(runs)?,
        percentiles::round_trip(runs)?,
        over_time::section(runs)?,
        losses::section(runs),
        releases::section(runs)?,
        node_latency::section(runs),
        nodes::section(runs),
        attack::found(&sources.attacks)?,
        attack::roc(&sources.attacks)?,
        attack::entropy(&sources.attacks)?,
        attack::delay(&sources.attacks)?,
        attack::cost(&sources.attacks)?,
        capacity::section(&sources.capacities)?,
        hop::section(&sources.hops)?,
        path::section(&sources.paths)?,
        setup::section(sources),
    ];
    Ok(sections.into_iter().flatten().collect())
}

/// A body with a part for each measurement, below its label; `None` without measurements.
fn parts<T>(
    about: &str,
    measurements: &[Labelled<T>],
    part: impl Fn(&T) -> anyhow::Result<Markup>,
) -> anyhow::Result<Option<Markup>> {
    if measurements.is_empty() {
        return Ok(None);
    }
    let parts = measurements.iter().map(|measurement| Ok((&measurement.label, part(&measurement.value)?)));
    let parts = parts.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Some(html! {
        p.quiet { (about) }
        @for (label, part) in &parts { h3 { (label) } (part) }
    }))
}
