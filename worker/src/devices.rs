//! `inferq-worker devices`: what a model can run on here, and how fast at best.
//!
//! In: nothing, or a model's directory. Out: a table, or JSON. A machine without a graphics card is no error; what is missing
//! is said in its place.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::{Value, json};

use crate::assets;
use crate::engine::burn::{LoadError, operations_a_token};
use crate::engine::device::{Card, Compiler, Precision, cards};
use crate::heaps::cores;

/// Shown after `devices --help`.
pub const HELP: &str = "\
The roofline is what a card's data sheet allows: the operations that it does a second, at its highest clock, divided by
those that a token of a text of 128 takes. No engine reaches it; a third of it is good.

Examples:
  inferq-worker devices
  inferq-worker devices --model /models/all-MiniLM-L6-v2 --json

Exit codes:
  0   also where there is no card
  64  no such model";

/// What to list.
#[derive(Debug, ClapArgs)]
pub struct DevicesArgs {
    /// The model's directory, for its roofline
    #[arg(long, env = "INFERQ_MODEL", value_name = "DIR")]
    model: Option<PathBuf>,
    /// As JSON: an array of devices
    #[arg(long)]
    json: bool,
}

/// Tokens of the text that rooflines are given for.
const LENGTH: usize = 128;

/// What is to be printed.
///
/// # Errors
/// When there is no such model.
pub fn devices(args: &DevicesArgs) -> Result<String, LoadError> {
    let model = args.model.as_deref().map(assets::locate).transpose()?;
    let operations = model.map(|directory| operations_a_token(&directory, LENGTH)).transpose()?;
    let found = cards();
    Ok(if args.json { as_json(&found, operations) } else { as_table(&found, operations) })
}

type Found = Result<(Vec<Card>, Compiler), String>;

fn as_json(found: &Found, operations: Option<f64>) -> String {
    let mut devices = vec![json!({ "device": "cpu", "cores": cores(), "precisions": ["f32"] })];
    match found {
        Err(missing) => devices.push(json!({ "device": "cuda", "missing": missing })),
        Ok((cards, compiler)) => devices.extend(cards.iter().map(|card| card_as_json(card, compiler, operations))),
    }
    let mut text = serde_json::to_string_pretty(&devices).expect("values of our own are JSON");
    text.push('\n');
    text
}

fn card_as_json(card: &Card, compiler: &Compiler, operations: Option<f64>) -> Value {
    let precisions: Vec<String> = card.peaks.iter().map(|(precision, _)| precision.to_string()).collect();
    let by_precision = |figure: &dyn Fn(f64) -> Value| -> Value {
        let pairs = card.peaks.iter().filter_map(|(precision, peak)| Some((precision.to_string(), figure((*peak)?))));
        pairs.collect::<serde_json::Map<_, _>>().into()
    };
    json!({
        "device": card.device,
        "name": card.name,
        "memory_bytes": card.memory_bytes,
        "free_bytes": card.free_bytes,
        "compute_capability": dotted(card.capability),
        "driver": card.driver,
        "driver_cuda": card.cuda.map(dotted),
        "nvrtc": dotted(compiler.version),
        "nvrtc_path": compiler.path,
        "headers": compiler.headers,
        "nvrtc_suits_driver": compiler.suits_driver,
        "precisions": precisions,
        "default_precision": card.default_precision.to_string(),
        "peak_tflops": by_precision(&|peak| json!(peak / 1e12)),
        "roofline_tokens_per_s": operations.map(|operations| by_precision(&|peak| json!((peak / operations).round()))),
    })
}

fn as_table(found: &Found, operations: Option<f64>) -> String {
    let mut lines = vec![format!("{:8} {} cores, f32", "cpu", cores())];
    match found {
        Err(missing) => lines.push(format!("{:8} none: {missing}", "cuda")),
        Ok((cards, compiler)) => {
            lines.extend(cards.iter().map(|card| card_as_line(card, operations)));
            lines.push(String::new());
            lines.push(compiler_as_line(compiler));
        }
    }
    lines.join("\n") + "\n"
}

fn card_as_line(card: &Card, operations: Option<f64>) -> String {
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let mut parts = vec![card.name.clone()];
    parts.extend(card.memory_bytes.map(|bytes| match card.free_bytes {
        Some(free) => format!("{} ({} free)", gib(bytes), gib(free)),
        None => gib(bytes),
    }));
    parts.push(format!("compute capability {}", dotted(card.capability)));
    parts.extend(card.driver.as_ref().map(|driver| match card.cuda {
        Some(cuda) => format!("driver {driver} (CUDA {})", dotted(cuda)),
        None => format!("driver {driver}"),
    }));
    parts.push(card.peaks.iter().map(|peak| precision_as_text(peak, operations)).collect::<Vec<_>>().join(", "));
    format!("{:8} {}", card.device, parts.join(" · "))
}

fn precision_as_text((precision, peak): &(Precision, Option<f64>), operations: Option<f64>) -> String {
    match (peak, operations) {
        (None, _) => precision.to_string(),
        (Some(peak), None) => format!("{precision} {:.0} TFLOP/s", peak / 1e12),
        (Some(peak), Some(operations)) => format!("{precision} {:.1} M tokens/s", peak / operations / 1e6),
    }
}

fn compiler_as_line(compiler: &Compiler) -> String {
    let from = compiler.path.as_ref().map(|path| format!(" from {}", path.display())).unwrap_or_default();
    let suits = match compiler.suits_driver {
        Some(true) => "; the driver takes its PTX",
        Some(false) => "; it is newer than the driver, which refuses its PTX: install an older one, or a newer driver",
        None => "",
    };
    format!("NVRTC {}{from}, headers in {}{suits}", dotted(compiler.version), compiler.headers.display())
}

fn dotted((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        let card = Card {
            device: "cuda:0".to_owned(),
            name: "NVIDIA L4".to_owned(),
            capability: (8, 9),
            memory_bytes: Some(24 << 30),
            free_bytes: None,
            driver: Some("550.90.07".to_owned()),
            cuda: Some((12, 4)),
            default_precision: Precision::Bf16,
            peaks: vec![(Precision::F32, None), (Precision::Bf16, Some(121e12))],
        };
        let headers = "/usr/local/cuda/include".into();
        Ok((vec![card], Compiler { version: (12, 8), path: None, headers, suits_driver: Some(false) }))
    }

    #[test]
    fn a_card_is_one_line_with_what_it_can_do() {
        let table = as_table(&found(), Some(22e6));
        let line = table.lines().nth(1).unwrap();
        for part in ["cuda:0 ", "NVIDIA L4", "24.0 GiB", "8.9", "550.90.07 (CUDA 12.4)", "bf16 5.5 M tokens/s", "f32,"]
        {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(table.contains("NVRTC 12.8") && table.contains("newer than the driver"), "{table}");
    }

    #[test]
    fn what_is_missing_stands_in_a_cards_place() {
        let missing = Err("no NVIDIA driver".to_owned());
        assert!(as_table(&missing, None).contains("cuda     none: no NVIDIA driver"));
        let devices: Vec<Value> = serde_json::from_str(&as_json(&missing, None)).unwrap();
        assert_eq!((&devices[0]["device"], &devices[1]["missing"]), (&json!("cpu"), &json!("no NVIDIA driver")));
    }

    #[test]
    fn json_has_the_same_figures() {
        let devices: Vec<Value> = serde_json::from_str(&as_json(&found(), Some(22e6))).unwrap();
        assert_eq!(devices[1]["roofline_tokens_per_s"], json!({ "bf16": 5_500_000.0 }));
        assert_eq!(devices[1]["compute_capability"], "8.9");
        assert_eq!(devices[1]["nvrtc_suits_driver"], false);
    }
}
