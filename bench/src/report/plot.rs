//! Plots, as SVG that stands in the page.
//!
//! Every colour here is a name that the page's style knows: [`style`] gives it another one at night, and dashes where
//! the palette begins anew. Without the style the colours are still right.
//!
//! Text is the browser's to set, so widths are guessed here, and room is left.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Lines in a row that have colours of their own.
pub const COLORS: usize = 7;
/// So often the colours come again with other dashes.
pub const ROUNDS: usize = 3;
/// Points for each unit of the page: backends round to whole points, and lines shall be smooth.
const FINE: i32 = 4;
/// Letters, in units.
const LETTERS: i32 = 13;
/// Axes and letters.
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
/// Grid lines.
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
/// What is only there for comparison.
const QUIET: RGBColor = RGBColor(0x77, 0x77, 0x77);
/// Told apart by those who see few colours, too (Okabe and Ito, without the yellow). By day and by night.
const PALETTE: [(RGBColor, &str); COLORS] = [
    (RGBColor(0x00, 0x72, 0xB2), "#4fa8e0"),
    (RGBColor(0xD5, 0x5E, 0x00), "#ff8a3d"),
    (RGBColor(0x00, 0x9E, 0x73), "#2cc79a"),
    (RGBColor(0xCC, 0x79, 0xA7), "#e8a0c8"),
    (RGBColor(0xE6, 0x9F, 0x00), "#f0b73c"),
    (RGBColor(0x56, 0xB4, 0xE9), "#a9ddff"),
    (RGBColor(0x5B, 0x5B, 0x5B), "#c4c4c4"),
];
/// Lengths of dashes and gaps, in units, of the first round of the palette and the others.
const DASHES: [&[i32]; ROUNDS] = [&[], &[7, 3], &[2, 3]];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// One of many: colour and dashes go by its number.
    Line(usize),
    /// Only there for comparison.
    Quiet,
}

impl Paint {
    /// A colour of its own, of which the style knows what it stands for.
    fn color(self) -> RGBColor {
        match self {
            Paint::Quiet => QUIET,
            Paint::Line(number) => {
                let RGBColor(red, green, blue) = PALETTE[number % PALETTE.len()].0;
                RGBColor(red, green, blue ^ (number / PALETTE.len() % DASHES.len()) as u8)
            }
        }
    }

    fn hex(self) -> String {
        hex(self.color())
    }

    /// A line of it, beside a name.
    pub fn swatch(self) -> String {
        sample(&format!(r#"<line x1="0" y1="20" x2="112" y2="20" stroke="{}" stroke-width="10"/>"#, self.hex()))
    }

    /// A box of it, beside a name.
    pub fn block(self) -> String {
        sample(&format!(r#"<rect x="60" y="0" width="40" height="40" fill="{}"/>"#, self.hex()))
    }
}

fn sample(shape: &str) -> String {
    format!(r#"<svg class="swatch" viewBox="0 0 112 40" aria-hidden="true">{shape}</svg>"#)
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// What the page's style says of the colours: dashes, and how they look at night.
pub fn style() -> String {
    let dashes = |lengths: &[i32]| lengths.iter().map(|n| (n * FINE).to_string()).collect::<Vec<_>>().join(" ");
    let mut day = format!("svg [stroke=\"{}\"] {{ stroke-dasharray: {} }}\n", hex(QUIET), dashes(&[4, 4]));
    let mut night = String::new();
    let mut dark = |color: &str, dark: &str| {
        night +=
            &format!("  svg [stroke=\"{color}\"] {{ stroke: {dark} }} svg [fill=\"{color}\"] {{ fill: {dark} }}\n");
    };
    for number in 0..PALETTE.len() * DASHES.len() {
        let color = Paint::Line(number).hex();
        dark(&color, PALETTE[number % PALETTE.len()].1);
        let lengths = DASHES[number / PALETTE.len()];
        if !lengths.is_empty() {
            day += &format!("svg [stroke=\"{color}\"] {{ stroke-dasharray: {} }}\n", dashes(lengths));
        }
    }
    for (color, at_night) in [(INK, "#d8dbe0"), (GRID, "#363a42"), (QUIET, "#9aa0a8")] {
        dark(&hex(color), at_night);
    }
    // Paper is white at night, too.
    format!("{day}@media screen and (prefers-color-scheme: dark) {{\n{night}}}\n")
}

/// A line of a plot.
pub struct Line {
    /// In the units of the axes.
    pub points: Vec<(f64, f64)>,
    /// How it looks.
    pub paint: Paint,
}

/// One direction of a plot, with its marks.
#[derive(Clone)]
pub struct Axis {
    from: f64,
    to: f64,
    ticks: Vec<(f64, String)>,
    name: String,
}

impl Axis {
    /// From 0 to at least `to`.
    pub fn linear(name: &str, to: f64, tell: impl Fn(f64) -> String) -> Axis {
        let to = if to.is_finite() && to > 0.0 { to } else { 1.0 };
        let step = round_step(to / 5.0);
        let steps = (to / step - 1e-9).ceil().max(1.0) as u32;
        let ticks = (0..=steps).map(|i| f64::from(i) * step).map(|value| (value, tell(value))).collect();
        Axis { from: 0.0, to: f64::from(steps) * step, ticks, name: name.into() }
    }

    /// From 0 to just `to`, where no line goes on.
    pub fn time(name: &str, to: f64) -> Axis {
        let mut axis = Axis::linear(name, to, |value| format!("{value}"));
        axis.to = to.max(f64::EPSILON);
        axis.ticks.retain(|(value, _)| *value <= to * (1.0 + 1e-9));
        axis
    }

    /// Decades, of values from `from` to `to`: [`Axis::place`] of these are its places.
    pub fn log(name: &str, from: f64, to: f64, tell: impl Fn(f64) -> String) -> Axis {
        let from = if from.is_finite() { from.max(1e-9) } else { 1e-9 };
        let to = if to.is_finite() { to.max(from) } else { from };
        let wide = (to / from).log10() > 3.0;
        let marks: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let first = from.log10().floor() as i32;
        let decades = first..=to.log10().ceil() as i32;
        let all: Vec<f64> = decades.flat_map(|d| marks.iter().map(move |mark| mark * 10f64.powi(d))).collect();
        let below = all.iter().rposition(|value| *value <= from * (1.0 + 1e-9)).unwrap_or(0);
        let above = all.iter().position(|value| *value >= to * (1.0 - 1e-9)).unwrap_or(all.len() - 1);
        let above = above.max(below + 1).min(all.len() - 1);
        let ticks: Vec<(f64, String)> = all[below..=above].iter().map(|value| (value.log10(), tell(*value))).collect();
        let (from, to) = (ticks[0].0, ticks[ticks.len() - 1].0);
        Axis { from, to: to.max(from + 0.1), ticks, name: name.into() }
    }

    /// Nines: 0 %, 90 %, 99 % and so on, up to `to` of them.
    pub fn nines(name: &str, to: f64) -> Axis {
        let to = if to.is_finite() { to.max(1.0) } else { 1.0 };
        let mut ticks = vec![(0.0, "0 %".to_owned()), (2f64.log10(), "50 %".to_owned())];
        for nines in 1..=to.floor() as usize {
            let percent = match nines {
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                more => format!("99.{} %", "9".repeat(more - 2)),
            };
            ticks.push((nines as f64, percent));
        }
        Axis { from: 0.0, to, ticks, name: name.into() }
    }

    /// Powers of two, of which `to` is the last exponent.
    pub fn powers_of_two(name: &str, to: f64) -> Axis {
        let last = if to.is_finite() { to.ceil().clamp(1.0, 64.0) as i32 } else { 1 };
        let step = last / 9 + 1;
        let ticks =
            (0..=last).filter(|power| power % step == 0).map(|power| (f64::from(power), format!("{}", 1u128 << power)));
        Axis { from: 0.0, to: f64::from(last), ticks: ticks.collect(), name: name.into() }
    }

    fn tick(&self, at: f64) -> String {
        let near = |tick: &&(f64, String)| (tick.0 - at).abs() < 1e-9;
        self.ticks.iter().find(near).map_or_else(String::new, |(_, text)| text.clone())
    }

    /// So that a value beyond an end does not lie outside.
    fn clamp(&self, at: f64) -> f64 {
        at.clamp(self.from, self.to)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let part = (value - self.from) / (self.to - self.from);
        from + (part * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.iter().map(|(at, _)| *at).collect() }
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        self.tick(*at)
    }
}

/// 1, 2 or 5 times a power of ten, not below it.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|mark| mark * power).into_iter().find(|mark| *mark >= step * 0.999).unwrap_or(step)
}

/// Lines. `label` is for those who do not see them.
///
/// # Errors
/// The backend's.
pub fn lines(label: &str, x: &Axis, y: &Axis, lines: &[Line]) -> anyhow::Result<String> {
    chart(label, (940, 380), x, y, |chart| {
        for line in lines {
            let points = line.points.iter().map(|(at, value)| (x.clamp(*at), y.clamp(*value)));
            let width = if line.paint == Paint::Quiet { 3 } else { 4 };
            chart.draw_series(LineSeries::new(points, line.paint.color().stroke_width(width * FINE as u32 / 2)))?;
        }
        Ok(())
    })
}

/// Bars: from, to, height. Small, for there are many of them.
///
/// # Errors
/// The backend's.
pub fn bars(label: &str, x: &Axis, y: &Axis, bars: &[(f64, f64, f64)]) -> anyhow::Result<String> {
    chart(label, (330, 220), x, y, |chart| {
        let color = Paint::Line(0).color().filled();
        let bars = bars.iter().map(|(from, to, height)| {
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
            .label_style(letters(HPos::Left, VPos::Top))
            .axis_desc_style(letters(HPos::Left, VPos::Top))
            .set_all_tick_mark_size(4 * FINE)
            .x_desc(&x.name)
            .draw()?;
        area.draw(&Text::new(y.name.as_str(), (2 * FINE, 4 * FINE), letters(HPos::Left, VPos::Top)))?;
        series(&mut chart)
    })
}

/// A group of bars that lie beside each other.
pub struct Group {
    /// What it is.
    pub name: String,
    /// One for each of the kinds, if it is known.
    pub values: Vec<Option<f64>>,
}

/// Groups of lying bars, each with its value behind it.
///
/// # Errors
/// The backend's.
pub fn groups(label: &str, groups: &[Group], tell: impl Fn(f64) -> String) -> anyhow::Result<String> {
    let (bar, gap, top) = (17, 12, 4);
    let heights = groups.iter().map(|group| group.values.len() as i32 * bar + gap);
    let (width, height) = (940, heights.sum::<i32>() + 2 * top);
    let longest = groups.iter().map(|group| group.name.chars().count()).max().unwrap_or(0) as i32;
    let left = (longest * 7 + 14).min(360);
    let all = groups.iter().flat_map(|group| group.values.iter().copied().flatten());
    let most = all.filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    draw(label, (width, height), |area| {
        let mut down = top;
        for Group { name, values } in groups {
            let middle = down + values.len() as i32 * bar / 2;
            let at = ((left - 8) * FINE, middle * FINE);
            area.draw(&Text::new(name.as_str(), at, letters(HPos::Right, VPos::Center)))?;
            for (kind, value) in values.iter().enumerate() {
                if let Some(value) = value.filter(|value| value.is_finite() && *value >= 0.0) {
                    let long = (f64::from((width - left - 80) * FINE) * value / most).round() as i32;
                    let corners = [(left * FINE, (down + 1) * FINE), (left * FINE + long, (down + bar - 1) * FINE)];
                    area.draw(&Rectangle::new(corners, Paint::Line(kind).color().filled()))?;
                    let at = (left * FINE + long + 6 * FINE, (down + bar / 2) * FINE);
                    area.draw(&Text::new(tell(value), at, letters(HPos::Left, VPos::Center)))?;
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

fn letters(horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // The backend makes letters smaller by this.
    let size = f64::from(LETTERS * FINE) * 1.24;
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
    // Its first tag has a fixed size and no words: this one has.
    let inside = text.split_once('>').map_or("", |(_, inside)| inside);
    let label = maud::html! { (label) }.into_string();
    let head = format!(r#"<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" aria-label="{label}""#);
    let size = format!(r#"width="{width}" height="{height}" viewBox="0 0 {} {}""#, fine.0, fine.1);
    Ok(format!("{head} {size}>{inside}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn axes_end_at_round_numbers_and_hold_what_they_were_made_for() {
        let plain = |value: f64| format!("{value}");
        assert_eq!(labels(&Axis::linear("", 23.0, plain)), ["0", "5", "10", "15", "20", "25"]);
        assert_eq!(labels(&Axis::linear("", 0.0, plain)).len(), 6);
        assert_eq!(labels(&Axis::log("", 3.0, 40.0, plain)), ["2", "5", "10", "20", "50"]);
        assert_eq!(labels(&Axis::log("", 1.0, 99_999.0, plain)), ["1", "10", "100", "1000", "10000", "100000"]);
        assert_eq!(labels(&Axis::nines("", 4.3)), ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        for (from, to) in [(0.001, 0.001), (7.0, 7.0), (f64::NAN, f64::INFINITY), (1e9, 1.0)] {
            let axis = Axis::log("", from, to, plain);
            assert!(axis.from < axis.to && axis.ticks.len() > 1, "{from} to {to}: {:?}", axis.ticks);
        }
    }

    #[test]
    fn lines_beyond_the_palette_have_a_look_of_their_own() {
        let all: std::collections::HashSet<String> =
            (0..PALETTE.len() * DASHES.len()).map(|number| Paint::Line(number).hex()).collect();
        assert_eq!(all.len(), PALETTE.len() * DASHES.len());
        let style = style();
        assert!(all.iter().all(|color| style.contains(color)));
    }

    #[test]
    fn a_plot_is_well_formed_and_its_words_are_no_markup() {
        let group = Group { name: "<b>&\"'".into(), values: vec![Some(1.0), None, Some(f64::NAN)] };
        let svg = groups("a \"label\" <i>", &[group], |value| format!("{value}")).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        assert_eq!(document.root_element().attribute("aria-label"), Some("a \"label\" <i>"));
        let words: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        assert!(words.contains(&"<b>&\"'"), "{words:?}");
        assert_eq!(document.descendants().filter(|node| node.has_tag_name("rect")).count(), 1);
    }
}
