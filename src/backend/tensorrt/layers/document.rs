//! The inspector's JSON, a layer at a time: a tree of all of it takes many times the memory of its text.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{EngineLayer, InspectorError};

/// Layers and tensors of an engine, at most.
const MOST_PARTS: usize = 1 << 18;
/// Bytes that tell about one layer, at most.
const MOST_LAYER_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(rename = "Layers", borrow, default)]
    layers: Texts<'a>,
}

/// The texts of a list's entries, of which one more than may be is kept.
#[derive(Default)]
struct Texts<'a>(Vec<&'a RawValue>);

impl<'de: 'a, 'a> Deserialize<'de> for Texts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(OfList)
    }
}

struct OfList;

impl<'de> Visitor<'de> for OfList {
    type Value = Texts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of layers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts<'de>, A::Error> {
        let mut texts = Vec::new();
        while texts.len() <= MOST_PARTS
            && let Some(text) = list.next_element()?
        {
            texts.push(text);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Texts(texts))
    }
}

/// The layers that `json` tells, as they stand there; `op_types` are the operators of the model's nodes.
pub(super) fn read(json: &str, op_types: &BTreeMap<String, String>) -> Result<Vec<EngineLayer>, InspectorError> {
    let Texts(texts) = serde_json::from_str::<Document<'_>>(json)?.layers;
    if texts.is_empty() {
        return Err(InspectorError::NoLayers);
    }
    if texts.iter().all(|text| text.get().starts_with('"')) {
        return Err(InspectorError::NamesOnly);
    }
    let (mut layers, mut parts) = (Vec::new(), 0);
    for text in texts {
        if text.get().len() > MOST_LAYER_BYTES {
            return Err(InspectorError::LargeLayer { number: layers.len() + 1, most: MOST_LAYER_BYTES });
        }
        let layer = EngineLayer::read(&serde_json::from_str::<Value>(text.get())?, op_types);
        parts += 1 + layer.inputs.len() + layer.outputs.len();
        if parts > MOST_PARTS {
            return Err(InspectorError::ManyParts { most: MOST_PARTS });
        }
        layers.push(layer);
    }
    Ok(layers)
}
