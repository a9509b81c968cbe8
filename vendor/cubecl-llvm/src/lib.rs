//! Stands where cubecl-cuda 0.11 asks for the crate `cubecl-llvm`: the public items that it names, and a clear error where
//! one of them would have to compile.
//!
//! Why: our kernels are CUDA C++ that NVRTC compiles. cubecl-cuda links its LLVM compiler whether it is used or not; that
//! one downloads LLVM while it is built, adds several hundred megabytes, and ends the process on Turing cards
//! (<https://github.com/tracel-ai/cubecl/pull/1684>). It can go as soon as cubecl makes LLVM optional.
//!
//! Nothing here runs: cubecl's feature `cuda-cpp` makes NVRTC the compiler.

use std::ffi::c_char;
use std::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::compiler::{CompilationError, Compiler};
use cubecl_server::kernel::BufferIOAttr;

/// What would be compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// The only one that cubecl-cuda names.
    #[default]
    Nvptx,
}

/// The compiler that is not here.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// What cubecl-cuda would tell it.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "nobody reads them")]
pub struct PlironOptions {
    pub cpu_buffer_alignment: Option<u32>,
    pub arch: Option<SmArch>,
    pub sm_arch: Option<SmArch>,
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    pub grid_constants: bool,
}

/// What it would make; nothing makes one.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "nobody fills them")]
pub struct NvptxModule {
    pub ptx: Vec<c_char>,
    pub ir: String,
    pub shared_memory_size: usize,
    pub io: Vec<BufferIOAttr>,
}

/// What it would give back; nothing does.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        f.write_str(&module.ir)
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build compiles its kernels with NVRTC and has no LLVM: build with cubecl's feature cuda-cpp"
                .to_owned(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}

/// What the original has for NVIDIA's cards.
pub mod nvptx {
    /// The version of PTX that LLVM would write. NVRTC writes its own.
    pub mod ptx_version {
        use std::fmt;

        /// No version, as nothing is written.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// None, whatever the driver.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What the original has for all targets.
pub mod shared {
    /// What a device can do, less what LLVM can't.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// What would be compiled for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// The only one that cubecl-cuda names.
            Nvptx,
        }

        /// Takes nothing away: nothing is compiled by LLVM.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}
