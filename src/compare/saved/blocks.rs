//! Outputs whose shapes change from sample to sample: blocks of samples that follow each other and have one shape. In an
//! archive, those of block n are called `0000000n/NAME`, and the entry `blocks.json` holds their number.

use std::io;

use super::SavedError;
use crate::{
    npz::{Archive, Array, write_npz},
    tensor::{Tensor, TensorMap},
};

/// Entry of the archive with the number of its blocks, where these are several.
pub(super) const BLOCKS: &str = "blocks.json";

/// Outputs of samples that follow each other, all of one shape.
#[derive(Debug)]
pub(super) struct Block {
    /// Samples before it.
    pub first: usize,
    pub arrays: Vec<(String, Array)>,
}

impl Block {
    /// All of it.
    pub fn whole(&self) -> io::Result<TensorMap> {
        let whole = |(name, array): &(String, Array)| {
            let rows = array.shape().first().copied().unwrap_or(0);
            Ok((name.clone(), array.rows(0..rows)?))
        };
        self.arrays.iter().map(whole).collect()
    }
}

/// What an output of a block is called in an archive.
pub(super) fn name_in(block: usize, output: &str) -> String {
    format!("{block:08}/{output}")
}

/// The arrays of an archive by its `count` blocks, which all have the same outputs.
pub(super) fn by_block(arrays: Vec<(String, Array)>, count: usize) -> Result<Vec<Vec<(String, Array)>>, String> {
    let mut blocks: Vec<Vec<(String, Array)>> = Vec::new();
    for (name, array) in arrays {
        let (block, output) = name.split_once('/').ok_or_else(|| format!("`{name}` belongs to no block"))?;
        match block.parse::<usize>() {
            Ok(block) if block + 1 == blocks.len() => blocks[block].push((output.to_owned(), array)),
            Ok(block) if block == blocks.len() => blocks.push(vec![(output.to_owned(), array)]),
            _ => return Err(format!("`{name}` belongs to no block that could follow those before")),
        }
    }
    let outputs = |block: &[(String, Array)]| -> Vec<_> {
        block.iter().map(|(name, array)| (name.clone(), array.element_type())).collect()
    };
    let odd = blocks.iter().position(|block| outputs(block) != outputs(&blocks[0]));
    match odd {
        Some(odd) => Err(format!("block {odd} has other outputs than the first")),
        None if blocks.len() == count => Ok(blocks),
        None => Err(format!("{BLOCKS} says that there are {count} blocks, and there are {}", blocks.len())),
    }
}

/// The same of what another program wrote, in a file that is gone when nobody reads from it any more.
pub(super) fn of_tensors(blocks: &[TensorMap]) -> Result<Vec<Vec<(String, Array)>>, SavedError> {
    let archive = tempfile::NamedTempFile::new()?;
    let numbered = blocks.iter().enumerate().flat_map(|(block, outputs)| {
        outputs.iter().map(move |(name, tensor): (&String, &Tensor)| (name_in(block, name), tensor.clone()))
    });
    write_npz(archive.path(), &numbered.collect())?;
    by_block(Archive::open(archive.path())?.arrays, blocks.len()).map_err(|reason| io::Error::other(reason).into())
}
