//! What CUDA needs of this machine, found before anything is asked of it, and the cards that are there.
//!
//! The libraries behind it answer what is missing with a panic, or with zeros: a kernel that could not be compiled fails on
//! a thread of the device's own, and what it was to compute reads as zeros. So driver, compiler and headers are tried
//! here first, on a kernel of our own. In: nothing. Out: the number of cards, a card opened, what is known of each; or one
//! line that says what is missing and the way to get it.

use std::path::{Path, PathBuf};

use burn::tensor::{Device, DeviceType};
use cubecl::cuda::install;
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;

use super::burn::LoadOptions;
use super::card_watch;
use super::device::{Card, Compiler, Precision};
use super::kernel_cache::{self, KernelCache};
use super::padded::{On, Sick};

/// Includes the headers that burn's kernels include.
const TRIAL: &str = "#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <mma.h>
#include <cooperative_groups.h>
extern \"C\" __global__ void trial(__half *x) { *x = __float2half(1.0f); }";

/// How many cards there are, at least one, once everything they need is there.
pub(super) fn usable_cards() -> Result<u16, String> {
    let cards = driver()?;
    compiler()?;
    Ok(cards)
}

/// The card with this number, in the precision asked for or the fastest that it has. `keep` is the model's revision, where
/// kernels are to be kept: then it is to be called before any device is used.
pub(super) fn open(card: u16, options: &LoadOptions, keep: Option<&str>) -> Result<On, String> {
    let own = keep.and_then(|_| kernel_cache::begin());
    let device = Device::cuda(usize::from(card));
    let (name, capability) = identity(&device);
    let precisions = precisions(capability);
    let precision = options.precision.unwrap_or_else(|| fastest(&precisions));
    if !precisions.contains(&precision) {
        let (major, minor) = capability;
        return Err(format!(
            "cuda:{card} ({name}, compute capability {major}.{minor}) has no {precision}; --precision f16 and f32 it has"
        ));
    }
    tracing::info!(card, name, %precision, "graphics card");
    let kernels = match (keep, own, &options.cache) {
        (Some(revision), Some(own), Some(folder)) => {
            Some(KernelCache::open(own, folder, &options.directory, &key(&name, precision, revision)?))
        }
        _ => None,
    };
    let bus = bus(&device);
    let sick = bus.map_or_else(|| -> Sick { Box::new(|| None) }, |bus| card_watch::watch(&bus));
    Ok(On { device, precision, kernels, sick })
}

/// The card's place on the bus, by which the management library knows it.
fn bus(device: &Device) -> Option<String> {
    Some(device.identity()?.physical?.pci_address?.to_string())
}

/// What compiled kernels and their tuning depend on.
fn key(card: &str, precision: Precision, revision: &str) -> Result<String, String> {
    let driver = Nvml::init().and_then(|nvml| nvml.sys_driver_version()).unwrap_or_else(|_| "unknown".to_owned());
    let (release, minor) = compiler()?.version;
    let revision: String = revision.trim_start_matches("sha256:").chars().take(12).collect();
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!("{card} driver {driver} nvrtc {release}.{minor} inferq {version} {revision} {precision}"))
}

/// Every card, and what compiles its kernels.
pub(super) fn cards() -> Result<(Vec<Card>, Compiler), String> {
    let count = driver()?;
    let nvml = Nvml::init().ok();
    let cards: Vec<Card> = (0..count).map(|card| look_at(card, nvml.as_ref())).collect();
    let mut compiler = compiler()?;
    compiler.suits_driver = newest_cuda(nvml.as_ref()).map(|driver| compiler.version <= driver);
    Ok((cards, compiler))
}

fn driver() -> Result<u16, String> {
    // SAFETY: the call only tries to load the driver's library, whose initialisers are NVIDIA's.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("no NVIDIA driver: libcuda.so.1 can't be loaded; install the driver, in a container run it with \
                    --gpus all"
            .to_owned());
    }
    match Device::enumerate(DeviceType::Cuda).len() {
        0 => Err("the NVIDIA driver sees no card: look at nvidia-smi and CUDA_VISIBLE_DEVICES".to_owned()),
        count => Ok(u16::try_from(count).unwrap_or(u16::MAX)),
    }
}

/// Compiles a kernel, as burn will.
fn compiler() -> Result<Compiler, String> {
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(
            "no NVRTC, which compiles the kernels: libnvrtc.so.12 can't be loaded; install cuda-nvrtc-12, or put \
                    its folder into LD_LIBRARY_PATH"
                .to_owned(),
        );
    }
    let Some(folder) = install::cuda_path() else {
        return Err("no CUDA headers, which the kernels include: install cuda-cudart-dev-12 and cuda-cccl-12 under \
                    /usr/local/cuda, or name their folder in CUDA_PATH"
            .to_owned());
    };
    let include = folder.join("include");
    let paths = [include.clone(), include.join("cccl")];
    let options = CompileOptions {
        include_paths: paths.iter().map(|path| path.display().to_string()).collect(),
        arch: Some("compute_75"),
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(TRIAL, options).map_err(|error| what_failed(&include, &error))?;
    let (major, minor) = version(&ptx.to_src()).unwrap_or_default();
    Ok(Compiler { version: (major, minor), path: loaded_from("libnvrtc.so"), headers: include, suits_driver: None })
}

fn what_failed(include: &Path, error: &CompileError) -> String {
    let log = match error {
        CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
        other => other.to_string(),
    };
    let first = log.lines().find(|line| line.contains("error")).unwrap_or("no reason given").trim().to_owned();
    let include = include.display();
    format!(
        "NVRTC can't compile with the headers in {include}: {first}; install cuda-cudart-dev-12, cuda-nvcc-12 and \
         cuda-cccl-12, or name their folder in CUDA_PATH"
    )
}

/// What NVRTC writes at the top of its PTX: `Cuda compilation tools, release 12.8, V12.8.93`.
fn version(ptx: &str) -> Option<(u32, u32)> {
    let (_, after) = ptx.split_once("release ")?;
    let (major, minor) = after.split_once(',')?.0.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The file that a library of this process was loaded from.
fn loaded_from(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().filter_map(|line| Some(&line[line.find('/')?..])).find(|path| path.contains(name)).map(PathBuf::from)
}

/// The newest CUDA whose PTX the driver takes.
fn newest_cuda(nvml: Option<&Nvml>) -> Option<(u32, u32)> {
    let version = u32::try_from(nvml?.sys_cuda_driver_version().ok()?).ok()?;
    Some((version / 1000, version % 1000 / 10))
}

fn look_at(card: u16, nvml: Option<&Nvml>) -> Card {
    let device = Device::cuda(usize::from(card));
    let (name, capability) = identity(&device);
    let found = nvml.zip(bus(&device)).and_then(|(nvml, bus)| nvml.device_by_pci_bus_id(bus).ok());
    let memory = found.as_ref().and_then(|card| card.memory_info().ok());
    let precisions = precisions(capability);
    let clock = found.as_ref().and_then(|card| card.max_clock_info(Clock::SM).ok());
    let cores = found.as_ref().and_then(|card| card.num_cores().ok());
    let cycles = clock.zip(cores).map(|(mhz, cores)| f64::from(mhz) * 1e6 * f64::from(cores));
    Card {
        device: format!("cuda:{card}"),
        name,
        capability,
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        free_bytes: memory.as_ref().map(|memory| memory.free),
        driver: nvml.and_then(|nvml| nvml.sys_driver_version().ok()),
        cuda: newest_cuda(nvml),
        default_precision: fastest(&precisions),
        peaks: precisions.into_iter().map(|p| (p, cycles.map(|cycles| cycles * a_core(capability, p)))).collect(),
    }
}

/// Its name and compute capability, which burn tells as what it compiles for: `ptx_sm90`.
fn identity(device: &Device) -> (String, (u32, u32)) {
    let Some(identity) = device.identity() else { return ("unknown".to_owned(), (0, 0)) };
    let number = identity.fingerprint.rsplit("sm").next().and_then(|number| number.parse::<u32>().ok()).unwrap_or(0);
    (identity.name, (number / 10, number % 10))
}

/// What tensor cores compute with: from Turing on halves, from Ampere on bfloat16 too.
fn precisions(capability: (u32, u32)) -> Vec<Precision> {
    let has = |precision: &Precision| match precision {
        Precision::F32 | Precision::F16 => true,
        Precision::Bf16 => capability >= (8, 0),
    };
    Precision::ALL.into_iter().filter(has).collect()
}

fn fastest(precisions: &[Precision]) -> Precision {
    *precisions.last().expect("every card has 32 bits")
}

/// Operations that one CUDA core's share of a multiprocessor does in a cycle, dense, tensor cores included: from the
/// whitepapers of NVIDIA's architectures (Volta 2017, Turing 2018, Ampere 2020, Ada 2023, Hopper 2022, Blackwell 2024).
fn a_core(capability: (u32, u32), precision: Precision) -> f64 {
    let half = match capability {
        (7, _) => 1024.0 / 64.0,
        (8, 0) => 2048.0 / 64.0,
        (8, _) => 1024.0 / 128.0,
        (9, _) => 4096.0 / 128.0,
        (10.., _) => 8192.0 / 128.0,
        _ => 2.0,
    };
    match precision {
        Precision::F16 | Precision::Bf16 => half,
        // TF32 runs at half the rate; before Ampere there is none.
        Precision::F32 if capability >= (8, 0) => half / 2.0,
        Precision::F32 => 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_those_of_the_data_sheets() {
        // (capability, cores, MHz, precision, TFLOP/s of the data sheet)
        for (capability, cores, mhz, precision, tflops) in [
            ((7, 5), 2560, 1590, Precision::F16, 65.0),
            ((7, 5), 2560, 1590, Precision::F32, 8.1),
            ((8, 0), 6912, 1410, Precision::Bf16, 312.0),
            ((8, 0), 6912, 1410, Precision::F32, 156.0),
            ((8, 9), 7424, 2040, Precision::F16, 121.0),
            ((9, 0), 16896, 1830, Precision::Bf16, 989.0),
        ] {
            let peak = f64::from(cores) * f64::from(mhz) * a_core(capability, precision) / 1e6;
            assert!((peak / tflops - 1.0).abs() < 0.02, "{capability:?} {precision}: {peak}");
        }
    }

    #[test]
    fn bfloat16_begins_with_ampere() {
        assert_eq!(fastest(&precisions((7, 5))), Precision::F16);
        assert_eq!(fastest(&precisions((8, 0))), Precision::Bf16);
    }

    #[test]
    fn the_compiler_says_its_release() {
        let ptx =
            "//\n// Generated by NVIDIA NVVM Compiler\n// Cuda compilation tools, release 12.8, V12.8.93\n.version 8.7";
        assert_eq!(version(ptx), Some((12, 8)));
        assert_eq!(version(".version 8.7"), None);
    }
}
