//! Quality over latency.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{super::format, Area, Drawing, Role, Size, draw, framed, mesh, padded, sane, text_style};

/// A point of [`scatter`].
pub(in crate::report) struct Point {
    pub label: String,
    /// Median.
    pub latency_ms: f64,
    pub quality: f64,
    pub interval: Option<[f64; 2]>,
    pub series: usize,
}

/// Quality over latency, with the line that no point beats in both. Empty with nothing to draw.
pub(in crate::report) fn scatter(points: &[Point], quality: &str, share: bool, size: Size) -> String {
    let drawable = |p: &&Point| sane(p.latency_ms) && p.latency_ms > 0.0 && sane(p.quality);
    let points: Vec<&Point> = points.iter().filter(drawable).collect();
    if points.is_empty() {
        return String::new();
    }
    draw(size, "Quality over latency", |root| scatter_on(&root, &points, quality, share))
}

fn scatter_on(root: &Area<'_>, points: &[&Point], quality: &str, share: bool) -> Drawing {
    let scale = if share { 100.0 } else { 1.0 };
    let slowest = points.iter().map(|p| p.latency_ms).fold(0.0, f64::max);
    let fastest = points.iter().map(|p| p.latency_ms).fold(f64::INFINITY, f64::min);
    let logarithmic = slowest / fastest > 8.0;
    let x_of = |ms: f64| if logarithmic { ms.log10() } else { ms };
    let x_range = if logarithmic { padded(x_of(fastest), x_of(slowest), 0.15) } else { 0.0..slowest * 1.25 };
    let reach = |p: &&Point| p.interval.filter(|i| i.iter().all(|v| sane(*v))).unwrap_or([p.quality; 2]);
    let low = points.iter().map(|p| reach(p)[0].min(p.quality)).fold(f64::INFINITY, f64::min) * scale;
    let high = points.iter().map(|p| reach(p)[1].max(p.quality)).fold(f64::NEG_INFINITY, f64::max) * scale;
    let mut chart = framed(root, x_range, padded(low, high, 0.12))?;
    let x_label = |x: &f64| format::significant(if logarithmic { 10f64.powf(*x) } else { *x }, 2);
    let decimals = if high - low < 1.0 { 2 } else { 1 };
    let y_label = |y: &f64| format!("{y:.decimals$}{}", if share { " %" } else { "" });
    mesh(root, &mut chart, ["Median latency (ms)", quality], 6, &x_label, &y_label)?;
    let at = |p: &Point, q: f64| (x_of(p.latency_ms), q * scale);
    chart.draw_series(LineSeries::new(front(points).into_iter().map(|p| at(p, p.quality)), Role::Axis.color()))?;
    for point in points {
        let color = Role::Series(point.series).color();
        let [from, to] = reach(point);
        chart.draw_series([PathElement::new(vec![at(point, from), at(point, to)], color.stroke_width(2))])?;
        chart.draw_series([Circle::new(at(point, point.quality), 5, color.filled())])?;
    }
    let pixels: Vec<(i32, i32)> =
        points.iter().map(|p| chart.plotting_area().map_coordinate(&at(p, p.quality))).collect();
    let bars = points.iter().zip(&pixels).map(|(p, &(x, _))| {
        let [low, high] = reach(p).map(|q| chart.plotting_area().map_coordinate(&at(p, q)).1);
        [x - 2, high, x + 2, low]
    });
    label_points(root, points, &pixels, bars.collect())
}

/// The points that no other beats in both quality and latency, fastest first.
fn front<'a>(points: &[&'a Point]) -> Vec<&'a Point> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.latency_ms.total_cmp(&b.latency_ms).then(b.quality.total_cmp(&a.quality)));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|p| {
        p.quality > best && {
            best = p.quality;
            true
        }
    });
    sorted
}

/// Writes each label beside its point where it covers no other and nothing `taken` (left, top, right, bottom); labels without a place are left out (the table has
/// every name).
pub(super) fn label_points(
    root: &Area<'_>,
    points: &[&Point],
    pixels: &[(i32, i32)],
    mut taken: Vec<[i32; 4]>,
) -> Drawing {
    let (width, height) = root.dim_in_pixel();
    taken.extend(pixels.iter().map(|&(x, y)| [x - 6, y - 6, x + 6, y + 6]));
    for (point, &(x, y)) in points.iter().zip(pixels) {
        let text = format::shorten(&point.label, 34);
        let long = text.chars().count() as i32 * 7;
        let places = [
            (x + 10, y, HPos::Left, 0),
            (x - 10, y, HPos::Right, long),
            (x, y - 16, HPos::Center, long / 2),
            (x, y + 16, HPos::Center, long / 2),
        ];
        for (x, y, side, before) in places {
            let place = [x - before, y - 8, x - before + long, y + 8];
            let inside = place[0] >= 0 && place[2] <= width as i32 && place[1] >= 0 && place[3] <= height as i32;
            let free = |t: &[i32; 4]| t[0] >= place[2] || t[2] <= place[0] || t[1] >= place[3] || t[3] <= place[1];
            if inside && taken.iter().all(free) {
                taken.push(place);
                root.draw_text(&text, &text_style(15, Role::Text, side), (x, y))?;
                break;
            }
        }
    }
    Ok(())
}
