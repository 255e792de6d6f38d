//! Layers: their errors in the order of execution, and the distribution of a tensor.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    super::{Histogram, Layer, details::method_name, format, table::Tone},
    Area, Drawing, Role, Size, draw, mesh, sane, text_style,
};

/// SQNR in decibels of every layer, in the order of execution; absent where there is no error or none was measured.
pub(in crate::report) struct Panel {
    pub title: &'static str,
    pub sqnr_db: Vec<Option<f64>>,
}

/// Layers that [`profile`] numbers.
const NUMBERED: usize = 3;

/// The places of the lowest values, which are those to look at first.
pub(in crate::report) fn lowest(sqnr_db: &[Option<f64>]) -> Vec<usize> {
    let mut places: Vec<(f64, usize)> =
        sqnr_db.iter().enumerate().filter_map(|(i, db)| Some(((*db).filter(|db| sane(*db))?, i))).collect();
    places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    places.into_iter().take(NUMBERED).map(|(_, i)| i).collect()
}

/// Pixels that a bar takes at least: more layers than there is room for share bars.
const BAR: usize = 2;

/// Panels of bars above each other; the layers `numbered` get their numbers, from 1.
pub(in crate::report) fn profile(panels: &[Panel], numbered: &[usize], size: Size) -> String {
    let drawable = |panel: &&Panel| panel.sqnr_db.iter().flatten().filter(|db| sane(**db)).count() > 1;
    let panels: Vec<&Panel> = panels.iter().filter(drawable).collect();
    if panels.is_empty() {
        return String::new();
    }
    draw(size, "SQNR of every layer in the order of execution", |root| {
        let areas = root.split_evenly((panels.len(), 1));
        areas.iter().zip(&panels).try_for_each(|(area, panel)| panel_on(area, panel, numbered))
    })
}

fn panel_on(area: &Area<'_>, panel: &Panel, numbered: &[usize]) -> Drawing {
    let count = panel.sqnr_db.len();
    let room = (area.dim_in_pixel().0 as usize).saturating_sub(72) / BAR;
    let shared = count.div_ceil(room.max(1));
    // A bar of several layers is as short as its worst.
    let lowest = |bar: &[Option<f64>]| bar.iter().flatten().copied().filter(|db| sane(*db)).reduce(f64::min);
    let bars: Vec<Option<f64>> = panel.sqnr_db.chunks(shared).map(lowest).collect();
    let all = || bars.iter().flatten().copied();
    let (low, high) = (all().fold(0.0, f64::min), all().fold(10.0, f64::max));
    let mut chart = ChartBuilder::on(area)
        .margin(4)
        .margin_right(16)
        .margin_top(38)
        .x_label_area_size(40)
        .y_label_area_size(40)
        .build_cartesian_2d(0.5..count as f64 + 0.5, low..high * 1.12)?;
    let x_name = match shared {
        1 => "in the order of execution".to_owned(),
        _ => format!("in the order of execution; a bar is the lowest of {shared}"),
    };
    mesh(area, &mut chart, [&x_name, panel.title], 6, &|x| format!("{x:.0}"), &|y| format!("{y:.0}"))?;
    let gap = if count < room / 2 { 0.12 } else { 0.0 };
    let bar = |(i, db): (usize, &Option<f64>)| {
        let (from, to) = ((i * shared) as f64 + 0.5, ((i + 1) * shared).min(count) as f64 + 0.5);
        let corners = [(from + gap, 0.0), (to - gap, (*db)?)];
        let role = match Tone::of_sqnr((*db)?) {
            Tone::Bad => Role::Bad,
            Tone::Plain => Role::Warning,
            _ => Role::Series(0),
        };
        Some(Rectangle::new(corners, role.color().filled()))
    };
    chart.draw_series(bars.iter().enumerate().filter_map(bar))?;
    // Numbers stand in a row above the bars, with a line down to each.
    let mut taken: Vec<i32> = Vec::new();
    let top = high * 1.12;
    for (number, &index) in numbered.iter().enumerate() {
        let Some(db) = bars.get(index / shared).copied().flatten() else { continue };
        let x = index as f64 + 1.0;
        chart.draw_series([PathElement::new(vec![(x, db.max(0.0)), (x, top)], Role::Text.color())])?;
        let (left, above) = area.get_base_pixel();
        let (x, y) = chart.plotting_area().map_coordinate(&(x, top));
        let mut x = x - left;
        while taken.iter().any(|other| (x - other).abs() < 12) {
            x += 12;
        }
        taken.push(x);
        area.draw_text(&(number + 1).to_string(), &text_style(15, Role::Text, HPos::Center), (x, y - above - 6))?;
    }
    Ok(())
}
/// A tensor's magnitudes (logarithmic counts) under the thresholds of all methods; the one in force is thick.
pub(in crate::report) fn histogram(histogram: &Histogram, layer: &Layer, size: Size) -> String {
    let limit = f64::from(histogram.limit);
    if !(sane(limit) && limit > 0.0) || histogram.counts.is_empty() || histogram.counts.len() > 256 {
        return String::new();
    }
    draw(size, "Magnitudes seen in calibration, with the thresholds of all methods", |root| {
        let height = |count: u64| (count as f64 + 1.0).log10();
        let tallest = histogram.counts.iter().copied().map(height).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&root)
            .margin(4)
            .margin_right(12)
            .x_label_area_size(24)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..limit * 1.02, 0.0..tallest * 1.62)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(5)
            .y_labels(3)
            .axis_style(Role::Axis.color())
            .label_style(text_style(14, Role::Text, HPos::Center))
            .x_label_formatter(&|x| format::significant(*x, 2))
            .y_label_formatter(&|y| match *y {
                0.0 => "0".to_owned(),
                y if y.fract() == 0.0 => format!("1e{y:.0}"),
                _ => String::new(),
            })
            .draw()?;
        let bin = limit / histogram.counts.len() as f64;
        let mut outline = vec![(0.0, 0.0)];
        for (i, &count) in histogram.counts.iter().enumerate() {
            let top = height(count);
            outline.extend([(bin * i as f64, top), (bin * (i + 1) as f64, top)]);
        }
        outline.push((limit, 0.0));
        chart.draw_series([Polygon::new(outline, Role::Series(0).color())])?;
        let in_force = layer.amax.map(|amax| f64::from(amax + layer.offset.unwrap_or_default()));
        for (row, (method, &amax)) in layer.candidates.iter().enumerate() {
            let x = f64::from(amax).clamp(0.0, limit);
            if !x.is_finite() {
                continue;
            }
            let top = tallest * (1.56 - 0.15 * row as f64);
            let width = if layer.method == Some(*method) { 3 } else { 1 };
            let color = Role::Series(row + 1).color();
            chart.draw_series([PathElement::new(vec![(x, 0.0), (x, top)], color.stroke_width(width))])?;
            let (px, py) = chart.plotting_area().map_coordinate(&(x, top));
            let (side, px) = if x > limit / 2.0 { (HPos::Right, px - 4) } else { (HPos::Left, px + 4) };
            let text = format!("{} {}", method_name(*method), format::significant(f64::from(amax), 3));
            root.draw_text(&text, &text_style(14, Role::Text, side), (px, py + 4))?;
        }
        if let (true, Some(amax)) = (layer.method.is_none(), in_force.filter(|a| a.is_finite())) {
            let x = amax.clamp(0.0, limit);
            chart.draw_series([PathElement::new(
                vec![(x, 0.0), (x, tallest * 1.5)],
                Role::Series(1).color().stroke_width(3),
            )])?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fit_into_every_width_and_the_lowest_are_numbered() {
        let mut sqnr_db: Vec<Option<f64>> = (0..500).map(|i| Some(30.0 + f64::from(i % 7))).collect();
        (sqnr_db[10], sqnr_db[11], sqnr_db[400]) = (Some(4.0), None, Some(15.0));
        let numbered = lowest(&sqnr_db);
        assert_eq!(numbered, [10, 400, 0]);
        let panels = [Panel { title: "alone", sqnr_db }];
        let drawn = |width| profile(&panels, &numbered, (width, 200));
        let count = |svg: &str, class: &str| svg.matches(&format!("class=\"{class}\"")).count();
        let (wide, narrow) = (drawn(1200), drawn(360));
        assert_eq!(wide.matches("<rect").count(), 499, "one has no figure");
        // Of 500 layers four share a bar at 144 bars of two pixels; the bad one is still seen.
        assert_eq!(narrow.matches("<rect").count(), 125);
        assert!(narrow.contains("a bar is the lowest of 4") && !wide.contains("lowest of"));
        for svg in [wide, narrow] {
            assert_eq!((count(&svg, "f11"), count(&svg, "f10")), (1, 1), "one bad, one to look at");
            assert!([1, 2, 3].iter().all(|number| svg.contains(&format!(">{number}</text>"))), "{svg}");
        }
        assert_eq!(profile(&[Panel { title: "none", sqnr_db: vec![None, Some(f64::NAN)] }], &[], (360, 200)), "");
    }
}
