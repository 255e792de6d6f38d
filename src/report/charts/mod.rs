//! Charts as SVG: drawn by plotters, then stripped of what the page's style sheet decides.
//!
//! Colours are roles (see [`Role`]), which become class names, so that one drawing serves light, dark and paper.
//! Whatever the figures are, drawing ends: what is not finite or absurdly large is left out.

use std::ops::Range;

use plotters::{
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

mod layers;
mod scatter;
mod tradeoff;
mod trend;

pub(super) use layers::{Panel, histogram, lowest, profile};
pub(super) use scatter::{Point, scatter};
pub(super) use tradeoff::{Axes, Tried, tradeoff};
pub(super) use trend::{Line, trend};

/// What a stroke or a filling stands for. The style sheet gives the colours of `.f0`/`.s0` to `.f11`/`.s11`.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Text,
    Axis,
    Grid,
    /// One of a few series, counted from 0.
    Series(usize),
    /// A figure to look at.
    Warning,
    /// A bad figure.
    Bad,
}

/// Series that have a colour of their own.
pub(super) const SERIES: usize = 7;

impl Role {
    /// A colour that stands for the role until [`polish`] replaces it.
    fn color(self) -> RGBColor {
        let index = match self {
            Self::Text => 0,
            Self::Axis => 1,
            Self::Grid => 2,
            Self::Series(series) => 3 + series % SERIES,
            Self::Warning => 3 + SERIES,
            Self::Bad => 4 + SERIES,
        };
        RGBColor(1, 2, index as u8)
    }
}

/// Width and height in CSS pixels.
pub(super) type Size = (u32, u32);

type Drawing<T = ()> = Result<T, Box<dyn std::error::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// True for figures that can be drawn: tick marks of astronomical ranges would never end.
fn sane(value: f64) -> bool {
    value.abs() < 1e9
}

/// A range with room at both ends, never so narrow that neighbouring ticks are the same number.
fn padded(low: f64, high: f64, share: f64) -> Range<f64> {
    let room = ((high - low) * share).max(1e-3 * low.abs().max(high.abs())).max(1e-3);
    low - room..high + room
}

fn text_style(size: u32, role: Role, side: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&role.color()).pos(Pos::new(side, VPos::Center))
}

/// A chart of two measures, with room for their labels and names.
fn framed<'a, 'b>(root: &'a Area<'b>, x: Range<f64>, y: Range<f64>) -> Drawing<Chart<'a, 'b>> {
    let mut builder = ChartBuilder::on(root);
    builder.margin(8).margin_right(16).margin_top(28).x_label_area_size(44).y_label_area_size(60);
    Ok(builder.build_cartesian_2d(x, y)?)
}

/// Axes, grid and their labels, about `x_labels` of them below; the vertical axis has its name above it, where it needs
/// no width.
fn mesh(
    root: &Area<'_>,
    chart: &mut Chart<'_, '_>,
    [x_name, y_name]: [&str; 2],
    x_labels: usize,
    x_label: &dyn Fn(&f64) -> String,
    y_label: &dyn Fn(&f64) -> String,
) -> Drawing {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(Role::Grid.color())
        .axis_style(Role::Axis.color())
        .label_style(("sans-serif", 15).into_font().color(&Role::Axis.color()))
        .axis_desc_style(("sans-serif", 15).into_font().color(&Role::Text.color()))
        .x_desc(x_name)
        .x_labels(x_labels)
        .y_labels(6)
        .x_label_formatter(&x_label)
        .y_label_formatter(&y_label)
        .draw()?;
    root.draw_text(y_name, &text_style(15, Role::Text, HPos::Left), (8, 12))?;
    Ok(())
}

/// Draws and polishes; a drawing that fails is left out of the page, which has every figure as text as well.
fn draw(size: Size, description: &'static str, fill: impl FnOnce(Area<'_>) -> Drawing) -> String {
    let mut svg = String::new();
    let drawn = fill(SVGBackend::with_string(&mut svg, size).into_drawing_area());
    match drawn {
        Ok(()) => polish(svg, description),
        Err(error) => {
            tracing::warn!("cannot draw `{description}`: {error}");
            String::new()
        }
    }
}

/// Turns colours into classes and leaves out what is the default. Texts are safe from it: plotters escapes quotes.
fn polish(mut svg: String, description: &'static str) -> String {
    for index in 0..5 + SERIES {
        for (attribute, class) in [("fill", 'f'), ("stroke", 's')] {
            let color = format!("{attribute}=\"#0102{index:02X}\"");
            svg = svg.replace(&color, &format!("class=\"{class}{index}\""));
        }
    }
    for default in [
        " opacity=\"1\"",
        " stroke=\"none\"",
        " stroke-width=\"1\"",
        " font-family=\"sans-serif\"",
        " xmlns=\"http://www.w3.org/2000/svg\"",
    ] {
        svg = svg.replace(default, "");
    }
    // As plotters writes sizes of text.
    for size in 10..20 {
        let own = f64::from(size) / 1.24;
        svg = svg.replace(&format!("font-size=\"{own}\""), &format!("font-size=\"{own:.1}\""));
    }
    // Lines are not filled; the style sheet says so.
    svg.replace("<polyline fill=\"none\"", "<polyline")
        .replace(" \"/>", "\"/>")
        .replace(">\n", ">")
        .replace("\n</text>", "</text>")
        .replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{description}\" "), 1)
}
