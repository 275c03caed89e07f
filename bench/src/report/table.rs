//! Tables and figures of the page.

use maud::{Markup, PreEscaped, html};

use super::plot::Paint;

/// A column of a table.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    name: &'static str,
    /// Its class in `style.css`.
    class: Option<&'static str>,
    /// Heading above this column and its neighbours of the same group.
    group: &'static str,
}

/// A right-aligned column.
pub(crate) const fn number(name: &'static str) -> Column {
    Column { name, class: Some("number"), group: "" }
}

/// A column of short text.
pub(crate) const fn word(name: &'static str) -> Column {
    Column { name, class: None, group: "" }
}

/// A column whose text may wrap.
pub(crate) const fn long(name: &'static str) -> Column {
    Column { name, class: Some("long"), group: "" }
}

/// Number columns under a common heading.
pub(crate) fn group<const N: usize>(group: &'static str, names: [&'static str; N]) -> [Column; N] {
    names.map(|name| Column { group, ..number(name) })
}

/// A row of a table. The first cell is its heading.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    /// Shown only for comparison.
    pub(crate) is_quiet: bool,
    /// First row of its run: drawn with a line above.
    pub(crate) is_first: bool,
    /// Index of a cell that indicates a problem.
    pub(crate) bad: Option<usize>,
}

impl Row {
    pub(crate) fn new(cells: Vec<String>) -> Row {
        Row { cells, ..Row::default() }
    }

    fn is_bad(&self, at: usize) -> Option<&'static str> {
        (self.bad == Some(at)).then_some("yes")
    }
}

/// `label` is for screen readers.
pub(crate) fn table(label: &str, columns: &[Column], rows: &[Row]) -> Markup {
    let groups: Vec<&[Column]> = columns.chunk_by(|one, next| one.group == next.group).collect();
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead {
                    @if groups.len() > 1 {
                        tr.over {
                            @for group in groups {
                                @if group[0].group.is_empty() { td colspan=(group.len()) {} }
                                @else { th scope="colgroup" colspan=(group.len()) { (group[0].group) } }
                            }
                        }
                    }
                    tr { @for column in columns { th scope="col" class=[column.class] { (column.name) } } }
                }
                tbody {
                    @for row in rows {
                        tr.quiet[row.is_quiet].first[row.is_first] {
                            @for (at, (cell, column)) in row.cells.iter().zip(columns).enumerate() {
                                @if at == 0 { th scope="row" { (cell) } }
                                @else { td class=[column.class] data-bad=[row.is_bad(at)] { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A plot that scrolls where the page is narrower.
pub(crate) fn plot_area(svg: String) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label="A plot" { (PreEscaped(svg)) } }
}

/// A plot with its legend below.
pub(crate) fn figure(svg: String, legend: &[(Paint, String)]) -> Markup {
    html! {
        figure {
            (plot_area(svg))
            (self::legend(legend, Paint::swatch))
        }
    }
}

/// `sample` draws the mark next to each name.
pub(crate) fn legend(entries: &[(Paint, String)], sample: fn(Paint) -> String) -> Markup {
    html! {
        figcaption { ul.legend {
            @for (paint, name) in entries { li { (PreEscaped(sample(*paint))) (name) } }
        } }
    }
}
