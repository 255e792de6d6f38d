//! Charts about layers: SQNR along the graph, distribution of one tensor.

use plotters::{prelude::*, style::text_anchor::HPos};

use super::{
    super::{Histogram, Layer, details::method_name, format},
    Role, Size, draw, mesh, sane,
    scatter::{Point, label_points},
    text_style,
};

/// SQNR of every layer in the order of execution: a line for the whole graph, dots for one layer alone.
pub(in crate::report) fn profile(layers: &[Layer], size: Size) -> String {
    let values = |of: fn(&Layer) -> Option<f64>| -> Vec<(f64, f64)> {
        let finite = |(i, layer)| Some((i as f64 + 1.0, of(layer).filter(|v| sane(*v))?));
        layers.iter().enumerate().filter_map(finite).collect()
    };
    let graphwise = values(|layer| layer.graphwise_sqnr_db);
    let layerwise = values(|layer| layer.layerwise_sqnr_db);
    if graphwise.len() + layerwise.len() < 2 {
        return String::new();
    }
    draw(size, "SQNR of every layer in the order of execution", |root| {
        let all = || graphwise.iter().chain(&layerwise).map(|&(_, db)| db);
        let (low, high) = (all().fold(0.0, f64::min), all().fold(10.0, f64::max));
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(16)
            .margin_top(28)
            .x_label_area_size(44)
            .y_label_area_size(40)
            .build_cartesian_2d(0.5..layers.len() as f64 + 0.5, low..high * 1.08)?;
        mesh(&root, &mut chart, "Layer, in the order of execution", "SQNR (dB)", &|x| format!("{x:.0}"), &|y| {
            format!("{y:.0}")
        })?;
        let dot = |&point: &(f64, f64)| Circle::new(point, 2, Role::Series(1).color().filled());
        chart.draw_series(layerwise.iter().map(dot))?;
        chart.draw_series(LineSeries::new(graphwise.iter().copied(), Role::Series(0).color().stroke_width(2)))?;
        // The layers to look at first: the lowest of the measure that points at a culprit.
        let mut lowest = if layerwise.is_empty() { graphwise.clone() } else { layerwise.clone() };
        lowest.sort_by(|a, b| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0)));
        lowest.truncate(3);
        let named: Vec<Point> = lowest
            .iter()
            .map(|&(x, db)| Point {
                label: format!("{}: {}", format::shorten(&layers[x as usize - 1].node, 24), format::decibels(db)),
                latency_ms: 0.0,
                quality: db,
                interval: None,
                series: 0,
            })
            .collect();
        let pixels: Vec<_> = lowest.iter().map(|at| chart.plotting_area().map_coordinate(at)).collect();
        label_points(&root, &named.iter().collect::<Vec<_>>(), &pixels, Vec::new())
    })
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
        let in_force = layer.amax.map(f64::from);
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
        if let (true, Some(amax)) = (layer.candidates.is_empty(), in_force.filter(|a| a.is_finite())) {
            let x = amax.clamp(0.0, limit);
            chart.draw_series([PathElement::new(
                vec![(x, 0.0), (x, tallest * 1.5)],
                Role::Series(1).color().stroke_width(3),
            )])?;
        }
        Ok(())
    })
}
