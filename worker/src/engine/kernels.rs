//! The CPU kernels that burn's own operations are too slow for: exact GELU, layer normalisation, softmax.
//!
//! In: plain `f32` slices of whole rows. Out: the same slices, changed in place. Each kernel is written once, as a plain
//! loop, and compiled three times: for AVX-512, for AVX2 with fused multiply-add, and for the target's baseline; which
//! one runs is decided by the processor at hand. So one binary serves any x86-64 and arm64. Nothing here knows of
//! tensors, threads or models.

/// Numbers summed side by side: the accumulators of one 512-bit register, or of two or four smaller ones.
const LANES: usize = 16;

/// Calls `$body::<FUSED>(…)`, compiled for the widest vectors that this processor has.
///
/// Without the attribute, `f32::mul_add` would call libm, and loops would be compiled for SSE2.
macro_rules! widest {
    ($body:ident($($arg:ident: $ty:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512($($arg: $ty),*) {
                $body::<true>($($arg),*);
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body::<true>($($arg),*);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
            {
                // SAFETY: the processor has just been found to have every feature that the function is compiled for.
                return unsafe { avx512($($arg),*) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: as above.
                return unsafe { avx2($($arg),*) };
            }
        }
        // Fused multiply-add belongs to the baseline of arm64 and to no other target's.
        $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*);
    }};
}

/// `a * b + c`, fused where the target does that in one instruction.
#[inline(always)]
fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// A polynomial by Horner's rule, coefficients from the highest power down.
#[inline(always)]
fn polynomial<const FUSED: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = mul_add::<FUSED>(sum, x, *coefficient);
    }
    sum
}

/// The error function, to 4e-7: `x · P(x²) / Q(x²)` on [-4, 4], where it has reached ±1 in `f32`.
///
/// The coefficients are a weighted least-squares fit to `erf` with relative error 2.5e-8 in exact arithmetic.
#[inline(always)]
fn erf<const FUSED: bool>(x: f32) -> f32 {
    const P: [f32; 6] =
        [1.986_792e-6, 0.000_284_563_98, 0.003_883_270_5, 0.053_101_52, 0.193_543_39, std::f32::consts::FRAC_2_SQRT_PI];
    const Q: [f32; 6] = [3.742_017_4e-5, 0.001_185_552_8, 0.015_207_105, 0.115_349_31, 0.504_855_93, 1.0];
    let x = x.clamp(-4.0, 4.0);
    let square = x * x;
    let ratio = polynomial::<FUSED, 6>(square, P) / polynomial::<FUSED, 6>(square, Q);
    (x * ratio).clamp(-1.0, 1.0)
}

/// `e` to the power `x` for `x ≤ 0`, to a relative error of 2e-7; below -87 it is 0 for all that follows.
#[inline(always)]
fn exp_of_negative<const FUSED: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2²³ leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    // Not `max`, which would turn a NaN into a number.
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = mul_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let power = shifted - ROUND;
    let rest = mul_add::<FUSED>(power, -LN_2_LOW, mul_add::<FUSED>(power, -LN_2_HIGH, x));
    let scale = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(1f32.to_bits()));
    polynomial::<FUSED, 7>(rest, TAYLOR) * scale
}

/// Sums `f` over the row in [`LANES`] independent accumulators, which is what lets the loop use vectors.
#[inline(always)]
fn sum_by_lanes(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|value| f(*value)).sum::<f32>()
}

/// The largest number of the row, negative infinity for none.
#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Adds `bias` to each row of `values`, then applies the exact GELU, `x · Φ(x)`; see <https://arxiv.org/abs/1606.08415>.
pub(super) fn bias_gelu(values: &mut [f32], bias: &[f32]) {
    #[inline(always)]
    fn body<const FUSED: bool>(values: &mut [f32], bias: &[f32]) {
        for row in values.chunks_exact_mut(bias.len()) {
            for (value, bias) in row.iter_mut().zip(bias) {
                let x = *value + bias;
                *value = 0.5 * x * (1.0 + erf::<FUSED>(x * std::f32::consts::FRAC_1_SQRT_2));
            }
        }
    }
    widest!(body(values: &mut [f32], bias: &[f32]))
}

/// Adds `bias` to each row of `values`.
pub(super) fn add_bias(values: &mut [f32], bias: &[f32]) {
    #[inline(always)]
    fn body<const FUSED: bool>(values: &mut [f32], bias: &[f32]) {
        for row in values.chunks_exact_mut(bias.len()) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += bias;
            }
        }
    }
    widest!(body(values: &mut [f32], bias: &[f32]))
}

/// The learned part of a layer normalisation.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    /// Factor of each column.
    pub(super) gamma: &'a [f32],
    /// Offset of each column.
    pub(super) beta: &'a [f32],
    /// Added to the variance.
    pub(super) eps: f32,
}

/// Each row of `values` becomes the layer normalisation of itself plus `bias` plus the same row of `residual`; see
/// <https://arxiv.org/abs/1607.06450>.
pub(super) fn add_norm(values: &mut [f32], bias: &[f32], residual: &[f32], norm: Norm<'_>) {
    #[inline(always)]
    fn body<const FUSED: bool>(values: &mut [f32], bias: &[f32], residual: &[f32], norm: Norm<'_>) {
        for (row, residual) in values.chunks_exact_mut(bias.len()).zip(residual.chunks_exact(bias.len())) {
            for ((value, bias), residual) in row.iter_mut().zip(bias).zip(residual) {
                *value += bias + residual;
            }
            normalise::<FUSED>(row, norm);
        }
    }
    widest!(body(values: &mut [f32], bias: &[f32], residual: &[f32], norm: Norm<'_>))
}

/// Each row of `values` becomes its layer normalisation.
pub(super) fn norm(values: &mut [f32], norm: Norm<'_>) {
    #[inline(always)]
    fn body<const FUSED: bool>(values: &mut [f32], norm: Norm<'_>) {
        for row in values.chunks_exact_mut(norm.gamma.len()) {
            normalise::<FUSED>(row, norm);
        }
    }
    widest!(body(values: &mut [f32], norm: Norm<'_>))
}

#[inline(always)]
fn normalise<const FUSED: bool>(row: &mut [f32], norm: Norm<'_>) {
    let width = row.len() as f32;
    let mean = sum_by_lanes(row, |value| value) / width;
    let variance = sum_by_lanes(row, |value| (value - mean) * (value - mean)) / width;
    let scale = 1.0 / (variance + norm.eps).sqrt();
    for ((value, gamma), beta) in row.iter_mut().zip(norm.gamma).zip(norm.beta) {
        *value = mul_add::<FUSED>((*value - mean) * scale, *gamma, *beta);
    }
}

/// Each row of `width` numbers becomes the softmax of itself times `scale`.
///
/// A row with a NaN stays without meaning: its sum is NaN, and so is the row.
pub(super) fn softmax(values: &mut [f32], width: usize, scale: f32) {
    #[inline(always)]
    fn body<const FUSED: bool>(values: &mut [f32], width: usize, scale: f32) {
        for row in values.chunks_exact_mut(width) {
            let offset = -scale * largest(row);
            for value in row.iter_mut() {
                *value = exp_of_negative::<FUSED>(mul_add::<FUSED>(*value, scale, offset));
            }
            let total = 1.0 / sum_by_lanes(row, |value| value);
            for value in row.iter_mut() {
                *value *= total;
            }
        }
    }
    widest!(body(values: &mut [f32], width: usize, scale: f32))
}

/// Adds the rows of three tables: `out` = `a` + `b` + `c`.
pub(super) fn sum_of_three(out: &mut [f32], a: &[f32], b: &[f32], c: &[f32]) {
    for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
        *out = a + b + c;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its Taylor series and, further out, by the continued fraction of erfc, both in f64.
    fn erf_f64(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let fraction = (1..200).rev().fold(x.abs(), |tail, n| x.abs() + f64::from(n) / 2.0 / tail);
        let erfc = (-x * x).exp() / fraction / std::f64::consts::PI.sqrt();
        x.signum() * (1.0 - erfc)
    }

    fn gelu_f64(x: f32) -> f64 {
        let x = f64::from(x);
        0.5 * x * (1.0 + erf_f64(x / std::f64::consts::SQRT_2))
    }

    fn grid(from: f32, to: f32) -> Vec<f32> {
        let count: u16 = 40_000;
        (0..=count).map(|i| from + (to - from) * f32::from(i) / f32::from(count)).collect()
    }

    fn largest_error(got: &[f32], expected: impl Fn(usize) -> f64) -> f64 {
        got.iter().enumerate().map(|(i, got)| (f64::from(*got) - expected(i)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn the_reference_erf_knows_the_tables() {
        assert!((erf_f64(0.5) - 0.520_499_877_813_046_5).abs() < 1e-14);
        assert!((erf_f64(-2.0) + 0.995_322_265_018_952_7).abs() < 1e-14);
        assert!((erf_f64(3.5) - 0.999_999_256_901_627_7).abs() < 1e-14);
    }

    #[test]
    fn erf_is_right_to_half_a_millionth() {
        let grid = grid(-6.0, 6.0);
        for got in
            [grid.iter().map(|x| erf::<true>(*x)).collect::<Vec<_>>(), grid.iter().map(|x| erf::<false>(*x)).collect()]
        {
            let error = largest_error(&got, |i| erf_f64(f64::from(grid[i])));
            assert!(error <= 5e-7, "{error}");
        }
    }

    #[test]
    fn gelu_with_a_bias_is_right_to_a_millionth() {
        let grid = grid(-8.0, 8.0);
        let mut got = grid.clone();
        bias_gelu(&mut got, &[0.25]);
        let error = largest_error(&got, |i| gelu_f64(grid[i] + 0.25));
        assert!(error <= 1e-6, "{error}");
    }

    #[test]
    fn gelu_keeps_infinities_and_nan_visible() {
        let mut got = [f32::INFINITY, f32::NAN, 1e30];
        bias_gelu(&mut got, &[0.0]);
        assert_eq!(got[0], f32::INFINITY);
        assert!(got[1].is_nan());
        assert_eq!(got[2], 1e30);
    }

    #[test]
    fn the_exponential_is_right_to_a_fraction_of_a_millionth() {
        for x in grid(-86.0, 0.0) {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_of_negative::<false>(x)) - expected).abs() / expected;
            assert!(error < 4e-7, "exp({x}): {error}");
        }
        assert!(exp_of_negative::<true>(-1000.0) < 2e-38);
    }

    #[test]
    fn softmax_rows_sum_to_one_for_any_width_and_range() {
        for width in [1, 3, 16, 17, 64, 255] {
            let values: Vec<f32> = (0..2 * width).map(|i| ((i * 37 % 101) as f32 - 50.0) * 3.0).collect();
            let mut got = values.clone();
            softmax(&mut got, width, 0.5);
            let expected = |i: usize| {
                let row = &values[i / width * width..][..width];
                let total: f64 = row.iter().map(|v| (0.5 * f64::from(v - values[i])).exp()).sum();
                1.0 / total
            };
            let error = largest_error(&got, expected);
            assert!(error < 1e-6, "width {width}: {error}");
        }
    }

    #[test]
    fn layer_norm_agrees_with_f64_for_any_width() {
        for width in [4, 16, 33, 384] {
            let wave =
                |seed: usize| -> Vec<f32> { (0..3 * width).map(|i| ((i * seed % 97) as f32).sin() * 3.0).collect() };
            let (values, residual) = (wave(31), wave(17));
            let (bias, gamma, beta) = (&wave(7)[..width], &wave(11)[..width], &wave(13)[..width]);
            let mut got = values.clone();
            add_norm(&mut got, bias, &residual, Norm { gamma, beta, eps: 1e-12 });
            let expected = |i: usize| {
                let row: Vec<f64> = (i / width * width..(i / width + 1) * width)
                    .map(|j| f64::from(values[j]) + f64::from(bias[j % width]) + f64::from(residual[j]))
                    .collect();
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                (row[i % width] - mean) / (variance + 1e-12).sqrt() * f64::from(gamma[i % width])
                    + f64::from(beta[i % width])
            };
            let error = largest_error(&got, expected);
            assert!(error < 5e-6, "width {width}: {error}");
        }
    }
}
