//! A figure over runs, in the order of their dates.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{super::format, Area, Drawing, Role, Size, draw, framed, mesh, padded, sane, text_style};

/// A figure of one precision in each run; `None` where a run has none.
pub(in crate::report) struct Line {
    pub series: usize,
    pub values: Vec<Option<f64>>,
}

/// Lines over runs, each run with what it is called below the axis; `figure` is what the page calls it above. Empty where no
/// line has two points.
pub(in crate::report) fn trend(
    lines: &[Line],
    runs: &[String],
    figure: &'static str,
    share: bool,
    size: Size,
) -> String {
    let points = |line: &Line| line.values.iter().take(runs.len()).flatten().filter(|value| sane(**value)).count();
    if !lines.iter().any(|line| points(line) > 1) {
        return String::new();
    }
    draw(size, figure, |root| trend_on(&root, lines, runs, share))
}

fn trend_on(root: &Area<'_>, lines: &[Line], runs: &[String], share: bool) -> Drawing {
    let scale = if share { 100.0 } else { 1.0 };
    let values = || lines.iter().flat_map(|line| &line.values).flatten().copied().filter(|value| sane(*value));
    let low = values().fold(f64::INFINITY, f64::min) * scale;
    let high = values().fold(f64::NEG_INFINITY, f64::max) * scale;
    let last = runs.len() as f64 - 1.0;
    let mut chart = framed(root, -0.2..last + 0.2, padded(low, high, 0.12))?;
    let decimals = if high - low < 1.0 { 2 } else { 1 };
    let y_label = |y: &f64| if share { format!("{y:.decimals$} %") } else { format::significant(*y, 3) };
    mesh(root, &mut chart, ["", ""], 0, &|_| String::new(), &y_label)?;
    let width = root.dim_in_pixel().0 as usize;
    let every = runs.len().div_ceil((width / 110).max(2));
    for (run, name) in runs.iter().enumerate().step_by(every) {
        let (x, _) = chart.plotting_area().map_coordinate(&(run as f64, low));
        let bottom = chart.plotting_area().get_pixel_range().1.end;
        root.draw(&PathElement::new(vec![(x, bottom), (x, bottom + 4)], Role::Axis.color()))?;
        root.draw_text(name, &text_style(13, Role::Axis, HPos::Center), (x, bottom + 14))?;
    }
    for line in lines {
        let color = Role::Series(line.series).color();
        let points: Vec<(f64, f64)> = line
            .values
            .iter()
            .enumerate()
            .filter_map(|(run, value)| Some((run as f64, value.filter(|value| sane(*value))? * scale)))
            .collect();
        chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 4, color.filled())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_a_point_and_gaps_are_none() {
        let lines = [
            Line { series: 0, values: vec![Some(0.9), Some(0.91), Some(f64::NAN)] },
            Line { series: 1, values: vec![Some(0.8), None, Some(0.82)] },
        ];
        let runs = ["2026-01-01 0.1.0", "2026-02-01 0.1.0", "2026-03-01 0.2.0"].map(str::to_owned);
        let svg = trend(&lines, &runs, "Top-1 accuracy", true, (900, 300));
        assert_eq!(svg.matches("<circle").count(), 4, "{svg}");
        assert!(runs.iter().all(|run| svg.contains(run.as_str())), "{svg}");
        assert_eq!(
            svg.matches("Top-1 accuracy").count(),
            1,
            "the page has it as a title; here it is for who cannot see"
        );
        assert_eq!(trend(&lines[..1], &runs[..1], "x", true, (900, 300)), "");
        // Two points of two lines are not line.
        let lone = [vec![Some(0.9), None], vec![None, Some(0.8)]];
        let lone: Vec<Line> = lone.into_iter().enumerate().map(|(series, values)| Line { series, values }).collect();
        assert_eq!(trend(&lone, &runs[..2], "x", true, (900, 300)), "");
    }
}
