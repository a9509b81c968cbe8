//! BERT's encoder (<https://arxiv.org/abs/1810.04805>), which MiniLM, BGE, E5 and many more are: its configuration, its
//! weights and its forward pass, in the operations of `ops.rs`.
//!
//! In: token ids of several items. Out: a vector for each token, flat. Everything is taken from `config.json`. The
//! weights are burn tensors: a clone shares them, and replicas hold one copy.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use rayon::prelude::*;
use serde::Deserialize;

use super::Tokens;
use super::burn::LoadError;
use super::device::Precision;
use super::ops::{Compute, LayerNorm, Linear};
use super::weights::Weights;

/// The part of `config.json` that the encoder is built from.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct BertConfig {
    /// Numbers in a token's vector.
    pub(super) hidden_size: usize,
    /// Tokens with a position of their own.
    pub(super) max_position_embeddings: usize,
    /// Tokens known.
    pub(super) vocab_size: usize,
    /// Token types known.
    pub(super) type_vocab_size: usize,
    intermediate_size: usize,
    /// Heads of attention.
    pub(super) num_attention_heads: usize,
    num_hidden_layers: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f32,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default = "default_positions")]
    position_embedding_type: String,
}

fn default_eps() -> f32 {
    1e-12
}

fn default_activation() -> String {
    "gelu".to_owned()
}

fn default_positions() -> String {
    "absolute".to_owned()
}

impl BertConfig {
    /// What in this configuration can't be built, as a fragment.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.hidden_act != "gelu" {
            return Err(format!("hidden_act {:?} is not supported; \"gelu\" is", self.hidden_act));
        }
        if self.position_embedding_type != "absolute" {
            let found = &self.position_embedding_type;
            return Err(format!("position_embedding_type {found:?} is not supported; \"absolute\" is"));
        }
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("vocab_size", self.vocab_size),
            ("type_vocab_size", self.type_vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
        ];
        // Products of two such sizes are then far from overflowing.
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..=1 << 24).contains(size)) {
            return Err(format!("{name} is {size}; it must be between 1 and 16777216"));
        }
        if self.num_hidden_layers > 1024 {
            return Err(format!("num_hidden_layers is {}; at most 1024 are supported", self.num_hidden_layers));
        }
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (size, heads) = (self.hidden_size, self.num_attention_heads);
            return Err(format!("hidden_size {size} is not a multiple of num_attention_heads {heads}"));
        }
        Ok(())
    }

    /// Floating-point operations for one token of a text of so many, those of its products.
    pub(super) fn operations_a_token(&self, length: usize) -> f64 {
        let (hidden, wide) = (self.hidden_size as f64, self.intermediate_size as f64);
        let linear = 2.0 * (4.0 * hidden * hidden + 2.0 * hidden * wide);
        self.num_hidden_layers as f64 * (linear + 4.0 * length as f64 * hidden)
    }
}

pub(super) struct Layer {
    /// Queries, keys and values of all heads in one product.
    pub(super) qkv: Linear,
    pub(super) attention_out: Linear,
    pub(super) attention_norm: LayerNorm,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) norm: LayerNorm,
}

/// The encoder.
pub(super) struct Bert {
    /// What it was built from.
    pub(super) config: BertConfig,
    pub(super) words: Tensor<2>,
    pub(super) positions: Tensor<2>,
    pub(super) types: Tensor<2>,
    pub(super) norm: LayerNorm,
    pub(super) layers: Vec<Layer>,
}

impl Bert {
    /// Builds the encoder from its weights, layers in parallel on the current rayon pool.
    /// Matrices and tables become numbers of `precision`; biases and norms stay in 32 bits.
    pub(super) fn load(
        config: BertConfig,
        weights: &Weights<'_>,
        device: &Device,
        precision: Precision,
    ) -> Result<Self, LoadError> {
        let prefix = if weights.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let loader = Loader { weights, device, float: precision.into(), eps: config.layer_norm_eps };
        let hidden = config.hidden_size;
        let table =
            |name: &str, rows: usize| loader.table(&format!("{prefix}embeddings.{name}.weight"), [rows, hidden]);
        let (tables, layers) = rayon::join(
            || {
                Ok::<_, LoadError>((
                    table("word_embeddings", config.vocab_size)?,
                    table("position_embeddings", config.max_position_embeddings)?,
                    table("token_type_embeddings", config.type_vocab_size)?,
                    loader.norm(&format!("{prefix}embeddings.LayerNorm"), hidden)?,
                ))
            },
            || {
                let layers = (0..config.num_hidden_layers).into_par_iter();
                layers
                    .map(|i| Layer::load(&loader, &format!("{prefix}encoder.layer.{i}"), &config))
                    .collect::<Result<Vec<_>, _>>()
            },
        );
        let (words, positions, types, norm) = tables?;
        Ok(Self { words, positions, types, norm, layers: layers?, config })
    }

    /// A vector for each token of all items, one item after the other; on the CPU, with so many threads.
    ///
    /// The ids must be inside the vocabulary, and no item longer than there are positions.
    pub(super) fn forward(&self, items: &[&Tokens], threads: usize) -> Tensor<2> {
        let compute = Compute { threads };
        let ranges = ranges(items);
        let words: Vec<u32> = items.iter().flat_map(|item| item.ids.iter().copied()).collect();
        let types: Vec<u32> = items.iter().flat_map(|item| item.type_ids.iter().copied()).collect();
        let positions: Vec<u32> = items.iter().flat_map(|item| (0..).take(item.ids.len())).collect();
        let tables = [&self.words, &self.positions, &self.types];
        let embedded = compute.embed(tables, [&words, &positions, &types], &self.norm);
        self.layers.iter().fold(embedded, |hidden, layer| layer.forward(hidden, &ranges, &self.config, compute))
    }
}

/// The rows of each item, when items follow each other.
pub(super) fn ranges(items: &[&Tokens]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |item: &&Tokens| {
        let start = end;
        end += item.ids.len();
        start..end
    };
    items.iter().map(next).collect()
}

impl Layer {
    fn load(loader: &Loader<'_, '_>, name: &str, config: &BertConfig) -> Result<Self, LoadError> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let qkv = ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"));
        Ok(Self {
            qkv: loader.linear(&qkv, hidden, hidden)?,
            attention_out: loader.linear(&[format!("{name}.attention.output.dense")], hidden, hidden)?,
            attention_norm: loader.norm(&format!("{name}.attention.output.LayerNorm"), hidden)?,
            up: loader.linear(&[format!("{name}.intermediate.dense")], hidden, wide)?,
            down: loader.linear(&[format!("{name}.output.dense")], wide, hidden)?,
            norm: loader.norm(&format!("{name}.output.LayerNorm"), hidden)?,
        })
    }

    fn forward(&self, hidden: Tensor<2>, items: &[Range<usize>], config: &BertConfig, compute: Compute) -> Tensor<2> {
        let qkv = compute.linear(&hidden, &self.qkv);
        let attended = compute.attention(qkv, items, config.num_attention_heads);
        let hidden = compute.linear_add_norm(&attended, &self.attention_out, hidden, &self.attention_norm);
        let wide = compute.linear_gelu(&hidden, &self.up);
        compute.linear_add_norm(&wide, &self.down, hidden, &self.norm)
    }
}

/// Makes tensors of named weights.
struct Loader<'a, 'b> {
    weights: &'a Weights<'b>,
    device: &'a Device,
    float: FloatDType,
    eps: f32,
}

impl Loader<'_, '_> {
    fn table(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>, LoadError> {
        let table = self.weights.floats(name, &shape)?;
        Ok(self.matrix(table, shape))
    }

    fn matrix(&self, values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::<2>::from_data(TensorData::new(values, shape), self.device).cast(self.float)
    }

    fn vector(&self, values: Vec<f32>) -> Tensor<1> {
        let length = values.len();
        Tensor::from_data(TensorData::new(values, [length]), self.device)
    }

    /// One layer, or several with the same inputs side by side.
    fn linear(&self, names: &[String], inputs: usize, outputs: usize) -> Result<Linear, LoadError> {
        let weights: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let weight = self.weights.transposed(&weights, inputs, outputs)?;
        let shape = [inputs, outputs * names.len()];
        let mut bias = Vec::with_capacity(shape[1]);
        for name in names {
            bias.extend(self.weights.floats(&format!("{name}.bias"), &[outputs])?);
        }
        Ok(Linear { weight: self.matrix(weight, shape), bias: self.vector(bias) })
    }

    /// Also under the names `gamma` and `beta` of checkpoints converted from TensorFlow.
    fn norm(&self, name: &str, width: usize) -> Result<LayerNorm, LoadError> {
        let old = self.weights.has(&format!("{name}.gamma"));
        let [gamma, beta] = if old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let read =
            |part: &str| self.weights.floats(&format!("{name}.{part}"), &[width]).map(|values| self.vector(values));
        Ok(LayerNorm { gamma: read(gamma)?, beta: read(beta)?, eps: self.eps })
    }
}
