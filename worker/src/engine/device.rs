//! Where a model runs and in which precision, as it is asked for and as it is.
//!
//! In: what `--device` and `--precision` say. Out: the devices to run on, each of which is there and can be used, or one
//! line that names what is missing and the way to get it. It never opens a device.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::burn::LoadError;

/// Where a model is asked to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor.
    Cpu,
    /// These graphics cards, as CUDA numbers them; at least one, none twice.
    Cuda(Vec<u16>),
    /// All graphics cards there are, else the processor.
    Auto,
}

impl FromStr for DeviceChoice {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let unknown = || {
            LoadError::Device(format!(
                "no device {text:?}; there are cpu, cuda:0, several as in cuda:0,cuda:1, and auto"
            ))
        };
        match text {
            "cpu" => return Ok(Self::Cpu),
            "auto" => return Ok(Self::Auto),
            _ => {}
        }
        let number = |one: &str| one.strip_prefix("cuda:")?.parse().ok();
        let cards: Vec<u16> = text.split(',').map(number).collect::<Option<_>>().ok_or_else(unknown)?;
        let is_twice = |(place, card): (usize, &u16)| cards[..place].contains(card);
        match cards.iter().enumerate().find(|(place, card)| is_twice((*place, card))) {
            Some((_, card)) => Err(LoadError::Device(format!("cuda:{card} is named twice"))),
            None => Ok(Self::Cuda(cards)),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Auto => f.write_str("auto"),
            Self::Cuda(cards) => {
                let names: Vec<String> = cards.iter().map(|card| Place::Cuda(*card).to_string()).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl DeviceChoice {
    /// The devices that this comes to on this machine, all of one kind.
    ///
    /// # Errors
    /// [`LoadError::Device`] where a card is asked for and can't be used: what is missing, and the way to get it.
    pub fn resolve(&self) -> Result<Vec<Place>, LoadError> {
        match self {
            Self::Cpu => Ok(vec![Place::Cpu]),
            Self::Cuda(cards) => {
                let there = usable_cards().map_err(LoadError::Device)?;
                match cards.iter().find(|card| **card >= there) {
                    Some(card) => Err(LoadError::Device(no_card(*card, there))),
                    None => Ok(cards.iter().map(|card| Place::Cuda(*card)).collect()),
                }
            }
            Self::Auto => Ok(match usable_cards() {
                Ok(there) => {
                    tracing::info!(cards = there, "device auto: every graphics card");
                    (0..there).map(Place::Cuda).collect()
                }
                Err(why) => {
                    tracing::info!(why, "device auto: the processor");
                    vec![Place::Cpu]
                }
            }),
        }
    }
}

fn no_card(card: u16, there: u16) -> String {
    let last = there - 1;
    let there = if there == 1 { "cuda:0 alone is".to_owned() } else { format!("cuda:0 to cuda:{last} are") };
    format!("no device cuda:{card}: {there} there (`inferq-worker devices`)")
}

/// How many graphics cards there are, at least one; else what is missing.
#[cfg(feature = "cuda")]
fn usable_cards() -> Result<u16, String> {
    super::cuda::usable_cards()
}

#[cfg(not(feature = "cuda"))]
fn usable_cards() -> Result<u16, String> {
    Err(NO_CUDA.to_owned())
}

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str = "this build has no CUDA: build with `make cuda`, or take the image inferq-cuda";

/// A device that a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The processor.
    Cpu,
    /// A graphics card, as CUDA numbers it.
    Cuda(u16),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(card) => write!(f, "cuda:{card}"),
        }
    }
}

/// The numbers that weights and activations are kept as. Sums, norms, softmax and pooling are in 32 bits whatever is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits; products by the tensor cores' TF32 where a card has it.
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    Bf16,
}

impl Precision {
    /// All of them, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The largest difference that a number of a vector of length one may have to what 32 bits give on the processor: a
    /// few times what rounding comes to over a model's layers, little beside another model's or a damaged one's.
    pub fn tolerance(self) -> f32 {
        match self {
            Self::F32 => 2e-3,
            Self::F16 => 5e-3,
            Self::Bf16 => 2e-2,
        }
    }
}

impl FromStr for Precision {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        let named = Self::ALL.into_iter().find(|precision| precision.to_string() == text);
        named.ok_or_else(|| LoadError::Device(format!("no precision {text:?}; f32, f16 and bf16 are")))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// A graphics card.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// As `--device` names it.
    pub device: String,
    /// The maker's name of it.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
    /// Its memory; like all that follows where NVIDIA's management library tells it.
    pub memory_bytes: Option<u64>,
    /// What of that is free.
    pub free_bytes: Option<u64>,
    /// The driver's version.
    pub driver: Option<String>,
    /// The newest CUDA whose kernels the driver takes.
    pub cuda: Option<(u32, u32)>,
    /// What a model runs in unless told otherwise.
    pub default_precision: Precision,
    /// What it can run in, and the operations a second that it could do at best.
    pub peaks: Vec<(Precision, Option<f64>)>,
}

/// What compiles a card's kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// NVRTC's version, major and minor.
    pub version: (u32, u32),
    /// The file that it was loaded from.
    pub path: Option<PathBuf>,
    /// Where the headers are.
    pub headers: PathBuf,
    /// Whether the driver takes what it writes, where that can be told.
    pub suits_driver: Option<bool>,
}

/// Every graphics card, and what compiles their kernels.
///
/// # Errors
/// One line on what is missing and the way to get it.
#[cfg(feature = "cuda")]
pub fn cards() -> Result<(Vec<Card>, Compiler), String> {
    super::cuda::cards()
}

/// None in this build.
///
/// # Errors
/// Always: what to build instead.
#[cfg(not(feature = "cuda"))]
pub fn cards() -> Result<(Vec<Card>, Compiler), String> {
    Err(NO_CUDA.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_shown() {
        for text in ["cpu", "auto", "cuda:0", "cuda:3", "cuda:0,cuda:1", "cuda:1,cuda:0"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_device_is_refused_by_name() {
        for text in ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:x", "cuda:0,", "cuda:0,cpu", "cuda:70000", "CPU"] {
            let said = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(said.contains(&format!("{text:?}")) && said.contains("cuda:0"), "{said}");
        }
        assert_eq!("cuda:1,cuda:1".parse::<DeviceChoice>().unwrap_err().to_string(), "cuda:1 is named twice");
    }

    #[test]
    fn precisions_are_read_as_they_are_shown() {
        for precision in Precision::ALL {
            assert_eq!(precision.to_string().parse::<Precision>().unwrap(), precision);
        }
        assert!("fp16".parse::<Precision>().unwrap_err().to_string().contains("bf16"));
    }

    #[test]
    fn a_card_that_is_not_there_is_named_with_those_that_are() {
        assert!(no_card(1, 1).contains("cuda:1: cuda:0 alone"));
        assert!(no_card(4, 4).contains("cuda:4: cuda:0 to cuda:3"));
    }
}
