//! Builds the eBPF programs and puts the objects `programs` and `stub` into `OUT_DIR`.
//!
//! `aya_build` does the same but fixes the compiler flags, and the programs need `-C target-cpu=v3` (atomics and 32-bit
//! jumps). Hence a child cargo of our own.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Bins of the package `bulkhead-ebpf`.
const OBJECTS: [&str; 3] = ["programs", "stub", "baseline"];
const TARGET: &str = "bpfel-unknown-none";
const TOOLCHAIN: &str = "BULKHEAD_EBPF_TOOLCHAIN";
const REMEDY: &str = "`make setup` installs what the eBPF build needs (Rust sources and bpf-linker)";

fn main() {
    // Not `main() -> Result`, which would bury the message under a backtrace where RUST_BACKTRACE is set.
    if let Err(error) = run() {
        eprintln!("{error:#}");
        process::exit(1);
    }
}

fn run() -> Result<()> {
    let manifest_dir = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    let workspace = manifest_dir.parent().context("the crate has no workspace")?;
    let package = workspace.join("dataplane-ebpf");
    for path in [package.join("src"), package.join("Cargo.toml"), workspace.join("Cargo.lock")] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!("cargo::rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo::rerun-if-env-changed=PATH");
    ensure!(var("CARGO_CFG_TARGET_ENDIAN")? == "little", "only little-endian machines are supported");

    // OUT_DIR is target/<profile>/build/<package>-<hash>/out. The child's directory does not depend on profile and hash, so
    // that `core` is built once; it is not the outer cargo's own, whose lock is held while this runs.
    let target_dir = out_dir.ancestors().nth(4).context("OUT_DIR is not below a target directory")?.join("ebpf");
    build(workspace, &target_dir)?;
    for object in OBJECTS {
        let built = target_dir.join(TARGET).join("release").join(object);
        fs::copy(&built, out_dir.join(object)).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    Ok(())
}

/// Runs cargo for the BPF target.
fn build(workspace: &Path, target_dir: &Path) -> Result<()> {
    let mut command = match toolchain()? {
        Some(toolchain) => {
            let mut command = Command::new("rustup");
            command.args(["run", &toolchain, "cargo"]);
            command
        }
        None => Command::new("cargo"),
    };
    command
        .current_dir(workspace)
        .args(["build", "--quiet", "--release", "--package", "bulkhead-ebpf", "--bins"])
        .args(["--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(target_dir);
    // What the outer cargo, rustup or clippy chose for the host does not hold for the child.
    for key in
        ["CARGO", "LD_LIBRARY_PATH", "RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"]
    {
        command.env_remove(key);
    }
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", var("CARGO_CFG_TARGET_ARCH")?);
    // By default the linker makes a call of every memset and memcpy, and a loop over bytes of what is called.
    let in_line = "-Clink-arg=--disable-expand-memcpy-in-order";
    let flags = [arch.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf", in_line, "-Ctarget-cpu=v3"];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // Building `core` is an unstable feature; only the child may use one.
    command.env("RUSTC_BOOTSTRAP", "1");
    for (key, value) in [("PANIC", "abort"), ("CODEGEN_UNITS", "1"), ("DEBUG", "2"), ("OPT_LEVEL", "3")] {
        command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    let output = command.output().with_context(|| format!("cannot run {command:?}; {REMEDY}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "the eBPF programs do not build ({}): {command:?}\n{stderr}\nIf a tool is missing: {REMEDY}",
            output.status
        );
    }
    for line in stderr.lines() {
        println!("cargo::warning={line}");
    }
    Ok(())
}

/// The rustup toolchain that has the sources of `core`: the one that is named, else `web` (Debian's compiler, linked by the
/// set-up), else `nightly`. `None` where there is no rustup: then cargo and its sources come from the system.
fn toolchain() -> Result<Option<String>> {
    if let Some(named) = env::var_os(TOOLCHAIN).filter(|named| !named.is_empty()) {
        return named
            .into_string()
            .map(Some)
            .map_err(|named| anyhow::anyhow!("{TOOLCHAIN}={} is no name", named.display()));
    }
    let Ok(list) = Command::new("rustup").args(["toolchain", "list"]).output() else {
        return Ok(None);
    };
    let list = String::from_utf8_lossy(&list.stdout);
    let names: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let chosen =
        (names.iter().find(|name| **name == "web")).or_else(|| names.iter().find(|name| name.starts_with("nightly")));
    match chosen {
        Some(name) => Ok(Some((*name).to_owned())),
        None => bail!(
            "no rustup toolchain builds eBPF (neither `web` nor `nightly` with rust-src, and {TOOLCHAIN} is not set); {REMEDY}"
        ),
    }
}

fn var(key: &str) -> Result<String> {
    let value: OsString = env::var_os(key).with_context(|| format!("cargo did not set {key}"))?;
    value.into_string().map_err(|value| anyhow::anyhow!("{key}={} is not Unicode", value.display()))
}
