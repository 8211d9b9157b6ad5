//! Compiled kernels: their registers, shared memory, and instructions that matter. `build.rs` compares these
//! with the committed table, `compiled.txt`, and `tests/it/compiled.rs` tests this file.
//!
//! The counts of instructions come from the cubin itself, so that no disassembler is needed.
//! `scripts/sass_counts.py` compares the encodings below with nvdisasm.

use std::collections::BTreeMap;
use std::fmt;

/// The prefix of the names of all kernels.
const PREFIX: &str = "octant_";

/// Bits of the first eight bytes of an instruction that tell the operation, whatever its operands.
const OPERATION: u64 = 0x1ff;

/// Products of a warpgroup of 16-bit and of 8-bit operands.
const HGMMA: u64 = 0x1f0;
const QGMMA: u64 = 0x1f3;

/// Loads from local memory and stores to it: spilled registers, and arrays whose index the compiler does not
/// know.
const LDL: u64 = 0x183;
const STL: u64 = 0x187;

/// The wait for earlier kernels (`wait_for_earlier`), and a read to L2 (`bulk_read_to_l2`), which overlaps
/// with them only if it comes before.
const ACQBULK: u64 = 0x02e;
const UBLKPF: u64 = 0x1bc;

/// Where an instruction that multiplies has its number of columns: in units of eight, less one.
const COLUMNS_SHIFT: u32 = 53;
const COLUMNS_MASK: u64 = 0x1f;

/// Bytes of an instruction.
const INSTRUCTION: usize = 16;

/// Notes of ptxas that the build does not accept: it ignores `setmaxnreg`, or serialises the products of a
/// warpgroup.
const SLOW: [&str; 2] = ["(C7508)", "(C7510)"];

/// The first lines of a table.
const HEADING: &str = "\
# Resources and counts of instructions of the compiled kernels. Columns: the kernel, registers of a thread,
# bytes of static shared memory, instructions that access local memory, reads to L2 before the kernel waits,
# products of a warpgroup. The build fails if a kernel takes more, or has fewer reads or other products. If
# the change is meant, copy compiled.txt of the build's output folder over this file.
";

/// A compiled kernel: what it takes of a multiprocessor, and its instructions that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Registers of a thread at launch.
    pub(crate) registers: u32,
    /// Bytes of static shared memory.
    pub(crate) shared: u32,
    /// The number of instructions that access local memory.
    pub(crate) local: u32,
    /// The number of reads to L2 before the kernel waits for earlier ones.
    pub(crate) reads: u32,
    /// The number of products of each shape, such as `QGMMA.64x128`.
    pub(crate) products: BTreeMap<String, u32>,
}

/// All kernels, and the compiler's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) compiler: String,
    pub(crate) kernels: Vec<Kernel>,
}

/// A difference between the committed table and what was compiled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) text: String,
    /// Whether the build fails. With another compiler than that of the table it fails only if a kernel lacks
    /// its products or spills although the table says that it does not.
    pub(crate) fails: bool,
}

impl Table {
    /// Reads a table that [`Display`](fmt::Display) wrote.
    ///
    /// # Errors
    /// A line has another form.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let compiler = lines.next().and_then(|line| line.strip_prefix("compiler "));
        let compiler = compiler.ok_or("the first line must be `compiler VERSION`")?.to_owned();
        Ok(Self { compiler, kernels: lines.map(Kernel::parse).collect::<Result<_, _>>()? })
    }

    /// How `found` differs from this table.
    pub(crate) fn problems(&self, found: &Self) -> Vec<Problem> {
        let same_compiler = self.compiler == found.compiler;
        let mut problems = Vec::new();
        for kernel in &found.kernels {
            match self.kernels.iter().find(|row| row.name == kernel.name) {
                Some(row) => row.compare(kernel, same_compiler, &mut problems),
                None => problems.push(Problem {
                    text: format!("{}: the table has no row for it", kernel.name),
                    fails: true,
                }),
            }
        }
        for row in &self.kernels {
            if !found.kernels.iter().any(|kernel| kernel.name == row.name) {
                let text = format!("{}: the table has a row for it, and there is no such kernel", row.name);
                problems.push(Problem { text, fails: true });
            }
        }
        problems
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}compiler {}", self.compiler)?;
        self.kernels.iter().try_for_each(|kernel| writeln!(f, "{kernel}"))
    }
}

impl Kernel {
    /// The kernel's name in its cubin.
    pub(crate) fn symbol(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn parse(line: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("`{line}`: {what}");
        let mut words = line.split_whitespace();
        let name = words.next().ok_or_else(|| wrong("expected the name of a kernel"))?.to_owned();
        let mut number = |what: &str| {
            let word = words.next().unwrap_or_default();
            word.parse().map_err(|_| wrong(&format!("{what}: expected a number, got `{word}`")))
        };
        let (registers, shared) = (number("registers")?, number("shared memory")?);
        let (local, reads) = (number("local memory")?, number("reads to L2")?);
        let mut products = BTreeMap::new();
        for word in words {
            let product = word.split_once('*').and_then(|(n, shape)| Some((n.parse().ok()?, shape)));
            let (count, shape) = product.ok_or_else(|| {
                wrong(&format!("expected COUNT*SHAPE, such as 4*QGMMA.64x128, got `{word}`"))
            })?;
            products.insert(shape.to_owned(), count);
        }
        Ok(Self { name, registers, shared, local, reads, products })
    }

    /// Adds what `found` exceeds or lacks.
    fn compare(&self, found: &Self, same_compiler: bool, problems: &mut Vec<Problem>) {
        let mut add = |fails: bool, what: String| {
            problems.push(Problem { text: format!("{}: {what}", self.name), fails: fails || same_compiler });
        };
        for (what, declared, found) in [
            ("registers", self.registers, found.registers),
            ("bytes of static shared memory", self.shared, found.shared),
        ] {
            if found > declared {
                add(false, format!("expected at most {declared} {what}, found {found}"));
            }
        }
        if found.local > self.local {
            let what = "instructions that access local memory (spilled registers)";
            add(self.local == 0, format!("expected at most {} {what}, found {}", self.local, found.local));
        }
        if found.reads < self.reads {
            let what = "reads to L2 before the kernel waits";
            add(found.reads == 0, format!("expected at least {} {what}, found {}", self.reads, found.reads));
        }
        if found.products != self.products {
            let shapes = |kernel: &Self| kernel.products.keys().cloned().collect::<Vec<_>>();
            let (expected, got) = (listed(&self.products), listed(&found.products));
            add(shapes(self) != shapes(found), format!("expected the products {expected}, found {got}"));
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {} {}", self.name, self.registers, self.shared, self.local, self.reads)?;
        self.products.iter().try_for_each(|(shape, count)| write!(f, " {count}*{shape}"))
    }
}

fn listed(products: &BTreeMap<String, u32>) -> String {
    let all: Vec<String> = products.iter().map(|(shape, count)| format!("{count}*{shape}")).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(" ") }
}

/// The kernels of a file, in the order of their names, from the file's cubin and from what `ptxas -v` wrote
/// about it.
///
/// # Errors
/// The log has a note of [`SLOW`], or names no kernel, or the cubin lacks a kernel that the log names.
pub(crate) fn kernels(log: &str, cubin: &[u8]) -> Result<Vec<Kernel>, String> {
    let mut found: Vec<Kernel> = Vec::new();
    for line in log.lines() {
        if SLOW.iter().any(|code| line.contains(code)) {
            return Err(line.trim().to_owned());
        }
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let name = rest.split('\'').next().unwrap_or_default();
            let name =
                name.strip_prefix(PREFIX).ok_or_else(|| format!("{name} lacks the prefix {PREFIX}"))?;
            found.push(Kernel { name: name.to_owned(), ..Kernel::default() });
        }
        let (Some((_, used)), Some(kernel)) = (line.split_once("Used "), found.last_mut()) else { continue };
        for item in used.split(", ") {
            let number = || item.split(' ').next().unwrap_or_default().parse().map_err(|_| line.to_owned());
            if item.ends_with(" registers") {
                kernel.registers = number()?;
            } else if item.ends_with(" bytes smem") {
                kernel.shared = number()?;
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    match found.iter().find(|kernel| kernel.registers == 0) {
        Some(kernel) => return Err(format!("ptxas does not say how many registers {} takes", kernel.name)),
        None if found.is_empty() => return Err(format!("ptxas names no kernel:\n{log}")),
        None => count_instructions(cubin, &mut found)?,
    }
    Ok(found)
}

/// Counts the instructions of a cubin's kernels. A cubin is an ELF file of 64 bits. The code of each kernel,
/// with all functions that it calls, is the section `.text.` and its name.
fn count_instructions(cubin: &[u8], kernels: &mut [Kernel]) -> Result<(), String> {
    let mut without_code: Vec<String> = kernels.iter().map(|kernel| kernel.name.clone()).collect();
    for section in sections(cubin).ok_or("the cubin is not a whole ELF file")? {
        let Some(name) = section.name.strip_prefix(".text.") else { continue };
        let known = name.strip_prefix(PREFIX).and_then(|name| kernels.iter_mut().find(|k| k.name == name));
        let kernel = known.ok_or_else(|| format!("ptxas does not name {name}, which the cubin has"))?;
        without_code.retain(|name| *name != kernel.name);
        let mut has_waited = false;
        for instruction in section.bytes.chunks_exact(INSTRUCTION) {
            let word = integer(instruction, 0, 8).unwrap_or_default();
            let operands = match word & OPERATION {
                HGMMA => "HGMMA",
                QGMMA => "QGMMA",
                LDL | STL => {
                    kernel.local += 1;
                    continue;
                }
                ACQBULK => {
                    has_waited = true;
                    continue;
                }
                UBLKPF if has_waited => {
                    return Err(format!("{} reads weights to L2 only after it has waited", kernel.name));
                }
                UBLKPF => {
                    kernel.reads += 1;
                    continue;
                }
                _ => continue,
            };
            let columns = ((word >> COLUMNS_SHIFT & COLUMNS_MASK) + 1) * 8;
            *kernel.products.entry(format!("{operands}.64x{columns}")).or_default() += 1;
        }
    }
    match without_code.first() {
        Some(name) => Err(format!("the cubin has no code of {name}")),
        None => Ok(()),
    }
}

struct Section<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

/// The sections of an ELF file; `None` if it is not one or is cut off.
fn sections(elf: &[u8]) -> Option<Vec<Section<'_>>> {
    /// The type of a section without bytes in the file.
    const NOBITS: u64 = 8;
    elf.strip_prefix(b"\x7fELF\x02\x01")?;
    let at = |bytes: &[u8], place, length| usize::try_from(integer(bytes, place, length)?).ok();
    let start = at(elf, 0x28, 8)?;
    let (size, count, names) = (at(elf, 0x3a, 2)?, at(elf, 0x3c, 2)?, at(elf, 0x3e, 2)?);
    let header = |index: usize| elf.get(start..)?.get(index.checked_mul(size)?..)?.get(..size);
    let bytes = |header: &[u8]| {
        let (offset, length) = (at(header, 24, 8)?, at(header, 32, 8)?);
        if integer(header, 4, 4)? == NOBITS { Some(&elf[..0]) } else { elf.get(offset..)?.get(..length) }
    };
    let names = bytes(header(names)?)?;
    let section = |index| {
        let header = header(index)?;
        let name = names.get(at(header, 0, 4)?..)?.split(|byte| *byte == 0).next()?;
        Some(Section { name: std::str::from_utf8(name).ok()?, bytes: bytes(header)? })
    };
    (0..count).map(section).collect()
}

/// The little-endian integer of `length` bytes at `at`.
fn integer(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.get(..length)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}
