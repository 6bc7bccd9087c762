//! For which processor and C library an ELF file was built. The bytes are untrusted.
//! Owner in Elixir: `BeamDeploy.Release.Platform`.

use elf::abi;
use elf::dynamic::DynamicTable;
use elf::endian::AnyEndian;
use elf::file::{parse_ident, Class, FileHeader};
use elf::parse::{ParseAt, ParsingTable};
use elf::segment::{ProgramHeader, SegmentTable};
use elf::string_table::StringTable;

#[cfg(feature = "nif")]
/// An emulator with debug information has some 40 MB, and what matters here comes first.
const LARGEST: u64 = 64 * 1024 * 1024;

/// Holds all that is asked of a program, which names its interpreter early.
pub const PREFIX: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86,
    X86_64,
    Arm,
    Aarch64,
    Riscv,
    Ppc64,
    S390,
    Other(u16),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libc {
    Glibc,
    Musl,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    pub machine: Machine,
    /// `None` for a file that is linked to none, or whose library is not known.
    pub libc: Option<Libc>,
}

/// `None` when the bytes are not ELF. They may be only the beginning of the file: then the libc of a shared
/// library may stay unknown.
pub fn facts(bytes: &[u8]) -> Option<Facts> {
    let (ident, rest) = bytes.split_at_checked(abi::EI_NIDENT)?;
    let ident: (AnyEndian, Class, u8, u8) = parse_ident(ident).ok()?;
    let header =
        FileHeader::parse_tail(ident, rest.get(..tail_size(ident.1)).unwrap_or(rest)).ok()?;
    let machine = match header.e_machine {
        abi::EM_386 => Machine::X86,
        abi::EM_X86_64 => Machine::X86_64,
        abi::EM_ARM => Machine::Arm,
        abi::EM_AARCH64 => Machine::Aarch64,
        abi::EM_RISCV => Machine::Riscv,
        abi::EM_PPC64 => Machine::Ppc64,
        abi::EM_S390 => Machine::S390,
        other => Machine::Other(other),
    };
    Some(Facts {
        machine,
        libc: libc_of(bytes, &header),
    })
}

fn tail_size(class: Class) -> usize {
    match class {
        Class::ELF32 => elf::file::ELF32_EHDR_TAILSIZE,
        Class::ELF64 => elf::file::ELF64_EHDR_TAILSIZE,
    }
}

fn libc_of(bytes: &[u8], header: &FileHeader<AnyEndian>) -> Option<Libc> {
    let size = ProgramHeader::validate_entsize(header.class, header.e_phentsize.into()).ok()?;
    let table = slice(
        bytes,
        header.e_phoff,
        (size * usize::from(header.e_phnum)) as u64,
    )?;
    let segments = SegmentTable::new(header.endianness, header.class, table);

    let interpreter = segments
        .iter()
        .find(|segment| segment.p_type == abi::PT_INTERP)
        .and_then(|segment| slice(bytes, segment.p_offset, segment.p_filesz))
        .and_then(libc_of_interpreter);
    interpreter.or_else(|| libc_of_needed(bytes, header, &segments))
}

fn libc_of_interpreter(path: &[u8]) -> Option<Libc> {
    let name = path.rsplit(|&byte| byte == b'/').next()?;
    if name.starts_with(b"ld-musl") {
        Some(Libc::Musl)
    } else if name.starts_with(b"ld-linux")
        || name.starts_with(b"ld64.so")
        || name.starts_with(b"ld.so")
    {
        Some(Libc::Glibc)
    } else {
        None
    }
}

fn libc_of_needed(
    bytes: &[u8],
    header: &FileHeader<AnyEndian>,
    segments: &ParsingTable<'_, AnyEndian, ProgramHeader>,
) -> Option<Libc> {
    let dynamic = segments
        .iter()
        .find(|segment| segment.p_type == abi::PT_DYNAMIC)?;
    let table = slice(bytes, dynamic.p_offset, dynamic.p_filesz)?;
    let entries = DynamicTable::new(header.endianness, header.class, table);
    let value = |tag| {
        entries
            .iter()
            .find(|entry| entry.d_tag == tag)
            .map(|entry| entry.d_val())
    };

    let strings = value(abi::DT_STRTAB)?;
    let size = value(abi::DT_STRSZ)?;
    let offset = segments.iter().find_map(|segment| {
        let inside = segment.p_type == abi::PT_LOAD
            && strings >= segment.p_vaddr
            && strings - segment.p_vaddr < segment.p_filesz;
        inside.then(|| segment.p_offset.checked_add(strings - segment.p_vaddr))?
    })?;
    let strings = StringTable::new(slice(bytes, offset, size)?);

    entries
        .iter()
        .take_while(|entry| entry.d_tag != abi::DT_NULL)
        .filter(|entry| entry.d_tag == abi::DT_NEEDED)
        .filter_map(|entry| strings.get_raw(usize::try_from(entry.d_val()).ok()?).ok())
        .find_map(|name| match name {
            b"libc.so.6" => Some(Libc::Glibc),
            b"libc.so" => Some(Libc::Musl),
            name if name.starts_with(b"libc.musl") => Some(Libc::Musl),
            _other => None,
        })
}

fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = usize::try_from(offset.checked_add(length)?).ok()?;
    bytes.get(start..end)
}

#[cfg(feature = "nif")]
mod nif {
    use std::ffi::OsStr;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::ffi::OsStrExt;

    use rustler::{Binary, Encoder, Env, Term};

    use super::{facts, Facts, Libc, Machine, LARGEST, PREFIX};
    use crate::error::Error;

    mod atoms {
        rustler::atoms! { machine, x86, x86_64, arm, aarch64, riscv, ppc64, s390, libc, glibc, musl }
    }

    impl Encoder for Machine {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            match self {
                Machine::X86 => atoms::x86().encode(env),
                Machine::X86_64 => atoms::x86_64().encode(env),
                Machine::Arm => atoms::arm().encode(env),
                Machine::Aarch64 => atoms::aarch64().encode(env),
                Machine::Riscv => atoms::riscv().encode(env),
                Machine::Ppc64 => atoms::ppc64().encode(env),
                Machine::S390 => atoms::s390().encode(env),
                Machine::Other(number) => (atoms::machine(), number).encode(env),
            }
        }
    }

    impl Encoder for Libc {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            match self {
                Libc::Glibc => atoms::glibc().encode(env),
                Libc::Musl => atoms::musl().encode(env),
            }
        }
    }

    impl Encoder for Facts {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            let facts = Term::map_new(env);
            let facts = facts
                .map_put(atoms::machine(), self.machine)
                .unwrap_or(facts);
            facts.map_put(atoms::libc(), self.libc).unwrap_or(facts)
        }
    }

    /// `nil` for a file that is not ELF.
    #[rustler::nif(schedule = "DirtyIo")]
    fn elf_facts(path: Binary) -> Result<Option<Facts>, Error> {
        let mut file = File::open(OsStr::from_bytes(path.as_slice()))?;
        let mut bytes = Vec::new();
        file.by_ref().take(PREFIX).read_to_end(&mut bytes)?;
        match facts(&bytes) {
            Some(Facts { libc: None, .. }) => {
                file.take(LARGEST).read_to_end(&mut bytes)?;
                Ok(facts(&bytes))
            }
            known => Ok(known),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap_or_default()
    }

    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
    fn tells_what_this_program_was_built_for() {
        let expected = Facts {
            machine: Machine::X86_64,
            libc: Some(Libc::Glibc),
        };
        assert_eq!(facts(&own()), Some(expected));
        assert_eq!(
            facts(own().get(..64 * 1024).unwrap_or_default()),
            Some(expected)
        );
    }

    #[test]
    fn other_bytes_are_not_elf() {
        assert_eq!(facts(b""), None);
        assert_eq!(facts(b"\x7fELF"), None);
        assert_eq!(facts(&[0; 4096]), None);
        assert_eq!(
            facts(b"#!/bin/sh\nexec erl \"$@\"\n##############################"),
            None
        );
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = own();
        let mut state: u64 = 0x5eed;
        for _round in 0..200_000 {
            let mut bytes = whole.get(..2048).unwrap_or_default().to_vec();
            for _damage in 0..4 {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % 1024;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = (state >> 20) as u8;
                }
            }
            facts(&bytes);
        }
    }
}
