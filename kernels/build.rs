//! Compiles the kernels: with nvcc to cubins for sm_90a, which the binary carries (feature `cuda`), and with
//! g++ to a library that runs them on the host (feature `host-kernels`). Without either feature the script
//! does nothing.
//!
//! The script looks for nvcc in `CUDA_HOME`, in `PATH`, and in `.cuda`, where `scripts/cuda_toolkit.py`
//! installs it.

mod compiled;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs, thread};

use compiled::{Kernel, Table};

/// The committed table of what the kernels take and have.
const TABLE: &str = "kernels/compiled.txt";

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    let wanted = |feature: &str| env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if wanted("CUDA") {
        cubins(&out);
    }
    if wanted("HOST_KERNELS") {
        host_library(&out);
    }
}

/// The files of a folder with this extension, sorted.
fn sources(folder: &str, extension: &str) -> Vec<PathBuf> {
    let files =
        fs::read_dir(folder).expect("kernels can be read").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn stem(path: &Path) -> String {
    path.file_stem().expect("a file has a name").to_string_lossy().into_owned()
}

/// Runs a command. If it fails, the build fails and prints its standard error.
fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} cannot be started: {e}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// A compiled file.
struct Compiled {
    cubin: PathBuf,
    kernels: Vec<Kernel>,
}

/// Writes a cubin per file, and `cubins.rs`, a table of the cubins with the names of their kernels. The build
/// fails on the notes of ptxas that `compiled.rs` names, and if a kernel differs from its row in `TABLE`.
fn cubins(out: &Path) {
    let nvcc = nvcc();
    let compile = |source: PathBuf| {
        let (nvcc, cubin) = (nvcc.clone(), out.join(stem(&source)).with_extension("cubin"));
        thread::spawn(move || {
            let mut command = Command::new(nvcc);
            command.args(["-arch=sm_90a", "-std=c++20", "-O3", "-lineinfo", "-cubin", "-Xptxas", "-v", "-o"]);
            let log = run(command.arg(&cubin).arg(&source)).stderr;
            let code = fs::read(&cubin).expect("nvcc has written a cubin");
            let kernels = compiled::kernels(&String::from_utf8_lossy(&log), &code);
            Compiled { cubin, kernels: kernels.unwrap_or_else(|e| panic!("{}: {e}", source.display())) }
        })
    };
    let threads: Vec<_> = sources("kernels", "cu").into_iter().map(compile).collect();
    let files: Vec<Compiled> = threads.into_iter().map(|t| t.join().expect("a compilation failed")).collect();
    let rows: String = files.iter().map(row_of).collect();
    let table = format!(
        "/// Cubins and the names of their kernels.\npub const CUBINS: &[(&[u8], &[&str])] = &[\n{rows}];\n"
    );
    fs::write(out.join("cubins.rs"), table).expect("OUT_DIR can be written");
    let kernels = files.into_iter().flat_map(|file| file.kernels).collect();
    compare(&Table { compiler: version(&nvcc), kernels }, out);
}

/// A file's row in `cubins.rs`.
fn row_of(file: &Compiled) -> String {
    let names: Vec<String> = file.kernels.iter().map(Kernel::symbol).collect();
    format!("    (include_bytes!({:?}), &{names:?}),\n", file.cubin)
}

/// Writes `compiled.txt`, the table of what was compiled, and compares it with the committed one.
fn compare(found: &Table, out: &Path) {
    let copy = out.join("compiled.txt");
    fs::write(&copy, found.to_string()).expect("OUT_DIR can be written");
    let committed = fs::read_to_string(TABLE).unwrap_or_else(|e| panic!("{TABLE}: {e}"));
    let committed = Table::parse(&committed).unwrap_or_else(|e| panic!("{TABLE}: {e}"));
    let mut failures = String::new();
    for problem in committed.problems(found) {
        match problem.fails {
            true => failures += &format!("\n{}", problem.text),
            false => println!("cargo:warning={} (nvcc {})", problem.text, found.compiler),
        }
    }
    let compilers = format!("made with nvcc {}, compiled with nvcc {}", committed.compiler, found.compiler);
    assert!(
        failures.is_empty(),
        "kernels differ from {TABLE} ({compilers}):{failures}\n\
         If the change is meant, copy {} over {TABLE}.",
        copy.display()
    );
}

/// The version of nvcc, such as 13.0.88.
fn version(nvcc: &Path) -> String {
    let text = String::from_utf8_lossy(&run(Command::new(nvcc).arg("--version")).stdout).into_owned();
    let version = text.split(", V").nth(1).and_then(|rest| rest.split_whitespace().next());
    version.unwrap_or_else(|| panic!("{} --version has no version:\n{text}", nvcc.display())).to_owned()
}

fn nvcc() -> PathBuf {
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-env-changed=PATH");
    let name = Path::new("bin/nvcc");
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join(name));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let local = fs::canonicalize(".cuda/nvidia/cu13").ok().map(|home| home.join(name));
    let found = home.into_iter().chain(on_path).chain(local).find(|nvcc| nvcc.is_file());
    found.expect("no nvcc in CUDA_HOME, in PATH or in .cuda; scripts/cuda_toolkit.py gets one")
}

/// Builds `libkernels_host.so`, with the sanitizers that `OCTANT_SANITIZE` names, and tells the crate where
/// it is.
fn host_library(out: &Path) {
    println!("cargo:rerun-if-env-changed=OCTANT_SANITIZE");
    let sanitize: Vec<String> = match env::var("OCTANT_SANITIZE") {
        Ok(which) => vec![format!("-fsanitize={which}"), "-fno-sanitize-recover=all".to_owned()],
        Err(_) => Vec::new(),
    };
    // Instrumented kernels run for minutes, so they are optimised further.
    let level = if sanitize.is_empty() { "-O1" } else { "-O2" };
    let compile = |source: PathBuf| {
        let object = out.join(format!("{}.o", stem(&source)));
        let (level, flags) = match source.starts_with("kernels/host") {
            true => ("-O3", emulator_flags(&sanitize)),
            false => (level, sanitize.clone()),
        };
        thread::spawn(move || {
            let mut command = Command::new(env::var_os("CXX").unwrap_or_else(|| OsString::from("g++")));
            command.args([
                "-x",
                "c++",
                "-std=c++20",
                level,
                "-g",
                "-fPIC",
                "-ffp-contract=off",
                // Thread-local variables without calls that the address sanitizer intercepts.
                "-mtls-dialect=gnu2",
                "-DOCTANT_HOST",
            ]);
            command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]).args(flags);
            run(command.arg("-c").arg(&source).arg("-o").arg(&object));
            object
        })
    };
    let all = sources("kernels", "cu").into_iter().chain(sources("kernels/host", "cpp"));
    let threads: Vec<_> = all.map(compile).collect();
    let objects: Vec<PathBuf> =
        threads.into_iter().map(|t| t.join().expect("a compilation failed")).collect();
    let library = out.join("libkernels_host.so");
    let mut link = Command::new(env::var_os("CXX").unwrap_or_else(|| OsString::from("g++")));
    run(link.args(["-shared", "-o"]).arg(&library).args(&sanitize).args(objects));
    println!("cargo:rustc-env=OCTANT_HOST_KERNELS={}", library.display());
}

/// Returns the flags of `kernels/host`, which runs the kernels and accesses their memory in copies and
/// products only. With the address sanitizer it is not instrumented, because the instructions that it
/// emulates would take three times as long; a macro tells it to report its changes of stack to the sanitizer.
fn emulator_flags(sanitize: &[String]) -> Vec<String> {
    match sanitize.iter().any(|flag| flag.contains("address")) {
        true => vec!["-DOCTANT_ADDRESS_SANITIZER".to_owned()],
        false => sanitize.to_vec(),
    }
}
