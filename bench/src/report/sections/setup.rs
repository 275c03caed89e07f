//! Machine, chain and command of every measurement.

use std::collections::BTreeSet;

use maud::html;

use super::Section;
use crate::machine::Machine;
use crate::report::format::{or_dash, or_dashes};
use crate::report::sources::Sources;
use crate::report::table::{Row, long, number, table, word};
use crate::results::ChainFacts;

pub(super) fn section(sources: &Sources) -> Option<Section> {
    let columns = [
        word("measurement"),
        word("eddy"),
        long("processor"),
        number("cores"),
        word("Linux"),
        number("load average"),
        number("seconds"),
        word("class"),
        number("mixes"),
        word("mixing"),
        number("channels"),
        number("lanes"),
        word("offload"),
        word("engine"),
        word("io"),
    ];
    let rows = rows(sources);
    if rows.is_empty() {
        return None;
    }
    let commands = sources.runs.iter().map(|run| (run.label.as_str(), run.results.command.as_str()));
    let of_attacks = sources.attacks.iter().flat_map(|attack| {
        let commands: BTreeSet<&str> = attack.value.runs.iter().filter_map(|run| run.command.as_deref()).collect();
        commands.into_iter().map(|command| (attack.label.as_str(), command))
    });
    let commands: Vec<(&str, String)> =
        commands.chain(of_attacks).map(|(label, command)| (label, format!("eddy-bench {command}"))).collect();
    let body = html! {
        p.quiet { "Figures are comparable only on the same machine, and only while it is otherwise idle." }
        (table("Machine and chain of every measurement", &columns, &rows))
        @if !commands.is_empty() {
            h3 { "Commands" }
            dl { @for (label, command) in &commands { div { dt { (label) } dd { code { (command) } } } } }
        }
    };
    Some(Section { id: "setup", title: "Machine and setup", body })
}

fn rows(sources: &Sources) -> Vec<Row> {
    let mut rows = Vec::new();
    for run in &sources.runs {
        let results = &run.results;
        rows.push(row(&run.label, &results.machine, Some(results.seconds), results.chain.as_ref()));
    }
    for attack in &sources.attacks {
        rows.push(row(&attack.label, &attack.value.machine, attack.value.length(), None));
    }
    for capacity in &sources.capacities {
        rows.push(row(&capacity.label, &capacity.value.machine, None, capacity.value.chain.as_ref()));
    }
    for hop in &sources.hops {
        rows.push(row(&hop.label, &hop.value.machine, None, Some(&hop.value.chain_facts())));
    }
    for path in &sources.paths {
        rows.push(row(&path.label, &path.value.machine, None, Some(&path.value.chain)));
    }
    rows
}

fn row(label: &str, machine: &Machine, seconds: Option<f64>, chain: Option<&ChainFacts>) -> Row {
    let mut cells = vec![
        label.to_owned(),
        or_dash(&machine.eddy),
        or_dash(&machine.cpu),
        machine.cores.to_string(),
        or_dash(&machine.kernel),
        format!("{:.2}", machine.load),
        seconds.map_or_else(|| or_dash(""), |seconds| format!("{seconds:.1}")),
    ];
    cells.extend(or_dashes(chain.map(chain_cells)));
    Row::new(cells)
}

fn chain_cells(chain: &ChainFacts) -> [String; 8] {
    [
        or_dash(&chain.class),
        chain.mixes.to_string(),
        or_dash(&chain.mixing),
        if chain.channels == 0 { or_dash("") } else { chain.channels.to_string() },
        chain.lanes.to_string(),
        or_dash(&chain.offload),
        or_dash(&chain.engine),
        or_dash(&chain.io),
    ]
}
