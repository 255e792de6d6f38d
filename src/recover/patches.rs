//! What the weights of an operator are multiplied with, row by row, and the second moments of these rows.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{
    RecoverError,
    network::{Window, open_input},
    rounding::{Moments, Slopes, power_of_two, products},
    unit::Runners,
    weights::Layout,
};
use crate::{
    artifact::ContentHash,
    backend::Backend,
    onnx::{
        Model,
        proto::{AttributeProto, GraphProto, ModelProto, NodeProto},
    },
    tensor::{ElementType, Tensor, TensorMap},
};

/// Rows of one operator, about: so many for every column of a row, and at most so many in all.
const ROWS: [usize; 2] = [16, 8192];
/// Up to this width rows are multiplied here; wider ones by the runtime.
const NARROW: usize = 64;

/// Rows of some operator and sample, and their products `AᵀB` with others.
type RowsAndProducts = (Vec<f32>, Vec<f32>);

/// Multiplies rows with each other.
pub(super) struct Patches(Runners);

impl Patches {
    /// Builds the product `AᵀB`.
    pub fn new(backend: &dyn Backend) -> Result<Self, RecoverError> {
        let product = NodeProto::new("Gemm", "moments", &["a", "b"], &["products"]);
        let graph = GraphProto {
            name: Some("moments".to_owned()),
            node: vec![product.with(AttributeProto::int("transA", 1))],
            input: ["a", "b"].map(|name| open_input(name, ElementType::F32, 2)).into(),
            output: vec![open_input("products", ElementType::F32, 2)],
            ..GraphProto::default()
        };
        let mut proto = ModelProto { ir_version: Some(8), graph: Some(graph), ..ModelProto::default() };
        proto.set_opset("", 13);
        let model = Model {
            proto,
            path: None,
            hash: ContentHash::of_bytes(b"moments"),
            external_data: false,
            stands_for: BTreeMap::new(),
        };
        Ok(Self(Runners::new(backend, &model)?))
    }

    /// What the codes of each group of channels follow from, with the errors of the inputs where they are given; `None` for inputs
    /// of another rank than expected and for too few rows.
    pub fn slopes(
        &self,
        inputs: &[Tensor],
        errors: Option<&[Tensor]>,
        window: Option<&Window>,
        weight: &[usize],
        layout: Layout,
    ) -> Result<Option<Vec<Slopes>>, RecoverError> {
        let group = window.map_or(1, |window| window.group);
        let most = (ROWS[0] * layout.columns).min(ROWS[1]).div_ceil(inputs.len().max(1));
        let new = || -> Vec<Moments> { (0..group).map(|_| Moments::new(layout.columns)).collect() };
        let (mut moments, mut of_errors) = (new(), errors.map(|_| new()));
        let rows = |tensors: &[Tensor], index: usize, group: usize| match window {
            Some(window) => patches(&tensors[index], window, weight, group, most, index),
            None => matrix_rows(&tensors[index], layout.columns, most),
        };
        let of = |(index, group): (usize, usize)| -> Result<Option<(f64, Vec<RowsAndProducts>)>, RecoverError> {
            let Some(mut own) = rows(inputs, index, group) else { return Ok(None) };
            // So that no square leaves the range of `f32`; exact.
            let size = power_of_two(own.iter().fold(0.0f32, |largest, value| largest.max(value.abs())).into());
            let resize =
                |rows: &mut [f32]| rows.iter_mut().for_each(|value| *value = (f64::from(*value) / size) as f32);
            resize(&mut own);
            let with = |mut others: Vec<f32>| {
                resize(&mut others);
                let products = self.products(&own, &others, layout.columns)?;
                Ok::<_, RecoverError>((others, products))
            };
            let of_errors = errors.and_then(|errors| rows(errors, index, group)).map(with).transpose()?;
            let products = self.products(&own, &own, layout.columns)?;
            Ok(Some((size, [(own, products)].into_iter().chain(of_errors).collect())))
        };
        // As many at once as there are workers, for products take memory; added in order.
        let jobs: Vec<(usize, usize)> = (0..inputs.len()).flat_map(|i| (0..group).map(move |g| (i, g))).collect();
        let wide = layout.columns > NARROW;
        for jobs in jobs.chunks(if wide { self.0.count() } else { 4096 }) {
            let found = jobs.par_iter().map(|&job| of(job)).collect::<Result<Vec<_>, _>>()?;
            for (&(_, group), found) in jobs.iter().zip(found) {
                let Some((size, found)) = found else { return Ok(None) };
                let into = [Some(&mut moments), of_errors.as_mut()].into_iter().flatten();
                into.zip(found).for_each(|(into, (rows, products))| into[group].add(size, &rows, &products));
            }
        }
        // Far fewer rows than columns say nothing about how errors cancel.
        let enough = moments.iter().all(|moments| 4 * moments.rows >= layout.columns);
        let mut of_errors = of_errors.into_iter().flatten();
        Ok(enough.then(|| moments.into_iter().map(|moments| moments.finish(of_errors.next())).collect()))
    }

    /// `AᵀB` of rows of `width` numbers.
    fn products(&self, a: &[f32], b: &[f32], width: usize) -> Result<Vec<f32>, RecoverError> {
        if width <= NARROW {
            return Ok(products(a, b, width));
        }
        let matrix = |name: &str, rows: &[f32]| {
            Ok::<_, RecoverError>((name.to_owned(), Tensor::from_f32(vec![rows.len() / width, width], rows.to_vec())?))
        };
        let inputs = TensorMap::from([matrix("a", a)?, matrix("b", b)?]);
        Ok(self.0.with(|runner| runner.infer(&inputs))?["products"].to_f32())
    }
}

/// Rows of a matrix product's input, at most `most`, evenly spread.
fn matrix_rows(input: &Tensor, columns: usize, most: usize) -> Option<Vec<f32>> {
    if input.shape().last() != Some(&columns) {
        return None;
    }
    let values = input.to_f32();
    let step = (values.len() / columns.max(1)).div_ceil(most.max(1)).max(1);
    Some(values.chunks_exact(columns).step_by(step).flatten().copied().collect())
}

/// What a convolution multiplies the weights of one group with, at most `most` positions, evenly spread; where they begin
/// differs from sample to sample.
fn patches(
    input: &Tensor,
    window: &Window,
    weight: &[usize],
    group: usize,
    most: usize,
    sample: usize,
) -> Option<Vec<f32>> {
    let (&[batch, channels, height, width], &[_, depth, kernel_h, kernel_w]) = (input.shape(), weight) else {
        return None;
    };
    if channels != depth * window.group {
        return None;
    }
    let view = input.view();
    let values = view.to_f32();
    let out = |extent: usize, axis: usize| extent.div_ceil(window.strides[axis].max(1));
    let (rows, columns) = (out(height, 0), out(width, 1));
    let step = (batch * rows * columns).div_ceil(most.max(1)).max(1);
    let mut found = Vec::new();
    for position in (sample * 7 % step..batch * rows * columns).step_by(step) {
        let (n, y, x) = (position / (rows * columns), position / columns % rows, position % columns);
        for c in 0..depth {
            let plane = (n * channels + group * depth + c) * height * width;
            for i in 0..kernel_h {
                // Wraps around beyond the upper edge, which is then outside as well.
                let row = (y * window.strides[0] + i * window.dilations[0]).wrapping_sub(window.begin[0]);
                for j in 0..kernel_w {
                    let column = (x * window.strides[1] + j * window.dilations[1]).wrapping_sub(window.begin[1]);
                    let inside = row < height && column < width;
                    found.push(if inside { values[plane + row * width + column] } else { 0.0 });
                }
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_what_a_convolution_reads() {
        let input = Tensor::from_f32(vec![1, 2, 2, 2], (1..=8).map(|value| value as f32).collect()).unwrap();
        let window = Window { group: 2, strides: [1, 1], dilations: [1, 1], begin: [1, 1] };
        let found = patches(&input, &window, &[2, 1, 3, 3], 1, 100, 0).unwrap();
        assert_eq!(found.len(), 4 * 9);
        assert_eq!(found[..9], [0.0, 0.0, 0.0, 0.0, 5.0, 6.0, 0.0, 7.0, 8.0]);
        assert_eq!(found[27..], [5.0, 6.0, 0.0, 7.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(patches(&input, &window, &[2, 1, 3, 3], 0, 2, 1).unwrap().len(), 2 * 9);
        assert_eq!(patches(&input, &window, &[2, 2, 3, 3], 0, 2, 1), None);
    }

    #[test]
    fn rows_of_a_product_are_spread() {
        let input = Tensor::from_f32(vec![4, 1, 2], (0..8).map(|value| value as f32).collect()).unwrap();
        assert_eq!(matrix_rows(&input, 2, 2).unwrap(), [0.0, 1.0, 4.0, 5.0]);
        assert_eq!(matrix_rows(&input, 3, 2), None);
    }
}
