//! What lifting nodes costs and what it gives: the plans that a search tried.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{super::format, Area, Drawing, Role, Size, draw, framed, mesh, padded, sane, text_style};

/// A plan that was tried.
pub(in crate::report) struct Tried {
    /// Nodes lifted, or what they cost.
    pub x: f64,
    /// The gate's metric.
    pub value: f64,
    pub passed: bool,
    /// The plan that the search settled on.
    pub chosen: bool,
}

/// What the axes of [`tradeoff`] mean.
pub(in crate::report) struct Axes {
    pub x_name: &'static str,
    /// Counts of nodes, of which the first few matter most: 0, 1, 2, 4, ... are equally far apart.
    pub counts: bool,
    pub value_name: &'static str,
    /// Values are shares, shown in percent.
    pub share: bool,
    /// Less is better otherwise.
    pub more_is_better: bool,
    pub threshold: f64,
}

/// Every plan tried, the line that none beats, and the gate. Empty with fewer than two plans.
pub(in crate::report) fn tradeoff(tried: &[Tried], axes: &Axes, size: Size) -> String {
    let mut tried: Vec<&Tried> = tried.iter().filter(|t| sane(t.value) && sane(t.x) && t.x >= 0.0).collect();
    if tried.len() < 2 || !sane(axes.threshold) {
        return String::new();
    }
    tried.sort_by(|a, b| a.x.total_cmp(&b.x));
    draw(size, "The gate's metric over what is lifted", |root| tradeoff_on(&root, &tried, axes))
}

fn tradeoff_on(root: &Area<'_>, tried: &[&Tried], axes: &Axes) -> Drawing {
    let scale = if axes.share { 100.0 } else { 1.0 };
    let x_of = |x: f64| if axes.counts { x.ln_1p() } else { x };
    let most = tried.iter().map(|t| t.x).fold(0.0, f64::max);
    let values = || tried.iter().map(|t| t.value).chain([axes.threshold]).map(|value| value * scale);
    let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
    let end = x_of(most).max(1e-9);
    let x_range = -0.03 * end..end * 1.06;
    let mut chart = framed(root, x_range.clone(), padded(low, high, 0.15))?;
    let x_label = |x: &f64| format!("{x:.0}");
    let y_label = |y: &f64| if axes.share { format!("{y:.1} %") } else { format::significant(*y, 3) };
    mesh(root, &mut chart, [axes.x_name, axes.value_name], if axes.counts { 0 } else { 6 }, &x_label, &y_label)?;
    if axes.counts {
        let doubling =
            std::iter::successors(Some(1.0), |count| Some(count * 2.0)).take_while(|count| *count < most * 0.8);
        for count in std::iter::once(0.0).chain(doubling).chain([most]) {
            let (x, _) = chart.plotting_area().map_coordinate(&(x_of(count), low));
            let bottom = chart.plotting_area().get_pixel_range().1.end;
            root.draw(&PathElement::new(vec![(x, bottom), (x, bottom + 4)], Role::Axis.color()))?;
            root.draw_text(&format!("{count:.0}"), &text_style(15, Role::Axis, HPos::Center), (x, bottom + 14))?;
        }
    }
    let gate = [x_range.start, x_range.end].map(|x| (x, axes.threshold * scale));
    chart.draw_series(DashedLineSeries::new(gate, 6, 4, Role::Warning.color().stroke_width(2)))?;
    let at = |t: &Tried| (x_of(t.x), t.value * scale);
    chart.draw_series(LineSeries::new(front(tried, axes.more_is_better).into_iter().map(at), Role::Axis.color()))?;
    for t in tried {
        let color = Role::Series(if t.passed { 2 } else { 1 }).color();
        let style = if t.passed { color.filled() } else { color.stroke_width(2) };
        chart.draw_series([Circle::new(at(t), 5, style)])?;
        if t.chosen {
            chart.draw_series([Circle::new(at(t), 10, Role::Text.color().stroke_width(2))])?;
        }
    }
    Ok(())
}

/// The plans that no cheaper one equals, cheapest first.
fn front<'a>(tried: &[&'a Tried], more_is_better: bool) -> Vec<&'a Tried> {
    let worth = |t: &Tried| if more_is_better { t.value } else { -t.value };
    let mut sorted = tried.to_vec();
    sorted.sort_by(|a, b| a.x.total_cmp(&b.x).then(worth(b).total_cmp(&worth(a))));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|t| {
        let better = worth(t) > best;
        best = best.max(worth(t));
        better
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(x: f64, value: f64) -> Tried {
        Tried { x, value, passed: value >= 0.98, chosen: x == 2.0 }
    }

    #[test]
    fn the_front_rises_and_plans_that_cost_more_for_less_are_off_it() {
        let all = [tried(0.0, 0.9), tried(4.0, 0.97), tried(2.0, 0.99), tried(2.0, 0.95), tried(60.0, 1.0)];
        let of = |more| front(&all.iter().collect::<Vec<_>>(), more).iter().map(|t| (t.x, t.value)).collect::<Vec<_>>();
        assert_eq!(of(true), [(0.0, 0.9), (2.0, 0.99), (60.0, 1.0)]);
        assert_eq!(of(false), [(0.0, 0.9)]);
    }

    #[test]
    fn every_plan_is_drawn_and_figures_without_end_are_left_out() {
        let axes = Axes {
            x_name: "nodes lifted",
            counts: true,
            value_name: "top1",
            share: true,
            more_is_better: true,
            threshold: 0.98,
        };
        let svg = tradeoff(&[tried(0.0, 0.9), tried(2.0, 0.99), tried(60.0, f64::NAN)], &axes, (600, 300));
        assert_eq!(svg.matches("<circle").count(), 3, "two plans and the ring: {svg}");
        assert_eq!(tradeoff(&[tried(0.0, 0.9), tried(2.0, f64::INFINITY)], &axes, (600, 300)), "");
    }
}
