//! The few operations that a transformer encoder is made of, with kernels of our own on the memory of CPU tensors.
//!
//! In and out: flat tensors with a row for each token of a batch, items one after the other, without padding. They give
//! the same numbers as burn's own operations in `padded/forward.rs` (tested), read weights in place, write into fresh or
//! uniquely owned buffers, and use as many threads of the current rayon pool as they are told.

use std::ops::Range;

use burn::backend::flex::{FlexTensor, Layout};
use burn::backend::{DType, Flex};
use burn::tensor::{Bytes, Shape, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use super::kernels;

/// Query rows that share one block of attention scores: at 512 tokens a block takes 128 KiB.
const QUERY_ROWS: usize = 64;

/// Numbers below which a row-wise kernel stays on one thread: handing out work costs more.
const NUMBERS_PER_THREAD: usize = 16 * 1024;

/// A linear layer, `x · weight + bias`.
pub(super) struct Linear {
    /// `[inputs, outputs]`, contiguous.
    pub(super) weight: Tensor<2>,
    /// `[outputs]`.
    pub(super) bias: Tensor<1>,
}

/// A layer normalisation.
pub(super) struct LayerNorm {
    /// The factors.
    pub(super) gamma: Tensor<1>,
    /// The offsets.
    pub(super) beta: Tensor<1>,
    /// Added to the variance.
    pub(super) eps: f32,
}

/// Runs the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Compute {
    /// How many threads share one; 1 stays on the calling thread.
    pub(super) threads: usize,
}

impl Compute {
    /// `x · weight + bias`.
    pub(super) fn linear(self, x: &Tensor<2>, layer: &Linear) -> Tensor<2> {
        let mut out = product(x, &layer.weight, self.threads);
        by_rows(&mut out, &layer.bias, self.threads, |rows, _, bias| kernels::add_bias(rows, bias));
        into_tensor(out, layer.bias.dims()[0])
    }

    /// The exact GELU of `x · weight + bias`.
    pub(super) fn linear_gelu(self, x: &Tensor<2>, layer: &Linear) -> Tensor<2> {
        let mut out = product(x, &layer.weight, self.threads);
        by_rows(&mut out, &layer.bias, self.threads, |rows, _, bias| kernels::bias_gelu(rows, bias));
        into_tensor(out, layer.bias.dims()[0])
    }

    /// The layer normalisation of `x · weight + bias + residual`.
    pub(super) fn linear_add_norm(
        self,
        x: &Tensor<2>,
        layer: &Linear,
        residual: Tensor<2>,
        norm: &LayerNorm,
    ) -> Tensor<2> {
        let mut out = product(x, &layer.weight, self.threads);
        let (gamma, beta, residual) = (host(&norm.gamma), host(&norm.beta), host(&residual));
        let norm = kernels::Norm { gamma: numbers(&gamma), beta: numbers(&beta), eps: norm.eps };
        let residual = numbers(&residual);
        by_rows(&mut out, &layer.bias, self.threads, |rows, at, bias| {
            kernels::add_norm(rows, bias, &residual[at..at + rows.len()], norm);
        });
        into_tensor(out, layer.bias.dims()[0])
    }

    /// The sum of a row of each table, layer-normalised: what a BERT encoder starts from. `ids` holds, for each table, a
    /// row number for each token.
    pub(super) fn embed(self, tables: [&Tensor<2>; 3], ids: [&[u32]; 3], norm: &LayerNorm) -> Tensor<2> {
        let width = norm.gamma.dims()[0];
        let tables = tables.map(host);
        let [a, b, c] = tables.each_ref().map(numbers);
        let row = |table: &'_ [f32], id: u32| -> Range<usize> {
            let start = id as usize * width;
            debug_assert!(start + width <= table.len());
            start..start + width
        };
        let mut out = vec![0.0; ids[0].len() * width];
        for (token, out) in out.chunks_exact_mut(width).enumerate() {
            let [x, y, z] = ids.map(|ids| ids[token]);
            kernels::sum_of_three(out, &a[row(a, x)], &b[row(b, y)], &c[row(c, z)]);
        }
        let (gamma, beta) = (host(&norm.gamma), host(&norm.beta));
        kernels::norm(&mut out, kernels::Norm { gamma: numbers(&gamma), beta: numbers(&beta), eps: norm.eps });
        into_tensor(out, width)
    }

    /// Scaled dot-product attention of each item's tokens to each other. Rows of `qkv` hold queries, keys and values of
    /// all heads; `items` are the ranges of rows.
    pub(super) fn attention(self, qkv: Tensor<2>, items: &[Range<usize>], heads: usize) -> Tensor<2> {
        let [rows, width] = qkv.dims();
        let width = width / 3;
        let qkv = host(&qkv);
        let attention = Attention { qkv: numbers(&qkv), width, heads };
        let mut out = vec![0.0; rows * width];
        let mut blocks = Vec::new();
        let mut rest = out.as_mut_slice();
        for item in items {
            for start in item.clone().step_by(QUERY_ROWS) {
                let end = (start + QUERY_ROWS).min(item.end);
                let (block, after) = rest.split_at_mut((end - start) * width);
                blocks.push((start, item.clone(), block));
                rest = after;
            }
        }
        if self.threads == 1 || blocks.len() == 1 {
            blocks.into_iter().for_each(|(start, item, block)| attention.run(start, &item, block));
        } else {
            blocks.into_par_iter().for_each(|(start, item, block)| attention.run(start, &item, block));
        }
        into_tensor(out, width)
    }
}

/// The attention of one batch, on the CPU.
struct Attention<'a> {
    qkv: &'a [f32],
    width: usize,
    heads: usize,
}

impl Attention<'_> {
    /// Fills `out` with the rows from `start` on of the item that has the rows `item`.
    fn run(&self, start: usize, item: &Range<usize>, out: &mut [f32]) {
        let (width, length, rows) = (self.width, item.len(), out.len() / self.width);
        let size = width / self.heads;
        let scale = 1.0 / (size as f32).sqrt();
        let mut scores = vec![0.0; rows * length];
        for head in 0..self.heads {
            let at = |row: usize, part: usize| &self.qkv[row * 3 * width + part * width + head * size..];
            let query = View { data: at(start, 0), strides: [3 * width, 1] };
            let key = View { data: at(item.start, 1), strides: [1, 3 * width] };
            let value = View { data: at(item.start, 2), strides: [3 * width, 1] };
            multiply([rows, size, length], query, key, (&mut scores, length), 1);
            kernels::softmax(&mut scores, length, scale);
            let scores = View { data: &scores, strides: [length, 1] };
            multiply([rows, length, size], scores, value, (&mut out[head * size..], width), 1);
        }
    }
}

/// A matrix inside a slice.
#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    /// How far apart neighbouring rows and neighbouring columns are.
    strides: [usize; 2],
}

impl View<'_> {
    /// Whether a matrix of this size lies inside the slice.
    fn holds(&self, rows: usize, columns: usize) -> bool {
        holds(self.data.len(), self.strides, rows, columns)
    }
}

fn holds(length: usize, [row, column]: [usize; 2], rows: usize, columns: usize) -> bool {
    rows > 0 && columns > 0 && (rows - 1) * row + (columns - 1) * column < length
}

/// `out` = `a` · `b`, of sizes `[m, k]` and `[k, n]`, with rows of `out` its second part apart.
fn multiply([m, k, n]: [usize; 3], a: View<'_>, b: View<'_>, out: (&mut [f32], usize), threads: usize) {
    let (out, stride) = out;
    assert!(a.holds(m, k) && b.holds(k, n) && holds(out.len(), [stride, 1], m, n), "a matrix passes its buffer");
    let parallelism = if threads == 1 { Parallelism::None } else { Parallelism::Rayon(threads) };
    let signed = |stride: usize| isize::try_from(stride).expect("a stride inside a slice fits");
    // SAFETY: the assertion shows that every element of the three matrices lies inside its slice; `out` is borrowed
    // exclusively, and its elements are distinct because rows are at least as far apart as they are wide.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            signed(stride),
            false,
            a.data.as_ptr(),
            signed(a.strides[1]),
            signed(a.strides[0]),
            b.data.as_ptr(),
            signed(b.strides[1]),
            signed(b.strides[0]),
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out` = `a` · `b`, all of them square.
pub(super) fn multiply_square(a: &[f32], b: &[f32], out: &mut [f32], size: usize, threads: usize) {
    let view = |data| View { data, strides: [size, 1] };
    multiply([size; 3], view(a), view(b), (out, size), threads);
}

/// `x · weight` in a new buffer.
fn product(x: &Tensor<2>, weight: &Tensor<2>, threads: usize) -> Vec<f32> {
    let ([m, k], [_, n]) = (x.dims(), weight.dims());
    let (x, weight) = (host(x), host(weight));
    let a = View { data: numbers(&x), strides: [k, 1] };
    let b = View { data: numbers(&weight), strides: [n, 1] };
    let mut out = vec![0.0; m * n];
    multiply([m, k, n], a, b, (&mut out, n), threads);
    out
}

/// Runs `f` on blocks of whole rows, with each block's place and the bias, on as many threads as pay.
fn by_rows(out: &mut [f32], bias: &Tensor<1>, threads: usize, f: impl Fn(&mut [f32], usize, &[f32]) + Sync) {
    let bias = host(bias);
    let bias = numbers(&bias);
    let parts = threads.min(out.len() / NUMBERS_PER_THREAD).max(1);
    if parts == 1 {
        return f(out, 0, bias);
    }
    let size = (out.len() / bias.len()).div_ceil(parts) * bias.len();
    out.par_chunks_mut(size).enumerate().for_each(|(part, rows)| f(rows, part * size, bias));
}

/// The CPU's view of a tensor: shares its memory.
fn host<const D: usize>(tensor: &Tensor<D>) -> FlexTensor {
    tensor.clone().try_into_primitive::<Flex>().expect("our kernels are chosen for tensors of the CPU alone")
}

/// The numbers of a tensor that we or the loader made: contiguous, from the buffer's start.
fn numbers(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("every tensor of the model is contiguous f32")
}

fn into_tensor(values: Vec<f32>, width: usize) -> Tensor<2> {
    let shape = Shape::from([values.len() / width, width]);
    let tensor = FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32);
    Tensor::from_primitive::<Flex>(tensor)
}
