//! Plots, as SVG inside the page.
//!
//! The browser sets the text, so text widths are estimated here, with room to spare.

mod axis;
mod palette;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(crate) use self::axis::Axis;
pub(crate) use self::palette::{COLORS, DASH_STYLES, Paint, style};
use self::palette::{FINE, GRID, INK};

/// Text size, in units.
const TEXT_SIZE: i32 = 13;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) struct Line {
    /// Positions on the axes.
    pub(crate) points: Vec<(f64, f64)>,
    pub(crate) paint: Paint,
}

/// A bar of a histogram: positions on the axes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) height: f64,
}

/// A line plot. `label` is for screen readers.
///
/// # Errors
/// The backend fails.
pub(crate) fn lines(label: &str, x: &Axis, y: &Axis, lines: &[Line]) -> anyhow::Result<String> {
    line_chart(label, (940, 380), x, y, lines)
}

/// A small line plot: several have one legend.
///
/// # Errors
/// The backend fails.
pub(crate) fn small_lines(label: &str, x: &Axis, y: &Axis, lines: &[Line]) -> anyhow::Result<String> {
    line_chart(label, (330, 260), x, y, lines)
}

fn line_chart(label: &str, size: (i32, i32), x: &Axis, y: &Axis, lines: &[Line]) -> anyhow::Result<String> {
    chart(label, size, x, y, |chart| {
        for line in lines {
            let points = line.points.iter().map(|(at, value)| (x.clamp(*at), y.clamp(*value)));
            let width = if line.paint == Paint::Quiet { 3 } else { 4 };
            chart.draw_series(LineSeries::new(points, line.paint.color().stroke_width(width * FINE as u32 / 2)))?;
        }
        Ok(())
    })
}

/// A small bar plot: a page has many of them.
///
/// # Errors
/// The backend fails.
pub(crate) fn bars(label: &str, x: &Axis, y: &Axis, bars: &[Bar]) -> anyhow::Result<String> {
    chart(label, (330, 220), x, y, |chart| {
        let color = Paint::Line(0).color().filled();
        let bars = bars.iter().map(|Bar { from, to, height }| {
            Rectangle::new([(x.clamp(*from), y.from), (x.clamp(*to), y.clamp(*height))], color)
        });
        chart.draw_series(bars)?;
        Ok(())
    })
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

fn chart(
    label: &str,
    size: (i32, i32),
    x: &Axis,
    y: &Axis,
    series: impl FnOnce(&mut Chart<'_, '_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    draw(label, size, |area| {
        let longest = y.ticks.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0) as i32;
        let mut chart = ChartBuilder::on(area)
            .margin_top(26 * FINE)
            .margin_right(26 * FINE)
            .margin_bottom(4 * FINE)
            .x_label_area_size(44 * FINE)
            .y_label_area_size((longest * 8 + 16) * FINE)
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(FINE as u32))
            .axis_style(INK.stroke_width(FINE as u32))
            .label_style(text_style(HPos::Left, VPos::Top))
            .axis_desc_style(text_style(HPos::Left, VPos::Top))
            .set_all_tick_mark_size(4 * FINE)
            .x_desc(&x.name)
            .draw()?;
        area.draw(&Text::new(y.name.as_str(), (2 * FINE, 4 * FINE), text_style(HPos::Left, VPos::Top)))?;
        series(&mut chart)
    })
}

/// Horizontal bars under one name.
pub(crate) struct BarGroup {
    pub(crate) name: String,
    /// One bar each; a value that is not finite has none.
    pub(crate) values: Vec<f64>,
}

/// Groups of horizontal bars, each followed by its value.
///
/// # Errors
/// The backend fails.
pub(crate) fn groups(label: &str, groups: &[BarGroup], show: impl Fn(f64) -> String) -> anyhow::Result<String> {
    let (bar, gap, top) = (17, 12, 4);
    let heights = groups.iter().map(|group| group.values.len() as i32 * bar + gap);
    let (width, height) = (940, heights.sum::<i32>() + 2 * top);
    let longest = groups.iter().map(|group| group.name.chars().count()).max().unwrap_or(0) as i32;
    let left = (longest * 7 + 14).min(360);
    let all = groups.iter().flat_map(|group| group.values.iter().copied());
    let most = all.filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    draw(label, (width, height), |area| {
        let mut down = top;
        for BarGroup { name, values } in groups {
            let middle = down + values.len() as i32 * bar / 2;
            let at = ((left - 8) * FINE, middle * FINE);
            area.draw(&Text::new(name.as_str(), at, text_style(HPos::Right, VPos::Center)))?;
            for (number, value) in values.iter().copied().enumerate() {
                if value.is_finite() && value >= 0.0 {
                    let long = (f64::from((width - left - 80) * FINE) * value / most).round() as i32;
                    let corners = [(left * FINE, (down + 1) * FINE), (left * FINE + long, (down + bar - 1) * FINE)];
                    area.draw(&Rectangle::new(corners, Paint::Line(number).color().filled()))?;
                    let at = (left * FINE + long + 6 * FINE, (down + bar / 2) * FINE);
                    area.draw(&Text::new(show(value), at, text_style(HPos::Left, VPos::Center)))?;
                }
                down += bar;
            }
            down += gap;
        }
        let edge = vec![(left * FINE, 0), (left * FINE, height * FINE)];
        area.draw(&PathElement::new(edge, INK.stroke_width(FINE as u32)))?;
        Ok(())
    })
}

fn text_style(horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // The backend makes text smaller by this factor.
    let size = f64::from(TEXT_SIZE * FINE) * 1.24;
    ("sans-serif", size).into_font().color(&INK).pos(Pos::new(horizontal, vertical))
}

fn draw(
    label: &str,
    (width, height): (i32, i32),
    draw: impl FnOnce(&Area<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut text = String::new();
    let fine = ((width * FINE) as u32, (height * FINE) as u32);
    {
        let area = SVGBackend::with_string(&mut text, fine).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    // Replaces the backend's first tag, which has a fixed size and no label.
    let inside = text.split_once('>').map_or("", |(_, inside)| inside);
    let label = maud::html! { (label) }.into_string();
    let head = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" aria-label="{label}""#);
    let size = format!(r#"width="{width}" height="{height}" viewBox="0 0 {} {}""#, fine.0, fine.1);
    Ok(format!("{head} {size}>{inside}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_is_well_formed_and_escapes_its_text() {
        let group = BarGroup { name: "<b>&\"'".into(), values: vec![1.0, f64::INFINITY, f64::NAN] };
        let svg = groups("a \"label\" <i>", &[group], |value| format!("{value}")).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(document.root_element().attribute("aria-label"), Some("a \"label\" <i>"));
        let words: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        assert!(words.contains(&"<b>&\"'"), "{words:?}");
        assert_eq!(document.descendants().filter(|node| node.has_tag_name("rect")).count(), 1);
    }
}
