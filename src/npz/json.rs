//! Arrays within JSON, as Polygraphy writes them: `.npy` files in base64. Whatever else stands there is passed over without
//! being kept, for a tree of any JSON takes many times the memory of its text.

use std::{fmt, marker::PhantomData};

use base64::Engine;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::parse_npy;
use crate::tensor::Tensor;

/// What stands in the place of an array, and why it is none.
pub struct Encoded(pub Result<Tensor, String>);

impl Encoded {
    fn none() -> Self {
        Self(Err("holds no base64 `array`".to_owned()))
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfArray)
    }
}

struct OfArray;

impl<'de> Visitor<'de> for OfArray {
    type Value = Encoded;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array in base64")
    }

    /// The text is in `array`, by itself or where Polygraphy could have put the path of a file (`values`).
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Encoded, A::Error> {
        let mut found = Encoded::none();
        while let Some(key) = map.next_key::<String>()? {
            if key == "array" || key == "values" {
                found = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_str<E>(self, text: &str) -> Result<Encoded, E> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| error.to_string());
        Ok(Encoded(bytes.and_then(|bytes| parse_npy(&bytes))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Encoded, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Encoded::none())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Encoded, E> {
        Ok(Encoded::none())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Encoded, E> {
        Ok(Encoded::none())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Encoded, E> {
        Ok(Encoded::none())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Encoded, E> {
        Ok(Encoded::none())
    }

    fn visit_unit<E>(self) -> Result<Encoded, E> {
        Ok(Encoded::none())
    }
}

/// A list, by itself or as the `lst` of an object; nothing where the object has none.
pub struct Listed<T>(pub Option<Vec<T>>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Listed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OfList(PhantomData))
    }
}

struct OfList<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for OfList<T> {
    type Value = Listed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Listed<T>, A::Error> {
        let mut list = Vec::new();
        let mut next =
            |index: usize| elements.next_element().map_err(|error| A::Error::custom(format!("entry {index}: {error}")));
        while let Some(element) = next(list.len())? {
            list.push(element);
        }
        Ok(Listed(Some(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Listed<T>, A::Error> {
        let mut list = None;
        while let Some(key) = map.next_key::<String>()? {
            if key == "lst" {
                Listed(list) = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Listed(list))
    }
}
