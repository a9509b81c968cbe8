//! A model's weights from safetensors files: one, or the shards of an index. No pickle, ever.
//!
//! In: the bytes of the files. Out: named tensors as `f32`, checked for shape and for numbers that are none. Offsets and
//! sizes are the safetensors crate's to check; nothing here trusts a header.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use burn::tensor::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::burn::LoadError;
use crate::assets::{AssetsError, ModelDirectory};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The bytes of a model's weight files.
pub(super) struct WeightFiles {
    files: Vec<(PathBuf, Vec<u8>)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl WeightFiles {
    /// Reads `model.safetensors`, else the shards that `model.safetensors.index.json` names.
    pub(super) fn read(directory: &ModelDirectory) -> Result<Self, LoadError> {
        let names = if directory.has(SINGLE) || !directory.has(INDEX) {
            BTreeSet::from([SINGLE.to_owned()])
        } else {
            let index = directory.read(INDEX, "")?;
            let index: Index = serde_json::from_slice(&index).map_err(|error| malformed(directory, INDEX, error))?;
            index.weight_map.into_values().collect()
        };
        let read = |name: String| {
            let bytes = directory.read(&name, missing_hint(directory))?;
            Ok((directory.path_of(&name), bytes))
        };
        Ok(Self { files: names.into_iter().map(read).collect::<Result<_, AssetsError>>()? })
    }

    /// The tensors in these files.
    pub(super) fn parse(&self) -> Result<Weights<'_>, LoadError> {
        let mut shards = Vec::with_capacity(self.files.len());
        for (path, bytes) in &self.files {
            let tensors = SafeTensors::deserialize(bytes).map_err(|error| LoadError::Malformed {
                path: path.clone(),
                what: format!("no complete safetensors file ({} bytes): {error}; copy it again", bytes.len()),
            })?;
            shards.push((path.clone(), tensors));
        }
        Ok(Weights { shards })
    }
}

fn missing_hint(directory: &ModelDirectory) -> &'static str {
    if directory.has("pytorch_model.bin") {
        "pytorch_model.bin is a pickle, which is never read: convert the weights to safetensors"
    } else {
        "it holds the weights"
    }
}

fn malformed(directory: &ModelDirectory, name: &str, error: serde_json::Error) -> LoadError {
    LoadError::Malformed { path: directory.path_of(name), what: error.to_string() }
}

/// Tensors by name.
pub(super) struct Weights<'a> {
    shards: Vec<(PathBuf, SafeTensors<'a>)>,
}

impl Weights<'_> {
    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.shards.iter().any(|(_, tensors)| tensors.tensor(name).is_ok())
    }

    /// The numbers of a tensor that must have this shape, row by row.
    pub(super) fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let found = self.shards.iter().find_map(|(path, tensors)| Some((path, tensors.tensor(name).ok()?)));
        let Some((path, view)) = found else {
            let path = self.shards.first().map(|(path, _)| path.clone()).unwrap_or_default();
            return Err(LoadError::Malformed { path, what: format!("no tensor named {name}") });
        };
        let fail = |what: String| LoadError::Malformed { path: path.clone(), what: format!("tensor {name}: {what}") };
        if view.shape() != shape {
            return Err(fail(format!("shape {:?}, config.json asks for {shape:?}", view.shape())));
        }
        let floats = match view.dtype() {
            Dtype::F32 => numbers(view.data(), f32::from_le_bytes),
            Dtype::F16 => numbers(view.data(), |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => numbers(view.data(), |bytes| bf16::from_le_bytes(bytes).to_f32()),
            other => return Err(fail(format!("numbers of type {other:?}; F32, F16 and BF16 are read"))),
        };
        // A sum of zeros times the numbers is NaN as soon as one of them is infinite or NaN, and needs no branch.
        if floats.iter().map(|value| value * 0.0).sum::<f32>() != 0.0 {
            return Err(fail("it holds infinite numbers or NaN".to_owned()));
        }
        Ok(floats)
    }

    /// A linear layer's weight, stored as `[outputs, inputs]`, given as `[inputs, outputs]`: what matrix products with
    /// rows of inputs read in order. `names` are stacked side by side, each with `outputs` columns.
    pub(super) fn transposed(&self, names: &[String], inputs: usize, outputs: usize) -> Result<Vec<f32>, LoadError> {
        // Read first: once the file is known to hold so many numbers, the sizes can be trusted.
        let stored = names.iter().map(|name| self.floats(name, &[outputs, inputs])).collect::<Result<Vec<_>, _>>()?;
        let mut transposed = vec![0.0; inputs * outputs * names.len()];
        for (place, stored) in stored.iter().enumerate() {
            transpose_into(stored, inputs, &mut transposed, outputs * names.len(), place * outputs);
        }
        Ok(transposed)
    }
}

fn numbers<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
}

/// Writes the transpose of `stored`, whose rows have `inputs` numbers, into the columns from `first_column` on of a
/// matrix `width` wide. Blocks of rows keep both sides in the cache.
fn transpose_into(stored: &[f32], inputs: usize, out: &mut [f32], width: usize, first_column: usize) {
    const BLOCK: usize = 16;
    for (block, rows) in stored.chunks(inputs * BLOCK).enumerate() {
        let column = first_column + block * BLOCK;
        for input in 0..inputs {
            let target = &mut out[input * width + column..];
            for (target, row) in target.iter_mut().zip(rows.chunks_exact(inputs)) {
                *target = row[input];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_moves_every_number() {
        let (outputs, inputs) = (37, 5);
        let stored: Vec<f32> = (0..outputs * inputs).map(|i| i as f32).collect();
        let mut out = vec![-1.0; inputs * 80];
        transpose_into(&stored, inputs, &mut out, 80, 40);
        for input in 0..inputs {
            for column in 0..80 {
                let expected = if (40..77).contains(&column) { stored[(column - 40) * inputs + input] } else { -1.0 };
                assert_eq!(out[input * 80 + column], expected);
            }
        }
    }
}
