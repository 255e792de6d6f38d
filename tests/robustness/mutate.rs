//! Seeded damage: flipped bits, cuts, lies about lengths, fields swapped, text values replaced.

use trtcalib::stats::SplitMix64;

/// Integers that lengths and extents like to be wrong by.
const EXTREMES: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 0x7fff_ffff_ffff_ffff];

/// Values that text formats like to stumble over.
const WORDS: [&str; 16] = [
    "-1",
    "0",
    "1e999",
    "-1e308",
    "NaN",
    "4294967296",
    "18446744073709551616",
    "null",
    "\"\"",
    "[]",
    "{}",
    "true",
    "\u{0}",
    "\u{202e}",
    "../../x",
    "<script>",
];

/// A damaged copy of `bytes`.
pub fn damage(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        let end = (at + random.below(64)).min(bytes.len());
        match random.below(10) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                drop(bytes.splice(to..to, piece));
            }
            // A lie about a length: fixed-width, either byte order, or a varint.
            3 => overwrite(&mut bytes, at, &EXTREMES[random.below(8)].to_le_bytes()[..1 << random.below(4)]),
            4 => overwrite(&mut bytes, at, &(EXTREMES[random.below(8)] as u32).to_be_bytes()),
            5 => overwrite(&mut bytes, at, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
            6 => {
                let byte = random.next_u64() as u8;
                bytes.get_mut(at).into_iter().for_each(|place| *place = byte);
            }
            _ => {
                let bit = 1 << random.below(8);
                bytes.get_mut(at).into_iter().for_each(|place| *place ^= bit);
            }
        }
    }
    bytes
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(with) {
        *place = *byte;
    }
}

/// A copy of a text in which values were replaced, lines swapped or brackets nested; often still well-formed.
pub fn damage_text(bytes: &[u8], random: &mut SplitMix64) -> Vec<u8> {
    if random.below(3) == 0 {
        return damage(bytes, random);
    }
    let mut text = bytes.to_vec();
    for _ in 0..=random.below(2) {
        let is_value = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._\"".contains(&byte);
        let at = random.below(text.len());
        let Some(start) = (at..text.len()).find(|&i| is_value(text[i])) else { continue };
        let end = (start..text.len()).find(|&i| !is_value(text[i])).unwrap_or(text.len());
        match random.below(8) {
            0 => {
                let depth = 1 << random.below(18);
                drop(text.splice(start..end, b"[".repeat(depth)));
            }
            1 => drop(text.splice(start..end, b"9".repeat(1 << random.below(12)))),
            2 => {
                let mut lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
                let (a, b) = (random.below(lines.len()), random.below(lines.len()));
                lines.swap(a, b);
                text = lines.join(&b'\n');
            }
            _ => drop(text.splice(start..end, WORDS[random.below(WORDS.len())].bytes())),
        }
    }
    text
}

/// A field of a protobuf message.
#[derive(Clone)]
struct Field {
    number: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed(u8, Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

/// A copy of a protobuf message with fields swapped, repeated, removed, renumbered or given extreme values, at any
/// depth. `None` when the bytes are not message.
pub fn damage_protobuf(bytes: &[u8], random: &mut SplitMix64) -> Option<Vec<u8>> {
    let mut fields = parse(bytes, 0)?;
    for _ in 0..=random.below(3) {
        change(&mut fields, random);
    }
    let mut out = Vec::new();
    encode(&fields, random, &mut out);
    Some(out)
}

fn change(fields: &mut Vec<Field>, random: &mut SplitMix64) {
    if fields.is_empty() {
        return;
    }
    let at = random.below(fields.len());
    let other = random.below(fields.len());
    if let Value::Message(inner) = &mut fields[at].value
        && random.below(6) > 0
    {
        return change(inner, random);
    }
    match random.below(7) {
        0 => fields.swap(at, other),
        1 => fields.insert(other, fields[at].clone()),
        2 => drop(fields.remove(at)),
        3 => fields[at].number = 1 + random.below(25) as u64,
        4 => fields[at].value = fields[other].value.clone(),
        5 => {
            let (number, inner) = (fields[at].number, fields.clone());
            fields[at] = Field { number, value: Value::Message(inner) };
        }
        _ => match &mut fields[at].value {
            Value::Varint(value) => {
                let extreme = EXTREMES[random.below(8)];
                *value = if random.below(2) == 0 { extreme } else { extreme.wrapping_neg() };
            }
            Value::Bytes(bytes) | Value::Fixed(_, bytes) => *bytes = damage(bytes, random),
            Value::Message(inner) => inner.clear(),
        },
    }
}

fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut bytes)?),
            wire @ (1 | 5) => Value::Fixed(wire as u8, take(&mut bytes, if wire == 1 { 8 } else { 4 })?),
            2 => {
                let length = varint(&mut bytes)? as usize;
                let content = take(&mut bytes, length)?;
                // A name may look like a message; taking it for one is damage of another kind.
                let message = (depth < 8 && content.len() > 1).then(|| parse(&content, depth + 1)).flatten();
                message.map_or(Value::Bytes(content), Value::Message)
            }
            _ => return None,
        };
        fields.push(Field { number: key >> 3, value });
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take(bytes: &mut &[u8], count: usize) -> Option<Vec<u8>> {
    let (head, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(head.to_vec())
}

fn encode(fields: &[Field], random: &mut SplitMix64, out: &mut Vec<u8>) {
    let put = |out: &mut Vec<u8>, mut value: u64| {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    };
    for field in fields {
        let (wire, content) = match &field.value {
            Value::Varint(value) => {
                put(out, field.number << 3);
                put(out, *value);
                continue;
            }
            Value::Fixed(wire, content) => (u64::from(*wire), content.clone()),
            Value::Bytes(content) => (2, content.clone()),
            Value::Message(inner) => {
                let mut content = Vec::new();
                encode(inner, random, &mut content);
                (2, content)
            }
        };
        put(out, field.number << 3 | wire);
        if wire == 2 {
            // Now and then the length is a lie.
            let lie = random.below(2000) == 0;
            put(out, if lie { EXTREMES[random.below(8)] } else { content.len() as u64 });
        }
        out.extend(content);
    }
}
