//! Releases of every node, as bar charts.

use maud::{PreEscaped, html};
use serde_json::Value;

use super::Section;
use crate::format::rounded;
use crate::nodes;
use crate::report::format::axis_number;
use crate::report::plot::{self, Axis, Bar};
use crate::report::sources::Run;

/// Bars over a logarithmic axis: from, to, and per cent of the releases.
fn size_bars(sizes: &[(u64, u64)]) -> Vec<Bar> {
    let all = sizes.iter().map(|(_, count)| *count as f64).sum::<f64>();
    let mut below = 0;
    let mut bars = Vec::new();
    for (upper, count) in sizes {
        // Nodes count sizes below 16 one by one, and from there on in eight buckets for each power of two.
        let width = 1u64 << upper.max(&1).ilog2().saturating_sub(3);
        let from = (upper.saturating_add(1) - width.min(*upper)).max(below + 1).max(1);
        bars.push(Bar {
            from: (from as f64).log2(),
            to: (upper.saturating_add(1).max(2) as f64).log2(),
            height: 100.0 * *count as f64 / all,
        });
        below = *upper;
    }
    bars
}

/// A node's caption and plot; `None` if it does not report them by size.
fn node_plot(run: &Run, node: &Value) -> anyhow::Result<Option<(String, String)>> {
    let sizes = nodes::release_sizes(node);
    if sizes.is_empty() {
        return Ok(None);
    }
    let bars = size_bars(&sizes);
    let last = bars.iter().map(|bar| bar.to).fold(1.0, f64::max);
    let most = bars.iter().map(|bar| bar.height).fold(0.0, f64::max);
    let x = Axis::powers_of_two("cells in a release", last);
    let y = Axis::linear("releases, %", most, axis_number);

    let name = nodes::name(node);
    let all = rounded(sizes.iter().map(|(_, count)| *count as f64).sum::<f64>());
    let largest = nodes::facts(node).largest_release;
    let mode = sizes.iter().max_by_key(|(_, count)| *count).map_or(0, |(upper, _)| *upper);
    let mode = if largest > 0 { mode.min(largest) } else { mode };
    let label = format!(
        "Releases of {name} by size in {}: {all} releases, most often of up to {mode} cells, at most {largest}.",
        run.label
    );
    Ok(Some((format!("{name}: {all} releases"), plot::bars(&label, &x, &y, &bars)?)))
}

pub(super) fn section(runs: &[Run]) -> anyhow::Result<Option<Section>> {
    let with_nodes: Vec<&Run> = runs.iter().filter(|run| !run.results.nodes.is_empty()).collect();
    if with_nodes.is_empty() {
        return Ok(None);
    }
    let mut plots: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for run in with_nodes {
        let of_run = run.results.nodes.iter().filter_map(|node| node_plot(run, node).transpose());
        let of_run = of_run.collect::<anyhow::Result<Vec<_>>>()?;
        if !of_run.is_empty() {
            plots.push((&run.label, of_run));
        }
    }

    let body = html! {
        @if plots.is_empty() {
            p { "The nodes of these runs do not report releases by size, only their mean (see Nodes)." }
        } @else {
            p.quiet {
                "Share of a node's releases by size. A mix releases its pool: the cells among which a cell is hidden. "
                "A release of an entry or exit is what one turn of its worker carried."
            }
            @for (run, plots) in &plots {
                h3 { (run) }
                div.plots {
                    @for (name, svg) in plots { figure { figcaption { (name) } (PreEscaped(svg)) } }
                }
            }
        }
    };
    Ok(Some(Section { id: "releases", title: "Sizes of releases", body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_bars_cover_their_sizes_without_overlap() {
        let bars = size_bars(&[(1, 1), (2, 1), (15, 1), (17, 1), (64, 4), (71, 2)]);
        assert!(bars.windows(2).all(|two| two[0].to <= two[1].from + 1e-12), "{bars:?}");
        assert_eq!((bars[0].from, bars[0].to, bars[1].to), (0.0, 1.0, 3f64.log2()));
        assert_eq!((bars[2].from, bars[3].from), (15f64.log2(), 16f64.log2()));
        assert!((bars.iter().map(|bar| bar.height).sum::<f64>() - 100.0).abs() < 1e-9);
        assert!(size_bars(&[(0, 3), (u64::MAX, 1)]).iter().all(|bar| bar.from < bar.to));
    }
}
