//! What the benchmarks have in common: medians, and raw figures in files beside the binaries.

use anyhow::{Context, Result};
use serde_json::Value;

/// The middle one; of an even number, the higher of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Writes raw figures to `bench/<name>.json` beside the running program, and says where.
///
/// # Errors
/// When they can't be written.
pub fn keep(name: &str, figures: &Value) -> Result<()> {
    let folder = std::env::current_exe()?.parent().context("a program lies in a folder")?.join("bench");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.json"));
    std::fs::write(&file, serde_json::to_vec_pretty(figures)?)?;
    println!("raw figures: {}", file.display());
    Ok(())
}
