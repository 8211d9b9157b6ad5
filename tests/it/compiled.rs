//! The comparison of compiled kernels with their committed table, which the build does. Cubins are made here,
//! with instructions that nvcc has emitted.

#[path = "../../kernels/compiled.rs"]
mod table;

use table::{Kernel, Problem, Table, kernels};

/// First halves of instructions of the kernels, as nvdisasm 13.5.37 shows them.
const QGMMA_64X8: u64 = 0x0000_0000_0c18_79f3;
const QGMMA_64X128: u64 = 0x01e0_0000_0c18_79f3;
const HGMMA_64X16: u64 = 0x0020_0000_0c20_79f0;
/// With one operand in registers.
const HGMMA_64X48: u64 = 0x00a0_000c_2860_7df0;
const LDL: u64 = 0x0000_0000_1800_7983;
const STL: u64 = 0x0000_0007_0000_7387;
const ACQBULK: u64 = 0x0000_0000_0000_782e;
const UBLKPF: u64 = 0x0000_0000_0600_73bc;
const FADD: u64 = 0x0000_000c_0404_7221;
const LDS: u64 = 0x0000_0007_ff04_7984;
const STS: u64 = 0x0000_000c_0200_7388;

/// A section of a made cubin.
struct Section {
    name: &'static str,
    instructions: Vec<u64>,
}

fn section(name: &'static str, instructions: &[u64]) -> Section {
    Section { name, instructions: instructions.to_vec() }
}

/// An ELF file of 64 bits with these sections and that of their names.
fn cubin(sections: &[Section]) -> Vec<u8> {
    let mut names = vec![0];
    let mut body = Vec::new();
    // The first header is empty, as in every ELF file.
    let mut headers = vec![[0; 64]];
    let header = |name: usize, offset: usize, size: usize| {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&u32::try_from(name).unwrap().to_le_bytes());
        header[4] = 1;
        header[24..32].copy_from_slice(&(64 + offset as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        header
    };
    for section in sections {
        headers.push(header(names.len(), body.len(), 16 * section.instructions.len()));
        names.extend(section.name.bytes().chain([0]));
        for word in &section.instructions {
            body.extend(word.to_le_bytes());
            // Second halves of instructions hold no operation.
            body.extend(QGMMA_64X8.to_le_bytes());
        }
    }
    // The type NOBITS: without bytes in the file, so that its offset and size mean nothing here.
    let mut empty = header(names.len(), 1 << 40, 1 << 40);
    empty[4] = 8;
    headers.push(empty);
    names.extend(b".nv.shared.octant_small\0");
    headers.push(header(names.len(), body.len(), names.len() + b".shstrtab\0".len()));
    names.extend(b".shstrtab\0");
    body.extend(names);
    let mut elf = vec![0; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x28..0x30].copy_from_slice(&(64 + body.len() as u64).to_le_bytes());
    elf[0x3a] = 64;
    elf[0x3c] = headers.len() as u8;
    elf[0x3e] = headers.len() as u8 - 1;
    elf.extend(body);
    elf.extend(headers.concat());
    elf
}

/// The lines that `ptxas -v` writes about a kernel.
fn log_of(name: &str, used: &str) -> String {
    format!(
        "ptxas info    : Compiling entry function '{name}' for 'sm_90a'\n\
         ptxas info    : Function properties for {name}\n    \
         0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
         ptxas info    : Used {used}\n"
    )
}

fn log() -> String {
    let large = log_of("octant_large", "168 registers, used 4 barriers, 5120 bytes smem");
    let small = "40 registers, used 1 barriers, 16 bytes cumulative stack size";
    format!("ptxas info    : 0 bytes gmem\n{large}{}", log_of("octant_small", small))
}

fn sections() -> [Section; 3] {
    [
        section(".nv.info", &[QGMMA_64X8]),
        section(".text.octant_small", &[LDL, FADD, STL, LDS, STS]),
        section(
            ".text.octant_large",
            &[
                UBLKPF,
                UBLKPF,
                ACQBULK,
                QGMMA_64X128,
                FADD,
                QGMMA_64X128,
                HGMMA_64X48,
                QGMMA_64X8,
                HGMMA_64X16,
            ],
        ),
    ]
}

/// The table of the kernels that [`log`] and [`sections`] describe.
fn committed() -> Table {
    let text = "# A comment.\ncompiler 13.0.88\n\
                large 168 5120 0 2 1*HGMMA.64x16 1*HGMMA.64x48 2*QGMMA.64x128 1*QGMMA.64x8\n\
                small 40 0 2 0\n";
    Table::parse(text).unwrap()
}

fn compiled() -> Table {
    Table { compiler: "13.0.88".to_owned(), kernels: kernels(&log(), &cubin(&sections())).unwrap() }
}

/// The problems with a table in which a kernel was changed.
fn problems_after(change: impl Fn(&mut Kernel), kernel: usize, compiler: &str) -> Vec<Problem> {
    let mut found = compiled();
    found.compiler = compiler.to_owned();
    change(&mut found.kernels[kernel]);
    committed().problems(&found)
}

/// Changes the number of a kernel's products of a shape.
fn set(kernel: &mut Kernel, shape: &str, count: u32) {
    kernel.products.remove(shape);
    if count > 0 {
        kernel.products.insert(shape.to_owned(), count);
    }
}

#[test]
fn a_cubin_and_its_log_give_the_row_of_each_kernel() {
    assert_eq!(compiled(), committed());
    assert_eq!(committed().problems(&compiled()), []);
    assert_eq!(Table::parse(&committed().to_string()), Ok(committed()));
    assert_eq!(compiled().kernels[0].symbol(), "octant_large");
}

#[test]
fn a_kernel_that_takes_more_or_has_other_products_is_refused() {
    type Change = fn(&mut Kernel);
    let changes: [(Change, &str); 9] = [
        (|k| k.registers += 1, "large: expected at most 168 registers, found 169"),
        (|k| k.shared += 4, "large: expected at most 5120 bytes of static shared memory, found 5124"),
        (|k| k.local += 1, "large: expected at most 0 instructions that access local memory"),
        (|k| k.reads -= 1, "large: expected at least 2 reads to L2 before the kernel waits, found 1"),
        (|k| k.products.clear(), "found none"),
        (|k| set(k, "QGMMA.64x128", 0), "found 1*HGMMA.64x16 1*HGMMA.64x48 1*QGMMA.64x8"),
        (|k| set(k, "QGMMA.64x128", 1), "1*QGMMA.64x128 1*QGMMA.64x8"),
        (|k| set(k, "QGMMA.64x256", 4), "4*QGMMA.64x256"),
        (|k| k.name = "other".to_owned(), "other: the table has no row for it"),
    ];
    for (change, expected) in changes {
        let problems = problems_after(change, 0, "13.0.88");
        assert!(problems[0].fails && problems[0].text.contains(expected), "{problems:?}");
    }
    let problems = problems_after(|kernel| kernel.name = "other".to_owned(), 0, "13.0.88");
    assert!(problems[1].text.contains("large: the table has a row for it"), "{problems:?}");
    assert_eq!(problems_after(|kernel| kernel.registers -= 8, 0, "13.0.88"), []);
}

/// Another compiler may divide registers and loops otherwise, but every product must be there, and a kernel
/// without spills stays so.
#[test]
fn with_another_compiler_only_lost_products_and_spills_fail() {
    let fails = |change: fn(&mut Kernel), kernel| {
        let problems = problems_after(change, kernel, "13.2.78");
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].fails
    };
    assert!(!fails(|kernel| kernel.registers += 8, 0));
    assert!(!fails(|kernel| kernel.shared += 8, 0));
    assert!(!fails(|kernel| set(kernel, "QGMMA.64x128", 4), 0));
    assert!(!fails(|kernel| kernel.local += 4, 1));
    assert!(fails(|kernel| kernel.local += 4, 0));
    assert!(!fails(|kernel| kernel.reads -= 1, 0));
    assert!(fails(|kernel| kernel.reads = 0, 0));
    assert!(fails(|kernel| set(kernel, "QGMMA.64x8", 0), 0));
    assert!(fails(|kernel| set(kernel, "HGMMA.64x8", 1), 1));
}

#[test]
fn a_file_that_cannot_be_compared_is_refused() {
    let whole = cubin(&sections());
    for length in 0..whole.len() {
        assert!(kernels(&log(), &whole[..length]).is_err(), "{length} of {} bytes", whole.len());
    }
    let refusal = |log: &str, sections: &[Section]| kernels(log, &cubin(sections)).unwrap_err();
    let [info, small, large] = sections();
    assert!(refusal(&log(), &[info, large]).contains("no code of small"));
    let other = section(".text.octant_other", &[FADD]);
    let [_, _, large] = sections();
    assert!(refusal(&log(), &[small, large, other]).contains("does not name octant_other"));
    assert!(refusal("", &[]).contains("names no kernel"));
    let silent = log().replace("168 registers, ", "");
    assert!(refusal(&silent, &sections()).contains("how many registers large takes"));
    for code in ["C7508", "C7510"] {
        let note = format!("{}ptxas info    : ({code}) Potential Performance Loss\n", log());
        assert!(refusal(&note, &sections()).contains(code));
    }
}

/// A read that comes after the wait saves no time.
#[test]
fn weights_are_read_to_l2_before_a_kernel_waits() {
    let read = |instructions: &[u64]| {
        let [info, _, large] = sections();
        kernels(&log(), &cubin(&[info, section(".text.octant_small", instructions), large]))
    };
    assert!(read(&[UBLKPF, FADD, UBLKPF, ACQBULK, FADD]).is_ok());
    assert!(read(&[ACQBULK, FADD]).is_ok());
    let late = read(&[UBLKPF, ACQBULK, UBLKPF]).unwrap_err();
    assert!(late.contains("small reads weights to L2 only after it has waited"), "{late}");
}

#[test]
fn a_row_of_another_form_is_named() {
    for (text, expected) in [
        ("", "compiler VERSION"),
        ("large 168 0 0\n", "compiler VERSION"),
        ("compiler 13\nlarge 168 0\n", "local memory: expected a number, got ``"),
        ("compiler 13\nlarge 168 none 0\n", "shared memory: expected a number, got `none`"),
        ("compiler 13\nlarge 168 0 0 0 QGMMA.64x8\n", "expected COUNT*SHAPE"),
        ("compiler 13\nlarge 168 0 0 4*QGMMA.64x8\n", "reads to L2: expected a number"),
        ("compiler 13\n\n", "expected the name of a kernel"),
    ] {
        let error = Table::parse(text).unwrap_err();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

/// A launch may have 220 KiB of dynamic shared memory (`src/device/cuda/driver.rs`) of the 227 that a block
/// can have. The kernels that multiply have products of a warpgroup and spill no register; the others have no
/// products.
#[test]
fn the_committed_table_leaves_room_for_dynamic_shared_memory_and_has_all_products() {
    let table = Table::parse(include_str!("../../kernels/compiled.txt")).unwrap();
    for kernel in &table.kernels {
        assert!(kernel.shared <= (227 - 220) << 10, "{kernel}");
        let multiplies = kernel.name.starts_with("linear_")
            || ["attention_decode_", "attention_prefill_"].iter().any(|name| kernel.name.starts_with(name));
        assert_eq!(multiplies, !kernel.products.is_empty(), "{kernel}");
        assert!(!multiplies || kernel.local == 0, "{kernel}");
    }
}
