//! BEAM files: the MD5 by which the VM tells module versions apart, and the facts a plan is made from.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Read;

use flate2::read::{GzDecoder, ZlibDecoder};
use md5::{Digest, Md5};

use crate::etf::{self, Etf, Reader};

/// Inflated size of a compressed file or literal chunk. The largest of OTP and Elixir are 1 MB.
const LARGEST: u64 = 256 * 1024 * 1024;

/// A chunk identifier, such as `Code`.
pub type Id = [u8; 4];

const REQUIRED: [&Id; 4] = [b"Code", b"StrT", b"ImpT", b"ExpT"];

/// The chunks of a file. The first of an identifier counts, as for the loader.
pub struct Beam<'a> {
    chunks: Vec<(Id, &'a [u8])>,
}

/// What `erlc +compressed` and `beam_lib:strip` write is a gzip file as a whole.
pub fn unpacked(bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut inflated = Vec::new();
        GzDecoder::new(bytes)
            .take(LARGEST)
            .read_to_end(&mut inflated)
            .ok()?;
        Some(Cow::Owned(inflated))
    } else {
        Some(Cow::Borrowed(bytes))
    }
}

impl<'a> Beam<'a> {
    /// `None` for what is not a BEAM file.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut reader = Reader { bytes };
        (reader.take(4)? == b"FOR1").then_some(())?;
        let size = reader.u32()?;
        let mut reader = Reader {
            bytes: reader.take(size)?,
        };
        (reader.take(4)? == b"BEAM").then_some(())?;

        let mut chunks: Vec<(Id, &[u8])> = Vec::with_capacity(16);
        while !reader.bytes.is_empty() {
            let id: Id = reader.take(4)?.try_into().ok()?;
            let size = reader.u32()?;
            chunks.push((id, reader.take(size)?));
            let padding = (4 - size % 4) % 4;
            // The last chunk may come without its padding.
            reader.take(padding.min(reader.bytes.len()))?;
        }
        let beam = Beam { chunks };
        REQUIRED
            .iter()
            .all(|id| beam.chunk(id).is_some())
            .then_some(beam)
    }

    pub fn chunk(&self, id: &Id) -> Option<&'a [u8]> {
        self.chunks
            .iter()
            .find(|(other, _data)| other == id)
            .map(|(_id, data)| *data)
    }

    /// MD5 over the data of the significant chunks in the VM's order.
    pub fn md5(&self, significant: &[Id]) -> [u8; 16] {
        self.digest(significant).finalize().into()
    }

    /// The same, and that of the file without the chunk `Meta`, which `mix release` of Elixir 1.14 strips.
    pub fn md5s(&self, significant: &[Id]) -> ([u8; 16], [u8; 16]) {
        let meta = significant.iter().position(|id| id == b"Meta");
        let (before, after) = significant.split_at(meta.unwrap_or(significant.len()));
        let bare = self.digest(before);
        let mut whole = bare.clone();
        self.update(&mut whole, after);
        let mut bare = bare;
        self.update(&mut bare, after.get(1..).unwrap_or_default());
        (whole.finalize().into(), bare.finalize().into())
    }

    fn digest(&self, ids: &[Id]) -> Md5 {
        let mut md5 = Md5::new();
        self.update(&mut md5, ids);
        md5
    }

    fn update(&self, md5: &mut Md5, ids: &[Id]) {
        for id in ids {
            match self.chunk(id) {
                Some(data) if id == b"FunT" => update_lambdas(md5, data),
                Some(data) => md5.update(data),
                None => {}
            }
        }
    }

    fn atoms(&self) -> Option<Vec<&'a [u8]>> {
        let mut reader = Reader {
            bytes: self.chunk(b"AtU8").or_else(|| self.chunk(b"Atom"))?,
        };
        let count = reader.u32()?;
        // OTP 28 writes a negative count when lengths are compact terms.
        let (count, long) = match u32::try_from(count).ok()?.cast_signed() {
            negative if negative < 0 => (negative.unsigned_abs(), true),
            count => (count.unsigned_abs(), false),
        };
        let mut atoms = Vec::new();
        for _ in 0..count {
            let length = match long {
                true => operand(&mut reader)?.1,
                false => reader.u8()?,
            };
            atoms.push(reader.take(length)?);
        }
        Some(atoms)
    }

    /// The first atom is the module's name.
    pub fn name(&self) -> Option<&'a [u8]> {
        let mut reader = Reader {
            bytes: self.chunk(b"AtU8").or_else(|| self.chunk(b"Atom"))?,
        };
        let long = reader.u32()? > 0x7fff_ffff;
        let length = match long {
            true => operand(&mut reader)?.1,
            false => reader.u8()?,
        };
        reader.take(length)
    }

    pub fn facts(&self) -> Option<Facts> {
        let atoms = self.atoms()?;
        let name = *atoms.first()?;
        let exports = self.exports(&atoms)?;
        let exported = |function: &[u8], arity| exports.contains(&(function, arity));
        let attributes = self.attributes();

        Some(Facts {
            code_change: match exported(b"code_change", 3) {
                false => CodeChange::None,
                true if self.is_identity(&atoms) => CodeChange::Identity,
                true => CodeChange::Own,
            },
            state_change: exported(b"code_change", 4),
            on_load: self.has_on_load(),
            struct_fields: match exported(b"__struct__", 0) {
                true => Some(self.struct_fields(name).unwrap_or_default()),
                false => None,
            },
            behaviours: attributes
                .iter()
                .filter(|(key, _values)| matches!(*key, b"behaviour" | b"behavior"))
                .flat_map(|(_key, values)| values.iter().map(|value| value.to_vec()))
                .collect(),
            components: exported(b"__components__", 0) || exported(b"__live__", 0),
        })
    }

    fn exports(&self, atoms: &[&'a [u8]]) -> Option<Vec<(&'a [u8], usize)>> {
        let mut reader = Reader {
            bytes: self.chunk(b"ExpT")?,
        };
        let count = reader.u32()?;
        let mut exports = Vec::new();
        for _ in 0..count {
            let name = *atoms.get(reader.u32()?.checked_sub(1)?)?;
            exports.push((name, reader.u32()?));
            reader.u32()?;
        }
        Some(exports)
    }

    /// Attributes whose values are atoms or lists of them.
    fn attributes(&self) -> Vec<(&'a [u8], Vec<&'a [u8]>)> {
        let Some(Etf::List(pairs)) = self.chunk(b"Attr").and_then(etf::parse) else {
            return Vec::new();
        };
        pairs
            .iter()
            .filter_map(|pair| match pair {
                Etf::Tuple(pair) => match pair.as_slice() {
                    [Etf::Atom(key), Etf::List(values)] => {
                        let atoms = values.iter().filter_map(|value| match value {
                            Etf::Atom(name) => Some(*name),
                            _other => None,
                        });
                        Some((*key, atoms.collect()))
                    }
                    [Etf::Atom(key), _value] => Some((*key, Vec::new())),
                    _other => None,
                },
                _other => None,
            })
            .collect()
    }

    /// Calls `visit` with each literal until it answers something.
    fn literals<T>(&self, mut visit: impl FnMut(&Etf) -> Option<T>) -> Option<T> {
        let (size, packed) = self.chunk(b"LitT")?.split_at_checked(4)?;
        let inflated = match size {
            // OTP 28 stores them as they are.
            [0, 0, 0, 0] => Cow::Borrowed(packed),
            _size => {
                let mut inflated = Vec::new();
                ZlibDecoder::new(packed)
                    .take(LARGEST)
                    .read_to_end(&mut inflated)
                    .ok()?;
                Cow::Owned(inflated)
            }
        };
        let mut reader = Reader { bytes: &inflated };
        let count = reader.u32()?;
        for _ in 0..count {
            let size = reader.u32()?;
            let found = etf::parse(reader.take(size)?).as_ref().and_then(&mut visit);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// All names that the code can use, those in literals included.
    pub fn names(&self) -> Option<BTreeSet<Vec<u8>>> {
        let mut names: BTreeSet<Vec<u8>> = self.atoms()?.iter().map(|name| name.to_vec()).collect();
        self.literals(|literal| {
            literal.each_atom(&mut |name| {
                names.insert(name.to_vec());
            });
            None::<()>
        });
        Some(names)
    }

    /// `__struct__/0` answers a literal: the map with the module's own name under `__struct__`.
    fn struct_fields(&self, name: &[u8]) -> Option<Vec<Vec<u8>>> {
        self.literals(|literal| match literal {
            Etf::Map(pairs) if pairs.contains(&(Etf::Atom(b"__struct__"), Etf::Atom(name))) => {
                let mut fields: Vec<Vec<u8>> = pairs
                    .iter()
                    .filter_map(|(key, _value)| match key {
                        Etf::Atom(b"__struct__") => None,
                        Etf::Atom(key) => Some(key.to_vec()),
                        _other => None,
                    })
                    .collect();
                fields.sort();
                Some(fields)
            }
            _other => None,
        })
    }

    /// Whether `code_change/3` is what `use GenServer` puts in: `{:ok, state}`.
    fn is_identity(&self, atoms: &[&[u8]]) -> bool {
        self.code_change_body(atoms)
            .and_then(|body| identity(body, atoms))
            .is_some()
    }

    /// Whether a function begins with the instruction that makes the loader run it. The attribute is not kept.
    fn has_on_load(&self) -> bool {
        let code = self.chunk(b"Code").unwrap_or_default();
        code.windows(FUNCTION.len())
            .enumerate()
            .filter(|(_at, window)| *window == FUNCTION)
            .filter_map(|(at, window)| code.get(at + window.len()..))
            .any(|rest| begins_with_on_load(rest).is_some())
    }

    /// The code behind `func_info Module, code_change, 3`.
    fn code_change_body(&self, atoms: &[&[u8]]) -> Option<&'a [u8]> {
        let code = self.chunk(b"Code")?;
        let index = 1 + atoms.iter().position(|atom| *atom == b"code_change")?;
        let mut head = FUNCTION.to_vec();
        head.extend(atom_operand(index)?);
        head.push(0x30);
        let at = code
            .windows(head.len())
            .position(|window| window == head.as_slice())?;
        code.get(at + head.len()..)
    }
}

/// Only the first 20 of the 24 bytes of a record count: the last four are taken from a hash that may change.
fn update_lambdas(md5: &mut Md5, data: &[u8]) {
    let Some((count, records)) = data.split_at_checked(4) else {
        return md5.update(data);
    };
    md5.update(count);
    let mut records = records.chunks_exact(24);
    for record in &mut records {
        md5.update(record.get(..20).unwrap_or_default());
        md5.update([0; 4]);
    }
    md5.update(records.remainder());
}

// The opcodes of lib/compiler/src/genop.tab, which never change their numbers.
const OP_LABEL: usize = 1;
const OP_TEST_HEAP: usize = 16;
const OP_RETURN: usize = 19;
const OP_ON_LOAD: usize = 149;
const OP_LINE: usize = 153;
const OP_PUT_TUPLE2: usize = 164;

const TAG_ATOM: usize = 2;
const TAG_X: usize = 3;

/// `func_info` with the first atom, the module's name.
const FUNCTION: [u8; 2] = [2, 0x12];

/// The rest of `func_info Module, Name, 0`, a label, and `on_load`.
fn begins_with_on_load(code: &[u8]) -> Option<()> {
    let mut reader = Reader { bytes: code };
    (operand(&mut reader)?.0 == TAG_ATOM).then_some(())?;
    (operand(&mut reader)? == (0, 0)).then_some(())?;
    loop {
        match reader.u8()? {
            OP_LABEL | OP_LINE => {
                operand(&mut reader)?;
            }
            OP_ON_LOAD => return Some(()),
            _other => return None,
        }
    }
}

/// Tag and value of a compact operand. `None` for the ones that no default `code_change/3` has.
fn operand(reader: &mut Reader) -> Option<(usize, usize)> {
    let byte = reader.u8()?;
    let tag = byte & 0b111;
    let value = match byte & 0b11000 {
        0b00000 | 0b10000 => byte >> 4,
        0b01000 => ((byte >> 5) << 8) | reader.u8()?,
        _longer => {
            let count = (byte >> 5) + 2;
            (count <= 4).then_some(())?;
            reader
                .take(count)?
                .iter()
                .fold(0, |value, &byte| (value << 8) | usize::from(byte))
        }
    };
    Some((tag, value))
}

fn atom_operand(index: usize) -> Option<Vec<u8>> {
    let tag = TAG_ATOM;
    match index {
        0..16 => Some(vec![u8::try_from((index << 4) | tag).ok()?]),
        16..2048 => Some(vec![
            u8::try_from(((index >> 8) << 5) | 0b01000 | tag).ok()?,
            u8::try_from(index & 0xff).ok()?,
        ]),
        2048..65536 => Some(vec![
            u8::try_from(0b11000 | tag).ok()?,
            u8::try_from(index >> 8).ok()?,
            u8::try_from(index & 0xff).ok()?,
        ]),
        _more => None,
    }
}

/// `{put_tuple2, {x,0}, {list, [{atom,ok}, {x,1}]}}, return`, whatever stands before it to mark lines or heap.
fn identity(body: &[u8], atoms: &[&[u8]]) -> Option<()> {
    let mut reader = Reader { bytes: body };
    loop {
        match reader.u8()? {
            OP_LABEL | OP_LINE => {
                operand(&mut reader)?;
            }
            OP_TEST_HEAP => {
                operand(&mut reader)?;
                operand(&mut reader)?;
            }
            OP_PUT_TUPLE2 => break,
            _other => return None,
        }
    }
    let ok = 1 + atoms.iter().position(|atom| *atom == b"ok")?;
    // Extended tag 1 is a list.
    let expected = [(TAG_X, 0), (7, 1), (0, 2), (TAG_ATOM, ok), (TAG_X, 1)];
    for wanted in expected {
        (operand(&mut reader)? == wanted).then_some(())?;
    }
    (reader.u8()? == OP_RETURN).then_some(())
}

/// How a callback module takes over state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "nif", derive(rustler::NifUnitEnum))]
pub enum CodeChange {
    None,
    /// Exported, and hands back the state as it is.
    Identity,
    Own,
}

/// What a plan wants to know of a changed or new module.
#[derive(Debug)]
pub struct Facts {
    pub code_change: CodeChange,
    /// `code_change/4`, that of `gen_statem`.
    pub state_change: bool,
    pub on_load: bool,
    /// Empty when the module makes a struct of unknown fields.
    pub struct_fields: Option<Vec<Vec<u8>>>,
    pub behaviours: Vec<Vec<u8>>,
    /// Whether templates are made of it: a LiveView, a live component or function components.
    pub components: bool,
}

#[cfg(feature = "nif")]
pub use nif::ids;

#[cfg(feature = "nif")]
mod nif {
    use rustler::{Binary, Encoder, Env, Term};

    use super::{unpacked, Beam, Facts, Id};
    use crate::error::{encode_bytes, Error};

    mod atoms {
        rustler::atoms! { code_change, state_change, on_load, struct_fields, behaviours, components }
    }

    impl Encoder for Facts {
        fn encode<'a>(&self, env: Env<'a>) -> Term<'a> {
            let names = |names: &[Vec<u8>]| -> Vec<Term<'a>> {
                names.iter().map(|name| encode_bytes(env, name)).collect()
            };
            let pairs = [
                (atoms::code_change(), self.code_change.encode(env)),
                (atoms::state_change(), self.state_change.encode(env)),
                (atoms::on_load(), self.on_load.encode(env)),
                (
                    atoms::struct_fields(),
                    self.struct_fields.as_deref().map(names).encode(env),
                ),
                (atoms::behaviours(), names(&self.behaviours).encode(env)),
                (atoms::components(), self.components.encode(env)),
            ];
            pairs.iter().fold(Term::map_new(env), |map, (key, value)| {
                // Fails only for what is not a map.
                map.map_put(*key, *value).unwrap_or(map)
            })
        }
    }

    /// Identifiers of four bytes; others cannot occur in a file.
    pub fn ids(names: &[Binary]) -> Vec<Id> {
        names
            .iter()
            .filter_map(|name| Id::try_from(name.as_slice()).ok())
            .collect()
    }

    const NOT_A_BEAM: Error = Error::BadArgument("beam");

    /// Both digests: of all significant chunks, and of those without `Meta`.
    #[rustler::nif(schedule = "DirtyCpu")]
    fn beam_md5s<'a>(
        env: Env<'a>,
        beam: Binary<'a>,
        significant: Vec<Binary<'a>>,
    ) -> Result<(Term<'a>, Term<'a>), Error> {
        let bytes = unpacked(&beam).ok_or(NOT_A_BEAM)?;
        let (whole, bare) = Beam::parse(&bytes)
            .ok_or(NOT_A_BEAM)?
            .md5s(&ids(&significant));
        Ok((encode_bytes(env, &whole), encode_bytes(env, &bare)))
    }

    #[rustler::nif(schedule = "DirtyCpu")]
    fn beam_facts(beam: Binary) -> Result<Facts, Error> {
        let bytes = unpacked(&beam).ok_or(NOT_A_BEAM)?;
        Beam::parse(&bytes)
            .and_then(|beam| beam.facts())
            .ok_or(NOT_A_BEAM)
    }

    /// Every name that the code can use: of a module to call, of a struct to make.
    #[rustler::nif(schedule = "DirtyCpu")]
    fn beam_names<'a>(env: Env<'a>, beam: Binary<'a>) -> Result<Vec<Term<'a>>, Error> {
        let bytes = unpacked(&beam).ok_or(NOT_A_BEAM)?;
        let names = Beam::parse(&bytes)
            .and_then(|beam| beam.names())
            .ok_or(NOT_A_BEAM)?;
        Ok(names.iter().map(|name| encode_bytes(env, name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(id: &Id, data: &[u8]) -> Vec<u8> {
        let mut bytes = id.to_vec();
        bytes.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = [b"BEAM".to_vec(), chunks.concat()].concat();
        let mut bytes = b"FOR1".to_vec();
        bytes.extend(u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn required() -> Vec<Vec<u8>> {
        REQUIRED.iter().map(|id| chunk(id, &id[..3])).collect()
    }

    #[test]
    fn only_the_listed_chunks_count_and_their_order_in_the_file_does_not() {
        let mut chunks = required();
        let plain = file(&chunks);
        chunks.reverse();
        chunks.push(chunk(b"Dbgi", b"anything"));
        let other = file(&chunks);
        let md5 = |bytes: &[u8]| Beam::parse(bytes).map(|beam| beam.md5(&[*b"Code", *b"StrT"]));
        assert_eq!(md5(&plain), md5(&other));
        assert_eq!(md5(&plain), Some(Md5::digest(b"CodStr").into()));
    }

    #[test]
    fn the_second_digest_leaves_meta_out_wherever_it_stands() {
        let mut chunks = required();
        chunks.push(chunk(b"Meta", b"m"));
        let bytes = file(&chunks);
        for (ids, whole, bare) in [
            (vec![*b"Code", *b"Meta"], "Codm", "Cod"),
            (vec![*b"Meta", *b"StrT"], "mStr", "Str"),
            (vec![*b"Code"], "Cod", "Cod"),
        ] {
            let md5s = Beam::parse(&bytes).map(|beam| beam.md5s(&ids));
            let expected = (Md5::digest(whole).into(), Md5::digest(bare).into());
            assert_eq!(md5s, Some(expected));
        }
    }

    #[test]
    fn lambdas_count_without_their_last_word() {
        let lambdas = |last_word: u8| {
            let mut bytes = vec![0, 0, 0, 1];
            bytes.extend([7; 20]);
            bytes.extend([last_word; 4]);
            bytes.extend([9; 3]);
            bytes
        };
        let mut chunks = required();
        chunks.push(chunk(b"FunT", &lambdas(7)));
        let bytes = file(&chunks);
        let md5 = Beam::parse(&bytes).map(|beam| beam.md5(&[*b"FunT"]));
        assert_eq!(md5, Some(Md5::digest(lambdas(0)).into()));
    }

    #[test]
    fn cut_and_foreign_files_are_no_beams() {
        let whole = file(&required());
        assert!(Beam::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert!(Beam::parse(whole.get(..length).unwrap_or_default()).is_none());
        }
        assert!(Beam::parse(&file(&[chunk(b"Code", b"x")])).is_none());
    }
}
