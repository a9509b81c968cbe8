//! With CUDA, functions that are alike are kept once: what writes kernels is made of many such, and the binary is to be carried
//! to many nodes. Rust's own linker on this target can do it.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |name: &str| var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let has_cuda = var("CARGO_FEATURE_CUDA").is_ok();
    if has_cuda && (&*target("ARCH"), &*target("OS"), &*target("ENV")) == ("x86_64", "linux", "gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
