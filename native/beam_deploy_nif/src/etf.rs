//! Reads the external term format as far as chunks of BEAM files use it. Names stay bytes: nothing from an archive
//! becomes an atom of the VM.

/// A term, as far as anybody here looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Etf<'a> {
    Atom(&'a [u8]),
    List(Vec<Etf<'a>>),
    Tuple(Vec<Etf<'a>>),
    Map(Vec<(Etf<'a>, Etf<'a>)>),
    Other,
}

/// Literals nest as deep as somebody wrote them; deeper ones are taken for hostile.
const DEEPEST: usize = 256;

/// The term of `bytes`, version byte included. `None` when they are not one.
pub fn parse(bytes: &[u8]) -> Option<Etf<'_>> {
    let mut reader = Reader { bytes };
    (reader.u8()? == 131).then_some(())?;
    reader.term(0)
}

impl Etf<'_> {
    /// Calls `visit` with each atom in the term.
    pub fn each_atom(&self, visit: &mut impl FnMut(&[u8])) {
        match self {
            Etf::Atom(name) => visit(name),
            Etf::List(terms) | Etf::Tuple(terms) => {
                terms.iter().for_each(|term| term.each_atom(visit));
            }
            Etf::Map(pairs) => pairs.iter().for_each(|(key, value)| {
                key.each_atom(visit);
                value.each_atom(visit);
            }),
            Etf::Other => {}
        }
    }
}

/// Takes big-endian fields off the front of a slice.
pub struct Reader<'a> {
    pub bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }

    pub fn u8(&mut self) -> Option<usize> {
        self.take(1)?.first().map(|&byte| byte.into())
    }

    pub fn u16(&mut self) -> Option<usize> {
        let bytes: [u8; 2] = self.take(2)?.try_into().ok()?;
        Some(u16::from_be_bytes(bytes).into())
    }

    pub fn u32(&mut self) -> Option<usize> {
        let bytes: [u8; 4] = self.take(4)?.try_into().ok()?;
        usize::try_from(u32::from_be_bytes(bytes)).ok()
    }

    fn term(&mut self, depth: usize) -> Option<Etf<'a>> {
        if depth > DEEPEST {
            return None;
        }
        // The tags of erts' external.h.
        match self.u8()? {
            97 => self.skip(1),
            98 => self.skip(4),
            70 => self.skip(8),
            99 => self.skip(31),
            77 => {
                let count = self.u32()?;
                self.skip(count.checked_add(1)?)
            }
            100 | 118 => {
                let count = self.u16()?;
                self.take(count).map(Etf::Atom)
            }
            115 | 119 => {
                let count = self.u8()?;
                self.take(count).map(Etf::Atom)
            }
            104 => {
                let count = self.u8()?;
                self.terms(count, depth).map(Etf::Tuple)
            }
            105 => {
                let count = self.u32()?;
                self.terms(count, depth).map(Etf::Tuple)
            }
            106 => Some(Etf::List(Vec::new())),
            107 => {
                let count = self.u16()?;
                self.skip(count)
            }
            108 => {
                let count = self.u32()?;
                let list = self.terms(count, depth)?;
                self.term(depth + 1)?;
                Some(Etf::List(list))
            }
            109 => {
                let count = self.u32()?;
                self.skip(count)
            }
            110 => {
                let count = self.u8()?;
                self.skip(count.checked_add(1)?)
            }
            111 => {
                let count = self.u32()?;
                self.skip(count.checked_add(1)?)
            }
            113 => {
                self.terms(3, depth)?;
                Some(Etf::Other)
            }
            116 => {
                let count = self.u32()?;
                let mut pairs = Vec::new();
                for _ in 0..count {
                    pairs.push((self.term(depth + 1)?, self.term(depth + 1)?));
                }
                Some(Etf::Map(pairs))
            }
            _other => None,
        }
    }

    fn skip(&mut self, count: usize) -> Option<Etf<'a>> {
        self.take(count).map(|_skipped| Etf::Other)
    }

    fn terms(&mut self, count: usize, depth: usize) -> Option<Vec<Etf<'a>>> {
        // Not reserved ahead: the count is the archive's claim.
        let mut terms = Vec::new();
        for _ in 0..count {
            terms.push(self.term(depth + 1)?);
        }
        Some(terms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_atoms_maps_and_what_lies_between() {
        // #{__struct__ => 'M', a => 1.0, b => <<"x">>}
        let mut bytes = vec![131, 116, 0, 0, 0, 3];
        bytes.extend([119, 10]);
        bytes.extend(b"__struct__");
        bytes.extend([119, 1, b'M', 119, 1, b'a', 70, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([119, 1, b'b', 109, 0, 0, 0, 1, b'x']);
        let map = Etf::Map(vec![
            (Etf::Atom(b"__struct__"), Etf::Atom(b"M")),
            (Etf::Atom(b"a"), Etf::Other),
            (Etf::Atom(b"b"), Etf::Other),
        ]);
        assert_eq!(parse(&bytes), Some(map));
    }

    #[test]
    fn what_is_cut_or_nests_without_end_is_none() {
        assert_eq!(parse(&[131, 108, 0xff, 0xff, 0xff, 0xff, 97, 1]), None);
        let mut deep = vec![131];
        deep.extend([104, 1].repeat(100_000));
        assert_eq!(parse(&deep), None);
    }
}
