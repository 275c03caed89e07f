//! Colours and dashes.
//!
//! Every colour is unique, so the style sheet can replace it by another one on a dark page, and add dashes where the
//! palette repeats. Without the style sheet the colours are still right.

use plotters::style::RGBColor;

/// Colours of the palette.
pub(crate) const COLORS: usize = 7;
/// Repetitions of the palette, each with other dashes.
pub(crate) const DASH_STYLES: usize = 3;
/// Points for each unit of the page: the backend rounds to whole points, so more of them give smoother lines.
pub(super) const FINE: i32 = 4;
/// Axes and text.
pub(super) const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
pub(super) const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
/// Lines shown only for comparison.
const QUIET: RGBColor = RGBColor(0x77, 0x77, 0x77);
/// Colours for a light and a dark page, distinguishable with colour vision deficiency (Okabe and Ito, without yellow).
const PALETTE: [(RGBColor, &str); COLORS] = [
    (RGBColor(0x00, 0x72, 0xB2), "#4fa8e0"),
    (RGBColor(0xD5, 0x5E, 0x00), "#ff8a3d"),
    (RGBColor(0x00, 0x9E, 0x73), "#2cc79a"),
    (RGBColor(0xCC, 0x79, 0xA7), "#e8a0c8"),
    (RGBColor(0xE6, 0x9F, 0x00), "#f0b73c"),
    (RGBColor(0x56, 0xB4, 0xE9), "#a9ddff"),
    (RGBColor(0x5B, 0x5B, 0x5B), "#c4c4c4"),
];
/// Lengths of dashes and gaps, in units.
const DASHES: [&[i32]; DASH_STYLES] = [&[], &[7, 3], &[2, 3]];

/// Colour and dashes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// By number: colours first, then dashes.
    Line(usize),
    /// Shown only for comparison.
    Quiet,
}

impl Paint {
    /// A colour that no other paint has: [`style`] finds the line by it.
    pub(super) fn color(self) -> RGBColor {
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

    /// A sample line for a legend, as SVG.
    pub(crate) fn swatch(self) -> String {
        sample(&format!(r#"<line x1="0" y1="20" x2="112" y2="20" stroke="{}" stroke-width="10"/>"#, self.hex()))
    }

    /// A sample box for a legend, as SVG.
    pub(crate) fn block(self) -> String {
        sample(&format!(r#"<rect x="60" y="0" width="40" height="40" fill="{}"/>"#, self.hex()))
    }
}

fn sample(shape: &str) -> String {
    format!(r#"<svg class="swatch" viewBox="0 0 112 40" aria-hidden="true">{shape}</svg>"#)
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// CSS for the colours of the plots: dashes, and the colours of a dark page.
pub(crate) fn style() -> String {
    let dashes = |lengths: &[i32]| lengths.iter().map(|n| (n * FINE).to_string()).collect::<Vec<_>>().join(" ");
    let mut light = format!("svg [stroke=\"{}\"] {{ stroke-dasharray: {} }}\n", hex(QUIET), dashes(&[4, 4]));
    let mut dark = String::new();
    let mut on_dark = |color: &str, shown: &str| {
        dark +=
            &format!("  svg [stroke=\"{color}\"] {{ stroke: {shown} }} svg [fill=\"{color}\"] {{ fill: {shown} }}\n");
    };
    for number in 0..PALETTE.len() * DASHES.len() {
        let color = Paint::Line(number).hex();
        on_dark(&color, PALETTE[number % PALETTE.len()].1);
        let lengths = DASHES[number / PALETTE.len()];
        if !lengths.is_empty() {
            light += &format!("svg [stroke=\"{color}\"] {{ stroke-dasharray: {} }}\n", dashes(lengths));
        }
    }
    for (color, shown) in [(INK, "#d8dbe0"), (GRID, "#363a42"), (QUIET, "#9aa0a8")] {
        on_dark(&hex(color), shown);
    }
    // Printed pages stay light.
    format!("{light}@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_a_unique_colour_that_the_style_knows() {
        let all: std::collections::HashSet<String> =
            (0..PALETTE.len() * DASHES.len()).map(|number| Paint::Line(number).hex()).collect();
        assert_eq!(all.len(), PALETTE.len() * DASHES.len());
        let style = style();
        assert!(all.iter().all(|color| style.contains(color)));
    }
}
