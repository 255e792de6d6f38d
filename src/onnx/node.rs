//! Reading and making nodes and their attributes.

use bytes::Bytes;

use super::proto::{AttributeProto, AttributeType, GraphProto, NodeProto, TensorProto};

impl NodeProto {
    /// A node of the default domain without attributes.
    pub fn new(op_type: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        Self {
            op_type: Some(op_type.to_owned()),
            name: Some(name.to_owned()),
            input: inputs.iter().map(|&tensor| tensor.to_owned()).collect(),
            output: outputs.iter().map(|&tensor| tensor.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The node with one more attribute.
    #[must_use]
    pub fn with(mut self, attribute: AttributeProto) -> Self {
        self.attribute.push(attribute);
        self
    }

    /// The name, or what stands for it when the node at `index` has none.
    pub fn label(&self, index: usize) -> String {
        if self.name().is_empty() { format!("{}_{index}", self.op_type()) } else { self.name().to_owned() }
    }

    /// True for an operator of the default (`ai.onnx`) domain.
    pub fn is_standard(&self) -> bool {
        is_default_domain(self.domain())
    }

    /// The attribute `name`.
    pub fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|attribute| attribute.name() == name)
    }

    /// An integer attribute.
    pub fn attr_i(&self, name: &str) -> Option<i64> {
        self.attr(name)?.i
    }

    /// A list of integers; `None` when the attribute is absent.
    pub fn attr_ints(&self, name: &str) -> Option<&[i64]> {
        Some(&self.attr(name)?.ints)
    }

    /// A number.
    pub fn attr_f(&self, name: &str) -> Option<f32> {
        self.attr(name)?.f
    }

    /// A string; `None` also when it is not UTF-8.
    pub fn attr_s(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.attr(name)?.s.as_ref()?).ok()
    }

    /// A tensor.
    pub fn attr_t(&self, name: &str) -> Option<&TensorProto> {
        self.attr(name)?.t.as_deref()
    }

    /// The graphs among the attributes (`then_branch`, `body`, ...).
    pub fn subgraphs(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute.iter().flat_map(|attribute| attribute.g.as_deref().into_iter().chain(&attribute.graphs))
    }

    /// The graphs among the attributes, to change.
    pub fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut GraphProto> {
        self.attribute
            .iter_mut()
            .flat_map(|attribute| attribute.g.as_deref_mut().into_iter().chain(&mut attribute.graphs))
    }
}

impl AttributeProto {
    fn typed(name: &str, kind: AttributeType) -> Self {
        Self { name: Some(name.to_owned()), r#type: Some(kind as i32), ..Self::default() }
    }

    /// An integer.
    pub fn int(name: &str, value: i64) -> Self {
        Self { i: Some(value), ..Self::typed(name, AttributeType::Int) }
    }

    /// A list of integers.
    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self { ints: values.to_vec(), ..Self::typed(name, AttributeType::Ints) }
    }

    /// A number.
    pub fn float(name: &str, value: f32) -> Self {
        Self { f: Some(value), ..Self::typed(name, AttributeType::Float) }
    }

    /// A string.
    pub fn string(name: &str, value: &str) -> Self {
        Self { s: Some(Bytes::copy_from_slice(value.as_bytes())), ..Self::typed(name, AttributeType::String) }
    }

    /// A tensor.
    pub fn tensor(name: &str, value: TensorProto) -> Self {
        Self { t: Some(Box::new(value)), ..Self::typed(name, AttributeType::Tensor) }
    }

    /// A graph.
    pub fn graph(name: &str, value: GraphProto) -> Self {
        Self { g: Some(Box::new(value)), ..Self::typed(name, AttributeType::Graph) }
    }
}

/// True for the two names of the standard operators' domain.
pub(crate) fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_name_and_kind() {
        let node = NodeProto::new("Conv", "c", &["x", "w"], &["y"])
            .with(AttributeProto::int("group", 3))
            .with(AttributeProto::ints("pads", &[1, 1, 0, 0]))
            .with(AttributeProto::float("alpha", 0.5))
            .with(AttributeProto::string("auto_pad", "SAME_UPPER"));
        assert_eq!(node.attr_i("group"), Some(3));
        assert_eq!(node.attr_ints("pads"), Some(&[1, 1, 0, 0][..]));
        assert_eq!(node.attr_f("alpha"), Some(0.5));
        assert_eq!(node.attr_s("auto_pad"), Some("SAME_UPPER"));
        assert_eq!((node.attr_i("alpha"), node.attr_i("nothing")), (None, None));
        assert_eq!(node.label(7), "c");
        assert_eq!(NodeProto { name: None, ..node }.label(7), "Conv_7");
    }
}
