//! Generates the table of registers: `registers.xml` (Mesa's, MIT, unchanged) with `registers_observed.xml` over it.
//!
//! The output is Rust source in `OUT_DIR/registers.rs`, included by `src/regcmd/registers.rs`, which defines the
//! types. A block becomes a module, a register a constant in it, a register's fields constants in a module of its
//! own; reserved bits are left out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

/// Blocks that a command stream can reach: domain in the XML, variant of `Block`, 16-bit target. DDMA, SDMA and
/// GLOBAL have no target that fits into a command word; only the kernel touches them.
const BLOCKS: [(&str, &str, u16); 10] = [
    ("PADDING", "Padding", 0),
    ("SYNC", "Sync", 0x0041),
    ("ENABLE", "Enable", 0x0081),
    ("PC", "Pc", 0x0101),
    ("CNA", "Cna", 0x0201),
    ("CORE", "Core", 0x0801),
    ("DPU", "Dpu", 0x1001),
    ("DPU_RDMA", "DpuRdma", 0x2001),
    ("PPU", "Ppu", 0x4001),
    ("PPU_RDMA", "PpuRdma", 0x8001),
];

#[derive(Clone)]
struct Field {
    name: String,
    low: u8,
    high: u8,
    source: Option<String>,
}

struct Register {
    name: String,
    source: Option<String>,
    fields: Vec<Field>,
}

/// Registers by (index into `BLOCKS`, offset).
type Table = BTreeMap<(usize, u16), Register>;

fn main() {
    let mut table = Table::new();
    for file in ["registers.xml", "registers_observed.xml"] {
        println!("cargo:rerun-if-changed={file}");
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file}: {error}"));
        let document = roxmltree::Document::parse(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        read(&document, &mut table);
    }
    println!("cargo:rerun-if-changed=build.rs");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
    let path = Path::new(&out).join("registers.rs");
    fs::write(&path, generate(&table)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn read(document: &roxmltree::Document<'_>, table: &mut Table) {
    for domain in document.root_element().children().filter(|node| node.has_tag_name_any("domain")) {
        let name = attribute(domain, "name");
        let Some(block) = BLOCKS.iter().position(|(domain, ..)| *domain == name) else { continue };
        for register in domain.children().filter(|node| node.has_tag_name_any("reg32")) {
            let offset = attribute(register, "offset").trim_start_matches("0x");
            let offset = u16::from_str_radix(offset, 16).unwrap_or_else(|error| panic!("{offset}: {error}"));
            let entry = table.entry((block, offset)).or_insert_with(|| Register {
                name: attribute(register, "name").to_owned(),
                source: register.attribute("source").map(str::to_owned),
                fields: Vec::new(),
            });
            entry.fields.extend(register.children().filter_map(field));
            entry.fields.sort_by_key(|field| field.low);
            let apart = entry.fields.windows(2).all(|pair| pair[0].high < pair[1].low);
            assert!(apart, "fields of {}.{} overlap", BLOCKS[block].0, entry.name);
        }
    }
}

/// A bitfield, or `None` for reserved bits and text between elements.
fn field(node: roxmltree::Node<'_, '_>) -> Option<Field> {
    if !node.has_tag_name_any("bitfield") {
        return None;
    }
    let name = attribute(node, "name");
    if name.starts_with("RESERVED") {
        return None;
    }
    let bit = |key: &str| {
        node.attribute(key).map(|text| text.parse::<u8>().unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    let (low, high) = match bit("pos") {
        Some(position) => (position, position),
        None => {
            (bit("low").expect("a bitfield has pos or low"), bit("high").expect("a bitfield has pos or high"))
        }
    };
    assert!(low <= high && high < 32, "{name}: bits {high}:{low}");
    Some(Field { name: name.to_owned(), low, high, source: node.attribute("source").map(str::to_owned) })
}

fn attribute<'a>(node: roxmltree::Node<'a, '_>, key: &str) -> &'a str {
    node.attribute(key).unwrap_or_else(|| panic!("{} without {key}", node.tag_name().name()))
}

/// Tag names whatever their namespace: Mesa's file has one, ours has none.
trait HasTagName {
    fn has_tag_name_any(&self, name: &str) -> bool;
}

impl HasTagName for roxmltree::Node<'_, '_> {
    fn has_tag_name_any(&self, name: &str) -> bool {
        self.is_element() && self.tag_name().name() == name
    }
}

fn generate(table: &Table) -> String {
    let mut out = String::new();
    for (index, (domain, variant, target)) in BLOCKS.iter().enumerate() {
        let registers = || table.range((index, 0)..=(index, u16::MAX));
        let module = domain.to_lowercase();
        line(&mut out, format!("/// Registers of block {domain}, target {target:#06x}."));
        line(&mut out, format!("pub mod {module} {{"));
        line(&mut out, "use super::{Block, Register};".to_owned());
        for (&(_, offset), register) in registers() {
            let name = &register.name;
            let fields =
                register.fields.iter().map(|field| format!("{}::{}", name.to_lowercase(), field.name));
            let fields = fields.collect::<Vec<_>>().join(", ");
            line(&mut out, format!("/// Offset {offset:#06x}.{}", source(&register.source)));
            line(
                &mut out,
                format!(
                    "pub const {name}: Register = Register {{ block: Block::{variant}, offset: {offset:#06x}, \
                     name: \"{name}\", fields: &[{fields}] }};"
                ),
            );
        }
        for (&(_, offset), register) in registers() {
            line(&mut out, format!("/// Fields of [`{}`].", register.name));
            line(&mut out, format!("pub mod {} {{", register.name.to_lowercase()));
            if !register.fields.is_empty() {
                line(&mut out, "use super::super::{Block, Field};".to_owned());
            }
            for Field { name, low, high, source: known } in &register.fields {
                line(&mut out, format!("/// Bits {high}:{low}.{}", source(known)));
                line(
                    &mut out,
                    format!(
                        "pub const {name}: Field = Field {{ block: Block::{variant}, register: {offset:#06x}, \
                         name: \"{name}\", low: {low}, high: {high} }};"
                    ),
                );
            }
            line(&mut out, "}".to_owned());
        }
        line(&mut out, "}".to_owned());
    }
    line(&mut out, "/// Every register of every block, by target and offset.".to_owned());
    line(&mut out, format!("pub static ALL: [Register; {}] = [", table.len()));
    for ((block, _), register) in table {
        line(&mut out, format!("{}::{},", BLOCKS[*block].0.to_lowercase(), register.name));
    }
    line(&mut out, "];".to_owned());
    out
}

fn source(source: &Option<String>) -> String {
    source.as_ref().map(|text| format!(" Source: {text}.")).unwrap_or_default()
}

fn line(out: &mut String, text: String) {
    writeln!(out, "{text}").expect("writing to a String cannot fail");
}
