//! From a vector for each token to one for each item, the way the model's `1_Pooling/config.json` says.
//!
//! In: the rows of all tokens of a batch, flat, without padding. Out: one vector an item, not normalised. It never looks
//! beyond an item's own rows.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

/// How an item's token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Their mean, special tokens included.
    Mean,
    /// The first: the vector of `[CLS]`.
    Cls,
    /// The largest of each column.
    Max,
}

/// The file as sentence-transformers writes it: one flag a mode, or, in newer versions, the mode's name.
#[derive(Deserialize)]
#[serde(default)]
struct PoolingJson {
    pooling_mode: Option<String>,
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

impl Default for PoolingJson {
    /// Mean alone, as sentence-transformers has it.
    fn default() -> Self {
        Self {
            pooling_mode: None,
            pooling_mode_cls_token: false,
            pooling_mode_mean_tokens: true,
            pooling_mode_max_tokens: false,
            pooling_mode_mean_sqrt_len_tokens: false,
            pooling_mode_weightedmean_tokens: false,
            pooling_mode_lasttoken: false,
        }
    }
}

impl Pooling {
    /// Reads `1_Pooling/config.json`.
    ///
    /// # Errors
    /// What is wrong with it, as a fragment: no JSON, no mode, several modes, or one that is not supported.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let json: PoolingJson = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let flags = [
            ("cls", json.pooling_mode_cls_token),
            ("mean", json.pooling_mode_mean_tokens),
            ("max", json.pooling_mode_max_tokens),
            ("mean_sqrt_len_tokens", json.pooling_mode_mean_sqrt_len_tokens),
            ("weightedmean", json.pooling_mode_weightedmean_tokens),
            ("lasttoken", json.pooling_mode_lasttoken),
        ];
        let set: Vec<&str> = flags.iter().filter(|(_, set)| *set).map(|(name, _)| *name).collect();
        match json.pooling_mode.as_deref().map_or(set, |mode| vec![mode])[..] {
            ["mean"] => Ok(Self::Mean),
            ["cls"] => Ok(Self::Cls),
            ["max"] => Ok(Self::Max),
            [] => Err("no pooling mode is set; mean, cls and max are supported".to_owned()),
            ref modes => {
                Err(format!("pooling by {} is not supported; mean, cls and max alone are", modes.join(" and ")))
            }
        }
    }

    /// One vector for each of `items`, which are ranges of the rows of `width` numbers in `rows`.
    pub(super) fn pool(self, rows: &[f32], width: usize, items: &[Range<usize>]) -> Vec<Arc<[f32]>> {
        items.iter().map(|item| self.pool_one(&rows[item.start * width..item.end * width], width)).collect()
    }

    fn pool_one(self, rows: &[f32], width: usize) -> Arc<[f32]> {
        let mut rows = rows.chunks_exact(width);
        let Some(first) = rows.next() else { return Arc::from([]) };
        let count = 1 + rows.len();
        let mut pooled = first.to_vec();
        match self {
            Self::Cls => {}
            Self::Max => rows.for_each(|row| each(&mut pooled, row, larger)),
            Self::Mean => {
                rows.for_each(|row| each(&mut pooled, row, |sum, value| sum + value));
                pooled.iter_mut().for_each(|sum| *sum /= count as f32);
            }
        }
        pooled.into()
    }
}

fn each(pooled: &mut [f32], row: &[f32], f: impl Fn(f32, f32) -> f32) {
    for (pooled, value) in pooled.iter_mut().zip(row) {
        *pooled = f(*pooled, *value);
    }
}

/// The larger of two, and NaN if either is, where `f32::max` would hide it.
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 8] = [1.0, 8.0, 3.0, 2.0, 5.0, -1.0, 7.0, 7.0];

    fn pooled(pooling: Pooling, rows: &[f32]) -> Vec<Vec<f32>> {
        pooling.pool(rows, 2, &[0..3, 3..4]).iter().map(|vector| vector.to_vec()).collect()
    }

    #[test]
    fn each_item_is_pooled_over_its_own_rows() {
        assert_eq!(pooled(Pooling::Mean, &ROWS), [[3.0, 3.0], [7.0, 7.0]]);
        assert_eq!(pooled(Pooling::Cls, &ROWS), [[1.0, 8.0], [7.0, 7.0]]);
        assert_eq!(pooled(Pooling::Max, &ROWS), [[5.0, 8.0], [7.0, 7.0]]);
    }

    #[test]
    fn a_nan_is_not_hidden() {
        for place in [0, 2, 4] {
            let mut rows = ROWS;
            rows[place] = f32::NAN;
            for pooling in [Pooling::Mean, Pooling::Max] {
                let pooled = pooled(pooling, &rows);
                assert!(pooled[0][0].is_nan(), "{pooling:?} {place}");
                assert_eq!(pooled[1], [7.0, 7.0]);
            }
        }
    }

    #[test]
    fn the_file_names_one_supported_mode() {
        let cls =
            r#"{"word_embedding_dimension": 8, "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        assert_eq!(Pooling::parse(cls.as_bytes()), Ok(Pooling::Cls));
        assert_eq!(Pooling::parse(br#"{"pooling_mode": "max"}"#), Ok(Pooling::Max));
        assert_eq!(Pooling::parse(b"{}"), Ok(Pooling::Mean));
    }

    #[test]
    fn what_the_file_asks_for_in_vain_is_named() {
        let two = Pooling::parse(br#"{"pooling_mode_cls_token": true}"#).unwrap_err();
        assert!(two.contains("cls and mean"), "{two}");
        let other = Pooling::parse(br#"{"pooling_mode": "lasttoken"}"#).unwrap_err();
        assert!(other.contains("lasttoken"), "{other}");
        let none = Pooling::parse(br#"{"pooling_mode_mean_tokens": false}"#).unwrap_err();
        assert!(none.contains("no pooling mode"), "{none}");
        assert!(Pooling::parse(b"[").is_err());
    }
}
