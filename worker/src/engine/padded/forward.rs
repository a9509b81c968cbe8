//! The encoder on a padded batch, in burn's own operations.
//!
//! In: a [`Packed`] batch, one upload. Out: a vector for each of its rows, one download; nothing waits for the device in
//! between. Products run in the weights' precision; norms, softmax, GELU and pooling in 32 bits. What is padding has no
//! influence on what is not.

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData, activation};

use super::super::Tokens;
use super::super::bert::{Bert, Layer};
use super::super::ops::{LayerNorm, Linear};
use super::super::pooling::Pooling;
use super::super::shapes::Shape;

/// How the scores of attention are computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attention {
    /// In steps, each a kernel: the scores are written to memory, and the softmax is in 32 bits.
    #[default]
    Steps,
    /// By burn's own operation, which tries fused kernels and steps and keeps the fastest.
    Fused,
}

/// The numbers of a batch as they are sent to the device: for each row its token ids, its type ids and its length.
pub(super) struct Packed {
    numbers: Vec<i32>,
    shape: Shape,
}

impl Packed {
    /// As many items as `shape` has rows, or fewer; none longer than its rows.
    pub(super) fn new(items: &[&Tokens], shape: Shape) -> Self {
        let Shape { rows, length } = shape;
        debug_assert!(items.len() <= rows && items.iter().all(|item| item.ids.len() <= length));
        let mut numbers = vec![0; rows * (2 * length + 1)];
        for (row, numbers) in numbers.chunks_exact_mut(2 * length + 1).enumerate() {
            let (ids, rest) = numbers.split_at_mut(length);
            // A row without an item has one token, so that nothing is divided by zero.
            rest[length] = 1;
            let Some(item) = items.get(row) else { continue };
            let number = |id: u32| i32::try_from(id).expect("ids are within the vocabulary, which an i32 counts");
            ids.iter_mut().zip(&item.ids).for_each(|(to, id)| *to = number(*id));
            rest.iter_mut().zip(&item.type_ids).for_each(|(to, id)| *to = number(*id));
            rest[length] = number(u32::try_from(item.ids.len()).expect("an item has fewer tokens than positions"));
        }
        Self { numbers, shape }
    }
}

/// What a forward pass is made with.
pub(super) struct Forward<'a> {
    pub(super) bert: &'a Bert,
    pub(super) pooling: Pooling,
    pub(super) device: &'a Device,
    pub(super) float: FloatDType,
    pub(super) attention: Attention,
}

impl Forward<'_> {
    /// `[rows, hidden]`, in 32 bits.
    pub(super) fn run(&self, packed: Packed) -> Tensor<2> {
        let Packed { numbers, shape: Shape { rows, length } } = packed;
        let numbers = Tensor::<2, Int>::from_data(TensorData::new(numbers, [rows, 2 * length + 1]), self.device);
        let part = |from: usize, count: usize| numbers.clone().narrow(1, from, count);
        let ids = part(0, length).reshape([rows * length]);
        let types = part(length, length).reshape([rows * length]);
        let lengths = part(2 * length, 1);
        let places = Tensor::<1, Int>::arange(0..length as i64, self.device).unsqueeze::<2>();
        // `[rows, length]`: whether a place is behind its item's end.
        let padding = places.expand([rows, length]).greater_equal(lengths.clone().expand([rows, length]));
        let mut hidden = self.embed(ids, types, rows, length);
        for layer in &self.bert.layers {
            hidden = self.layer(hidden, layer, &padding, rows);
        }
        pool(self.pooling, hidden.cast(FloatDType::F32).reshape([rows, length, self.width()]), padding, lengths)
    }

    fn width(&self) -> usize {
        self.bert.config.hidden_size
    }

    fn embed(&self, ids: Tensor<1, Int>, types: Tensor<1, Int>, rows: usize, length: usize) -> Tensor<2> {
        let width = self.width();
        let of = |table: &Tensor<2>, ids| table.clone().select(0, ids).cast(FloatDType::F32);
        let positions = self.bert.positions.clone().narrow(0, 0, length).cast(FloatDType::F32);
        let positions = positions.unsqueeze::<3>().expand([rows, length, width]);
        let summed =
            (of(&self.bert.words, ids) + of(&self.bert.types, types)).reshape([rows, length, width]) + positions;
        norm(summed.reshape([rows * length, width]), &self.bert.norm).cast(self.float)
    }

    fn layer(&self, hidden: Tensor<2>, layer: &Layer, padding: &Tensor<2, Bool>, rows: usize) -> Tensor<2> {
        let qkv = linear(&hidden, &layer.qkv).cast(self.float);
        let attended = self.attend(qkv, padding, rows);
        let hidden = self.add_norm(linear(&attended, &layer.attention_out), hidden, &layer.attention_norm);
        let wide = activation::gelu(linear(&hidden, &layer.up)).cast(self.float);
        self.add_norm(linear(&wide, &layer.down), hidden, &layer.norm)
    }

    fn add_norm(&self, x: Tensor<2>, residual: Tensor<2>, layer: &LayerNorm) -> Tensor<2> {
        norm(x + residual.cast(FloatDType::F32), layer).cast(self.float)
    }

    /// Scaled dot-product attention of each row's tokens to each other; `qkv` is `[rows · length, 3 · hidden]`.
    fn attend(&self, qkv: Tensor<2>, padding: &Tensor<2, Bool>, rows: usize) -> Tensor<2> {
        let (width, heads) = (self.width(), self.bert.config.num_attention_heads);
        let (length, size) = (qkv.dims()[0] / rows, width / heads);
        let part =
            |i: usize| qkv.clone().narrow(1, i * width, width).reshape([rows, length, heads, size]).swap_dims(1, 2);
        let [query, key, value] = [0, 1, 2].map(part);
        let masked = padding.clone().reshape([rows, 1, 1, length]).expand([rows, heads, length, length]);
        let attended = match self.attention {
            Attention::Fused => attention(query, key, value, Some(masked), None, AttentionModuleOptions::default()),
            Attention::Steps => {
                let scores = query.matmul(key.swap_dims(2, 3)).cast(FloatDType::F32) / (size as f32).sqrt();
                activation::softmax(scores.mask_fill(masked, f32::MIN), 3).cast(self.float).matmul(value)
            }
        };
        attended.swap_dims(1, 2).reshape([rows * length, width])
    }
}

/// `x · weight + bias`, in 32 bits from the product on.
fn linear(x: &Tensor<2>, layer: &Linear) -> Tensor<2> {
    x.clone().matmul(layer.weight.clone()).cast(FloatDType::F32) + layer.bias.clone().unsqueeze()
}

fn norm(x: Tensor<2>, layer: &LayerNorm) -> Tensor<2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    centred / (variance + layer.eps).sqrt() * layer.gamma.clone().unsqueeze() + layer.beta.clone().unsqueeze()
}

/// One vector a row, of its tokens that are no padding.
fn pool(pooling: Pooling, hidden: Tensor<3>, padding: Tensor<2, Bool>, lengths: Tensor<2, Int>) -> Tensor<2> {
    let [rows, _, width] = hidden.dims();
    let padding = padding.unsqueeze_dim::<3>(2).expand(hidden.dims());
    let filled = |hidden: Tensor<3>, value: f32| hidden.mask_fill(padding.clone(), value);
    match pooling {
        Pooling::Cls => hidden.narrow(1, 0, 1).reshape([rows, width]),
        // A number that is none would be passed over, but not in a sum.
        Pooling::Max => {
            let nothing = filled(hidden.clone(), 0.0).sum_dim(1) * 0.0;
            (filled(hidden, f32::MIN).max_dim(1) + nothing).reshape([rows, width])
        }
        Pooling::Mean => {
            let summed = filled(hidden, 0.0).sum_dim(1).reshape([rows, width]);
            summed / lengths.float().cast(FloatDType::F32).expand([rows, width])
        }
    }
}
