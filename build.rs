//! Compiles `src/runner` into a static program, which the binary embeds.
//!
//! The runner goes into containers that may be empty: it must not need a dynamic loader. A cargo
//! dependency cannot ask for other linking than its parent's, so the compiler is called directly.

use std::path::PathBuf;
use std::process::Command;
use std::{env, process};

fn main() {
    const SOURCE: &str = "src/runner/main.rs";
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let program = PathBuf::from(var("OUT_DIR")).join("meshwork-runner");
    let mut rustc = Command::new(var("RUSTC"));
    rustc
        .args(["--edition", "2024", "--crate-name", "meshwork_runner"])
        .args(["--target", &var("TARGET")])
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s"])
        .args(["-C", "panic=abort", "-C", "strip=symbols"])
        .arg("-o")
        .arg(&program)
        .arg(SOURCE);
    let linker = format!(
        "CARGO_TARGET_{}_LINKER",
        var("TARGET").to_uppercase().replace('-', "_")
    );
    if let Ok(linker) = env::var(linker) {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    match rustc.status() {
        Ok(status) if status.success() => {
            println!("cargo::rustc-env=MESHWORK_RUNNER={}", program.display());
        }
        other => {
            eprintln!(
                "the static runner did not compile ({other:?}): does this machine have a static C library (glibc: libc6-dev or glibc-static)?"
            );
            process::exit(1);
        }
    }
}
