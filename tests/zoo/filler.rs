//! Gives the skeletons their seeded weights, bit for bit as `tests/fixtures/zoo/README.md` defines them.

use half::f16;
use trtcalib::{
    onnx::proto::{GraphProto, TensorProto},
    tensor::{ElementType, Tensor, Values},
};

/// SplitMix64, counted up from the FNV-1a hash of a name.
pub fn words(name: &str) -> impl Iterator<Item = u64> {
    let hash = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325, hash);
    (1u64..).map(move |i| {
        let mut z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// The values of the tensor `name` as its doc_string asks.
pub fn drawn(doc: &str, name: &str) -> impl Iterator<Item = f64> {
    let mut parts = doc.strip_prefix("seeded ").unwrap().split(' ');
    let kind = parts.next().unwrap().to_owned();
    let numbers: Vec<f64> = parts.map(|number| number.parse().unwrap()).collect();
    words(name).map(move |word| {
        let unit = (word >> 11) as f64 / (1u64 << 53) as f64;
        match (kind.as_str(), numbers.as_slice()) {
            ("normal", [mean, std]) => {
                let lanes: u64 = [0, 16, 32, 48].map(|shift| (word >> shift) & 0xFFFF).iter().sum();
                mean + (lanes as f64 - 131_070.0) / (65536.0 * (4.0f64 / 12.0).sqrt()) * std
            }
            ("uniform", [low, high]) => low + unit * (high - low),
            ("choice", [first, second, share]) => *(if unit < *share { first } else { second }),
            _ => panic!("`{kind}` of `{name}` is not a way to draw values"),
        }
    })
}

/// Fills every stripped tensor of a graph and of the graphs within it.
pub fn fill(graph: &mut GraphProto) {
    graph.initializer.iter_mut().for_each(fill_tensor);
    for node in &mut graph.node {
        if node.op_type() == "Constant" {
            node.attribute.iter_mut().filter_map(|attribute| attribute.t.as_deref_mut()).for_each(fill_tensor);
        }
        node.subgraphs_mut().for_each(fill);
    }
}

fn fill_tensor(tensor: &mut TensorProto) {
    let Some(doc) = tensor.doc_string.take_if(|doc| doc.starts_with("seeded ")) else { return };
    let shape = tensor.shape().unwrap();
    let values = drawn(&doc, tensor.name()).take(shape.iter().product());
    let values = match tensor.element_type().unwrap() {
        ElementType::F32 => Values::F32(values.map(|x| x as f32).collect()),
        ElementType::F64 => Values::F64(values.collect()),
        ElementType::F16 => Values::F16(values.map(f16::from_f64).collect()),
        other => panic!("`{}` holds {other}, which is never stripped", tensor.name()),
    };
    *tensor = TensorProto::from_tensor(tensor.name(), Tensor::new(shape, values).unwrap());
}

#[test]
fn the_numbers_are_those_of_the_readme() {
    assert_eq!(words("weight").take(2).collect::<Vec<_>>(), [0x0dcb_1fdc_b8fa_a6c0, 0x608f_97f2_a6af_6314]);
    let rows: [(&str, [f64; 3]); 3] = [
        ("seeded normal 0.5 0.25", [0.306_136_693_020_330_7, 0.503_845_419_197_101_9, 1.146_248_464_345_948_5]),
        ("seeded uniform 1 3", [1.107_761_366_629_309_1, 1.754_382_127_267_827, 2.658_197_228_781_531]),
        ("seeded choice -100 0 0.25", [-100.0, 0.0, 0.0]),
    ];
    for (doc, expected) in rows {
        assert_eq!(drawn(doc, "weight").take(3).collect::<Vec<_>>(), expected, "{doc}");
    }
}
